"""Gates on components: every row of one forward pass carries its own mask, and no parameter is copied.

For an output-axis component of a linear map, a zeroed slice makes the output equal to the bias, so
``output = bias + gate * (output without bias)`` is exact; for an input-axis component the input feature is
multiplied. The compiler fuses the multiplication into the pointwise pass (bias, normalisation, activation) that
follows the layer anyway. A gate need not be 0 or 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.index import ComponentGroup, ComponentIndex

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def why_not_gated(model: nn.Module, components: ComponentIndex) -> str | None:
    """Why gates cannot stand in for zeroed weights on this model; None where they can."""
    modules = dict(model.named_modules())
    uses = Counter(id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False))
    for group in components.groups:
        module = modules[group.module]
        if _placement(module, group) is None:
            return f"{group.parameter} (axis {group.axis} of a {type(module).__name__}) has no gated form"
        if uses[id(module.get_parameter("weight"))] > 1:
            return f"{group.parameter} is tied to another module's parameter"
    return None


def _placement(module: nn.Module, group: ComponentGroup) -> str | None:
    """Where the gate of a group stands: at the module's ``output``, its ``input``, or its embedding ``rows``."""
    if not group.parameter.endswith("weight") or group.parameter.rpartition(".")[2] != "weight":
        return None
    is_plain = type(module).forward in (nn.Linear.forward, *(kind.forward for kind in _CONVOLUTIONS))
    if is_plain and isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        grouped = getattr(module, "groups", 1) > 1
        return "output" if group.axis == 0 else "input" if group.axis == 1 and not grouped else None
    if is_transposed_linear(module):
        return "input" if group.axis == 0 else "output"
    if type(module) is nn.Embedding and group.axis == 0 and module.max_norm is None:
        return "rows"
    return None


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether the module is Hugging Face's ``Conv1D``: a linear map whose weight is [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


class GatedModel:
    """A model whose components are gated per row. It changes ``model``: biases move behind the gates.

    Args:
        model: a private copy; ``why_not_gated`` must have given None for it.
        components: the component index.
        num_rows: rows of every forward pass: the shape is fixed, for the compiler's sake.
        device: where the gates lie.
    """

    def __init__(self, model: nn.Module, components: ComponentIndex, num_rows: int, device: torch.device) -> None:
        self.model = model
        self.gates = torch.ones(num_rows, components.num_components, device=device)
        self._handles: list[Any] = []
        self._biases: list[tuple[nn.Module, nn.Parameter]] = []
        modules = dict(model.named_modules())
        for group, offset in zip(components.groups, components.offsets[:-1], strict=True):
            gate = self.gates[:, int(offset) : int(offset) + group.num_components]
            self._attach(modules[group.module], group, gate)

    def _attach(self, module: nn.Module, group: ComponentGroup, gate: Tensor) -> None:
        placement = _placement(module, group)
        module.register_buffer(f"component_gate_{placement}", gate, persistent=False)
        width, channel_axis = group.block_size, 1 if isinstance(module, _CONVOLUTIONS) else -1
        if placement == "rows":
            self._handles.append(module.register_forward_hook(_embedding_hook(width)))
        elif placement == "input":
            self._handles.append(module.register_forward_pre_hook(_input_hook(width, channel_axis)))
        else:
            bias = module.bias
            if isinstance(bias, nn.Parameter):
                self._biases.append((module, bias))
                needs_bias = is_transposed_linear(module)  # its forward reads one
                unbiased = nn.Parameter(torch.zeros_like(bias), requires_grad=False) if needs_bias else None
                module.register_parameter("bias", unbiased)
            shift = bias.detach() if isinstance(bias, nn.Parameter) else None
            module.register_buffer("component_bias", shift, persistent=False)
            self._handles.append(module.register_forward_hook(_output_hook(width, channel_axis)))

    def remove(self) -> None:
        """Take hooks, gates and moved biases off the model again."""
        for handle in self._handles:
            handle.remove()
        for module, bias in self._biases:
            module.register_parameter("bias", bias)
        for module in self.model.modules():
            for name in (
                "component_gate_output",
                "component_gate_input",
                "component_gate_rows",
                "component_bias",
            ):
                if hasattr(module, name):
                    delattr(module, name)


@contextmanager
def gated(model: nn.Module, components: ComponentIndex, num_rows: int, device: torch.device) -> Iterator[GatedModel]:
    """A ``GatedModel`` for the length of a ``with`` block; the model is as before on every exit."""
    gated_model = GatedModel(model, components, num_rows, device)
    try:
        yield gated_model
    finally:
        gated_model.remove()


def _spread(gate: Tensor, width: int, like: Tensor, channel_axis: int) -> Tensor:
    """The gate (num_rows, num_components) shaped to multiply ``like`` (num_rows, ..., channels, ...)."""
    if width > 1:
        gate = gate.repeat_interleave(width, dim=1)
    if like.shape[0] != gate.shape[0]:
        raise RuntimeError(
            f"a gated layer saw {like.shape[0]} rows in a forward pass of {gate.shape[0]}: its first axis is not the "
            f"batch axis. Use ablation.mode=weights."
        )
    shape = [gate.shape[0]] + [1] * (like.ndim - 1)
    shape[channel_axis] = gate.shape[1]
    return gate.to(like.dtype).reshape(shape)


def _output_hook(width: int, channel_axis: int) -> Any:
    def hook(module: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        result: Tensor = output * _spread(module.component_gate_output, width, output, channel_axis)
        if module.component_bias is None:
            return result
        shape = [1] * output.ndim
        shape[channel_axis] = -1
        bias: Tensor = module.component_bias.to(output.dtype).reshape(shape)
        return result + bias

    return hook


def _input_hook(width: int, channel_axis: int) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features = inputs[0]
        return (features * _spread(module.component_gate_input, width, features, channel_axis), *inputs[1:])

    return hook


def _embedding_hook(width: int) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens = inputs[0]
        if tokens.ndim < 2 or tokens.shape[0] != module.component_gate_rows.shape[0]:
            raise RuntimeError("a gated embedding saw another number of rows than the forward pass has")
        gate = module.component_gate_rows.gather(1, (tokens // width).reshape(len(tokens), -1)).reshape(tokens.shape)
        gated: Tensor = output * gate.unsqueeze(-1).to(output.dtype)
        return gated

    return hook
