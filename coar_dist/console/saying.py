"""What a command says: a line of a stage goes to the terminal and into the log, warnings in yellow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coar_dist.cluster.work import Origin
from coar_dist.console.cell import console_of
from coar_dist.console.progress import StageProgress, stage_progress
from coar_dist.console.tables import print_whole
from coar_dist.errors import words_of_face

SAID_BY = __name__
"""The logger of what stages say, by which the report page knows it."""
_log = logging.getLogger(SAID_BY)
_STAGE_WIDTH, _GAP = 9, 2


class Terminal:
    """Where a command says how far it is and what it found.

    Texts are plain: square brackets in a path or a name are printed as they are.

    Args:
        console: where it is printed; None is standard output, or the cell of a notebook.
        stage: in whose name lines are said, until a command sets another.

    Example:
        >>> Terminal(stage="fit").say("attributions of 100 examples")
              fit  attributions of 100 examples
    """

    def __init__(self, console: Console | None = None, stage: str = "") -> None:
        self._console = console_of(console)
        self.stage = stage

    def say(self, text: str, level: int = logging.INFO) -> None:
        """Print and log one line of the stage."""
        self._print_line(text, level)
        _log.log(level, "%s", text, extra={"stage": self.stage})

    def warn(self, text: str) -> None:
        """Print and log a line that says what is wrong."""
        self.say(text, logging.WARNING)

    def relay(self, lines: Iterable[tuple[int, str]], origin: Origin) -> None:
        """Log what an actor has logged, (level, text) each; warnings are printed, too."""
        for level, text in lines:
            _log.log(level, "%s", text, extra={"stage": self.stage, **origin.fields()})
            if level >= logging.WARNING:
                self._print_line(text, level)

    def print(self, text: str, style: str = "") -> None:
        """Print lines that are no stage's, and log nothing."""
        self._console.print(Text(words_of_face.get()(text), style), soft_wrap=True)

    def print_table(self, table: Table) -> None:
        """Print a table from the left margin."""
        print_whole(self._console, table)

    def show_table(self, table: Table) -> None:
        """Print a table under the lines of a stage."""
        print_whole(self._console, table, indent=_STAGE_WIDTH + _GAP)

    def progress(
        self, total: int, unit: str, on_update: Callable[[], None] | None = None
    ) -> AbstractContextManager[StageProgress]:
        """Show the stage's progress for the length of a ``with`` block.

        Args:
            total: units that are to be done.
            unit: what is counted, in the plural.
            on_update: called at every update, e.g. to stop a process that is no longer to write.
        """
        return stage_progress(self._console, self.stage, total, unit, on_update)

    def _print_line(self, text: str, level: int) -> None:
        style = "yellow" if level >= logging.WARNING else ""
        said = words_of_face.get()(text)
        line = Text.assemble((f"{self.stage:>{_STAGE_WIDTH}}", "bold"), " " * _GAP, (said, style))
        self._console.print(line, soft_wrap=True)
