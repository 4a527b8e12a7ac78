"""What a run was made from, in the process that made it, and what a model can still tell of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from coar_dist.ablation.value import SiteValues, ZeroWeights
from coar_dist.components.gate_places import weights_read
from coar_dist.components.index import ComponentIndex
from coar_dist.components.stale_values import forget_as_in_training
from coar_dist.config.schema import Config, EvaluationConfig, light_evaluation
from coar_dist.designs.own import OwnDesign
from coar_dist.editing.edit import values_of
from coar_dist.editing.plain import plain_outputs
from coar_dist.errors import ConfigError, DamagedFileError, RunMismatchError, RunNotFoundError
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.identity import check_identity
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import differs_by_example, value_in_words
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import Task, call_model


@dataclass(frozen=True)
class Made:
    """What a run was made from, in the process that made it.

    Attributes:
        config: the whole configuration.
        task: model, examples and output function.
        components: the component index.
        reference: the examples whose activations take the place of others, where they were given.
        values: what takes the place of activations, by site, where it was given.
        held_out_seed: of held-out masks that are collected later.
    """

    config: Config
    task: Task
    components: ComponentIndex
    reference: ExampleSet | None
    values: Mapping[str, Tensor] | None
    held_out_seed: int

    def collect_held_out(self, trained: float, console: Console | None) -> None:
        """Collect a few held-out masks of the training masks' ablation fraction, and evaluate on them."""
        evaluation = light_evaluation(trained, self.held_out_seed)
        config = replace(self.config, stages=["ablate", "evaluate"], evaluation=evaluation)
        run_stages(config, console, self.task, self.components, reference=self.reference, values=self.values)


def held_out_of(location: str, seed: int) -> EvaluationConfig | None:
    """The held-out masks that the run at a location has; None where there is no run, or it has none but of the seed
    ``seed``, which are those of another run."""
    try:
        designs = list(RunDirectory.open(storage_at(location)).held_out.values()) if location else []
    except (RunNotFoundError, DamagedFileError, RunMismatchError):  # the stages say so
        return None
    if not designs or isinstance(designs[0], OwnDesign):
        return None
    one, fractions = designs[0], [design.ablation_fraction for design in designs]
    if one.seed == seed:
        return None
    return EvaluationConfig(one.kind, one.num_masks, fractions, one.seed, curve_shares=[])


def true_outputs(run: RunDirectory, task: Task, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Outputs (num_examples,) float32 of a run's model under one mask, with what the run puts in the place of ablated
    components.

    Args:
        run: which explains the task.
        task: its model is copied.
        mask: (num_components,) bool, True = kept.

    Raises:
        RunMismatchError: the run explains something else.
        ConfigError: what takes the place of ablated components differs from example to example.
    """
    if differs_by_example(run.identity):
        raise ConfigError(
            f"ablate: the run ablates by {value_in_words(run.identity)}, which differ from example to example. Use "
            f"coar_dist.ablated_outputs with what the run was given."
        )
    asked = task.identity()
    check_identity(run.storage, {key: run.identity.get(key) for key in asked}, asked)
    values, components = values_of(run), run.components
    value = ZeroWeights(components) if values is None else SiteValues(components, values=values)
    copied = replace(task, model=copy.deepcopy(task.model).eval())
    device = next((parameter.device for parameter in copied.model.parameters()), torch.device("cpu"))
    first = task.examples.rows(0, 1).map(lambda tensor: tensor.to(device))
    read = weights_read(copied.model, components, lambda: call_model(copied.model, first.inputs))
    masker, precision = replace(value, read=read).truth(copied.model), str(run.identity["ablation.precision"])
    autocast = torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")
    with masker.ablated(mask), autocast:
        forget_as_in_training(copied.model)  # what it may have kept of its weights
        return plain_outputs(copied, device)[0]
