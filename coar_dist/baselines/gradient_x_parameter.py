"""Gradient x parameter: w[c] = sum over the component's parameters p of p * df/dp, at the unablated model, per example.

It is the derivative by a gate on the component: a gate g makes of the component's parameters g * p, so by the chain
rule the derivative of f(g * p) by g at g = 1 is the sum of p * df/dp. One backward pass gives every component's, for as
many examples as rows. Where a component has no gate, the parameters' own gradients are taken, one example at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from coar_dist.components.gates import gated
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import ConfigError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import OutputFunction
from coar_dist.tasks.task import call_model


def by_gates(
    model: nn.Module, components: ComponentIndex, output_function: OutputFunction, examples: ExampleSet
) -> Tensor:
    """Weights of some examples from one forward and one backward pass.

    Args:
        model: in eval mode; gates must be right for all of its components. It is as before on every exit.
        components: the component index.
        output_function: from outputs and targets to margins.
        examples: n of them, on the model's device.

    Returns:
        (n, num_components) float32.

    Raises:
        ConfigError: margins have no gradient.
    """
    ones = torch.ones(len(examples), components.num_components, device=examples.targets.device)
    with torch.enable_grad(), gated(model, components, 1, ones.device) as gated_model:
        gates = gated_model.leaves(ones)
        buffers = gated_model.buffers(gates)
        outputs = call_model(lambda *a, **k: functional_call(model, buffers, a, k), examples.inputs)
        gradients = _gradients(output_function, outputs, examples.targets, gates)
        return gated_model.gathered([gradient.float() for gradient in gradients])


def by_parameters(
    model: nn.Module, components: ComponentIndex, output_function: OutputFunction, examples: ExampleSet
) -> Tensor:
    """The same for components of any kind, tied parameters too: one pass per example.

    Args, Returns, Raises: as ``by_gates``.
    """
    parameters = {name: model.get_parameter(name).detach().requires_grad_() for name in components.parameters}
    rows = []
    for i in range(len(examples)):
        example = examples.rows(i, i + 1)
        with torch.enable_grad():
            # A parameter that other modules share is replaced there, too.
            outputs = call_model(lambda *a, **k: functional_call(model, parameters, a, k), example.inputs)
            gradients = _gradients(output_function, outputs, example.targets, list(parameters.values()))
        products = {
            name: parameter.detach() * gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
        rows.append(torch.cat([_summed(products, group) for group in components.groups]))
    return torch.stack(rows)


def _summed(products: dict[str, Tensor], group: ComponentGroup) -> Tensor:
    """(group.num_components,) float32 sums over the slices of every component."""
    sums = []
    for part in group.slices:
        of_index = products[part.parameter].movedim(part.axis, 0).flatten(1).float().sum(dim=1)
        sums.append(of_index[torch.from_numpy(part.indices()).to(of_index.device)].reshape(-1, part.size).sum(dim=1))
    return torch.stack(sums).sum(dim=0)


def _gradients(
    output_function: OutputFunction, outputs: object, targets: Tensor, leaves: list[Tensor]
) -> tuple[Tensor, ...]:
    margins = output_function(outputs, targets).float()
    if not margins.requires_grad:
        raise without_gradient(output_function)
    return torch.autograd.grad(margins.sum(), leaves, materialize_grads=True)


def without_gradient(output_function: OutputFunction) -> ConfigError:
    """The error where nothing can be differentiated."""
    return ConfigError(
        f"task.output_function={output_function.name!r} gives margins without a gradient: it, or the model, is not "
        f"differentiable. Gradient baselines need one: leave them out (baselines=[leave_one_out])."
    )
