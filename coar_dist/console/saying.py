"""What stages share: their lines in the terminal and in the log, and progress that the run directory's holder shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table

from coar_dist.cluster.work import Origin
from coar_dist.console.progress import StageProgress
from coar_dist.console.tables import print_whole
from coar_dist.store.lock import Hold

_log = logging.getLogger(__name__)
_STAGE_WIDTH, _GAP = 9, 2


def say(console: Console, stage: str, text: str) -> None:
    """Print and log one line of a stage."""
    console.print(_line(stage, text), soft_wrap=True, highlight=False)
    _log.info(text, extra={"stage": stage})


def say_table(console: Console, table: Table) -> None:
    """Print a table under a stage's lines."""
    print_whole(console, table, indent=_STAGE_WIDTH + _GAP)


def say_log(console: Console, stage: str, lines: Iterable[tuple[int, str]], origin: Origin) -> None:
    """Log what an actor has logged, (level, text) each; warnings are printed, too."""
    for level, text in lines:
        _log.log(level, text, extra={"stage": stage, **origin.fields()})
        if level >= logging.WARNING:
            console.print(_line(stage, f"[yellow]{text}[/yellow]"), soft_wrap=True, highlight=False)


def _line(stage: str, text: str) -> str:
    return f"[bold]{stage:>{_STAGE_WIDTH}}[/bold]{' ' * _GAP}{text}"


def while_held(hold: Hold, progress: StageProgress) -> Callable[[int], None]:
    """Shows progress, and stops a process that is no longer the run directory's writer."""

    def on_progress(done: int) -> None:
        hold.check()
        progress.update(done)

    return on_progress
