"""Gates on components: every row of one forward pass carries its own mask, and no parameter is copied.

For an output-axis component of a linear map, a zeroed slice makes the output equal to the bias, so
``output = bias + gate * (output without bias)`` is exact; for an input-axis component the input feature is
multiplied. The compiler fuses the multiplication into the pointwise pass (bias, normalisation, activation) that
follows the layer anyway. A gate need not be 0 or 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.attention import PLACEMENTS, AttentionGates, can_be_gated, gated_attention
from coar_dist.components.discovery import is_transposed_linear
from coar_dist.components.index import ComponentGroup, ComponentIndex

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN_FORWARDS = (nn.Linear.forward, *(kind.forward for kind in CONVOLUTIONS))
GateOutput = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From a linear map's output without bias, its gate and its bias (or None) to the gated output."""


def plain_gate_output(linear: Tensor, gate: Tensor, bias: Tensor | None) -> Tensor:
    """``bias + gate * linear``; gate and bias broadcast to ``linear``, whose shape and dtype the result has."""
    gate = gate.to(linear.dtype)
    return linear * gate if bias is None else torch.addcmul(bias, linear, gate)


def why_not_gated(model: nn.Module, components: ComponentIndex) -> str | None:
    """Why gates cannot stand in for zeroed weights on this model; None where they can."""
    modules = dict(model.named_modules())
    uses = Counter(id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False))
    for group in components.groups:
        module = modules[group.module]
        if placement_of(modules, group) is None:
            return f"{group.parameter} (axis {group.axis} of a {type(module).__name__}) has no gated form"
        if uses[id(model.get_parameter(group.parameter))] > 1:
            return f"{group.parameter} is tied to another module's parameter"
    return None


def placement_of(modules: dict[str, nn.Module], group: ComponentGroup) -> str | None:
    """Where the gate of a group stands: ``output``, ``input``, embedding ``rows``, or within an attention module."""
    module = modules[group.module]
    name = group.parameter.rpartition(".")[2]
    parent = modules.get(group.module.rpartition(".")[0]) if group.module else None
    if isinstance(module, nn.MultiheadAttention):
        fits = name == "in_proj_weight" and group.axis == 0 and module.embed_dim % group.block_size == 0
        # An instance's own forward is somebody's wrapper (accelerate's, say) that must not be replaced.
        return "projections" if fits and can_be_gated(module) and "forward" not in vars(module) else None
    if isinstance(parent, nn.MultiheadAttention):  # it reads its child's weight without calling the child
        fits = name == "weight" and can_be_gated(parent) and "forward" not in vars(parent)
        return ("attention_output", "attention_input")[group.axis] if fits else None
    if name != "weight":
        return None
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)) and type(module).forward in _PLAIN_FORWARDS:
        grouped = getattr(module, "groups", 1) > 1
        return "output" if group.axis == 0 else "input" if group.axis == 1 and not grouped else None
    if is_transposed_linear(module):
        return "input" if group.axis == 0 else "output"
    if type(module) is nn.Embedding and group.axis == 0 and module.max_norm is None:
        return "rows"
    return None


class GatedModel:
    """A model whose components are gated per row. It changes ``model``: biases move behind the gates.

    Args:
        model: a private copy; ``why_not_gated`` must have given None for it.
        components: the component index.
        num_rows: rows of every forward pass: the shape is fixed, for the compiler's sake.
        device: where the gates lie.
        gate_output: how a linear map's output, its gate and its bias are put together.

    Attributes:
        gates: (num_rows, num_components) float32; write it before a forward pass. 1 is kept, 0 is ablated.
    """

    def __init__(
        self,
        model: nn.Module,
        components: ComponentIndex,
        num_rows: int,
        device: torch.device,
        gate_output: GateOutput = plain_gate_output,
    ) -> None:
        self.model = model
        self.gates = torch.ones(num_rows, components.num_components, device=device)
        self._undo: list[Callable[[], None]] = []
        self._gate_names: list[str] = []
        self._attention: dict[str, AttentionGates] = {}
        modules = dict(model.named_modules())
        placements = [placement_of(modules, group) for group in components.groups]
        starts = [int(offset) for offset in components.offsets[:-1]]
        for number, (group, start, placement) in enumerate(zip(components.groups, starts, placements, strict=True)):
            assert placement is not None
            gate = self.gates[:, start : start + group.num_components]
            module = modules[group.module]
            key = f"component_gate_{number}"
            if placement in PLACEMENTS:
                name = group.module if placement == "projections" else group.module.rpartition(".")[0]
                self._gate_attention(name, modules[name], placement, key, gate, group.block_size)
                continue
            self._register_gate(group.module, module, key, gate)
            channel_axis = 1 if isinstance(module, CONVOLUTIONS) else -1
            if placement == "rows":
                self._hook(module.register_forward_hook(_embedding_hook(key, group.block_size)))
            elif placement == "input":
                self._hook(module.register_forward_pre_hook(_input_hook(key, group.block_size, channel_axis)))
            else:
                self._move_bias(module)
                self._hook(module.register_forward_hook(_output_hook(key, group.block_size, channel_axis, gate_output)))

    def _hook(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def buffers(self, gates: Tensor) -> dict[str, Tensor]:
        """What ``torch.func.functional_call`` takes to run the model with other gates than the attribute.

        Args:
            gates: (any number of rows, num_components).

        Returns:
            By buffer name, in component order, consecutive slices of the components.
        """
        widths = [self.model.get_buffer(name).shape[1] for name in self._gate_names]
        return dict(zip(self._gate_names, gates.split_with_sizes(widths, dim=1), strict=True))

    def _register_gate(self, module_name: str, module: nn.Module, key: str, gate: Tensor) -> None:
        self._register(module, key, gate)
        self._gate_names.append(f"{module_name}.{key}".removeprefix("."))

    def _register(self, module: nn.Module, key: str, tensor: Tensor | None) -> None:
        module.register_buffer(key, tensor, persistent=False)
        self._undo.append(lambda: delattr(module, key))

    def _move_bias(self, module: nn.Module) -> None:
        bias = module.bias
        assert bias is None or isinstance(bias, nn.Parameter)
        self._register(module, "component_bias", None if bias is None else bias.detach())
        if bias is not None:
            needs_one = is_transposed_linear(module)  # its forward reads a bias
            unbiased = nn.Parameter(torch.zeros_like(bias), requires_grad=False) if needs_one else None
            module.register_parameter("bias", unbiased)
            self._undo.append(lambda: module.register_parameter("bias", bias))

    def _gate_attention(
        self, name: str, module: nn.Module, placement: str, key: str, gate: Tensor, block_size: int
    ) -> None:
        assert isinstance(module, nn.MultiheadAttention)
        if name not in self._attention:
            self._attention[name] = AttentionGates()
            module.forward = gated_attention(module, self._attention[name])  # type: ignore[method-assign]
            self._undo.append(lambda: delattr(module, "forward"))
        gates = self._attention[name]
        parts = gate.chunk(3, dim=1) if placement == "projections" else (gate,)
        functions = []
        for number, part in enumerate(parts):
            part_key = f"{key}_{number}"
            self._register_gate(name, module, part_key, part)
            functions.append(_feature_gate(module, part_key, block_size))
        gates.put(placement, functions)

    def remove(self) -> None:
        """Take hooks, gates and moved biases off the model again."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []


@contextmanager
def gated(
    model: nn.Module,
    components: ComponentIndex,
    num_rows: int,
    device: torch.device,
    gate_output: GateOutput = plain_gate_output,
) -> Iterator[GatedModel]:
    """A ``GatedModel`` for the length of a ``with`` block; the model is as before on every exit."""
    gated_model = GatedModel(model, components, num_rows, device, gate_output)
    try:
        yield gated_model
    finally:
        gated_model.remove()


def _spread(gate: Tensor, block_size: int, like: Tensor, channel_axis: int) -> Tensor:
    """The gate (num_rows, num_components) shaped to multiply ``like`` (num_rows, ..., channels, ...)."""
    if block_size > 1:
        gate = gate.repeat_interleave(block_size, dim=1)
    if like.shape[0] != gate.shape[0]:
        raise RuntimeError(
            f"a gated layer saw {like.shape[0]} rows in a forward pass of {gate.shape[0]}: its first axis is not the "
            f"batch axis. Use ablation.mode=weights."
        )
    shape = [gate.shape[0]] + [1] * (like.ndim - 1)
    shape[channel_axis] = gate.shape[1]
    return gate.to(like.device).reshape(shape)


def _feature_gate(module: Any, key: str, block_size: int) -> Callable[[Tensor], Tensor]:
    def gate(features: Tensor) -> Tensor:
        return features * _spread(getattr(module, key), block_size, features, -1).to(features.dtype)

    return gate


def _output_hook(key: str, block_size: int, channel_axis: int, gate_output: GateOutput) -> Any:
    def hook(module: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        gate = _spread(getattr(module, key), block_size, output, channel_axis)
        shape = [1] * output.ndim
        shape[channel_axis] = -1
        bias = None if module.component_bias is None else module.component_bias.to(output.dtype).reshape(shape)
        return gate_output(output, gate, bias)

    return hook


def _input_hook(key: str, block_size: int, channel_axis: int) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        features = inputs[0]
        gate = _spread(getattr(module, key), block_size, features, channel_axis)
        return (features * gate.to(features.dtype), *inputs[1:])

    return hook


def _embedding_hook(key: str, block_size: int) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens, gate = inputs[0], getattr(module, key)
        if tokens.ndim < 2 or tokens.shape[0] != gate.shape[0]:
            raise RuntimeError(
                f"a gated embedding saw tokens of shape {tuple(tokens.shape)} in a forward pass of {gate.shape[0]} "
                f"rows. Use ablation.mode=weights."
            )
        of_tokens = gate.gather(1, (tokens // block_size).reshape(len(tokens), -1)).reshape(tokens.shape)
        gated_output: Tensor = output * of_tokens.unsqueeze(-1).to(output.dtype)
        return gated_output

    return hook
