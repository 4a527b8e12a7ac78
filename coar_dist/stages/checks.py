"""What can be known to be wrong before any stage runs. Nothing is written, and the run directory is not taken."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.ablation.device_map import check_device_map
from coar_dist.baselines.gradient_baselines import check_gradient_baselines
from coar_dist.cluster.dispatch import check_place
from coar_dist.config.functions import look_up
from coar_dist.config.methods import GRADIENT_BASELINES, METHODS, method_of
from coar_dist.config.schema import GREEDY, MAGNITUDE, RANDOM, EditConfig
from coar_dist.editing.criterion import METRICS
from coar_dist.editing.groups import check_group
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError, RunNotFoundError
from coar_dist.stages.class_names import checked_class_names
from coar_dist.stages.inputs import (
    components_of,
    examples_of,
    is_to_be_trained,
    task_of,
    untrained_task,
    with_weights,
)
from coar_dist.stages.mask_designs import check_kinds, designs_of
from coar_dist.stages.session import Session
from coar_dist.stages.values import check_value
from coar_dist.store.examples import ExampleTable
from coar_dist.store.record import RUN_FILE
from coar_dist.store.values import differs_by_example, value_in_words
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.training import check_training, loss_for, measuring_loss

Columns = Mapping[str, NDArray[Any]]


def check_train_stage(session: Session) -> None:
    """Check the examples, the untrained model and how it is to be trained, where it is not trained yet.

    Raises:
        ConfigError, TaskError: naming the key that is wrong.
    """
    train, task = session.config.train, session.config.task
    if train is None or not is_to_be_trained(session):
        return
    output_function(task.output_function)  # whose name may be wrong, which is not for train.loss to say
    loss = loss_for(train, task.output_function)
    model = untrained_task(session).model
    check_training(model, {loss: examples_of(session, "train.examples")}, train)
    measured = measuring_loss(loss, task.output_function)
    check_training(model, {measured: examples_of(session, "task.examples")}, train)


def check_ablate_stage(session: Session) -> None:
    """Check the designs, and what a new run explains and where: with an untrained model before it is trained.

    Raises:
        ConfigError, TaskError, NoComponentsError, ComponentMismatchError: naming the key that is wrong.
        ClusterError: nothing answers at ``cluster.address``, or this machine has no room for an actor.
    """
    config = session.config
    check_kinds(config)
    if session.storage.size(RUN_FILE) is not None:
        return  # what is there already needs no cluster, and its inputs are looked at once more by the stage itself
    task = untrained_task(session) if is_to_be_trained(session) else task_of(session)
    session.components = components = components_of(session, task.model)
    designs_of(config, components.num_components)
    task.check()
    checked_class_names(session, task)
    check_value(session, task, components)
    check_device_map(config.ablation.device_map, task.model)
    methods = [method for method in GRADIENT_BASELINES if method in config.baselines]
    if methods:
        with_weights(session, task.model, partial(check_gradient_baselines, task, components, methods))
    check_place(config.cluster)


def check_edit_stage(session: Session) -> None:
    """Check the names in an edit, and the conditions of its groups as far as they can be judged by now.

    Raises:
        ConfigError, TaskError: naming the key that is wrong.
    """
    edit = session.config.edit
    if edit is None:
        return
    _refuse_values_by_example(session)
    if edit.metric is not None:
        look_up("edit.metric", edit.metric, METRICS)
    _check_selections(edit)
    explained = _explained_columns(session)
    if explained is None:
        return  # the stage itself says what is missing or damaged
    for key, group in (("edit.target", edit.target), ("edit.reference", edit.reference)):
        check_group(group, explained, key)
    measured = explained
    if session.held_out is not None:
        measured = _columns_of(session.held_out)
    elif edit.examples is not None:
        measured = _columns_of(examples_of(session, "edit.examples"))
    for name, group in edit.groups.items():
        check_group(group, measured, f"edit.groups.{name}")
    there = session.components
    if edit.max_components is not None and there is not None and edit.max_components > there.num_components:
        raise ConfigError(
            f"edit.max_components={edit.max_components}: the model has {there.num_components} components."
        )


def _refuse_values_by_example(session: Session) -> None:
    """An edited model knows no partner of its input, nor its class."""
    try:
        identity = session.open_run().identity
    except (RunNotFoundError, DamagedFileError):
        return  # the stage itself says so
    if differs_by_example(identity):
        raise ConfigError(
            f"edit: the run ablates by {value_in_words(identity)}, which differ from example to example, so that no "
            f"edited model can give them. Edit a run with ablation.value=mean, zero or zero_weights."
        )


def _check_selections(edit: EditConfig) -> None:
    others = (GREEDY, MAGNITUDE, RANDOM)
    for key, name in [("method", edit.method), *(("compare", name) for name in edit.compare)]:
        if name is not None and name not in others and method_of(name) is None:
            raise ConfigError(f"edit.{key}={name!r}: must be one of {', '.join([*METHODS, *others])}.")


def _explained_columns(session: Session) -> Columns | None:
    """What is known of the examples that the edit is chosen from; None where no run can be read."""
    if "ablate" in session.config.stages:
        return _columns_of(examples_of(session, "task.examples") if session.task is None else session.task.examples)
    try:
        return ExampleTable(session.open_run()).read()
    except (RunNotFoundError, MissingWorkError, DamagedFileError):
        return None


def _columns_of(examples: ExampleSet) -> Columns:
    """The columns of ``examples.parquet`` that do not need the model's outputs."""
    targets = examples.targets
    are_classes = targets.ndim == 1 and not targets.is_floating_point()
    labels = targets.cpu().numpy() if are_classes else np.full(len(examples), np.nan)
    return {"example_id": np.arange(len(examples)), "label": labels, **examples.columns}
