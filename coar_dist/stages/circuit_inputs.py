"""What circuits are run on: the model and the examples that the run explains, and nothing else."""

from __future__ import annotations

from typing import Any

from coar_dist.stages.inputs import task_of
from coar_dist.stages.session import Session
from coar_dist.stages.values import reference_of
from coar_dist.store import values as keys
from coar_dist.store.identity import check_identity
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.task import Task


def checked_task(session: Session, run: RunDirectory) -> Task:
    """The task, held to what the run explains.

    Raises:
        RunMismatchError: model, examples, output function, counterfactuals or reference differ.
        ConfigError, TaskError, MissingWorkError: as of ``task_of``.
    """
    task = task_of(session)
    asked: dict[str, Any] = task.identity()
    stored = run.identity
    if keys.COUNTERFACTUAL in stored:
        asked[keys.COUNTERFACTUAL] = task.examples.counterfactual_fingerprint()
    if stored.get(keys.VALUE) == "resample" or keys.CLASSES in stored:
        asked[keys.REFERENCE] = reference_of(session, task).without_columns().fingerprint()
    check_identity(run.storage, {key: stored.get(key) for key in asked}, asked)
    return task
