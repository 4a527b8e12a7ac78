"""The run directory of a run's circuits: mean outputs of its own examples with everything else ablated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coar_dist.ablation.work import ExpectedMasks
from coar_dist.designs.given import Listed
from coar_dist.editing.sweep import group_means, margins_of
from coar_dist.errors import RunMismatchError
from coar_dist.stages.collect import Missing, collect
from coar_dist.stages.session import Session
from coar_dist.store.circuits import CIRCUIT_FOLDER
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.locations import storage_at
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.values import values_of_run, write_values
from coar_dist.tasks.task import Task

_MOST_MASKS, _MASKS_PER_BATCH = 1024, 256
"""Of the run's own masks, from which a standard deviation is known to 2%."""
_ADDED = ("components", "num_examples")
"""Keys of an identity that ``RunDirectory.create`` adds."""


class CircuitRun:
    """A run directory within another one, of the same identity.

    Args:
        session: of the run whose circuits they are.
        run: that run.
        task: what it explains.

    Raises:
        RunMismatchError: the folder is of another run.
    """

    def __init__(self, session: Session, run: RunDirectory, task: Task) -> None:
        self._session, self._task = session, task
        storage = storage_at(f"{run.storage.location.rstrip('/')}/{CIRCUIT_FOLDER}")
        if isinstance(storage, LocalStorage):
            storage.create()
        values = values_of_run(run.storage, run.identity)
        if values:
            write_values(storage, values)
        identity = {key: value for key, value in run.identity.items() if key not in _ADDED}
        try:
            self._run = RunDirectory.create(storage, identity, run.components, run.num_examples)
        except RunMismatchError as error:
            raise RunMismatchError(f"{storage} holds circuits of another run. Remove this folder.") from error
        if self._run.engine_plan is None and run.engine_plan is not None:
            self._run.set_engine_plan(run.engine_plan)

    def mean_outputs(self, designs: Mapping[str, Listed]) -> dict[str, NDArray[np.float64]]:
        """Mean outputs over examples under every mask, computed where margins are missing.

        Args:
            designs: by name.

        Returns:
            Per design (num_masks,) float64.
        """
        run = self._run
        run.set_designs({name: RunDesign("circuit", design) for name, design in designs.items()})
        missing = Missing.of(run, self._session)
        collect(self._session, run, self._task, run.components, missing, ExpectedMasks(missing.work.plain_masks, 0.0))
        return {name: mean_outputs(run.margins(name)) for name in designs}

    def outputs(self, name: str) -> NDArray[np.float32]:
        """Outputs (num_masks, num_examples) under every mask of a design that is computed."""
        return margins_of(self._run.margins(name), np.arange(self._run.num_examples))


def outputs_over_masks(store: MarginStore) -> NDArray[np.float64]:
    """Mean outputs (num_masks,) over all examples under the first masks of a design: up to a gap, and at most 1,024."""
    gaps = store.missing()
    means = np.zeros(min(gaps[0][0] if gaps else store.num_masks, _MOST_MASKS))
    for block in store.blocks if len(means) else ():
        start = 0
        for margins in replace(store, num_masks=len(means)).read_margins(block, _MASKS_PER_BATCH):
            means[start : start + len(margins)] += margins.sum(axis=1, dtype=np.float64)
            start += len(margins)
    return means / store.num_examples


def mean_outputs(store: MarginStore) -> NDArray[np.float64]:
    """Mean outputs (num_masks,) over all examples under every mask of a design."""
    return group_means(store, "output", {"all": np.arange(store.num_examples)})["all"]
