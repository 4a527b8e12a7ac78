"""Gate gradients against the differences and derivatives that they stand for, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers.activations import NewGELUActivation, QuickGELUActivation

from coar_dist.ablation.secants import LocalSecants
from coar_dist.components.discovery import discover
from coar_dist.components.gates import gated
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from tests.ablation.test_engine_kinds import gpt2_task, transformer_task
from tests.models import random_masks, randomise

CPU = torch.device("cpu")


class OneLayer(nn.Module):
    """A gated layer, what is added to it, a nonlinearity, and a linear functional."""

    def __init__(self, rest: str, norm: bool, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.5, inplace=True)
        self.weights = nn.Parameter(torch.zeros(3, 5, 5))
        self.rest, self.activation = rest, activation

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.conv(images)))
        if self.rest == "before":
            x = images[:, :1].expand(-1, 3, -1, -1) + x
        if self.rest == "gated, in place":
            x += self.shortcut(images)
        if self.rest == "number":
            x = 0.3 + x
        if self.rest == "scaled":
            x = (self.weights.mean(dim=2, keepdim=True) * x) * 0.7
        return (self.activation(x) * self.weights).sum(dim=(1, 2, 3))


def outputs_and_gradients(
    model: nn.Module, components: ComponentIndex, gates: Tensor, inputs: dict[str, Tensor], with_secants: bool = True
) -> tuple[Tensor, Tensor]:
    """Outputs (num_rows,), the sum of squares of what the model gives, and their gate gradients."""
    secants = LocalSecants()
    leaf = gates.clone().requires_grad_()
    model = copy.deepcopy(model).double().requires_grad_(False)
    names = {"gate_output": secants.gate_output} if with_secants else {}
    with gated(model, components, len(gates), CPU, **names) as gated_model, secants if with_secants else nullcontext():
        outputs = functional_call(model, gated_model.buffers(gated_model.parts(leaf)), (), inputs)
    outputs = getattr(outputs, "logits", outputs)
    if outputs.ndim > 1:
        outputs = outputs.square().flatten(1).sum(dim=1)
    (gradients,) = torch.autograd.grad(outputs.sum(), leaf)
    return outputs.detach(), gradients


def differences(model: nn.Module, components: ComponentIndex, gates: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The truth: per row and component the output with it kept minus the output with it ablated, all in one batch."""
    num_rows, num_components = gates.shape
    both = gates.expand(2, num_components, -1, -1).clone()
    for component in range(num_components):
        both[0, component, :, component], both[1, component, :, component] = 1, 0
    repeated = {name: value.repeat(2 * num_components, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    outputs, _ = outputs_and_gradients(model, components, both.flatten(0, 2), repeated, False)
    kept, ablated = outputs.reshape(2, num_components, num_rows)
    return (kept - ablated).T


ACTIVATIONS: dict[str, Any] = {
    "functional.relu": functional.relu,
    "ReLU in place": nn.ReLU(inplace=True),
    "Tensor.relu_": lambda x: x.relu_(),
    "torch.clamp": lambda x: torch.clamp(x, min=0.1),
    "GELU": nn.GELU(),
    "gelu tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "SiLU in place": nn.SiLU(inplace=True),
    "leaky_relu_": lambda x: functional.leaky_relu_(x, 0.2),
    "Tanh": nn.Tanh(),
    "Tensor.sigmoid": lambda x: x.sigmoid(),
    "Softplus": nn.Softplus(beta=2),
    "Hardswish": nn.Hardswish(),
    "ELU": nn.ELU(alpha=0.7, inplace=True),
    "ReLU6": nn.ReLU6(),
    "PReLU": nn.PReLU(3),
    "GELU written out": NewGELUActivation(),
    "quick GELU": QuickGELUActivation(),
    "cube": lambda x: x**3 - x.square() / 2,
    "behind a product": lambda x: 0.2 - torch.exp(-(x * 0.5) * x),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("rest", ["none", "before", "gated, in place", "number", "scaled"])
@pytest.mark.parametrize("norm", [False, True])
def test_behind_one_nonlinearity_gate_gradients_are_the_exact_differences(name: str, rest: str, norm: bool) -> None:
    model = randomise(OneLayer(rest, norm, ACTIVATIONS[name]), seed=3)
    components = ComponentIndex((ComponentGroup.of("conv.weight", 0, 3), ComponentGroup.of("shortcut.weight", 0, 3)))
    if rest != "gated, in place":
        components = ComponentIndex(components.groups[:1])
    gates = torch.from_numpy(random_masks(8, components.num_components, 0.4)).double()
    assert 0 < gates.mean() < 1
    inputs = {"images": torch.randn(8, 2, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1)) + 0.2}
    truth = differences(model, components, gates, inputs)
    outputs, gradients = outputs_and_gradients(model, components, gates, inputs)
    torch.testing.assert_close(gradients, truth)
    plain_outputs, derivatives = outputs_and_gradients(model, components, gates, inputs, False)
    torch.testing.assert_close(outputs, plain_outputs)
    assert (derivatives - truth).abs().max() > 0.01 * truth.abs().max()  # the nonlinearity matters


def derivatives_by_weights(
    model: nn.Module, components: ComponentIndex, gates: Tensor, inputs: dict[str, Tensor]
) -> Tensor:
    """The truth without hooks: row by row, every component's slice of its weight times its gate."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    rows = []
    for row, row_gates in enumerate(gates):
        leaf = row_gates.clone().requires_grad_()
        weights: dict[str, Tensor] = {}
        starts = components.offsets[:-1]
        for group, start in zip(components.groups, starts, strict=True):
            weight = weights.get(group.parameter, model.get_parameter(group.parameter))
            (part,) = group.slices
            gate = leaf[start : start + group.num_components].repeat_interleave(part.size)
            shape = [-1 if axis == part.axis else 1 for axis in range(weight.ndim)]
            weights[group.parameter] = weight * gate.reshape(shape)
        outputs = functional_call(model, weights, (), {name: value[row : row + 1] for name, value in inputs.items()})
        rows.append(torch.autograd.grad(getattr(outputs, "logits", outputs).square().sum(), leaf)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("with_secants", [False, True])
def test_everywhere_else_they_are_the_derivatives(with_secants: bool) -> None:
    groups = (
        ComponentGroup.of("embedding.weight", 0, 11),
        ComponentGroup.of("attention.in_proj_weight", 0, 6, 4),
        ComponentGroup.of("attention.out_proj.weight", 1, 8),
        ComponentGroup.of("attention.out_proj.weight", 0, 8),
        ComponentGroup.of("mlp.0.weight", 1, 4, 2),  # an input gate: the nonlinearity does not follow at once
        ComponentGroup.of("mlp.2.weight", 0, 8),
        ComponentGroup.of("head.weight", 0, 4),
    )
    components, task = ComponentIndex(groups), transformer_task()
    gates = torch.from_numpy(random_masks(5, components.num_components, 0.3)).double()
    inputs = task.examples.inputs
    truth = derivatives_by_weights(task.model, components, gates, inputs)
    _, gradients = outputs_and_gradients(task.model, components, gates, inputs, with_secants)
    torch.testing.assert_close(gradients, truth)


class GatedUnit(nn.Module):
    """SwiGLU (Shazeer 2020): two gated layers meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(4, 5), nn.Linear(4, 5, bias=False)
        self.down = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x)).squeeze(1)


def test_products_of_two_gated_layers_are_exact_for_each() -> None:
    model = randomise(GatedUnit(), seed=4)
    components = ComponentIndex((ComponentGroup.of("gate.weight", 0, 5), ComponentGroup.of("up.weight", 0, 5)))
    gates = torch.from_numpy(random_masks(9, 10, 0.4)).double()
    inputs = {"x": torch.randn(9, 4, dtype=torch.double, generator=torch.Generator().manual_seed(2)) + 0.3}
    truth = differences(model, components, gates, inputs)
    outputs, gradients = outputs_and_gradients(model, components, gates, inputs)
    torch.testing.assert_close(gradients, truth)
    torch.testing.assert_close(outputs, outputs_and_gradients(model, components, gates, inputs, False)[0])


def test_behind_a_nonlinearity_a_residual_stream_has_the_ordinary_derivative() -> None:
    generator = torch.Generator().manual_seed(5)
    linear, rest = (torch.randn(6, 4, generator=generator, dtype=torch.double) for _ in range(2))
    leaf = torch.ones(6, 4, dtype=torch.double, requires_grad=True)
    secants = LocalSecants()
    with secants:
        stream = rest + functional.relu(secants.gate_output(linear, leaf, None))
        outputs = functional.silu(stream)
    (gradients,) = torch.autograd.grad(outputs.sum(), leaf)
    start = (rest + linear.relu()).requires_grad_()
    slope = torch.autograd.grad(functional.silu(start).sum(), start)[0]
    torch.testing.assert_close(gradients, linear.relu() * slope)


@pytest.mark.parametrize("selector", ["transposed_linear_inputs", "transposed_linear_outputs", "heads"])
def test_functions_that_the_mode_does_not_know_leave_the_derivatives(selector: str) -> None:
    """LayerNorm and attention read GPT-2's residual stream; what lies before its GELU is tested above."""
    task = gpt2_task()
    components = discover(task.model, selector, exclude=["*.c_fc.*"] if selector.endswith("outputs") else [])
    gates = torch.from_numpy(random_masks(4, components.num_components, 0.3)).double()
    truth = derivatives_by_weights(task.model, components, gates, task.examples.inputs)
    _, gradients = outputs_and_gradients(task.model, components, gates, task.examples.inputs)
    torch.testing.assert_close(gradients, truth)


def test_what_is_upstream_has_the_ordinary_derivative() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(4, 4, generator=generator, dtype=torch.double) for _ in range(2))
    inputs, gates = torch.randn(6, 4, generator=generator, dtype=torch.double), torch.ones(6, 8, dtype=torch.double)
    gates[::2, 1::3] = 0
    leaf = gates.clone().requires_grad_()
    secants = LocalSecants()
    with secants:
        hidden = functional.silu(secants.gate_output(inputs @ first, leaf[:, :4], None))
        outputs = functional.silu(secants.gate_output(hidden @ second, leaf[:, 4:], torch.full((4,), 0.2).double()))
    (gradients,) = torch.autograd.grad(outputs.sum(), leaf)
    linear = inputs @ first
    change = functional.silu(linear) - functional.silu(torch.zeros_like(linear))
    start = functional.silu(linear * gates[:, :4]).requires_grad_()
    slope = torch.autograd.grad(functional.silu(start @ second * gates[:, 4:] + 0.2).sum(), start)[0]
    torch.testing.assert_close(gradients[:, :4], change * slope)
