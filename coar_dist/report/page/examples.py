"""The examples that the page shows, their strongest components, and the examples that each of those matters most for.

A small run shows all its examples, a large one a sample: those that are predicted worst and best, wrong
predictions of the model, and others at random. The attributions are read twice, one block in memory at a time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.evaluation.correlation import predict
from coar_dist.report.page.layers import LayerShares, LayerSums
from coar_dist.report.summary import Summary
from coar_dist.store.examples import ExampleTable
from coar_dist.store.previews import PreviewTable
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory

MAX_SHOWN = 500
_NUM_COMPONENTS = 12
"""Strongest components of an example: half of them raise its output, half lower it."""
_NUM_MASKS = 100
"""Held-out masks of a scatter plot."""
_MAX_GALLERIES = 200
_GALLERY = 5
"""Examples that a component raises most, and as many that it lowers most."""
_SEED = 0


@dataclass(frozen=True)
class ShownExample:
    """One example of the page.

    Attributes:
        example_id: its id in the run.
        label: its class; None where targets are not classes.
        prediction: the class that the unablated model predicts; None where targets are not classes.
        margin: the unablated model's; NaN where it is not known.
        correlation: between predicted and true margins at the training fraction; NaN where undefined.
        components: (k,) ids of its strongest components, by falling weight.
        weights: (k,) float32 weights of these components.
        predicted: (num_masks,) predicted margins under the first held-out masks.
        true: (num_masks,) true margins under the same masks.
        image: PNG or JPEG, where the run has it.
        excerpt: the beginning of its text, where the run has it.
    """

    example_id: int
    label: int | None
    prediction: int | None
    margin: float
    correlation: float
    components: NDArray[np.int64]
    weights: NDArray[np.float32]
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]
    image: bytes | None
    excerpt: str | None


@dataclass(frozen=True)
class Gallery:
    """The examples that one component matters most for, among all examples of the run.

    Attributes:
        component_id: the component.
        raised: (example id, weight), the largest weight first.
        lowered: (example id, weight), the smallest weight first.
    """

    component_id: int
    raised: list[tuple[int, float]]
    lowered: list[tuple[int, float]]


@dataclass(frozen=True)
class ShownExamples:
    """What the page shows of single examples.

    Attributes:
        method: whose attributions.
        num_examples: of the run.
        design: the held-out design of the scatter plots.
        shown: in the order of their ids.
        galleries: of the components that are strongest most often.
        others: image and excerpt of every example in a gallery that is not among ``shown``.
        layers: shares of the weight by layer, over all examples.
        damaged_previews: what is wrong with the files whose pictures are not shown.
    """

    method: str
    num_examples: int
    design: str
    shown: list[ShownExample]
    galleries: list[Gallery]
    others: dict[int, tuple[bytes | None, str | None]]
    layers: LayerShares
    damaged_previews: list[str]


def gather_examples(run: RunDirectory, summary: Summary) -> ShownExamples:
    """Read what the page shows of single examples.

    Args:
        run: evaluated.
        summary: of the run; the first method's attributions are shown.

    Raises:
        MissingWorkError: attributions or held-out margins are missing.
        DamagedFileError: a file is damaged.
    """
    method = summary.methods[0]
    column = summary.trained_column or 0
    design = list(summary.held_out)[column]
    examples = ExampleTable(run).read()
    chosen = choose(examples, method.correlations[:, column])
    layers = LayerSums(run.components, examples["label"])
    weights = np.empty((len(chosen), run.components.num_components), dtype=np.float32)
    intercepts = np.empty(len(chosen))
    for rows, of_block, intercepts_of_block in RunReader(run).attributions_by_block(method=method.method):
        layers.add(rows, of_block)
        _, at, within = np.intersect1d(chosen, rows, assume_unique=True, return_indices=True)
        weights[at], intercepts[at] = of_block[within], intercepts_of_block[within]
    masks, margins = _first_margins(run, design, chosen)
    predicted = predict(masks, weights, intercepts)
    strongest = [_strongest(row) for row in weights]
    galleries = _galleries(run, method.method, strongest)
    in_galleries = {example for gallery in galleries for example, _ in (*gallery.raised, *gallery.lowered)}
    previews, damaged = PreviewTable(run).read(sorted({*chosen.tolist(), *in_galleries}))
    excerpts = examples.get("excerpt")

    def excerpt_of(example_id: int) -> str | None:
        return None if excerpts is None or excerpts.dtype.kind != "U" else str(excerpts[example_id])

    shown = [
        ShownExample(
            example_id=example_id,
            label=_class(examples["label"][example_id]),
            prediction=_class(examples["prediction"][example_id]),
            margin=float(examples["margin"][example_id]),
            correlation=float(method.correlations[example_id, column]),
            components=strongest[i],
            weights=weights[i, strongest[i]],
            predicted=predicted[:, i],
            true=margins[:, i].astype(np.float64),
            image=previews.get(example_id),
            excerpt=excerpt_of(example_id),
        )
        for i, example_id in enumerate(chosen.tolist())
    ]
    others = {i: (previews.get(i), excerpt_of(i)) for i in sorted(in_galleries - set(chosen.tolist()))}
    return ShownExamples(method.label, run.num_examples, design, shown, galleries, others, layers.result(), damaged)


def choose(examples: dict[str, NDArray[Any]], correlations: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ids of at most ``MAX_SHOWN`` examples, ascending: all, or of each kind a sixth and the rest at random.

    Args:
        examples: the columns of ``examples.parquet``.
        correlations: (num_examples,) of predicted and true margins, NaN = undefined.
    """
    num_examples = len(correlations)
    if num_examples <= MAX_SHOWN:
        return np.arange(num_examples)
    random = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
    share = MAX_SHOWN // 6
    defined = np.flatnonzero(np.isfinite(correlations))
    order = defined[np.argsort(correlations[defined], kind="stable")]
    label, prediction = examples["label"], examples["prediction"]
    known = np.isfinite(label.astype(np.float64)) & np.isfinite(prediction.astype(np.float64))
    wrong = random.permutation(np.flatnonzero(known & (label != prediction)))
    undefined = np.flatnonzero(~np.isfinite(correlations))
    chosen = np.unique(np.concatenate([order[:share], order[len(order) - share :], wrong[:share], undefined[:share]]))
    rest = random.permutation(np.setdiff1d(np.arange(num_examples), chosen))
    return np.sort(np.concatenate([chosen, rest[: MAX_SHOWN - len(chosen)]]))


def few_of(shown: list[ShownExample], num: int = 6) -> list[ShownExample]:
    """Evenly spread over the order of correlations, the best one first; those with undefined ones only for want of
    others."""
    order = sorted(shown, key=lambda example: -np.inf if np.isnan(example.correlation) else example.correlation)
    defined = [example for example in order if np.isfinite(example.correlation)] or order
    places = np.unique(np.linspace(0, len(defined) - 1, num).round().astype(int))
    return [defined[i] for i in places[::-1]]


def _first_margins(
    run: RunDirectory, design: str, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The first held-out masks (num_masks, num_components), and the chosen examples' margins (num_masks, n)."""
    store = run.margins(design)
    num_masks = min(store.num_masks, _NUM_MASKS)
    margins = np.empty((num_masks, len(chosen)), dtype=np.float32)
    masks = np.empty((0, store.num_components), dtype=np.bool_)
    for first, end in store.blocks:
        at = np.flatnonzero((chosen >= first) & (chosen < end))
        if at.size:
            masks, of_block = next(store.read((first, end), num_masks, (0, num_masks)))
            margins[:, at] = of_block[:, chosen[at] - first]
    return masks, margins


def _strongest(weights: NDArray[np.float32]) -> NDArray[np.int64]:
    """Ids of the components with the largest and the smallest weights, falling in weight; none of weight 0."""
    num = min(_NUM_COMPONENTS // 2, len(weights) // 2 or 1)
    ends = np.argpartition(weights, (num - 1, len(weights) - num))
    ids = np.unique(np.concatenate([ends[:num], ends[len(weights) - num :]]))
    ids = ids[weights[ids] != 0]
    return np.asarray(ids[np.argsort(-weights[ids], kind="stable")])


def _galleries(run: RunDirectory, method: str, strongest: list[NDArray[np.int64]]) -> list[Gallery]:
    counts = Counter(component for ids in strongest for component in ids.tolist())
    ids = np.array(sorted(component for component, _ in counts.most_common(_MAX_GALLERIES)), dtype=np.int64)
    if not ids.size:
        return []
    top, bottom = _Extremes(len(ids)), _Extremes(len(ids))
    for rows, weights, _ in RunReader(run).attributions_by_block(method=method):
        of_components = weights[:, ids]
        top.add(rows, of_components)
        bottom.add(rows, -of_components)
    raised, lowered = top.pairs(1.0), bottom.pairs(-1.0)
    return [Gallery(int(component), raised[i], lowered[i]) for i, component in enumerate(ids)]


class _Extremes:
    """Per column the rows with the largest values, over blocks of rows."""

    def __init__(self, num_columns: int) -> None:
        self._values = np.full((0, num_columns), -np.inf, dtype=np.float32)
        self._rows = np.zeros((0, num_columns), dtype=np.int64)

    def add(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        values = np.concatenate([self._values, values])
        all_rows = np.concatenate([self._rows, np.broadcast_to(rows[:, None], (len(rows), values.shape[1]))])
        order = np.argsort(-values, axis=0, kind="stable")[:_GALLERY]
        self._values = np.take_along_axis(values, order, axis=0)
        self._rows = np.take_along_axis(all_rows, order, axis=0)

    def pairs(self, sign: float) -> list[list[tuple[int, float]]]:
        """Per column (row, value times ``sign``), those above 0 alone."""
        return [
            [(int(row), sign * float(value)) for row, value in zip(rows, values, strict=True) if value > 0]
            for rows, values in zip(self._rows.T, self._values.T, strict=True)
        ]


def _class(value: Any) -> int | None:
    return int(value) if np.isfinite(value) else None
