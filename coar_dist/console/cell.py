"""The output of a notebook's cell: all that a call says, and its bar while it works, in one place that changes."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from typing_extensions import override

from coar_dist.errors import ConfigError

WIDTH = 110
"""Columns of the lines, which a cell does not wrap: tables keep their form and can be scrolled."""
_DRAW_EVERY_S = 0.2
_FORM = (
    "<pre style=\"white-space:pre;overflow-x:auto;line-height:normal;font-family:Menlo,'DejaVu Sans Mono',consolas,"
    "'Courier New',monospace\">{}</pre>"
)


class CellConsole(Console):
    """A console that keeps what is printed and shows it as one output of the cell that runs.

    It needs no widgets: each print and each drawing of the bar replaces the output (IPython's ``update_display``). So a
    saved notebook has the lines of the call, and no trace of its bars.
    """

    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), record=True, force_jupyter=False, force_terminal=False, width=WIDTH)
        self._handle: Any = None
        self._bar: RenderableType | None = None
        self._drawn_at = float("-inf")

    @override
    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **{**options, "soft_wrap": False})
        self._show()

    @contextmanager
    def shows(self, bar: RenderableType) -> Iterator[None]:
        """Show a bar below the lines for the length of a ``with`` block."""
        self._bar = bar
        try:
            self._show()
            yield
        finally:
            self._bar = None
            self._show()

    def redraw(self) -> None:
        """Draw the bar as it is now; more often than the eye sees has no effect."""
        if time.monotonic() - self._drawn_at >= _DRAW_EVERY_S:
            self._show()

    def _show(self) -> None:
        from IPython.display import display

        self._drawn_at = time.monotonic()
        text, html = _exported(self, clear=False)
        if self._bar is not None:
            drawing = Console(file=io.StringIO(), record=True, force_jupyter=False, width=WIDTH)
            drawing.print(self._bar)
            text_of_bar, html_of_bar = _exported(drawing, clear=True)
            text, html = text + text_of_bar, html + html_of_bar
        bundle = {"text/plain": text, "text/html": _FORM.format(html)}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _exported(console: Console, clear: bool) -> tuple[str, str]:
    """What is printed, as plain text and as HTML."""
    text = console.export_text(clear=False)
    return text, console.export_html(clear=clear, inline_styles=True, code_format="{code}")


def console_of(console: Console | None, progress: bool = True) -> Console:
    """Where a call prints: the console that is given, or standard output; in a notebook, its cell.

    Given what it returns, it returns the same: the parts of one call share one output.

    Args:
        console: as it was given.
        progress: whether anything is printed where no console is given.

    Raises:
        ConfigError: it is no console.
    """
    if console is not None and not isinstance(console, Console):
        raise ConfigError(f"console={console!r}: must be a rich.console.Console, or None for standard output.")
    console = console or Console(quiet=not progress)
    return CellConsole() if console.is_jupyter and not console.quiet else console
