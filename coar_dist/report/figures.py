"""The report's figures: ``report/figure1`` and ``report/budget_curve``, as .png and .svg, from the tables alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from coar_dist.evaluation.bootstrap import Means
from coar_dist.report.summary import CurveSummary, MethodSummary, Summary
from coar_dist.store.storage import Storage

_FOLDER = "report"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")
"""Okabe and Ito's, told apart by the colour-blind."""
MARKERS = "osD^vPX*"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "coar_dist",  # the same run gives the same bytes
}


def write_figures(storage: Storage, summary: Summary) -> list[str]:
    """Draw and write the figures of a run.

    Args:
        storage: of the run directory.
        summary: what they show.

    Returns:
        The files' names.

    Raises:
        StorageError: they cannot be written.
    """
    names = []
    with matplotlib.rc_context(STYLE):
        figures = {"figure1": draw_correlations(summary)}
        if summary.curves:
            figures["budget_curve"] = _budgets(summary.curves)
        for name, figure in figures.items():
            names += save_figure(storage, f"{_FOLDER}/{name}", figure)
    return names


def save_figure(storage: Storage, name: str, figure: Figure) -> list[str]:
    """Write a figure as ``<name>.png`` and ``<name>.svg``, in the style that is set; gives the files' names.

    Raises:
        StorageError: they cannot be written.
    """
    names = []
    for kind in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
        storage.write(f"{name}.{kind}", content.getvalue())
        names.append(f"{name}.{kind}")
    return names


class ShownFigure(Figure):
    """A figure that a notebook shows where it is a cell's value, whether or not pyplot is in use."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


def draw_correlations(summary: Summary) -> Figure:
    """Figure 1 of Shah et al. (2024): mean correlation by ablation fraction, one line per method, in the style that is
    set."""
    figure = ShownFigure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    fractions = [design.ablation_fraction for design in summary.held_out.values()]
    by_height = sorted(summary.methods, key=_height, reverse=True)
    for i, method in enumerate(by_height):
        _line(axes, fractions, method.correlation, method.label, i)
    if summary.trained_at in fractions:
        axes.axvline(summary.trained_at, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(
            "trained",
            (summary.trained_at, 1.0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(3, -2),
            va="top",
            color="0.4",
            fontsize=8,
        )
    axes.set_xticks(fractions, [f"{fraction:g}" for fraction in fractions])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ablation fraction of the held-out masks")
    _finish(figure, axes, len(by_height))
    return figure


def _budgets(curves: Sequence[CurveSummary]) -> Figure:
    """Mean correlation by number of masks, and the forecasts as hollow points."""
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
    axes.plot([], [], color="0.4", marker="o", markerfacecolor="white", linestyle="--", linewidth=1.0, label="forecast")
    axes.set_xscale("log")
    axes.set_xticks(sorted(numbers), [f"{number:,}" for number in sorted(numbers)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("masks without gradients")
    _finish(figure, axes, len(curves) + 1)
    return figure


def _line(axes: Any, x: Any, means: Means, label: str, i: int) -> None:
    errors = np.nan_to_num(np.stack([means.mean - means.low, means.high - means.mean]))
    axes.errorbar(
        x,
        means.mean,
        np.maximum(errors, 0.0),
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[i % len(MARKERS)],
        markersize=4.5,
        linewidth=1.4,
        capsize=2,
        label=label,
    )


def _finish(figure: Figure, axes: Any, num_labels: int) -> None:
    axes.set_ylabel("correlation, mean over examples")
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 1.0))
    figure.legend(loc="outside upper center", ncols=min(num_labels, 3))


def _height(method: MethodSummary) -> float:
    values = method.correlation.mean[np.isfinite(method.correlation.mean)]
    return float(values.mean()) if values.size else -np.inf
