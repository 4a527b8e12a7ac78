"""One progress bar per stage on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from coar_dist.console.cell import CellConsole

_LINE_EVERY_S = 10.0


class StageProgress:
    """Receives how far a stage is, and shows it."""

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        console: Console,
        bar: Progress | None,
        on_update: Callable[[], None] | None,
    ) -> None:
        self._stage, self._total, self._unit, self._console, self._bar = stage, total, unit, console, bar
        self._on_update = on_update
        self._task = None if bar is None else bar.add_task(stage, total=total, rate="", note="")
        self._started = self._last_line = time.monotonic()
        self._done = 0

    def update(self, done: int, note: str = "") -> None:
        """``done`` of the total are done; ``note`` stands behind the rate."""
        if self._on_update is not None:
            self._on_update()
        self._done = done
        now = time.monotonic()
        rate = f"{self.rate:,.1f} {self._unit}/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, rate=rate, note=note)
            if isinstance(self._console, CellConsole):  # there is no thread that draws
                self._console.redraw()
        elif now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            left = f"{rate}, {(self._total - done) / self.rate:,.0f} s left" if done else "starting"
            text = f"{self._stage}: {done:,}/{self._total:,} {self._unit}, {left}"
            self._console.print(Text(f"{text}, {note}" if note else text), soft_wrap=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Units done per second."""
        return self._done / max(self.seconds, 1e-9)


@contextmanager
def stage_progress(
    console: Console, stage: str, total: int, unit: str, on_update: Callable[[], None] | None = None
) -> Iterator[StageProgress]:
    """Show the progress of a stage for the length of a ``with`` block; ``on_update`` is called at every update."""
    in_cell = isinstance(console, CellConsole)
    if not in_cell and not _can_redraw(console):
        yield StageProgress(stage, total, unit, console, None, on_update)
        return
    columns = (
        TextColumn("{task.description:>9}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bar = Progress(*columns, console=console, transient=True, auto_refresh=not in_cell)
    shown = StageProgress(stage, total, unit, console, bar, on_update)
    with console.shows(bar) if isinstance(console, CellConsole) else bar:
        yield shown


def _can_redraw(console: Console) -> bool:
    """Whether a line can be drawn over: FORCE_COLOR makes a terminal of a file, which keeps every drawing of it."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
