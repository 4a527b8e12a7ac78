"""The look that all figures share, and how they become ``.png``, ``.svg`` and parts of the page."""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from coar_dist.config.methods import METHODS, RESEARCH
from coar_dist.store.storage import Storage

INK, FAINT = "#202124", "#808080"
RAISES, LOWERS = "#0072b2", "#d55e00"
"""What raises an output and what lowers it, after Okabe and Ito: told apart by the colour-blind, and used for nothing
else."""
METHOD_COLOURS = (
    *("#00795a", "#9a4c95", "#8a6a00", "#4a4a8c", "#7a5230"),
    *("#b0205e", "#3f7d20", "#00667a", "#6e6e00", "#5f6b75"),
)
"""Of methods, by their places in the registry; their markers differ, too."""
NEUTRAL = "#6b7886"
"""Of amounts that have no sign."""
_OF_PAGE = {
    "#ffffff": "none",
    INK: "currentColor",
    RAISES: "var(--up)",
    LOWERS: "var(--down)",
    NEUTRAL: "var(--neutral)",
    FAINT: "var(--faint)",
    **{colour: f"var(--method{i})" for i, colour in enumerate(METHOD_COLOURS)},
}
_MARKERS = "osD^vPX*<>"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.color": FAINT,
    "legend.frameon": False,
    "text.parse_math": False,  # names and texts are shown as they are
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "coar_dist",  # the same run gives the same bytes
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def look_of(method: str, number: int = 0) -> tuple[str, str]:
    """The colour and the marker of a method, the same in every figure.

    Args:
        method: its name; what is no method, as a selection of an edit, gets one of the last looks.
        number: of those, which one.
    """
    registered = RESEARCH if method.startswith(RESEARCH) else method
    place = list(METHODS).index(registered) if registered in METHODS else -1 - number
    return METHOD_COLOURS[place % len(METHOD_COLOURS)], _MARKERS[place % len(_MARKERS)]


def save_figure(storage: Storage, name: str, figure: Figure) -> str:
    """Write a figure as ``<name>.png`` and ``<name>.svg``.

    Returns:
        What the second one holds.

    Raises:
        StorageError: they cannot be written.
    """
    svg, png = svg_of(figure), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.set_layout_engine("none")  # what the first drawing has laid out stays where it is
        figure.savefig(png, format="png", dpi=200)
    storage.write(f"{name}.png", png.getvalue())
    storage.write(f"{name}.svg", svg.encode())
    return svg


def svg_of(figure: Figure) -> str:
    """A figure as an SVG file, its text as text."""
    content = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def inline_svg(svg: str, title: str) -> str:
    """An SVG file of ``svg_of`` as an element of a page: no background, in the page's own colours.

    Args:
        svg: the file.
        title: what a screen reader says of it.
    """
    svg = svg[svg.index("<svg") :]
    for colour, of_page in _OF_PAGE.items():
        svg = svg.replace(colour, of_page)
    shown = f'role="img" aria-label="{html.escape(title)}"'
    return re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', rf'{shown} style="width:\1pt"', svg, count=1)


class ShownFigure(Figure):
    """A figure that a notebook shows where it is a cell's value, whether or not pyplot is in use."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
