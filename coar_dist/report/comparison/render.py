"""The page of a comparison: one HTML file that needs nothing else, with the style and the tables of the report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from coar_dist.errors import counted
from coar_dist.report.page.encoding import floats, integers
from coar_dist.version import VERSION

MOST_ROWS = 2000
"""Of a table on the page."""
_SCRIPTS = ("page/js/base", "page/js/tables", "page/js/charts", "comparison/comparison")
"""In the order in which they are run, as one script."""
_NUM_BINS = 40


@dataclass(frozen=True)
class ShownComparison:
    """What the page shows.

    Attributes:
        names: of the two sides.
        summary: the result in words.
        warnings: what makes the weights those of other questions.
        notes: what is to be kept in mind.
        example_ids: (n,) int64.
        labels: ``label`` and ``prediction`` of the examples.
        class_names: what classes are called, by label.
        examples, components, largest: the columns of the tables, by name; components and largest with ``name``.
        num_strongest: components whose overlap is told.
        differences: what differs besides, (what, of one, of the other).
        only: names of the components of one side alone, of either.
        reports: the addresses of the reports of the sides, where they are files.
    """

    names: tuple[str, str]
    summary: str
    warnings: Sequence[str]
    notes: Sequence[str]
    example_ids: NDArray[np.int64]
    labels: Mapping[str, NDArray[Any]]
    class_names: Mapping[int, str]
    examples: Mapping[str, NDArray[np.float64]]
    components: Mapping[str, Any]
    largest: Mapping[str, Any]
    num_strongest: int
    differences: Sequence[tuple[str, str, str]]
    only: tuple[Sequence[str], Sequence[str]]
    reports: tuple[str | None, str | None]


def rendered(comparison: ShownComparison) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined
    )
    scripts = "".join(_file(f"{name}.js") for name in _SCRIPTS)
    content = jinja2.utils.htmlsafe_json_dumps(_content(comparison), separators=(",", ":"), allow_nan=False)
    return environment.get_template("comparison/comparison.html").render(
        comparison=comparison,
        css=Markup(_file("page/page.css")),
        js=Markup(f'"use strict";\n(() => {{\n{scripts}}})();'),
        content=content,
        counted=counted,
        zip=zip,
        most_rows=MOST_ROWS,
        version=VERSION,
    )


def _content(comparison: ShownComparison) -> dict[str, Any]:
    """What the script draws and lists: of many examples those that agree least, of many components those whose means
    differ most."""
    examples, components, largest = comparison.examples, comparison.components, comparison.largest
    agreement = np.where(np.isfinite(examples["spearman"]), examples["spearman"], -np.inf)
    rows = np.argsort(agreement, kind="stable")[:MOST_ROWS]
    apart = np.abs(np.nan_to_num(components["mean_difference"]))
    places = np.argsort(-apart, kind="stable")[:MOST_ROWS]
    ids = comparison.example_ids
    defined = examples["spearman"][np.isfinite(examples["spearman"])]
    low = min(float(np.floor(10 * defined.min()) / 10), 0.9) if len(defined) else 0.0
    counts, _ = np.histogram(defined, bins=_NUM_BINS, range=(low, 1.0))
    return {
        "names": list(comparison.names),
        "reports": list(comparison.reports),
        "num_strongest": comparison.num_strongest,
        "histogram": {"edges": [low, 1.0], "counts": counts.tolist()},
        "examples": {
            "id": ids[rows].tolist(),
            **{name: _classes(values[rows], comparison.class_names) for name, values in comparison.labels.items()},
            **{name: floats(values[rows]) for name, values in examples.items()},
        },
        "components": {
            **{name: [components[name][i] for i in places] for name in ("name", "kind", "layer")},
            **{name: floats(values[places]) for name, values in components.items() if isinstance(values, np.ndarray)},
        },
        "largest": {
            "id": integers(largest["example_id"], int(ids.max(initial=0))),
            "name": largest["name"],
            **{name: floats(largest[name]) for name in ("one", "other", "difference", "z") if name in largest},
        },
    }


def _classes(values: NDArray[Any], names: Mapping[int, str]) -> list[str]:
    """What labels are called; empty where there is none."""
    if values.dtype.kind not in "iuf":
        return [str(value) for value in values]
    return [names.get(int(value), f"{value:g}") if np.isfinite(value) else "" for value in values]


def _file(name: str) -> str:
    return (resources.files("coar_dist.report") / name).read_text(encoding="utf-8")
