"""One command on one run directory: what it is to do, where it speaks, and its right to write."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING

from coar_dist.config.schema import Config
from coar_dist.console.progress import StageProgress
from coar_dist.console.run_log import RunLog
from coar_dist.console.saying import Terminal
from coar_dist.console.tracking import Tracking
from coar_dist.store.aside import damaged_set_aside
from coar_dist.store.locations import storage_at
from coar_dist.store.lock import Hold, only_writer
from coar_dist.store.run_directory import FOLDERS, RunDirectory

if TYPE_CHECKING:  # a command that reads loads no torch
    from torch import Tensor

    from coar_dist.components.index import ComponentIndex
    from coar_dist.tasks.example_set import ExampleSet
    from coar_dist.tasks.task import Task

READS = ("stages", "allow_code", "run.dir", "tracking")
"""The options that every command reads, whatever its stages."""
_log = logging.getLogger(__name__)


class Session:
    """What every stage is given. At the end of its ``with`` block the run directory is free again.

    Args:
        config: the whole configuration, validated.
        terminal: where stages say what they do.
        task: what to explain; None builds it from ``config.task``.
        components: the component index; None discovers it by ``config.components``.
        held_out: examples on which an edit is chosen and measured, in the place of ``config.edit.examples``.
        reference: examples whose means take the place of components, in the place of ``config.ablation.reference``.
        values: what takes the place of components, by site, in the place of ``config.ablation.constants``.

    Attributes:
        storage: the run directory.
        tracking: where figures go; nowhere before ``take``.
        examples: what has been loaded, by its config key.
        untrained: what the checks look at before the model is trained.

    Raises:
        ConfigError: ``config.run.dir`` is no place that can be used.
    """

    def __init__(
        self,
        config: Config,
        terminal: Terminal,
        task: Task | None = None,
        components: ComponentIndex | None = None,
        held_out: ExampleSet | None = None,
        reference: ExampleSet | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config, self.terminal = config, terminal
        self.task, self.components, self.held_out = task, components, held_out
        self.reference, self.values = reference, values
        self.untrained: Task | None = None
        self.examples: dict[str, ExampleSet] = {}
        self.storage = storage_at(config.run.dir)
        self.tracking = Tracking(config.tracking)
        self._log = RunLog(self.storage, terminal.stage)
        self._until_release = contextlib.ExitStack()
        self._hold: Hold | None = None

    def begin(self, stage: str) -> None:
        """From now on lines are said and logged in this stage's name."""
        self.terminal.stage = self._log.stage = stage

    def take(self) -> Hold:
        """Become the run directory's one writer, at the first call: half-written files are removed, log and trackers
        opened. A damaged file that ends the session from then on is set aside.

        Raises:
            RunInUseError: another process writes to it.
            StorageError: it cannot be written.
            ConfigError: a tracker cannot start.
        """
        if self._hold is None:
            enter = self._until_release.enter_context
            self._hold = enter(only_writer(self.storage))
            for folder in FOLDERS:
                self.storage.sweep(folder)
            enter(self._log)
            configuration = asdict(self.config)
            _log.info("configuration: %s", json.dumps(configuration, default=repr))
            enter(self.tracking.opened(self.storage, configuration))
            enter(damaged_set_aside(self.storage, self._hold))
        return self._hold

    def keep(self, context: AbstractContextManager[object]) -> None:
        """Enter a context that lasts as long as the right to write."""
        self._until_release.enter_context(context)

    def release(self) -> None:
        """Complete the log and let others write; nothing where nothing was taken."""
        self._hold = None
        self._until_release.close()

    def open_run(self) -> RunDirectory:
        """The run in the run directory.

        Raises:
            RunNotFoundError: there is none.
        """
        return RunDirectory.open(self.storage)

    def progress(self, total: int, unit: str) -> AbstractContextManager[StageProgress]:
        """Show the stage's progress for the length of a ``with`` block, and stop at the next update when another
        process has taken over the run directory."""
        return self.terminal.progress(total, unit, self.take().check)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hold = None
        self._until_release.__exit__(kind, error, traceback)
