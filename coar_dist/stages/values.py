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
from coar_dist.ablation.row_value import ClassMeans, Paired, Resampled, RowValues
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import AblationValue, SiteValues, ZeroWeights
from coar_dist.cluster.dispatch import connected, executing
from coar_dist.cluster.place import is_here
from coar_dist.components.index import ComponentIndex
from coar_dist.components.sites import Values, activation_sites_of, checked_values, sites_of, valued_sites_of
from coar_dist.config.schema import (
    ALL_POSITIONS,
    CONSTANTS,
    COUNTERFACTUAL,
    MEAN,
    POSITION,
    RESAMPLE,
    ZERO,
    ZERO_WEIGHTS,
    differs_by_example,
    is_of_classes,
)
from coar_dist.editing.edit import values_of
from coar_dist.errors import ConfigError, DamagedFileError, RunNotFoundError
from coar_dist.stages.donors import (
    check_counterfactuals,
    check_donors,
    check_signature,
    classes_in,
)
from coar_dist.stages.prediction import seconds_per_pass
from coar_dist.stages.session import Session
from coar_dist.store import values as keys
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import has_values, write_values
from coar_dist.tasks.build import build_examples
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import Task


def check_value(session: Session, task: Task, components: ComponentIndex) -> None:
    """Check that every component has a site, and that constants, reference and counterfactuals fit.

    Raises:
        ComponentMismatchError: a component has no site.
        ConfigError, TaskError: constants, reference or counterfactuals do not fit; naming the site, input or pair.
    """
    ablation = session.config.ablation
    if ablation.value == ZERO_WEIGHTS:
        return
    if differs_by_example(ablation):
        activation_sites_of(task.model, components)
    else:
        (sites_of if ablation.value == ZERO else valued_sites_of)(task.model, components)
    if ablation.value == CONSTANTS:
        _constants(session, task.model, components)
    if ablation.value == MEAN:
        reference = reference_of(session, task)
        check_signature(reference, task.examples)
        if is_of_classes(ablation):
            classes_in(ablation.mean_over, reference, task.examples)
    if ablation.value == RESAMPLE:
        check_donors(reference_of(session, task), task.examples)
    if ablation.value == COUNTERFACTUAL:
        check_counterfactuals(task.examples)


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
    asked: dict[str, Any] = {keys.VALUE: ablation.value}
    if ablation.value == COUNTERFACTUAL:
        return {**asked, keys.COUNTERFACTUAL: task.examples.counterfactual_fingerprint()}
    if ablation.value == CONSTANTS:
        values = _constants(session, task.model, components)
        return {**asked, keys.CONTENT: _write(session, values) if find else None}
    if ablation.value in (MEAN, RESAMPLE):
        reference = reference_of(session, task)
        asked[keys.REFERENCE] = reference.without_columns().fingerprint()
    if ablation.value == RESAMPLE:
        asked[keys.SEED] = session.config.design.seed
    if ablation.value == MEAN:
        asked[keys.MEAN_OVER] = ablation.mean_over
        if is_of_classes(ablation):
            asked[keys.CLASSES] = classes_in(ablation.mean_over, reference, task.examples).names
        return {**asked, keys.CONTENT: _content_of_means(session, task, components, reference, asked, find)}
    return asked


def value_of_run(session: Session, run: RunDirectory, task: Task, components: ComponentIndex) -> AblationValue:
    """What takes the place of a run's ablated components."""
    identity = run.identity
    value = identity.get(keys.VALUE)
    if value == COUNTERFACTUAL:
        return RowValues(components, source=Paired())
    if value == RESAMPLE:
        reference = reference_of(session, task)
        are_examples = reference is task.examples
        source = Resampled(identity[keys.SEED], len(reference), are_examples)
        return RowValues(components, source=source, reference=None if are_examples else reference.without_columns())
    values = values_of(run)
    if values is None:
        return ZeroWeights(components)
    if keys.CLASSES in identity and values:
        classes = classes_in(identity[keys.MEAN_OVER], reference_of(session, task), task.examples)
        return RowValues(components, source=ClassMeans(values, torch.from_numpy(classes.of_examples)))
    return SiteValues(components, values=values)


def _content_of_means(
    session: Session,
    task: Task,
    components: ComponentIndex,
    reference: ExampleSet,
    asked: Mapping[str, Any],
    find: bool,
) -> str | None:
    """The fingerprint of the run's means; those of another run are refused for what differs, and not computed."""
    stored = _stored(session)
    same = all(stored.get(key) == value for key, value in asked.items())
    content: str | None = stored.get(keys.CONTENT)
    if stored and (not same or (content is not None and has_values(session.storage, content))):
        return content
    return _write(session, _means(session, task, components, reference)) if find else None


def _stored(session: Session) -> dict[str, Any]:
    try:
        return session.open_run().identity
    except (RunNotFoundError, DamagedFileError):
        return {}


def _write(session: Session, values: Values) -> str:
    return write_values(session.storage, {name: value.numpy() for name, value in values.items()})


def reference_of(session: Session, task: Task) -> ExampleSet:
    """The examples whose means take the place of components, or that lend their activations; the run's own where no
    others are given."""
    if session.reference is not None:
        return session.reference
    source = session.config.ablation.reference
    if not source.source:
        return task.examples
    if keys.REFERENCE not in session.examples:
        session.examples[keys.REFERENCE] = build_examples(source, keys.REFERENCE)
    return session.examples[keys.REFERENCE]


def _means(session: Session, task: Task, components: ComponentIndex, reference: ExampleSet) -> Values:
    """By one actor, in a pass over the reference."""
    ablation = session.config.ablation
    session.terminal.say(f"mean activations over {len(reference):,} examples of the reference.")
    parts = [reference.without_columns()]
    if is_of_classes(ablation):
        classes = classes_in(ablation.mean_over, reference, task.examples)
        parts = [parts[0].select((classes.of_reference == number).nonzero()[0]) for number in range(len(classes.names))]
    shared = task.model, components, parts, ablation.mean_over, ablation.device_map
    config = session.config

    def predict() -> float:
        return len(reference) * seconds_per_pass(config, task.model, reference)

    if not is_here(config.cluster, predict):
        session.keep(connected(config.cluster))  # the masks come next, on the same cluster
    with executing(config.cluster, predict, "Use a smaller ablation.reference.") as execute:
        (values,) = execute(_means_on_an_actor, shared, [None])
    found: Values = values
    return found


def _means_on_an_actor(
    shared: tuple[nn.Module, ComponentIndex, list[ExampleSet], str, str | None], _item: None
) -> dict[str, Tensor]:
    model, components, parts, mean_over, device_map = shared
    if device_map is not None:
        spread_over_devices(model, device_map)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, where = placed(model, device)
    means = [site_means(module, components, part, where, mean_over == POSITION) for part in parts]
    if mean_over in (ALL_POSITIONS, POSITION):
        return dict(means[0])
    return {name: torch.stack([of_class[name] for of_class in means]) for name in means[0]}


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
