"""Figures of the attributions themselves: of one example, or of several in the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import label_of
from coar_dist.errors import ConfigError, MissingWorkError, counted
from coar_dist.evaluation.correlation import predict
from coar_dist.report.drawing import FAINT, LOWERS, RAISES, STYLE, ShownFigure
from coar_dist.report.figures import draw_correlations
from coar_dist.report.numbers import signed
from coar_dist.report.output_names import output_name
from coar_dist.report.predictions import PredictedExample, draw_predictions, name_of_example
from coar_dist.report.summary import NO_HELD_OUT, summarise
from coar_dist.store.agreement import correlation_of
from coar_dist.store.class_names import read_class_names
from coar_dist.store.previews import PreviewTable
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_HEAD = "head"


def title_of(reader: RunReader, example_ids: NDArray[np.int64]) -> str:
    """Whose weights a figure shows: one example's and its label, or the mean of several."""
    if len(example_ids) != 1:
        return f"mean of {counted(len(example_ids), 'example')}"
    label = reader.examples(example_ids.tolist())["label"][0]
    return name_of_example(int(example_ids[0]), int(label) if np.isfinite(label) else None, reader.class_names)


def _width(names: Sequence[str]) -> float:
    """Inches of a figure whose rows have these names, with room for the bars beside them."""
    return max(5.6, 4.6 + 0.07 * max(map(len, names)))


def draw_waterfall(
    names: Sequence[str], weights: NDArray[np.floating[Any]], total: float, base: float, output: str, title: str
) -> Figure:
    """From the prediction with everything ablated up to that of the whole model.

    Args:
        names: of the components that have a bar of their own, the strongest first.
        weights: (num_shown,) theirs.
        total: sum of the weights of all components.
        base: the intercept.
        output: what is predicted, for people.
        title: whose prediction it is.
    """
    others = total - float(weights.sum(dtype=float))
    steps = np.array([others, *weights[::-1]], dtype=float)  # the strongest bar is the last step, at the top
    ends = base + np.cumsum(steps)
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(_width(names), 0.26 * len(steps) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(steps))
        axes.barh(rows, steps, left=ends - steps, color=[RAISES if step >= 0 else LOWERS for step in steps])
        for row, (step, end) in enumerate(zip(steps, ends, strict=True)):
            axes.annotate(signed(step), (max(end, end - step), row), (3, 0), textcoords="offset points", va="center")
        axes.axvline(base, color=FAINT, linestyle=":", linewidth=0.8)
        axes.axvline(base + total, color=FAINT, linestyle="--", linewidth=0.8)
        axes.set_yticks(rows, ["all others", *reversed(names)])
        ends_of_all = signed(base, "-"), signed(base + total, "-")
        axes.set_xlabel(f"predicted {output}: {ends_of_all[0]} with all ablated, {ends_of_all[1]} with none")
        axes.set_title(title, fontsize=9)
        axes.grid(axis="y", visible=False)
        axes.use_sticky_edges = False  # bars may begin anywhere
        axes.margins(x=0.16)
    return figure


def draw_components(
    names: Sequence[str],
    weights: NDArray[np.floating[Any]],
    errors: NDArray[np.floating[Any]] | None,
    output: str,
    title: str,
) -> Figure:
    """Weights (num_shown,) as bars, the first at the top, with their standard errors where there are any."""
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(_width(names), 0.24 * len(names) + 1.0), layout="constrained")
        axes = figure.add_subplot()
        colours = [RAISES if weight >= 0 else LOWERS for weight in weights]
        axes.barh(range(len(names)), weights, xerr=errors, color=colours, ecolor=FAINT)
        axes.axvline(0.0, color=FAINT, linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(f"weight: how much higher the {output} is with the component kept")
        axes.set_title(title if errors is None else f"{title}, ± standard error", fontsize=9)
        axes.grid(axis="y", visible=False)
    return figure


def draw_heads(top: DataFrame, components: ComponentIndex, title: str) -> Figure:
    """Weights of attention heads, a row per layer.

    Args:
        top: ``component_id`` and ``weight`` of all components.
        components: the component index.
        title: whose weights they are.

    Raises:
        ConfigError: none of the components is a head.
    """
    weights = np.zeros(len(components))
    weights[top["component_id"].to_numpy()] = top["weight"].to_numpy()
    layers = [number for number, group in enumerate(components.groups) if group.kind == _HEAD]
    if not layers:
        kinds = sorted({group.kind for group in components.groups})
        raise ConfigError(f"plot.heads: the components of this run are of kind {', '.join(kinds)}, none is a head.")
    groups = [components.groups[number] for number in layers]
    grid = np.full((len(groups), 1 + max(max(group.numbers) for group in groups)), np.nan)
    for row, (number, group) in enumerate(zip(layers, groups, strict=True)):
        first = components.offsets[number]
        grid[row, list(group.numbers)] = weights[first : first + group.num_components]
    largest = float(np.nanmax(np.abs(grid))) or 1.0
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(0.3 * grid.shape[1] + 2.0, 0.26 * len(grid) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        shown = axes.imshow(grid, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        named = [group.layer for group in groups]
        are_numbered = None not in named and len(set(named)) == len(named)
        names = [f"L{group.layer}" if are_numbered else group.module for group in groups]
        axes.set_yticks(range(len(grid)), names)
        axes.set_xticks(range(grid.shape[1]), [f"H{head}" for head in range(grid.shape[1])], fontsize=7)
        axes.set_title(title, fontsize=9)
        axes.grid(visible=False)
        figure.colorbar(shown, ax=axes, label="weight")
    return figure


def prediction_figure(reader: RunReader, example_ids: NDArray[np.int64], method: str) -> Figure:
    """Predicted against true outputs on the held-out masks at the training fraction, a panel per example.

    Raises:
        IndexError: an example id is out of range.
        MissingWorkError: there are no held-out masks, or no attributions.
    """
    run, ids = reader.directory, example_ids.tolist()
    if not ids:
        raise ConfigError("there is no example: name at least one.")
    weights, intercepts = reader.weights(ids, method), reader.intercepts(ids, method)
    design = run.held_out_as_trained() or next(iter(run.held_out), None)
    if design is None:
        raise MissingWorkError(f"{run.storage} {NO_HELD_OUT}")
    store = run.margins(design)
    true = np.empty((store.num_masks, len(ids)))
    masks = np.empty((0, store.num_components), dtype=np.bool_)
    for block in store.blocks:
        at = np.flatnonzero((example_ids >= block[0]) & (example_ids < block[1]))
        if at.size:
            masks, margins = next(store.read(block, store.num_masks))
            true[:, at] = margins[:, example_ids[at] - block[0]]
    predicted = predict(masks, weights, intercepts)
    correlations = correlation_of(predicted, true)
    examples, (previews, _) = reader.examples(ids), PreviewTable(run).read(sorted(set(ids)))
    excerpts = examples.get("excerpt")
    shown = [
        PredictedExample(
            example_id=example_id,
            label=int(examples["label"][i]) if np.isfinite(examples["label"][i]) else None,
            correlation=float(correlations[i]),
            predicted=predicted[:, i],
            true=true[:, i],
            image=previews.get(example_id),
            excerpt=None if excerpts is None or excerpts.dtype.kind != "U" else str(excerpts[i]),
        )
        for i, example_id in enumerate(ids)
    ]
    names = read_class_names(run)
    return draw_predictions(shown, label_of(method), output_name(run.identity, names).one, names)


def correlation_figure(run: RunDirectory, methods: Sequence[str] | None) -> Figure:
    """Figure 1 of Shah et al. (2024) for this run.

    Raises:
        ConfigError: the run has no such method.
        MissingWorkError: the run has not been evaluated.
        DamagedFileError: a table is damaged.
    """
    summary = summarise(run)
    if methods is not None:
        there = {summary_of.method: summary_of for summary_of in summary.methods}
        unknown = [method for method in methods if method not in there]
        if unknown or isinstance(methods, str) or not methods:
            raise ConfigError(f"methods={methods!r}: must be a list of some of {', '.join(there)}.")
        summary = replace(summary, methods=[there[method] for method in methods])
    return draw_correlations(summary)
