"""The page: figures beside it, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from coar_dist.components.groups import Numbers
from coar_dist.config.methods import is_fitted
from coar_dist.errors import counted, listed
from coar_dist.report import numbers
from coar_dist.report.drawing import inline_svg, save_figure
from coar_dist.report.figures import draw_budgets, draw_correlations, draw_distributions, draw_layers, draw_predictions
from coar_dist.report.inspection import files_set_aside
from coar_dist.report.output_names import OutputName, output_name
from coar_dist.report.page.examples import ShownExample, ShownExamples, few_of, gather_examples
from coar_dist.report.page.history import History, history_of
from coar_dist.report.page.layers import LayerShares
from coar_dist.report.summary import Summary, forecast_in_words
from coar_dist.store.ceilings import CEILING_LABEL
from coar_dist.store.class_names import read_class_names
from coar_dist.store.edits import edit_names
from coar_dist.store.examples import ExampleTable
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import value_in_words

if TYPE_CHECKING:
    from coar_dist.report.page.edits import ShownEdit

FOLDER = "report"
PAGE = f"{FOLDER}/index.html"
_MAX_LISTED = 20


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
    examples = gather_examples(run, summary)
    names = read_class_names(run)
    figures = _figures(summary, examples, output_name(run.identity, names), names)
    inline = {
        key: inline_svg(save_figure(run.storage, f"{FOLDER}/{key}", figure), title)
        for key, (figure, title) in figures.items()
    }
    run.storage.write(PAGE, _rendered(run, summary, examples, inline, names).encode())


def _figures(
    summary: Summary, examples: ShownExamples, output: OutputName, names: Mapping[int, str]
) -> dict[str, tuple[Figure, str]]:
    """Figures and what a screen reader says of them, by name."""
    figures = {
        "figure1": (draw_correlations(summary), "mean correlation by ablation fraction and method"),
        "distribution": (draw_distributions(summary), "distribution of correlations over examples"),
    }
    if summary.curves:
        figures["budget_curve"] = draw_budgets(summary.curves), "mean correlation by number of masks"
    if np.isfinite(examples.layers.shares).all():
        figures["layers"] = draw_layers(examples.layers, names), "share of absolute weight by layer and class"
    figures["predictions"] = (
        draw_predictions(few_of(examples.shown), examples.method, output.one, names),
        f"true against predicted {output.many} of a few examples",
    )
    return figures


def _rendered(
    run: RunDirectory, summary: Summary, examples: ShownExamples, figures: dict[str, str], names: Mapping[int, str]
) -> str:
    history, output = history_of(run), output_name(run.identity, names)
    layers = _layer_rows(examples.layers)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["counted"] = counted
    page = environment.get_template("page.html")
    num_components = run.components.num_components
    return page.render(
        title=run.storage.location.rstrip("/").rpartition("/")[2],
        output=output,
        subtitle=f"Component attribution of {counted(num_components, 'component')} for "
        f"{counted(run.num_examples, 'example')}; "
        f"ablated: {value_in_words(run.identity)}; "
        f"run made {run.created[:10]}, {run.storage}",
        css=Markup(_file("page.css")),
        js=Markup(_file("page.js")),
        content=_content(run, examples, output.one, names),
        tiles=_tiles(run, summary, history),
        headings=[
            f"at {fraction:g}{' (trained)' if fraction == summary.trained_at else ''}" for fraction in summary.fractions
        ],
        summary=summary,
        figures=figures,
        forecasts=[forecast_in_words(curve, run.num_examples) for curve in summary.curves],
        layers=layers,
        largest_share=max((row.share for row in layers), default=1.0),
        examples=examples,
        edits=_edits(run),
        findings=_findings(run, summary, history, examples.damaged_previews, output),
        history=history,
        ceiling_label=CEILING_LABEL,
        designs=run.designs,
        facts=_facts(run, history),
        version=run.versions["coar-dist"],
        **{name: getattr(numbers, name) for name in ("number", "mean_of", "ceiling_of", "in_time")},
    )


def _edits(run: RunDirectory) -> Sequence[ShownEdit]:
    if not edit_names(run.storage):
        return []
    from coar_dist.report.page.edits import gather_edits  # torch takes seconds to load

    return gather_edits(run)


def _file(name: str) -> str:
    return (resources.files("coar_dist.report.page") / name).read_text(encoding="utf-8")


def _tiles(run: RunDirectory, summary: Summary, history: History) -> list[tuple[str, str]]:
    column = summary.trained_column or 0
    at = f"at {summary.fractions[column]:g}"
    tiles = [(numbers.mean_of(method.correlation, column), f"{method.label} {at}") for method in summary.methods[:3]]
    ceiling = list(summary.ceilings.values())[column]
    if ceiling is not None:
        tiles.append((numbers.ceiling_of(ceiling), f"the ceiling of linear models {at}"))
    seconds = sum(stage.seconds for stage in history.stages.values())
    ablating = history.stages["ablate"].seconds if "ablate" in history.stages else 0.0
    masks = f"masks in {counted(len(run.designs), 'design')}"
    tiles.append((f"{run.num_masks:,}", f"{masks}, {run.num_masks / ablating:,.1f} masks/s" if ablating else masks))
    if seconds:
        tiles.append((numbers.in_time(seconds), "for all stages"))
    return tiles


def _layer_rows(layers: LayerShares) -> list[_LayerRow]:
    """None where all weights of all examples are 0."""
    if not np.isfinite(layers.shares).all():
        return []
    columns = zip(layers.parameters, layers.num_components, layers.shares, layers.even_shares, strict=True)
    return [_LayerRow(name, int(num), float(share), float(share / even)) for name, num, share, even in columns]


def _findings(
    run: RunDirectory, summary: Summary, history: History, damaged: list[str], output: OutputName
) -> list[str]:
    """What is to be known about the data before the results are trusted."""
    texts = []
    examples = ExampleTable(run).read()
    label, prediction = (examples[name].astype(np.float64) for name in ("label", "prediction"))
    if np.isfinite(label).all():
        wrong = int((label != prediction).sum())
        texts.append(
            f"The unablated model is right on {run.num_examples - wrong:,} of {counted(run.num_examples, 'example')}."
        )
    for method in summary.methods:
        if is_fitted(method.method):
            constant = np.flatnonzero(np.isnan(RunReader(run).quality(method=method.method)["r2"]))
            if constant.size:
                those = f"{counted(constant.size, 'example')} ({listed(constant.tolist(), _MAX_LISTED)})"
                texts.append(
                    f"{method.label}: the {output.many} of {those} never change under the training masks; their "
                    f"weights are 0."
                )
            else:
                texts.append(f"{method.label}: every example's {output.one} changes under the training masks.")
    undefined = {method.label: method.num_undefined["correlation"] for method in summary.methods}
    texts += [f"{label}: {count:,} correlations are undefined." for label, count in undefined.items() if count]
    aside = files_set_aside(run)
    if aside:
        names = listed(aside, _MAX_LISTED)
        texts.append(f"{len(aside):,} damaged or foreign files were set aside and made again: {names}.")
    texts += damaged if aside or damaged else ["No file was damaged."]
    if history.num_unreadable:
        texts.append(f"unreadable: {counted(history.num_unreadable, 'line')} of the logs.")
    return texts


def _facts(run: RunDirectory, history: History) -> list[tuple[str, str]]:
    facts = [("run directory", str(run.storage)), ("made", run.created)]
    task = history.configuration.get("task") or {}
    for part in ("model", "examples"):
        asked = task.get(part) or {}
        if asked.get("source"):
            facts.append((part, f"{asked['source']} {asked.get('arguments') or ''}".strip()))
    groups = run.components.groups
    facts.append(("components", f"{run.components.num_components:,} in {counted(len(groups), 'parameter')}"))
    if run.engine_plan is not None:
        facts.append(("forward passes", ", ".join(f"{name} {value}" for name, value in run.engine_plan.items())))
    facts += [(f"identity: {name}", str(value)) for name, value in run.identity.items()]
    facts += [(f"version: {name}", str(value)) for name, value in run.versions.items()]
    return facts


def _content(run: RunDirectory, examples: ShownExamples, output: str, names: Mapping[int, str]) -> Markup:
    """What the page's script reads, as JSON that can stand inside HTML."""
    components = run.components
    starts = zip(components.groups, components.offsets.tolist(), strict=False)
    content = {
        "output": output,
        "classes": {str(label): name for label, name in names.items()},
        "groups": [
            {"name": group.name, "numbers": _in_steps(group.numbers), "start": start} for group, start in starts
        ],
        "examples": [_of_example(example) for example in examples.shown],
        "others": [
            {"id": example_id, "image": _data_url(image), "excerpt": excerpt}
            for example_id, (image, excerpt) in examples.others.items()
        ],
        "galleries": [
            {
                "component": gallery.component_id,
                "raised": [[i, _rounded(weight)] for i, weight in gallery.raised],
                "lowered": [[i, _rounded(weight)] for i, weight in gallery.lowered],
            }
            for gallery in examples.galleries
        ],
    }
    return jinja2.utils.htmlsafe_json_dumps(content, separators=(",", ":"), allow_nan=False)


def _in_steps(of_group: Numbers) -> list[Any]:
    """The first and the step, or all of them."""
    return [of_group.start, of_group.step] if isinstance(of_group, range) else [list(of_group)]


def _of_example(example: ShownExample) -> dict[str, Any]:
    return {
        "id": example.example_id,
        "label": example.label,
        "prediction": example.prediction,
        "margin": _rounded(example.margin),
        "correlation": _rounded(example.correlation),
        "weights": [[int(i), _rounded(float(w))] for i, w in zip(example.components, example.weights, strict=True)],
        "predicted": [_rounded(value) for value in example.predicted.tolist()],
        "true": [_rounded(value) for value in example.true.tolist()],
        "image": _data_url(example.image),
        "excerpt": example.excerpt,
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _data_url(image: bytes | None) -> str | None:
    if image is None:
        return None
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
