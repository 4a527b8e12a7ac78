"""An edit's own run directory: the margins of held-out examples under the masks of its sweep."""

from __future__ import annotations

from coar_dist.ablation.work import ExpectedMasks
from coar_dist.editing.sweep import Sweep
from coar_dist.errors import RunMismatchError
from coar_dist.stages.collect import Missing, collect
from coar_dist.stages.session import Session
from coar_dist.store.edits import EditStore
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.storage import Storage
from coar_dist.store.values import OF_VALUES, values_of_run, write_values
from coar_dist.tasks.task import Task

_AS_COLLECTED = ("ablation.precision", "ablation.margins_dtype", "ablation.examples_per_block")
"""What sweeps take from the run that is edited, whatever the configuration says now."""


class SweepRun:
    """A run directory within the one that is edited.

    Args:
        session: the session of the run that is edited.
        edited: the run that is edited.
        task: its model, with the held-out examples and the output function that is measured.
        storage: the folder of the edit.

    Attributes:
        session: the session of the run that is edited.
        storage: the folder of the edit.
        edits: the edit's own files in it.

    Raises:
        RunMismatchError: the folder is of an edit of another model, or of other held-out examples.
    """

    def __init__(self, session: Session, edited: RunDirectory, task: Task, storage: Storage) -> None:
        self.session, self._task = session, task
        self.storage = storage
        if isinstance(storage, LocalStorage):
            storage.create()
        collected = {key: edited.identity[key] for key in (*_AS_COLLECTED, *OF_VALUES) if key in edited.identity}
        identity = {**task.identity(), **collected}
        values = values_of_run(edited.storage, edited.identity)
        if values:
            write_values(storage, values)
        try:
            self._run = RunDirectory.create(storage, identity, edited.components, len(task.examples))
        except RunMismatchError as error:
            raise RunMismatchError(
                f"{storage} holds an edit of another model or of other held-out examples, which is kept. Give this one "
                f"a name of its own: edit.name=..."
            ) from error
        self.edits = EditStore(self._run)

    def margins(self, sweep: Sweep) -> MarginStore:
        """The margins of all masks of a sweep, computed where they are missing."""
        run = self._run
        run.set_designs({sweep.name: RunDesign("edit", sweep.design)})
        missing = Missing.of(run, self.session)
        expected_masks = ExpectedMasks(missing.work.plain_masks, 0.0)
        collect(self.session, run, self._task, run.components, missing, expected_masks)
        return run.margins(sweep.name)
