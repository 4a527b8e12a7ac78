"""The run's figures, drawn from its tables alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from coar_dist.evaluation.intervals import Means
from coar_dist.report.drawing import FAINT, INK, NEUTRAL, STYLE, ShownFigure, look_of
from coar_dist.report.numbers import Z95
from coar_dist.report.predictions import CLASS_NAME
from coar_dist.report.summary import CurveSummary, MethodSummary, Summary
from coar_dist.store.ceilings import CEILING_LABEL

if TYPE_CHECKING:
    from coar_dist.report.page.layers import LayerShares

_MAX_LAYERS_NAMED = 60
_MAX_CLASSES = 20


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
        for method in by_height:
            _line(axes, fractions, method.correlation, method.label, method.method)
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
        axes.invert_xaxis()  # as in the tables
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
            means, colour = method.correlation, look_of(method.method)[0]
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
                medianprops={"color": INK, "linewidth": 1.6},
                **{name: {"color": FAINT} for name in ("boxprops", "whiskerprops", "capprops")},
            )
            for i, method in enumerate(methods):
                means = method.correlation
                at = slice(column, column + 1)
                axes.errorbar(
                    means.mean[at],
                    [i + 1],
                    xerr=_errors(means)[:, at],
                    color=look_of(method.method)[0],
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
        for summary in curves:
            masks, (colour, marker) = summary.curve.num_masks, look_of(summary.method)
            _line(axes, masks, summary.means, summary.label, summary.method)
            found = summary.extrapolation
            ahead = [(k * int(masks[-1]), f) for k, f in ((2, found.twice), (4, found.four_times)) if f is not None]
            numbers |= {*masks.tolist(), *(number for number, _ in ahead)}
            if ahead:
                axes.errorbar(
                    [int(masks[-1]), *(number for number, _ in ahead)],
                    [found.measured[-1], *(forecast.value for _, forecast in ahead)],
                    [0.0, *(forecast.half_width for _, forecast in ahead)],
                    color=colour,
                    marker=marker,
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


def draw_layers(layers: LayerShares) -> Figure:
    """Share of the attributions' absolute weight by parameter, and by class where examples have any."""
    with matplotlib.rc_context(STYLE):
        num_layers = len(layers.parameters)
        classes, by_class = layers.of_classes(_MAX_CLASSES)
        names = [name[:CLASS_NAME] for name in classes]
        are_long = any(len(name) > 2 for name in names)
        below = 0.06 * max(map(len, names)) if are_long else 0.0  # they are upright
        height = min(0.19 * num_layers, 0.19 * _MAX_LAYERS_NAMED) + 1.0 + below
        width = max(4.2, 2.6 + 0.06 * max(map(len, layers.parameters))) + 0.34 * len(names)
        figure = Figure(figsize=(width, height), layout="constrained")
        widths = [1.0] if not len(names) else [1.0, 0.16 * len(names) + 0.3]
        panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
        rows = np.arange(num_layers)
        panels[0].barh(rows, layers.shares, color=NEUTRAL, height=0.75)
        panels[0].plot(
            layers.even_shares,
            rows,
            "|",
            color=INK,
            markersize=8,
            markeredgewidth=1.8,
            label="if all components were alike",
        )
        panels[0].set_xlabel("share of |weight|")
        named = rows[:: -(-num_layers // _MAX_LAYERS_NAMED)]
        panels[0].set_yticks(named, [layers.parameters[i] for i in named], fontsize=7)
        panels[0].set_ylim(num_layers - 0.5, -0.5)
        panels[0].grid(axis="y", visible=False)
        if len(names):
            edges = np.arange(len(names) + 1) - 0.5
            mesh = panels[1].pcolormesh(edges, np.arange(num_layers + 1) - 0.5, by_class, cmap="viridis", vmin=0)
            panels[1].set_xticks(range(len(names)), names, fontsize=7, rotation=90 if are_long else 0)
            panels[1].set_xlabel("class")
            panels[1].grid(visible=False)
            figure.colorbar(mesh, ax=panels[1], pad=0.02)
        figure.legend(loc="outside upper center")
    return figure


def _line(axes: Any, x: Any, means: Means, label: str, method: str) -> None:
    colour, marker = look_of(method)
    axes.errorbar(
        x,
        means.mean,
        _errors(means),
        color=colour,
        marker=marker,
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
