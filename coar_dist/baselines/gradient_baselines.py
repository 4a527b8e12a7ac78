"""The gradient baselines of some examples on one device: in batches, and what can be had for which model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.effects import Effects
from coar_dist.ablation.gate_probe import ungated_groups
from coar_dist.ablation.placement import lay_out, layout_of, placed, with_layout
from coar_dist.ablation.value import ZeroWeights
from coar_dist.baselines.along_path import PathAttribution
from coar_dist.baselines.gradient_x_parameter import by_gates, by_parameters
from coar_dist.components.discovery import check_components
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import PATH_BASELINES
from coar_dist.errors import CoarDistError, ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import Task

_ROWS, _ROWS_ON_GPU = 128, 512
_PASSES_PER_STEP = {"neuron_conductance": 3.1, "internal_influence": 2.6}
_PASSES_WITHOUT_PATH = 3.0
"""Forward passes that the baselines cost, per example: of ResNet-20, measured."""
_log = logging.getLogger(__name__)


def passes_per_example(method: str, num_steps: int) -> float:
    """About what a gradient baseline costs per example, in forward passes.

    Args:
        method: of ``GRADIENT_BASELINES``.
        num_steps: of the path, for those that have one.
    """
    return _PASSES_PER_STEP[method] * num_steps if method in PATH_BASELINES else _PASSES_WITHOUT_PATH


class GradientBaselines:
    """Weights of gradient baselines, in the model's own precision, eagerly and on the model as it is: BatchNorm is not
    folded, because internal influence depends on how an activation is scaled.

    Args:
        task: model (in eval mode, on ``device``), examples, output function. Nothing of it is changed, but within
            calls.
        components: the component index.
        methods: of ``GRADIENT_BASELINES``.
        num_steps: of the path.
        rows_per_pass: rows of one forward and backward pass at most; None: a default of the device.
        device: where the model takes its inputs.

    Attributes:
        why_not_gated: why gradient x parameter takes one example at a time; None where it takes many.

    Raises:
        ConfigError: one of the methods cannot be had for this model or output function; the message says why.
    """

    def __init__(
        self,
        task: Task,
        components: ComponentIndex,
        methods: Sequence[str],
        num_steps: int,
        rows_per_pass: int | None,
        device: torch.device,
    ) -> None:
        check_components(task.model, components)
        self._model, self._components, self._output_function = task.model, components, task.output_function
        self._num_steps, self._device = num_steps, device
        self._rows = rows_per_pass or (_ROWS_ON_GPU if device.type == "cuda" else _ROWS)
        self._layout = layout_of(task.model)
        value = ZeroWeights(components)
        effects = Effects(task.model, value, task.examples, task.output_function, device)
        ungated = ungated_groups(effects, value, task.model, device, uncalled=True)
        why = next((f"{components.groups[number].parameter}: {reason}" for number, reason in ungated.items()), None)
        self.why_not_gated = why
        self._path: PathAttribution | None = None
        along_path = [method for method in methods if method in PATH_BASELINES]
        if why is not None and along_path:
            raise ConfigError(f"baselines={along_path} cannot be had: {why}. Leave them out.")
        if along_path:
            probe = self._on_device(_two_of(task.examples))
            self._path = PathAttribution(task.model, components, task.output_function, probe)

    def weights(self, method: str, examples: ExampleSet) -> NDArray[np.float32]:
        """Weights (n, num_components) float32 of n examples by one of the methods.

        Raises:
            TaskError: the model fails on them.
        """
        while True:
            try:
                return torch.cat(self._parts(method, examples)).numpy()
            except torch.OutOfMemoryError:
                if self._rows == 1:
                    raise
                _log.warning("out of memory with %d rows per pass: going on with %d", self._rows, self._rows // 2)
            except CoarDistError:
                raise
            except Exception as error:  # the user's model may raise anything, and Captum on it
                raise TaskError(f"{method} of {type(self._model).__name__}: {type(error).__name__}: {error}") from error
            torch.cuda.empty_cache()
            self._rows //= 2

    def _parts(self, method: str, examples: ExampleSet) -> list[Tensor]:
        if method not in PATH_BASELINES:
            compute = by_gates if self.why_not_gated is None else by_parameters
            batches = self._batches(examples, self._rows)
            return [compute(self._model, self._components, self._output_function, batch).cpu() for batch in batches]
        assert self._path is not None
        batches = self._batches(examples, self._rows // (self._num_steps + 1))
        with self._path.attached():
            return [self._path.weights(method, batch, self._num_steps, self._rows) for batch in batches]

    def _batches(self, examples: ExampleSet, num_examples: int) -> Iterator[ExampleSet]:
        step = max(num_examples, 1)
        return (self._on_device(examples.rows(start, start + step)) for start in range(0, len(examples), step))

    def _on_device(self, examples: ExampleSet) -> ExampleSet:
        return examples.map(lambda tensor: with_layout(tensor.to(self._device), self._layout))


def check_gradient_baselines(task: Task, components: ComponentIndex, methods: Sequence[str]) -> str | None:
    """Compute the gradient baselines of the first examples, coarsely, where the model lies.

    Returns:
        Why gradient x parameter will take one example at a time; None where it will take many.

    Raises:
        ConfigError: a method cannot be had for this model, these inputs or this output function, or captum is missing.
        TaskError: the model fails.
    """
    device = next((parameter.device for parameter in task.model.parameters()), torch.device("cpu"))
    was_training = task.model.training
    try:
        task.model.eval()
        baselines = GradientBaselines(task, components, methods, 2, None, device)
        for method in methods:
            baselines.weights(method, _two_of(task.examples))
        return baselines.why_not_gated
    finally:
        task.model.train(was_training)


def _two_of(examples: ExampleSet) -> ExampleSet:
    """Two examples; one twice where there is no other."""
    rows = torch.arange(2) % len(examples)
    return examples.select(rows)


def untouched(model: nn.Module, device: torch.device) -> nn.Module:
    """A private model made ready: eval mode, no gradients of parameters, on the device in the layout that suits it."""
    model, _ = placed(model, device)
    lay_out(model, layout_of(model))
    return model
