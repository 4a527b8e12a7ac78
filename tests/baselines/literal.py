"""Gradient baselines written out: one example, one point of the path at a time, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.components.index import ComponentIndex
from coar_dist.tasks.task import Task, call_model
from tests.ablation.test_engine_kinds import TransformerClassifier
from tests.models import SmallResNet

Activations = dict[tuple[str, int], Tensor]
"""Of one example, by parameter and axis of the components: (..., channels), for convolutions (1, channels, ...)."""
Forward = Callable[[nn.Module, Task, int, float], tuple[Activations, Tensor]]
"""Activations and margin of the example with an id, its input scaled by alpha."""


def gradient_x_parameter(task: Task, components: ComponentIndex) -> NDArray[np.float64]:
    model = copy.deepcopy(task.model).double().requires_grad_(True)
    rows = []
    for i in range(len(task.examples)):
        model.zero_grad()
        example = _double(task, i)
        task.output_function.compute(call_model(model, example.inputs), example.targets).sum().backward()
        row = []
        for component in components:
            row.append(0.0)
            for name, *piece in component.slices:
                parameter = model.get_parameter(name)
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                row[-1] += float((parameter.detach().narrow(*piece) * gradient.narrow(*piece)).sum())
        rows.append(row)
    return np.array(rows)


def along_path(
    method: str, forward: Forward, task: Task, components: ComponentIndex, num_steps: int
) -> NDArray[np.float64]:
    model = copy.deepcopy(task.model).double()
    nodes, steps = np.polynomial.legendre.leggauss(num_steps + (method == "neuron_conductance"))
    rows = []
    for i in range(len(task.examples)):
        values, slopes = [], []
        for alpha in (nodes + 1) / 2:
            activations, margin = forward(model, task, i, float(alpha))
            wanted = [activations[group.parameter, group.slices[0].axis] for group in components.groups]
            values.append([value.detach() for value in wanted])
            slopes.append(torch.autograd.grad(margin, wanted))
        row = []
        for g, group in enumerate(components.groups):
            if method == "neuron_conductance":
                pairs = zip(values, values[1:], slopes, strict=False)
                whole = sum(slope[g] * (after[g] - before[g]) for before, after, slope in pairs)
            else:
                whole = sum(weight * slope[g] for weight, slope in zip(steps / 2, slopes, strict=True))
            module = model.get_submodule(group.module)
            if isinstance(module, nn.Embedding):
                tokens = task.examples.inputs["tokens"][i]
                row += [float(whole[0][tokens == index].sum()) for index in range(group.num_components)]
                continue
            is_convolution = isinstance(module, nn.Conv2d)
            channels = whole[0] if is_convolution else whole.movedim(-1, 0)
            (part,) = group.slices
            row += [float(channels[start : start + part.size].sum()) for start in part.starts]
        rows.append(row)
    return np.array(rows)


def small_resnet(model: SmallResNet, task: Task, i: int, alpha: float) -> tuple[Activations, Tensor]:
    example = _double(task, i)
    first = model.conv1((alpha * example.inputs).requires_grad_())
    x = functional.relu(model.bn1(first))
    second = model.conv2(x)
    x = functional.relu(model.bn2(second) + x)
    third = model.grouped(x)
    pooled = functional.relu(third).mean(dim=(2, 3))
    logits = model.linear(pooled)
    activations = {("conv1.weight", 0): first, ("conv2.weight", 0): second, ("grouped.weight", 0): third}
    activations |= {("linear.weight", 0): logits, ("linear.weight", 1): pooled}
    return activations, task.output_function(logits, example.targets).sum()


def transformer(model: TransformerClassifier, task: Task, i: int, alpha: float) -> tuple[Activations, Tensor]:
    """``TransformerClassifier`` by hand, with q, k and v in one tensor."""
    example = _double(task, i)
    tokens, padding = example.inputs["tokens"], example.inputs["padding"]
    x = (alpha * model.embedding.weight[tokens]).detach().requires_grad_()
    attention = model.attention
    packed = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.reshape(1, -1, 2, 4).transpose(1, 2) for part in packed.chunk(3, dim=-1))
    scores = q @ k.transpose(-2, -1) / 2.0
    length = tokens.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) | padding[:, None, None, :]
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    heads = (weights @ v).transpose(1, 2).reshape(1, length, 8)
    mixed = attention.out_proj(heads)
    y = x + mixed + weights.mean(dim=1)[:, :, :1]
    up = model.mlp[0](model.norm(y))
    down = model.mlp[2](functional.gelu(up))
    logits = model.head((y + down).mean(dim=1))
    activations = {("attention.in_proj_weight", 0): packed, ("attention.out_proj.weight", 0): mixed}
    activations |= {("attention.out_proj.weight", 1): heads, ("mlp.0.weight", 0): up, ("mlp.2.weight", 0): down}
    activations |= {("head.weight", 0): logits, ("embedding.weight", 0): x}
    return activations, task.output_function(logits, example.targets).sum()


def hooked(model: nn.Module, task: Task, i: int, alpha: float) -> tuple[Activations, Tensor]:
    """Inputs and outputs of every layer that is called, by plain hooks; tokens by Hugging Face's ``inputs_embeds``."""
    example = _double(task, i)
    activations: Activations = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            axis_of_inputs = 1 if isinstance(module, nn.Linear) else 0

            def hook(_: nn.Module, x: tuple[Tensor], y: Tensor, key: str = f"{name}.weight", a: int = axis_of_inputs):  # type: ignore[no-untyped-def]
                activations[key, a], activations[key, 1 - a] = x[0], y
                return y.clone()  # what follows may work in place

            handles.append(module.register_forward_hook(hook))
    if isinstance(example.inputs, dict):
        inputs = dict(example.inputs)
        embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        outputs = model(inputs_embeds=(alpha * embedded).requires_grad_(), **inputs)
    else:
        outputs = model((alpha * example.inputs).requires_grad_())
    for handle in handles:
        handle.remove()
    return activations, task.output_function(outputs, example.targets).sum()


def _double(task: Task, i: int):  # type: ignore[no-untyped-def]
    return task.examples.rows(i, i + 1).map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
