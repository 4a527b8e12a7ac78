"""What a run explains: its examples, model and components, each loaded once, and the identity of its margins."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from coar_dist.ablation.device_map import check_device_map
from coar_dist.ablation.placement import native_precision
from coar_dist.cluster.dispatch import answer_of_an_actor
from coar_dist.components.discovery import check_components, discover
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import DamagedFileError, MissingWorkError, RunNotFoundError
from coar_dist.stages.session import Session
from coar_dist.tasks.build import build_examples, build_task, untrained_model
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from coar_dist.tasks.trained_checkpoint import CHECKPOINT, read_checkpoint


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
        MissingWorkError, DamagedFileError: as of ``trained_weights``.
        ConfigError, TaskError: naming the key that is wrong.
    """
    if session.task is None:
        config = session.config.task
        session.task = build_task(config, trained_weights(session), partial(examples_of, session, "task.examples"))
        check_device_map(session.config.ablation.device_map, session.task.model)
    return session.task


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


def trained_weights(session: Session) -> dict[str, Tensor] | None:
    """What the train stage left in the run directory; None where no stage trains the model.

    Raises:
        MissingWorkError: the train stage has not run.
        DamagedFileError: the checkpoint is damaged.
    """
    if session.config.train is None:
        return None
    trained = read_checkpoint(session.storage)
    if trained is None:
        where = session.storage.where(CHECKPOINT)
        raise MissingWorkError(f"{where} is missing: run the train stage, or set task.model.checkpoint.")
    return trained[0]


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


def identity_of(session: Session, task: Task) -> dict[str, Any]:
    """Everything but the components that the margins of the run directory depend on."""
    ablation = session.config.ablation
    return {
        **task.identity(),
        "ablation.precision": _precision(session),
        "ablation.margins_dtype": ablation.margins_dtype,
        "ablation.examples_per_block": ablation.examples_per_block,
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
