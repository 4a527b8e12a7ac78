"""What the page's script reads: one JSON document, most of it packed arrays (``encoding``)."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.groups import Numbers
from coar_dist.report.output_names import OutputName, is_prediction
from coar_dist.report.page.components import ShownComponents, strongest_groups
from coar_dist.report.page.encoding import floats, integers, scaled
from coar_dist.report.page.examples import ShownExamples
from coar_dist.report.page.gather import Gathered
from coar_dist.report.page.groupings import Grouping, in_words, other_columns
from coar_dist.report.page.looks import packed_looks
from coar_dist.report.page.maps import MAX_GROUPS, maps_of
from coar_dist.report.predictions import PNG
from coar_dist.store.examples import TARGET

_EXTREME_GROUPS = 4
_MAX_EXCERPTS = 300_000
"""Letters of texts of the examples that are not shown and stand in galleries."""


def content_of(found: Gathered, output: OutputName, fractions: list[float], most_ablated: int) -> dict[str, Any]:
    """Everything but the pictures.

    Args:
        found: in the run.
        output: what outputs are called.
        fractions: ablation fractions of the held-out designs.
        most_ablated: components that some held-out mask ablates.
    """
    components = found.run.components
    starts = zip(components.groups, components.offsets.tolist(), strict=False)
    return {
        "output": output.one,
        "outputs": output.many,
        "method": found.method.label,
        "num_examples": found.run.num_examples,
        "num_components": components.num_components,
        "fractions": fractions,
        "most_ablated": most_ablated,
        "groups": [
            {
                "name": group.name,
                "numbers": _in_steps(group.numbers),
                "start": start,
                "kind": group.kind,
                "layer": group.module if group.layer is None else group.layer,
            }
            for group, start in starts
        ],
        "classes": {str(label): found.class_names[label] for label in _labels(found) if label in found.class_names},
        "groupings": [_of_grouping(grouping) for grouping in found.groupings],
        "components": _of_components(found.components, found.groupings, found.run.num_examples),
        "examples": _of_examples(found),
        "looks": packed_looks(found.looks),
        "tokens": _tokens(found),
        "others": _others(found),
        "maps": maps_of(found),
    }


def with_images(found: Gathered, content: dict[str, Any], budget: int) -> dict[str, Any]:
    """The content with as many pictures as ``budget`` letters hold: of the shown examples first, then of those that the
    strongest components matter most for, and nearest ones."""
    images: dict[str, str] = {}
    wanted = dict.fromkeys([*found.examples.ids.tolist(), *found.in_galleries.tolist()])
    for example_id in wanted:
        if example_id in found.images:
            url = _data_url(found.images[example_id])
            budget -= len(url) + 16
            if budget < 0:
                break
            images[str(example_id)] = url
    num = sum(example_id in found.images for example_id in wanted)
    return content | {"images": images, "num_images": num}


def _of_grouping(grouping: Grouping) -> dict[str, Any]:
    """Of many groups the names of those that are spoken of stand elsewhere."""
    is_small = len(grouping.values) <= 2000
    return {
        "name": grouping.name,
        "values": grouping.values if is_small else [],
        "labels": grouping.labels if is_small else [],
        "counts": grouping.counts.tolist() if is_small else [],
    }


def _of_components(shown: ShownComponents, groupings: list[Grouping], num_examples: int) -> dict[str, Any]:
    largest = int(shown.ids.max(initial=0))
    most = max(num_examples, 1)
    return {
        "num": len(shown.ids),
        "ids": integers(shown.ids, largest),
        "mean": floats(shown.mean),
        "strength": floats(shown.strength),
        "spread": floats(shown.spread),
        "errors": None if shown.standard_errors is None else floats(shown.standard_errors),
        "raised": integers(shown.raised, most),
        "raised_by": scaled(shown.raised_by),
        "lowered": integers(shown.lowered, most),
        "lowered_by": scaled(shown.lowered_by),
        "edges": floats(shown.edges),
        "histogram": integers(shown.histogram, most),
        "by_group": [
            None if means is None or halves is None else _of_means(means, halves, grouping)
            for means, halves, grouping in zip(shown.by_group, shown.halves, groupings, strict=True)
        ],
        "similar": integers(shown.similar, max(len(shown.ids), 1)),
        "cosines": scaled(shown.cosines),
        "num_compared": len(shown.similar),
    }


def _of_means(means: NDArray[np.float64], halves: NDArray[np.float64], grouping: Grouping) -> dict[str, Any]:
    """All of them, or of many groups each component's extreme ones with their names and numbers of examples."""
    if means.shape[1] <= MAX_GROUPS:
        return {"means": scaled(means), "halves": scaled(halves, "i8")}
    at = strongest_groups(means, _EXTREME_GROUPS)
    names, counts = {int(group): grouping.values[group] for group in np.unique(at)}, grouping.counts
    return {
        "at": integers(at, means.shape[1]),
        "means": scaled(np.take_along_axis(means, at, axis=1)),
        "halves": scaled(np.take_along_axis(halves, at, axis=1), "i8"),
        "counts": {group: int(counts[group]) for group in names},
        "names": names,
    }


def _of_examples(found: Gathered) -> dict[str, Any]:
    shown: ShownExamples = found.examples
    alone = shown.alone
    ids, table = shown.ids, found.table
    columns = other_columns(table)
    return {
        "ids": ids.tolist(),
        "label": _whole_or_none(table["label"][ids]),
        "prediction": _whole_or_none(table["prediction"][ids]),
        "margin": floats(table["margin"][ids].astype(np.float64)),
        "correlation": floats(found.correlations[ids]),
        "codes": [grouping.codes[ids].tolist() for grouping in found.groupings],
        "columns": {name: [in_words(value) for value in values[ids]] for name, values in columns.items()},
        "targets": floats(columns[TARGET][ids]) if has_targets(found) else None,
        "excerpts": [found.excerpt_of(example_id) for example_id in ids.tolist()],
        "components": None
        if shown.components is None
        else integers(shown.components, found.run.components.num_components),
        "weights": scaled(shown.weights),
        "standard_errors": None if shown.standard_errors is None else scaled(shown.standard_errors, "i8"),
        "num_weights": shown.weights.shape[1],
        "base": floats(shown.intercepts),
        "whole": floats(shown.whole),
        "column": shown.column,
        "num_masks": shown.true.shape[1],
        "num_evaluated": list(found.run.held_out.values())[shown.column].num_masks,
        "predicted": scaled(shown.predicted),
        "true": scaled(shown.true),
        "errors": floats(shown.errors),
        "sizes": floats(shown.by_size.sizes),
        "errors_by_size": floats(shown.by_size.errors),
        "scales": floats(shown.by_size.scales),
        "alone": None if alone is None else integers(alone.components, found.run.components.num_components),
        "alone_outputs": None if alone is None else scaled(alone.outputs),
        "nearest": integers(shown.nearest, max(found.run.num_examples, 1)),
        "cosines": scaled(shown.cosines),
        "num_compared": shown.num_compared,
    }


def has_targets(found: Gathered) -> bool:
    """Whether outputs are what a regression predicts, and its targets are known."""
    targets = found.table.get(TARGET)
    return targets is not None and targets.dtype.kind == "f" and is_prediction(found.run.identity)


def _others(found: Gathered) -> dict[str, Any]:
    """Classes and texts of the examples in galleries that are not shown."""
    table, left = found.table, _MAX_EXCERPTS
    others: dict[str, Any] = {}
    for example_id in found.in_galleries[~np.isin(found.in_galleries, found.examples.ids)].tolist():
        excerpt = found.excerpt_of(example_id)
        label, prediction = (_whole_or_none(table[name][[example_id]])[0] for name in ("label", "prediction"))
        left -= 30 + len(excerpt or "")
        if left < 0:
            break
        others[str(example_id)] = [label, prediction, excerpt]
    return others


def _tokens(found: Gathered) -> dict[str, list[str]]:
    """Of the shown examples and of those that components look at, by example id."""
    left, tokens = _MAX_EXCERPTS, {}
    looked_at = [example.example_id for looks in found.looks.values() for example in looks.examples]
    for example_id in dict.fromkeys([*looked_at, *found.examples.ids.tolist()]):
        of_example = found.tokens_of(example_id)
        if of_example is None:
            break
        left -= sum(map(len, of_example)) + 3 * len(of_example) + 10
        if left < 0:
            break
        tokens[str(example_id)] = of_example
    return tokens


def _labels(found: Gathered) -> list[int]:
    """The classes that shown examples have or are taken for, and those of examples in galleries."""
    ids = np.union1d(found.examples.ids, found.in_galleries)
    values = np.concatenate([found.table[name][ids].astype(np.float64) for name in ("label", "prediction")])
    return [int(label) for label in np.unique(values[np.isfinite(values)])]


def _whole_or_none(values: NDArray[Any]) -> list[int | None]:
    return [int(value) if math.isfinite(value) else None for value in values.tolist()]


def _in_steps(of_group: Numbers) -> list[Any]:
    """The first and the step, or all of them."""
    return [of_group.start, of_group.step] if isinstance(of_group, range) else [list(of_group)]


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
