"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from coar_dist.errors import counted
from coar_dist.report import numbers
from coar_dist.report.output_names import output_name
from coar_dist.report.page import FOLDER, PAGE
from coar_dist.report.page.circuits import circuits_of
from coar_dist.report.page.content import content_of, has_targets, with_images
from coar_dist.report.page.facts import facts_of, findings_of, identity_of, tiles_of, unablated_of
from coar_dist.report.page.gather import Gathered, gather
from coar_dist.report.page.history import history_of
from coar_dist.report.page.layers import LayerShares
from coar_dist.report.page.page_figures import InlineFigure, figures_of, saved
from coar_dist.report.page.verdict import verdict_of
from coar_dist.report.summary import Summary, forecast_in_words
from coar_dist.store.ceilings import CEILING_LABEL
from coar_dist.store.edits import edit_names
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import value_in_words

if TYPE_CHECKING:
    from coar_dist.report.page.edits import ShownEdit

_MASKS_AT_ONCE = 64
_PAGE_BYTES = 2_950_000
"""Of the whole page; pictures fill what the rest leaves."""
_SCRIPTS = (
    *("base", "data", "tables", "charts", "looks"),
    *("components", "whatif", "examples", "maps", "overview", "router"),
)
"""Files of ``js/`` in the order in which they are run, as one script."""


@dataclass(frozen=True)
class _LayerRow:
    parameter: str
    num_components: int
    share: float
    against_even: float


def write_page(run: RunDirectory, summary: Summary) -> None:
    """Write ``report/index.html``, and its figures beside it as ``.png`` and ``.svg``.

    Args:
        run: evaluated.
        summary: of the run.

    Raises:
        StorageError: they cannot be written.
        MissingWorkError, DamagedFileError: what the page shows is missing or damaged.
    """
    found = gather(run, summary)
    output = output_name(run.identity, found.class_names)
    figures = saved(run.storage, FOLDER, figures_of(found, summary, output))
    run.storage.write(PAGE, _rendered(found, summary, figures).encode())


def _most_ablated(margins: MarginStore) -> int:
    """Of the masks in the shards: those of an imported design cannot be drawn again."""
    return max(int((~masks).sum(axis=1).max()) for masks, _ in margins.read(None, _MASKS_AT_ONCE))


def _rendered(found: Gathered, summary: Summary, figures: list[InlineFigure]) -> str:
    run = found.run
    history, output = history_of(run), output_name(run.identity, found.class_names)
    layers = _layer_rows(found.layers)
    parts: dict[str, Any] = {
        "title": run.storage.location.rstrip("/").rpartition("/")[2],
        "output": output,
        "has_targets": has_targets(found),
        "subtitle": f"{counted(run.components.num_components, 'component')}, "
        f"{counted(run.num_examples, 'example')}; ablated: {value_in_words(run.identity)}",
        "verdict": verdict_of(run, summary, unablated_of(found, output)),
        "css": Markup(_file("page.css")),
        "js": Markup(f'"use strict";\n(() => {{\n{"".join(_file(f"js/{name}.js") for name in _SCRIPTS)}}})();'),
        "tiles": tiles_of(run, summary, history),
        "headings": [
            f"at {fraction:g}{' (trained)' if fraction == summary.trained_at else ''}" for fraction in summary.fractions
        ],
        "summary": summary,
        "figures": figures,
        "forecasts": [forecast_in_words(curve, run.num_examples) for curve in summary.curves],
        "layers": layers,
        "largest_share": max((row.share for row in layers), default=1.0),
        "edits": _edits(run),
        "circuits": circuits_of(run, output),
        "findings": findings_of(found, summary, history, output),
        "history": history,
        "ceiling_label": CEILING_LABEL,
        "designs": run.designs,
        "facts": facts_of(run, history),
        "identity": identity_of(run),
        "version": run.versions["coar-dist"],
        "counted": counted,
        "coded": _coded,
        "in_time": numbers.in_time,
        **{name: _written(getattr(numbers, name)) for name in ("number", "mean_of", "ceiling_of")},
    }
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template("page.html")
    most_ablated = max(_most_ablated(run.margins(name)) for name in summary.held_out)
    while True:
        content = content_of(found, output, summary.fractions, most_ablated)
        bare = template.render(**parts, found=found, content=_json(with_images(found, content, 0)))
        room = _PAGE_BYTES - len(bare.encode())
        smaller = found.smaller() if room < 0 else None
        if smaller is None:
            return template.render(**parts, found=found, content=_json(with_images(found, content, room)))
        found = smaller


def _json(content: dict[str, Any]) -> Markup:
    """JSON that can stand inside HTML."""
    return jinja2.utils.htmlsafe_json_dumps(content, separators=(",", ":"), allow_nan=False)


def _coded(text: str) -> Markup:
    """A text as HTML, with names in `backticks` as code, and arrows and minus signs as they are printed."""
    shown = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)).replace("-&gt;", "→"))
    return Markup(re.sub(r"(?<![\w.])-(?=[\d.])", "\N{MINUS SIGN}", shown))


def _written(form: Callable[..., str]) -> Callable[..., Markup]:
    """A way to write numbers, with the minus sign of a page."""
    return lambda *values: _coded(form(*values))


def _edits(run: RunDirectory) -> Sequence[ShownEdit]:
    if not edit_names(run.storage):
        return []
    from coar_dist.report.page.edits import gather_edits  # torch takes seconds to load

    return gather_edits(run)


def _file(name: str) -> str:
    return (resources.files("coar_dist.report.page") / name).read_text(encoding="utf-8")


def _layer_rows(layers: LayerShares) -> list[_LayerRow]:
    """None where all weights of all examples are 0."""
    if not np.isfinite(layers.shares).all():
        return []
    columns = zip(layers.parameters, layers.num_components, layers.shares, layers.even_shares, strict=True)
    return [_LayerRow(name, int(num), float(share), float(share / even)) for name, num, share, even in columns]
