"""The probe: margins of the untouched model, which every faster way of computing them must give before it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coar_dist.ablation.prefix import PrefixCuts
from coar_dist.ablation.value import ZeroWeights
from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.task import ExampleSet, Task, call_model

_log = logging.getLogger(__name__)


class Probe:
    """Two masks on two examples: float32 margins (2,) of the untouched model with zeroed weights, mask i on example i.

    Args:
        task: model (in eval mode, on ``device``), examples, output function.
        value: what an ablated component is replaced by.
        device: where the model takes its inputs.

    Raises:
        TaskError: two equal forward passes differ: margins would be noise.
    """

    def __init__(self, task: Task, value: ZeroWeights, device: torch.device) -> None:
        ids = np.arange(value.components.num_components)
        self._masks = np.stack([ids % 3 != 0, ids % 3 != 1])
        self._value = value
        self._device = device
        self._output_function = task.output_function
        rows = torch.arange(2) % len(task.examples)
        self._examples = task.examples.select(rows).map(lambda tensor: tensor.to(device))
        is_float32 = all(parameter.dtype == torch.float32 for parameter in task.model.parameters())
        self._tolerance = 1e-3 if is_float32 else 0.1
        self._expected, again = (self._zeroed_margins(task.model) for _ in range(2))
        if not self._agree(again, self._expected):
            raise TaskError(
                f"{type(task.model).__name__} gives different margins in two equal forward passes "
                f"({self._expected.tolist()}, {again.tolist()}): it is random in eval mode. Take the randomness "
                f"(dropout, noise) out."
            )

    def holds_for(self, model: nn.Module) -> bool:
        """Whether ``model`` with zeroed weights gives the margins of the untouched one."""
        return self._agree(self._zeroed_margins(model), self._expected)

    def why_gates_fail(self, model: nn.Module) -> str | None:
        """Why gates on ``model`` are wrong (it may read a weight without calling its module); None if right."""

        def gated_margins(gates: Tensor, _examples: ExampleSet) -> Tensor:
            gated_model = self._value.gated(model, len(gates), self._device)
            try:
                gated_model.gates.copy_(gates)
                return self._margins(model)
            finally:
                gated_model.remove()

        return self.why_wrong(gated_margins, "a forward pass with gates")

    def why_wrong(self, gated_margins: Callable[[Tensor, ExampleSet], Tensor], what: str) -> str | None:
        """Why a way to compute margins with gates is wrong; None if it gives the margins of zeroed weights.

        Args:
            gated_margins: from gates (2, num_components) float32 and two examples, gates i on example i, to their
                float32 margins (2,).
            what: what the reason calls it.

        Raises:
            ConfigError: by ``gated_margins``.
        """
        try:
            gates = torch.from_numpy(self._masks).to(self._device, torch.float32)
            margins = gated_margins(gates, self._examples)
        except ConfigError:
            raise
        except Exception as error:  # the user's own forward may raise anything when a layer has changed
            return f"{what} fails: {type(error).__name__}: {error}"
        if self._agree(margins, self._expected):
            return None
        return (
            f"margins of {what} ({margins.tolist()}) are not those of zeroed weights ({self._expected.tolist()}): the "
            f"model reads a weight without calling its module, mixes rows of a batch, or has hooks of its own"
        )

    def parts_are_the_whole(self, model: nn.Module, cuts: PrefixCuts) -> bool:
        """Whether a model cut in two gives the margins of the whole one, under a mask that ablates its last group."""
        components = self._value.components
        singles = ~np.eye(components.num_components, dtype=np.bool_)[components.offsets[:-1]]
        positions = {position: row for row, mask in enumerate(singles) if (position := cuts.of_mask(mask))}
        if not positions:
            return False
        cut, mask = cuts.part(max(positions)), singles[positions[max(positions)]]
        with self._value.masker(model).ablated(mask), torch.no_grad():
            margins = self._margins(lambda inputs: cut.after(cut.before(inputs)))
            expected = self._margins(model)
        if self._agree(margins, expected):
            return True
        _log.warning("activations are not reused: the traced model does not give the margins of the original one")
        return False

    def _zeroed_margins(self, model: nn.Module) -> Tensor:
        masker = self._value.masker(model)
        margins = []
        for row, mask in enumerate(self._masks):
            with masker.ablated(mask):
                margins.append(self._margins(model)[row])
        return torch.stack(margins)

    def _margins(self, model: Callable[..., Any]) -> Tensor:
        with torch.no_grad():
            return self._output_function(call_model(model, self._examples.inputs), self._examples.targets).float()

    def _agree(self, margins: Tensor, expected: Tensor) -> bool:
        return torch.allclose(margins, expected, rtol=self._tolerance, atol=self._tolerance, equal_nan=True)
