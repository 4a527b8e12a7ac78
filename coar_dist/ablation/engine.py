"""The ablation engine: margins of one task under given masks, in one process, on one device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker
from coar_dist.components.masks import check_masks
from coar_dist.errors import NonFiniteMarginError
from coar_dist.tasks.outputs import logits_of, output_function
from coar_dist.tasks.task import ExampleSet, Inputs, Task, call_model


@dataclass(frozen=True)
class EngineSettings:
    """How the forward passes are run.

    Attributes:
        device: a torch device, e.g. ``cpu`` or ``cuda``.
        precision: ``float32``, or ``bfloat16`` for autocast.
        examples_per_forward: rows of one forward pass at most.
    """

    device: str = "cpu"
    precision: str = "float32"
    examples_per_forward: int = 512


@dataclass(frozen=True)
class Unablated:
    """The unablated model's outputs.

    Attributes:
        margins: (num_examples,) float32.
        predictions: (num_examples,) int64 predicted classes; None where outputs are not (num_rows, num_classes) logits.
    """

    margins: NDArray[np.float32]
    predictions: NDArray[np.int64] | None


class AblationEngine:
    """Runs a task's model under masks.

    It owns the task's model: it moves it to the device and puts it into eval mode. Weights are changed only within
    a call of ``margins``, and have their exact bits again after it, whatever happened.
    """

    def __init__(self, task: Task, components: ComponentIndex, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = torch.device(settings.device)
        self._model = task.model.to(self._device).eval()
        self._examples = task.examples.map(lambda tensor: tensor.to(self._device))
        self._output_function = task.output_function
        self._components = components
        self._masker = WeightMasker(self._model, components)

    def margins(self, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Margins of all examples under every mask.

        Args:
            masks: (num_masks, num_components) bool, True = kept.

        Returns:
            (num_masks, num_examples) float32; not checked for NaN, which the store refuses.
        """
        check_masks(masks, self._components.num_components)
        margins = torch.empty(len(masks), len(self._examples), device=self._device)
        for row, mask in enumerate(masks):
            with self._masker.ablated(mask):
                for start, batch in self._batches():
                    margins[row, start : start + len(batch)] = self._forward(batch)[1]
        return margins.cpu().numpy()

    def unablated(self) -> Unablated:
        """Margins and predictions of the model as it is.

        Raises:
            NonFiniteMarginError: a margin is NaN or infinite; the message names examples.
        """
        margins, predictions = [], []
        for _, batch in self._batches():
            outputs, batch_margins = self._forward(batch)
            margins.append(batch_margins)
            logits = logits_of(outputs) if _has_logits(outputs) else None
            if logits is not None and logits.ndim == 2 and batch.targets.ndim == 1:
                predictions.append(logits.argmax(dim=1))
        values = torch.cat(margins).cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise NonFiniteMarginError(
                f"the unablated model's margins of {wrong.size} examples are not finite: example {wrong[0]} has "
                f"{values[wrong[0]]} (examples {wrong[:10].tolist()}). Correct the inputs or the checkpoint, or leave "
                f"these examples out."
            )
        return Unablated(values, torch.cat(predictions).cpu().numpy() if predictions else None)

    def _batches(self) -> Any:
        step = self._settings.examples_per_forward
        for start in range(0, len(self._examples), step):
            yield start, self._examples.rows(start, start + step)

    def _forward(self, batch: ExampleSet) -> tuple[Any, Tensor]:
        autocast: AbstractContextManager[Any] = nullcontext()
        if self._settings.precision != "float32":
            autocast = torch.autocast(self._device.type, dtype=getattr(torch, self._settings.precision))
        with torch.no_grad(), autocast:
            outputs = call_model(self._model, batch.inputs)
            return outputs, self._output_function(outputs, batch.targets).float()


def _has_logits(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) or hasattr(outputs, "logits")


def ablated_outputs(
    model: nn.Module,
    components: str | ComponentIndex,
    masks: NDArray[np.bool_],
    inputs: Inputs,
    targets: Tensor,
    output: str | Callable[[Any, Tensor], Tensor] = "margin",
    settings: EngineSettings | None = None,
) -> NDArray[np.float32]:
    """Outputs of ``model`` under given masks, here and now: no Ray, no run directory. ``model`` is not touched.

    Args:
        model: any module.
        components: a selector name, or the component index that the masks are over.
        masks: (num_masks, num_components) bool, True = kept.
        inputs: (num_examples, ...) tensor, or a dict of tensors given by keyword.
        targets: (num_examples, ...) what the output function compares with, e.g. int64 class labels.
        output: a registered output function, ``module:function``, or a callable ``(outputs, targets) -> (num_rows,)``.
        settings: device and precision; None is float32 on the model's own device.

    Returns:
        (num_masks, num_examples) float32.

    Raises:
        NoComponentsError, ComponentMismatchError, TaskError: something does not fit; the message names it.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(3))
        >>> images, labels = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
        >>> _ = model(images)
        >>> ablated_outputs(model, "conv_filters", np.eye(4) == 0, images, labels).shape
        (4, 5)
    """
    index = components if isinstance(components, ComponentIndex) else discover(model, components)
    task = Task(copy.deepcopy(model), ExampleSet(inputs, targets), output_function(output))
    task.check()
    if settings is None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        settings = EngineSettings(device=str(device))
    return AblationEngine(task, index, settings).margins(masks)
