"""What a run explains: its examples, model and components, each loaded once, and the identity of its margins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import nn

from coar_dist.ablation.device_map import check_device_map
from coar_dist.ablation.placement import native_precision
from coar_dist.cluster.dispatch import answer_of_an_actor
from coar_dist.cluster.place import joins_a_cluster
from coar_dist.components.discovery import check_components, discover
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import block_size
from coar_dist.errors import (
    ConfigError,
    DamagedFileError,
    MissingWorkError,
    RunMismatchError,
    RunNotFoundError,
    TaskError,
    shortened,
)
from coar_dist.stages.session import Session
from coar_dist.store.storage import Storage
from coar_dist.tasks.build import build_examples, build_task, built_away, model_with_weights, untrained_model
from coar_dist.tasks.elsewhere import AsHere, is_without_weights, with_origin
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from coar_dist.tasks.trained_checkpoint import CHECKPOINT, model_settings, trained_with

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


def examples_of(session: Session, key: str) -> ExampleSet:
    """The examples that the configuration names, loaded at the first call.

    Args:
        session: which keeps them.
        key: ``task.examples``, ``train.examples`` or ``edit.examples``.
    """
    if key not in session.examples:
        part: Any = getattr(session.config, key.partition(".")[0])
        session.examples[key] = build_examples(part.examples, key)
    return session.examples[key]


def task_of(session: Session) -> Task:
    """What is explained: what the session was given, or what the configuration says, with the trained weights.

    Raises:
        MissingWorkError: as of ``trained_in``.
        ConfigError, TaskError, DamagedFileError: naming the key or file that is wrong.
    """
    if session.task is None:
        session.task = task_on(session, "task.examples")
        check_device_map(session.config.ablation.device_map, session.task.model)
    return session.task


def task_on(session: Session, key: str) -> Task:
    """The model that the configuration says, with the trained weights, on the examples of a key. With a cluster that
    is joined, the weights are not here: its head may be too small for them.

    Raises:
        MissingWorkError, ConfigError, TaskError, DamagedFileError: as of ``task_of``.
    """
    trained = trained_in(session)
    task = _task_without_weights(session, key, trained) if joins_a_cluster(session.config.cluster) else None
    return task or build_task(session.config.task, trained, partial(examples_of, session, key))


def with_weights(session: Session, model: nn.Module, function: Callable[[], _T]) -> _T:
    """What ``function`` returns where the model's weights are: here, or in an actor's place, which builds the model.

    Args:
        session: whose cluster it is.
        model: in what ``function``, which can be pickled, computes with.
        function: without arguments; it returns nothing large.

    Raises:
        ClusterError: no process starts there in time.
    """
    return answer_of_an_actor(session.config.cluster, function) if is_without_weights(model) else function()


def _task_without_weights(session: Session, key: str, trained: Storage | None) -> Task | None:
    """The task, its model built and checked on a worker and here without weights; None where workers cannot build it,
    so that it is built here and sent."""
    config = session.config.task
    build = AsHere.of(partial(model_with_weights, config.model, trained))
    examples, function = examples_of(session, key), output_function(config.output_function)
    try:
        model, origin = answer_of_an_actor(session.config.cluster, partial(built_away, build, examples, function))
    except (ConfigError, TaskError, DamagedFileError) as error:
        _log.info("the model is built here, because it cannot be on a worker: %s", error)
        return None
    return Task(with_origin(model, origin), examples, function)


def untrained_task(session: Session) -> Task:
    """What will be explained once the model is trained, with the weights that its constructor gives; built at the first
    call."""
    if session.untrained is None:
        config = session.config.task
        model, examples = untrained_model(config.model), examples_of(session, "task.examples")
        session.untrained = Task(model, examples, output_function(config.output_function))
    return session.untrained


def is_to_be_trained(session: Session) -> bool:
    """Whether the train stage is still to make the model."""
    config = session.config
    return "train" in config.stages and config.train is not None and session.storage.size(CHECKPOINT) is None


def trained_in(session: Session) -> Storage | None:
    """Where the train stage left the model's weights; None where no stage trains it.

    Raises:
        MissingWorkError: the train stage has not run.
    """
    if session.config.train is None:
        return None
    if session.storage.size(CHECKPOINT) is None:
        where = session.storage.where(CHECKPOINT)
        raise MissingWorkError(
            f"{where} is missing: run the train stage, or set task.model.checkpoint. (Where the run was made in "
            f"Python, go on there: coar_dist.attribute with its arguments.)"
        )
    _refuse_other_model(session)
    return session.storage


def _refuse_other_model(session: Session) -> None:
    """Another model's weights cannot be loaded into the one that the configuration says."""
    stored = trained_with(session.storage)
    for key, value in model_settings(session.config.task.model).items():
        if key in stored and stored[key] != value:
            where = session.storage.where(CHECKPOINT)
            said = shortened(f"{key} is {value!r}, but {where} was trained with {stored[key]!r}.")
            raise RunMismatchError(f"{said} Give the options that the run was made with, e.g. experiment=...")


def components_of(session: Session, model: nn.Module) -> ComponentIndex:
    """The component index that the session was given, or the one that the configuration selects in the model.

    Raises:
        NoComponentsError: the selector matches nothing.
        ComponentMismatchError, ConfigError: components do not fit the model.
    """
    components = session.components
    if components is None:
        chosen = session.config.components
        components = discover(model, chosen.selector, chosen.include, chosen.exclude, chosen.rules)
    check_components(model, components)
    return components


def identity_of(session: Session, task: Task, components: ComponentIndex) -> dict[str, Any]:
    """Everything that the margins of the run directory depend on, but which components these are."""
    ablation = session.config.ablation
    return {
        **task.identity(),
        "ablation.precision": _precision(session),
        "ablation.margins_dtype": ablation.margins_dtype,
        "ablation.examples_per_block": block_size(ablation, components.num_components),
    }


def _precision(session: Session) -> str:
    """The engine's precision; ``auto`` is what the run has, or else what the actors' device computes natively."""
    config = session.config
    if config.ablation.precision != "auto":
        return config.ablation.precision
    try:
        return str(session.open_run().identity["ablation.precision"])
    except (RunNotFoundError, DamagedFileError):
        return answer_of_an_actor(config.cluster, native_precision)
