"""The names of classes that a command gives: checked against the labels before any work, and kept by the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coar_dist.config.class_names import check_every_class, names_by_class
from coar_dist.report.output_names import classes_of_output
from coar_dist.stages.session import Session
from coar_dist.store.class_names import CLASS_NAMES, CLASS_NAMES_FILE, write_class_names
from coar_dist.store.examples import ExampleTable
from coar_dist.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from coar_dist.tasks.task import Task


def checked_class_names(session: Session, task: Task) -> dict[int, str] | None:
    """The names by class that the command gives; None where it gives none.

    Args:
        session: whose configuration has them.
        task: whose targets, or output, are of these classes.

    Raises:
        ConfigError: a class has no name, or there are no classes.
    """
    given = session.config.task.class_names
    if given is None:
        return None
    names, targets = names_by_class(given), task.examples.targets
    are_classes = targets.ndim == 1 and not targets.is_floating_point()
    labels = sorted(set(targets.tolist())) if are_classes else []
    check_every_class(names, [*labels, *classes_of_output({"output_function": task.output_function.identity()})])
    return names


def class_names_for_report(session: Session, run: RunDirectory) -> dict[int, str] | None:
    """The same for a run that is there already.

    Raises:
        ConfigError: as above.
        MissingWorkError, DamagedFileError: its examples cannot be read.
    """
    given = session.config.task.class_names
    if given is None:
        return None
    names, labels = names_by_class(given), ExampleTable(run).read()["label"]
    of_examples = np.unique(labels).tolist() if labels.dtype.kind == "i" else []
    check_every_class(names, [*of_examples, *classes_of_output(run.identity)])
    return names


def keep_class_names(session: Session, run: RunDirectory, names: dict[int, str] | None) -> None:
    """Write the names, if any, as the run directory's one writer; what is damaged is set aside."""
    session.take()
    run.set_aside_wrong(CLASS_NAMES, CLASS_NAMES_FILE)
    if names is not None:
        write_class_names(run, names)
