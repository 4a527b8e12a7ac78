"""The look that all figures share, and how they become ``.png``, ``.svg`` and parts of the page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from coar_dist.config.methods import METHODS, RESEARCH, method_of
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


def look_of(method: str) -> tuple[str, str]:
    """The colour and the marker of a method, the same in every figure; what is no method, as a selection of an edit,
    gets the last look."""
    return _look(_place_of(method))


def looks_of(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The looks of what one figure shows, no two alike: methods have their own, and what is none gets the last that
    none of these methods has."""
    names = list(names)
    places = {name: _place_of(name) for name in names if method_of(name) is not None}
    free = [place for place in reversed(range(len(METHOD_COLOURS))) if place not in places.values()]
    others = [name for name in names if name not in places]
    return {name: _look(place) for name, place in {**places, **dict(zip(others, free, strict=False))}.items()}


def _place_of(method: str) -> int:
    registered = RESEARCH if method.startswith(RESEARCH) else method
    return list(METHODS).index(registered) if registered in METHODS else len(METHOD_COLOURS) - 1


def _look(place: int) -> tuple[str, str]:
    return METHOD_COLOURS[place], _MARKERS[place]


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
