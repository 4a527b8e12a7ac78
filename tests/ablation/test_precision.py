"""Passes in 16 bits are held to zeroed weights by 16 bits' own rounding; what is not finite is traced to its layer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.components.discovery import discover
from coar_dist.errors import NonFiniteMarginError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import random_masks, randomise, slow_margins

POINTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) + 0.3


class FastUnderAutocast(nn.Module):
    """Reads a layer's weight itself where autocast is on: its gates are passed in float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.more, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def is_fast(self) -> bool:
        return torch.is_autocast_enabled("cpu")

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.fc.weight, self.fc.bias) if self.is_fast() else self.fc(x)
        logits: Tensor = self.head(functional.relu(self.more(functional.relu(x))))
        return logits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gates_are_held_in_the_precision_that_passes_run_in(precision: str) -> None:
    task = Task(randomise(FastUnderAutocast()), ExampleSet(POINTS, torch.arange(6) % 3), output_function("margin"))
    components = discover(task.model, "linear_rows", exclude=["head*"])
    masks = random_masks(12, components.num_components, 0.3)
    truth = slow_margins(task, components, masks)
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", precision, EnginePlan("rows", 6, compiled=False))
    assert set(engine.ungated) == ({0} if precision == "bfloat16" else set())
    spread = truth.std(axis=0).mean()
    assert spread > 0.2
    allowed = 1e-5 if precision == "float32" else 0.1
    assert np.abs(engine.margins(masks) - truth).max() < allowed * spread


class FastWithGradients(FastUnderAutocast):
    """Does so where gradients are asked for alone."""

    def is_fast(self) -> bool:
        return super().is_fast() and torch.is_grad_enabled()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gates_of_gradient_passes_are_held_in_their_own_precision(precision: str) -> None:
    task = Task(randomise(FastWithGradients()), ExampleSet(POINTS, torch.arange(6) % 3), output_function("margin"))
    components = discover(task.model, "linear_rows", exclude=["head*"])
    engine = AblationEngine(task, components, "cpu", precision, EnginePlan("rows", 6, compiled=False))
    assert engine.ungated == {}
    known = engine.gate_gradients(random_masks(4, components.num_components, 0.3), (0, 6)).known
    first = components.groups[0].num_components
    assert known[first:].all()
    assert known[:first].all() == (precision == "float32")
    assert known[:first].any() == (precision == "float32")


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


class LogOfAll(nn.Module):
    """Minus infinity in a layer that is always so, and NaN without two of four rows of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.log, self.always, self.head = nn.Linear(5, 4, bias=False), Log(), Log(), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        nothing = torch.exp(self.always(torch.zeros_like(x[:, :1])))
        total = self.fc(x.abs() + 0.1)[:, :2].sum(dim=1, keepdim=True)
        logits: Tensor = self.head(self.log(total + nothing) + 0 * x[:, :1])
        return logits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["weights", "rows"])
def test_what_is_not_finite_is_traced_to_its_mask_and_layer(mode: str, precision: str) -> None:
    model = LogOfAll().eval()
    with torch.no_grad():
        model.fc.weight.fill_(0.5)
        model.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    task = Task(model, ExampleSet(POINTS, torch.arange(6) % 2), output_function("margin"))
    components = discover(model, "linear_rows", include=["fc*"])
    engine = AblationEngine(task, components, "cpu", precision, EnginePlan(mode, 6, compiled=False))
    masks = np.array([[True] * 4, [False, True, True, True], [False, False, True, False], [True, False, True, True]])
    margins = engine.margins(masks)
    engine.check_finite(margins[:2], masks[:2], 40)
    with pytest.raises(NonFiniteMarginError) as refused:
        engine.check_finite(margins, masks, 40)
    text = str(refused.value)
    assert "the margin of example 0 under mask 42 is -inf (6 such values in masks 40..43)" in text
    assert "ablates 3 components (fc[0], fc[1], fc[3]); log (Log) gives the first value" in text
    assert ("Use ablation.precision=float32" in text) == (precision == "bfloat16")
    with pytest.raises(NonFiniteMarginError, match="example 3 under mask 42"):
        engine.check_finite(margins[:, 3:], masks, 40, first_example=3)
    np.testing.assert_array_equal(engine.margins(masks), margins)  # the engine goes on as it was
