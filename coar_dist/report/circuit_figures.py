"""The figure of a run's circuits: faithfulness by size."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from coar_dist.config.methods import label_of
from coar_dist.errors import MissingWorkError
from coar_dist.report.drawing import FAINT, STYLE, ShownFigure, looks_of
from coar_dist.report.numbers import number
from coar_dist.store.circuits import MAGNITUDE, SIGNED, CircuitScores, CircuitTable
from coar_dist.store.run_directory import RunDirectory

_PANELS = {SIGNED: ("by signed weight", "cpr", "CPR"), MAGNITUDE: ("by absolute weight", "cmd", "CMD")}


def circuit_figures(run: RunDirectory) -> dict[str, tuple[Figure, str]]:
    """The figure of a run's circuits with what a screen reader says of it, by name; none where there are no circuits of
    the attributions as they are now.

    Raises:
        DamagedFileError: their table is damaged.
    """
    try:
        found = CircuitTable(run).read()
    except MissingWorkError:
        return {}
    return {"circuit": (draw_circuit(found), "faithfulness of circuits by size and method")}


def draw_circuit(found: CircuitScores) -> Figure:
    """Faithfulness of the strongest components alone by their share of all, a line per method and a panel per ranking:
    1 is the whole model, 0 what is left without any."""
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(7.4, 3.4), layout="constrained")
        panels, looks = figure.subplots(1, len(_PANELS), sharey=True), looks_of(found.scores)
        for axes, (ranking, (title, score, name)) in zip(panels, _PANELS.items(), strict=True):
            for method, values in found.scores.items():
                colour, marker = looks[method]
                axes.plot(
                    found.sizes,
                    found.faithfulness[method, ranking],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.3,
                    label=f"{label_of(method)}, {name} {number(values[score])}",
                )
            axes.axhline(1.0, color=FAINT, linestyle=":", linewidth=0.9, zorder=0)
            positive = found.sizes[found.sizes > 0]
            if positive[-1] >= 20 * positive[0]:
                axes.set_xscale("symlog" if found.sizes[0] == 0 else "log", **_near_zero(found.sizes))
                axes.set_xticks(found.sizes, [f"{size:g}" for size in found.sizes], rotation=45, ha="right")
                axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("share of the components kept")
            axes.legend(fontsize=7, loc="upper left")
        panels[0].set_ylabel("faithfulness")
    return figure


def _near_zero(sizes: NDArray[np.float64]) -> dict[str, float]:
    """Where the axis is linear: from 0 to the first size above it."""
    return {"linthresh": float(sizes[sizes > 0][0])} if sizes[0] == 0 else {}
