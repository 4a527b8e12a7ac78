"""The run's figures, drawn from its tables alone."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator, NullLocator

from coar_dist.evaluation.intervals import Means
from coar_dist.report.drawing import COLOURS, FAINT, MARKERS, STYLE, ShownFigure
from coar_dist.report.numbers import Z95, number
from coar_dist.report.summary import CurveSummary, MethodSummary, Summary
from coar_dist.store.ceilings import CEILING_LABEL
from coar_dist.store.class_names import class_in_words

if TYPE_CHECKING:
    from coar_dist.report.page.examples import ShownExample
    from coar_dist.report.page.layers import LayerShares

_MAX_LAYERS_NAMED = 60
_EXCERPT = 90
_CLASS_NAME = 24
"""Letters of a class's name in a figure."""


def draw_correlations(summary: Summary) -> Figure:
    """Figure 1 of Shah et al. (2024): mean correlation by ablation fraction, one line per method, and the ceiling.

    Of one fraction, a row per method instead.
    """
    if len(summary.fractions) == 1:
        return _draw_one_fraction(summary)
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        fractions = summary.fractions
        by_height = sorted(summary.methods, key=_height, reverse=True)
        for i, method in enumerate(by_height):
            _line(axes, fractions, method.correlation, method.label, i)
        known = [
            (fraction, ceiling.mean, Z95 * ceiling.standard_error)
            for fraction, ceiling in zip(fractions, summary.ceilings.values(), strict=True)
            if ceiling is not None and np.isfinite(ceiling.mean)
        ]
        if known:
            at, means, halves = np.array(known).T
            axes.errorbar(at, means, np.nan_to_num(halves), color=FAINT, linestyle="--", capsize=2, label=CEILING_LABEL)
        if summary.trained_at in fractions:
            axes.axvline(summary.trained_at, color=FAINT, linewidth=0.8, linestyle=":", zorder=0)
            axes.annotate(
                "trained",
                (summary.trained_at, 1.0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                xytext=(3, -2),
                va="top",
                color=FAINT,
                fontsize=8,
            )
        axes.set_xticks(fractions, [f"{fraction:g}" for fraction in fractions])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("ablation fraction of the held-out masks")
        _finish(figure, axes, len(by_height) + bool(known))
    return figure


def _draw_one_fraction(summary: Summary) -> Figure:
    (fraction,), (ceiling,) = summary.fractions, summary.ceilings.values()
    methods = sorted(summary.methods, key=_height)
    with matplotlib.rc_context(STYLE):
        has_ceiling = ceiling is not None and np.isfinite(ceiling.mean)
        names = [*(method.label for method in methods), *([CEILING_LABEL] if has_ceiling else [])]
        figure = ShownFigure(figsize=(5.6, 0.3 * len(names) + 1.0), layout="constrained")
        axes = figure.add_subplot()
        for row, method in enumerate(methods):
            means, colour = method.correlation, COLOURS[0]
            axes.errorbar(means.mean, [row], xerr=_errors(means), color=colour, marker="o", markersize=4.5, capsize=2)
        if ceiling is not None and has_ceiling:
            half = [np.nan_to_num(Z95 * ceiling.standard_error)]
            axes.errorbar([ceiling.mean], [len(methods)], xerr=half, color=FAINT, marker="D", markersize=4, capsize=2)
            axes.axvline(ceiling.mean, color=FAINT, linestyle="--", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        as_trained = ", as trained" if fraction == summary.trained_at else ""
        axes.set_xlabel(f"correlation, mean over examples ± 95%\nablation fraction {fraction:g}{as_trained}")
        low, high = axes.get_xlim()
        axes.set_xlim(low, _end(low, high))
        axes.grid(axis="y", visible=False)
    return figure


def draw_distributions(summary: Summary) -> Figure:
    """Correlations of the examples by ablation fraction and method: quartiles and the middle 90%, and the mean with its
    95% interval."""
    methods = sorted(summary.methods, key=_height)
    with matplotlib.rc_context(STYLE):
        num_panels = len(summary.fractions)
        figure = Figure(figsize=(max(2.4 * num_panels + 1.4, 6.0), 0.34 * len(methods) + 1.1), layout="constrained")
        panels = figure.subplots(1, num_panels, sharex=True, sharey=True, squeeze=False)[0]
        for column, (axes, fraction) in enumerate(zip(panels, summary.fractions, strict=True)):
            values = [method.correlations[:, column] for method in methods]
            axes.boxplot(
                [of[np.isfinite(of)] for of in values],
                orientation="horizontal",
                whis=(5, 95),
                widths=0.55,
                showfliers=False,
                medianprops={"color": COLOURS[0], "linewidth": 1.6},
                **{name: {"color": FAINT} for name in ("boxprops", "whiskerprops", "capprops")},
            )
            for i, method in enumerate(methods):
                means = method.correlation
                at = slice(column, column + 1)
                axes.errorbar(
                    means.mean[at],
                    [i + 1],
                    xerr=_errors(means)[:, at],
                    color=COLOURS[1],
                    marker="o",
                    markersize=3.5,
                    capsize=2,
                )
            axes.set_title(f"ablation fraction {fraction:g}", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(range(1, len(methods) + 1), [method.label for method in methods])
        figure.supxlabel("correlation of an example (box: quartiles, whiskers: 5% to 95%, point: mean)", fontsize=9)
    return figure


def draw_budgets(curves: Sequence[CurveSummary]) -> Figure:
    """Mean correlation by number of masks, and the forecasts as hollow points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        numbers: set[float] = set()
        for i, summary in enumerate(curves):
            masks = summary.curve.num_masks
            _line(axes, masks, summary.means, summary.label, i)
            found = summary.extrapolation
            ahead = [(k * int(masks[-1]), f) for k, f in ((2, found.twice), (4, found.four_times)) if f is not None]
            numbers |= {*masks.tolist(), *(number for number, _ in ahead)}
            if ahead:
                axes.errorbar(
                    [int(masks[-1]), *(number for number, _ in ahead)],
                    [found.measured[-1], *(forecast.value for _, forecast in ahead)],
                    [0.0, *(forecast.half_width for _, forecast in ahead)],
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markerfacecolor="white",
                    linestyle="--",
                    linewidth=1.0,
                    capsize=2,
                    zorder=1,
                )
        axes.plot(
            [], [], color=FAINT, marker="o", markerfacecolor="white", linestyle="--", linewidth=1.0, label="forecast"
        )
        axes.set_xscale("log")
        axes.set_xticks(sorted(numbers), [f"{number:,}" for number in sorted(numbers)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("masks without gradients")
        _finish(figure, axes, len(curves) + 1)
    return figure


def draw_predictions(shown: Sequence[ShownExample], method: str, output: str, class_names: Mapping[int, str]) -> Figure:
    """Predicted against true outputs on held-out masks, one panel per example, with the example itself.

    Args:
        shown: at least one.
        method: whose predictions, for people.
        output: what is predicted, for people.
        class_names: by class, where classes have names.
    """
    with matplotlib.rc_context(STYLE):
        num_rows, num_columns = -(-len(shown) // 3), min(len(shown), 3)
        figure = ShownFigure(figsize=(max(2.8 * num_columns, 3.6), 2.7 * num_rows), layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).reshape(-1)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        for axes, example in zip(panels, shown, strict=False):
            axes.plot(example.predicted, example.true, ".", color=COLOURS[0], markersize=3.5, alpha=0.6)
            ends = np.array([*example.predicted, *example.true])
            axes.axline((ends.min(), ends.min()), slope=1.0, color=FAINT, linewidth=0.8)
            name = name_of_example(example.example_id, example.label, class_names)
            axes.set_title(f"{name}: r = {number(example.correlation)}", fontsize=9)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            if example.image is not None:
                inset = axes.inset_axes((0.03, 0.64, 0.33, 0.33))
                inset.imshow(imread(io.BytesIO(example.image)), cmap="gray")
                inset.set_axis_off()
            elif example.excerpt is not None:
                axes.set_xlabel(textwrap.fill(example.excerpt[:_EXCERPT], 45), fontsize=6.5)
        figure.supxlabel(f"{output} as {method} predicts it", fontsize=9)
        figure.supylabel(f"true {output}", fontsize=9)
    return figure


def name_of_example(example_id: int, label: int | None, class_names: Mapping[int, str]) -> str:
    """What a title calls an example: its id and its class, where it has one."""
    if label is None:
        return f"example {example_id}"
    return f"example {example_id}, {class_names[label][:_CLASS_NAME] if label in class_names else f'label {label}'}"


def draw_layers(layers: LayerShares, class_names: Mapping[int, str]) -> Figure:
    """Share of the attributions' absolute weight by layer, and by class where examples have any."""
    with matplotlib.rc_context(STYLE):
        num_layers = len(layers.parameters)
        names = [class_in_words(class_names, label)[:_CLASS_NAME] for label in layers.classes.tolist()]
        below = 0.06 * max(map(len, names)) if names and class_names else 0.0  # names of classes are upright
        height = min(0.19 * num_layers, 0.19 * _MAX_LAYERS_NAMED) + 1.0 + below
        width = max(4.2, 2.6 + 0.06 * max(map(len, layers.parameters))) + 0.34 * len(layers.classes)
        figure = Figure(figsize=(width, height), layout="constrained")
        widths = [1.0] if not len(layers.classes) else [1.0, 0.16 * len(layers.classes) + 0.3]
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
        rows = np.arange(num_layers)
        panels[0].barh(rows, layers.shares, color=COLOURS[0], height=0.75)
        panels[0].plot(
            layers.even_shares,
            rows,
            "|",
            color=COLOURS[1],
            markersize=8,
            markeredgewidth=1.8,
            label="if all components were alike",
        )
        panels[0].set_xlabel("share of |weight|")
        named = rows[:: -(-num_layers // _MAX_LAYERS_NAMED)]
        panels[0].set_yticks(named, [layers.parameters[i] for i in named], fontsize=7)
        panels[0].set_ylim(num_layers - 0.5, -0.5)
        panels[0].grid(axis="y", visible=False)
        if len(layers.classes):
            edges = np.arange(len(layers.classes) + 1) - 0.5
            mesh = panels[1].pcolormesh(edges, np.arange(num_layers + 1) - 0.5, layers.by_class, cmap="viridis", vmin=0)
            panels[1].set_xticks(range(len(names)), names, fontsize=7, rotation=90 if class_names else 0)
            panels[1].set_xlabel("class")
            panels[1].grid(visible=False)
            figure.colorbar(mesh, ax=panels[1], pad=0.02)
        figure.legend(loc="outside upper center")
    return figure


def _line(axes: Any, x: Any, means: Means, label: str, i: int) -> None:
    axes.errorbar(
        x,
        means.mean,
        _errors(means),
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[i % len(MARKERS)],
        markersize=4.5,
        linewidth=1.4,
        capsize=2,
        label=label,
    )


def _errors(means: Means) -> Any:
    """(2, k): how far the ends of the intervals are below and above the means."""
    return np.maximum(np.nan_to_num(np.stack([means.mean - means.low, means.high - means.mean])), 0.0)


def _finish(figure: Figure, axes: Any, num_labels: int) -> None:
    axes.set_ylabel("correlation, mean over examples")
    low, high = axes.get_ylim()
    axes.set_ylim(low, _end(low, high))
    figure.legend(loc="outside upper center", ncols=min(num_labels, 3))


def _end(low: float, high: float) -> float:
    """Where an axis of correlations ends: just above 1, so that a point there is whole."""
    return min(high, 1.0 + 0.02 * (1.0 - low))


def _height(method: MethodSummary) -> float:
    values = method.correlation.mean[np.isfinite(method.correlation.mean)]
    return float(values.mean()) if values.size else -np.inf
