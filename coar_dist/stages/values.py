"""What takes the place of ablated components in a run: found once, kept in the run directory, part of its identity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from coar_dist.ablation.device_map import spread_over_devices
from coar_dist.ablation.placement import placed
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import AblationValue, SiteValues, ZeroWeights
from coar_dist.cluster.connection import connect
from coar_dist.cluster.ray_tasks import on_cluster
from coar_dist.components.index import ComponentIndex
from coar_dist.components.sites import Values, checked_values, sites_of
from coar_dist.config.schema import CONSTANTS, MEAN, ZERO_WEIGHTS
from coar_dist.editing.edit import values_of
from coar_dist.errors import ConfigError, DamagedFileError, RunNotFoundError
from coar_dist.stages.session import Session
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import CONTENT, MEAN_OVER, REFERENCE, VALUE, has_values, write_values
from coar_dist.tasks.build import build_examples
from coar_dist.tasks.task import ExampleSet, Task


def check_value(session: Session, task: Task, components: ComponentIndex) -> None:
    """Check that every component has a site, and that constants and reference fit.

    Raises:
        ComponentMismatchError: a component has no site.
        ConfigError: constants or the reference do not fit; naming the site or the input.
    """
    ablation = session.config.ablation
    if ablation.value == ZERO_WEIGHTS:
        return
    sites_of(task.model, components)
    if ablation.value == CONSTANTS:
        _constants(session, task.model, components)
    if ablation.value == MEAN:
        _check_signature(_reference(session, task), task.examples)


def identity_of_value(session: Session, task: Task, components: ComponentIndex, find: bool = True) -> dict[str, Any]:
    """What the run's identity says of its ablation value. What is found is written into the run directory.

    Args:
        session: which holds the run directory, if ``find``.
        task: what is explained.
        components: its component index.
        find: whether to compute what the run does not have yet; else that is left open.

    Raises:
        ConfigError, TaskError, ComponentMismatchError: as ``check_value`` and ``site_means``.
    """
    ablation = session.config.ablation
    if ablation.value == ZERO_WEIGHTS:
        return {}
    asked: dict[str, Any] = {VALUE: ablation.value}
    if ablation.value == MEAN:
        reference = _reference(session, task)
        asked |= {MEAN_OVER: ablation.mean_over, REFERENCE: reference.without_columns().fingerprint()}
        stored = _stored(session)
        same = all(stored.get(key) == value for key, value in asked.items())
        content = stored.get(CONTENT)
        if stored and (not same or (content is not None and has_values(session.storage, content))):
            return {**asked, CONTENT: content}  # another run's identity is refused for what differs
        if not find:
            return {**asked, CONTENT: None}
        return {**asked, CONTENT: _write(session, _means(session, task, components, reference))}
    if ablation.value == CONSTANTS:
        values = _constants(session, task.model, components)
        return {**asked, CONTENT: _write(session, values) if find else None}
    return asked


def value_of_run(run: RunDirectory, components: ComponentIndex) -> AblationValue:
    """What takes the place of a run's ablated components."""
    values = values_of(run)
    return ZeroWeights(components) if values is None else SiteValues(components, values=values)


def _stored(session: Session) -> dict[str, Any]:
    try:
        return session.open_run().identity
    except (RunNotFoundError, DamagedFileError):
        return {}


def _write(session: Session, values: Values) -> str:
    return write_values(session.storage, {name: value.numpy() for name, value in values.items()})


def _reference(session: Session, task: Task) -> ExampleSet:
    if session.reference is not None:
        return session.reference
    source = session.config.ablation.reference
    if not source.source:
        return task.examples
    if REFERENCE not in session.examples:
        session.examples[REFERENCE] = build_examples(source, REFERENCE)
    return session.examples[REFERENCE]


def _check_signature(reference: ExampleSet, examples: ExampleSet) -> None:
    """A reference is what the model takes in the place of the examples, of any number and length."""
    found, wanted = (
        {name: (tensor.dtype, tensor.ndim) for name, tensor in each.tensors() if name != "targets"}
        for each in (reference, examples)
    )
    if found != wanted:
        spelt = [
            ", ".join(f"{name} ({dtype}, {ndim} axes)" for name, (dtype, ndim) in each.items())
            for each in (found, wanted)
        ]
        raise ConfigError(f"{REFERENCE}: its inputs are {spelt[0]}, but the model is run on {spelt[1]}.")


def _means(session: Session, task: Task, components: ComponentIndex, reference: ExampleSet) -> Values:
    """By one actor, in a pass over the reference."""
    ablation = session.config.ablation
    session.terminal.say(f"mean activations over {len(reference):,} examples of the reference.")
    shared = task.model, components, reference.without_columns(), ablation.mean_over, ablation.device_map
    session.keep(connect(session.config.cluster))  # the masks come next, on the same cluster
    with on_cluster(session.config.cluster, "Use a smaller ablation.reference.") as execute:
        (values,) = execute(_means_on_an_actor, shared, [None])
    found: Values = values
    return found


def _means_on_an_actor(
    shared: tuple[nn.Module, ComponentIndex, ExampleSet, str, str | None], _item: None
) -> dict[str, Tensor]:
    model, components, reference, mean_over, device_map = shared
    if device_map is not None:
        spread_over_devices(model, device_map)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, where = placed(model, device)
    return dict(site_means(module, components, reference, where, mean_over == "position"))


def _constants(session: Session, model: nn.Module, components: ComponentIndex) -> Values:
    """The user's own values, held to the sites.

    Raises:
        ConfigError: a site has none, or one of another shape, or it is not finite; or there is no such site.
    """
    given = session.values if session.values is not None else _read_constants(session.config.ablation.constants)
    return checked_values(given, model, components)


def _read_constants(path: str | None) -> Mapping[str, Tensor]:
    if path is None:
        raise ConfigError("ablation.value=constants: needs ablation.constants, a safetensors file of values by site.")
    try:
        return safetensors.torch.load(Path(path).read_bytes())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"ablation.constants={path}: cannot be read as a safetensors file: {error}.") from error
