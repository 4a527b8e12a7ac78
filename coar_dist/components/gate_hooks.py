"""Where gates act in a forward pass: on a module's output, its input, its tokens, or its routing weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.attention import Gate
from coar_dist.components.axis_gates import AxisGates
from coar_dist.components.read_weights import WeightGate
from coar_dist.components.routing import routing_of
from coar_dist.components.sites import Replace, ValueOf, placed

GateOutput = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From a linear map's output without bias, its gate and its bias (or None) to the gated output."""
Note = Callable[[], None] | None
"""Called when a gate is passed; None keeps the forward pass free of it."""


class GateError(RuntimeError):
    """A gate met a tensor that its rows do not fit; the text names the kind of layer."""


def spread(gate: Tensor, like: Tensor, channel_axis: int, module: nn.Module) -> Tensor:
    """The gate (num_rows, num_channels) shaped to multiply ``like`` (num_rows * k, ..., channels, ...).

    Windows, heads or positions that a model folds into the first axis lie within their row, k to a row. Embedded
    positions may be one row for all, which becomes a row each.
    """
    num_rows = len(gate)
    repeats, rest = like.shape[0] // num_rows, like.shape[0] % num_rows  # divmod is not compiled
    if like.shape[0] == 1 and isinstance(module, nn.Embedding):
        repeats, rest = 1, 0
    if rest or not repeats or like.shape[channel_axis] != gate.shape[1]:
        raise GateError(
            f"{type(module).__name__} saw a tensor of shape {tuple(like.shape)} in a pass of {num_rows} rows, so its "
            f"first axis is not the rows, or its axis {channel_axis} not the {gate.shape[1]} indices of its components"
        )
    if repeats > 1:
        gate = gate.repeat_interleave(repeats, dim=0)
    shape = [len(gate)] + [1] * (like.ndim - 1)
    shape[channel_axis] = gate.shape[1]
    return gate.to(like.device).reshape(shape)


def feature_gate(module: Any, gates: AxisGates, part: slice, note: Note) -> Gate:
    """Multiplies the last axis by the gates of a part of the channels."""

    def gate(features: Tensor) -> Tensor:
        if note is not None:
            note()
        return features * spread(gates.of_channels(module)[:, part], features, -1, module).to(features.dtype)

    return gate


def output_hook(gates: AxisGates, channel_axis: int, gate_output: GateOutput, subtracts: bool, note: Note) -> Any:
    """On a module's output; ``subtracts`` where the module adds its bias itself."""

    def hook(module: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if note is not None:
            note()
        gate = spread(gates.of_channels(module), output, channel_axis, module)
        bias = None if module.component_bias is None else placed(module.component_bias, output, channel_axis)
        return gate_output(output if bias is None or not subtracts else output - bias, gate, bias)

    return hook


def constant_value(module: Any, key: str) -> ValueOf:
    """A site's value that is the same for all rows, and lies on the module."""

    def value(activation: Tensor, channel_axis: int, part: slice) -> Tensor:
        return placed(getattr(module, key)[..., part], activation, channel_axis)

    return value


def site_gate(module: Any, gates: AxisGates, value_of: ValueOf, gate_output: GateOutput | None, note: Note) -> Replace:
    """At a site: between the activation and the site's value; without ``gate_output`` in the plainest way."""

    def gate(activation: Tensor, channel_axis: int, part: slice) -> Tensor:
        if note is not None:
            note()
        value = value_of(activation, channel_axis, part)
        if value is None:
            return activation
        gate = spread(gates.of_channels(module)[:, part], activation, channel_axis, module)
        if gate_output is None:
            return torch.lerp(value, activation, gate.to(activation.dtype))  # exact at 0 and 1
        return gate_output(activation - value, gate, value)

    return gate


def whole_output_hook(gates: AxisGates, channel_axis: int, gate_output: GateOutput, note: Note) -> Any:
    """On a module's output, its bias included."""

    def hook(module: Any, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if note is not None:
            note()
        return gate_output(output, spread(gates.of_channels(module), output, channel_axis, module), None)

    return hook


def input_hook(gates: AxisGates, channel_axis: int, note: Note) -> Any:
    """On what a module reads."""

    def hook(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if note is not None:
            note()
        features = inputs[0]
        gate = spread(gates.of_channels(module), features, channel_axis, module)
        return (features * gate.to(features.dtype), *inputs[1:])

    return hook


def embedding_hook(gates: AxisGates, note: Note) -> Any:
    """On what an embedding gives for its tokens, which are the components."""

    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if note is not None:
            note()
        return _gated_rows(gates, inputs[0], output, module)

    return hook


def _gated_rows(gates: AxisGates, tokens: Tensor, output: Tensor, module: Any) -> Tensor:
    num_rows = gates.num_rows(module)
    if tokens.ndim < 2 or tokens.shape[0] not in (1, num_rows):
        raise GateError(
            f"{type(module).__name__} saw tokens of shape {tuple(tokens.shape)} in a pass of {num_rows} rows"
        )
    tokens = tokens.expand(num_rows, *tokens.shape[1:])  # positions may be one row for all
    of_tokens = gates.of_indices(module, tokens.reshape(num_rows, -1)).reshape(tokens.shape)
    return output * of_tokens.unsqueeze(-1).to(output.dtype)


def routing_hook(gates: AxisGates, note: Note) -> Any:
    """Multiplies the weights with which the outputs of a token's experts are added up.

    The module is given tokens (num_rows * k, ...), the experts (num_tokens, num_chosen) of each, and their weights.
    """

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if note is not None:
            note()
        num_rows = gates.num_rows(module)
        routing = routing_of(args, kwargs)
        if routing is None or len(routing.chosen) % num_rows:
            raise GateError(f"{type(module).__name__} is not given its tokens' experts and their weights, row by row")
        chosen = routing.chosen
        return routing.weighed(gates.of_indices(module, chosen.reshape(num_rows, -1)).reshape(chosen.shape))

    return hook


def expert_values_hook(gates: AxisGates, value_key: str) -> Any:
    """On what a module of experts gives: adds the values of those whose gates are closed.

    The values (num_experts, width), or (num_experts, k, ..., width) by position, lie on the module.
    """

    def hook(module: Any, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        value: Tensor = getattr(module, value_key)
        of_rows = ((1 - gates.of_channels(module)) @ value.flatten(1)).reshape(-1, *value.shape[1:])
        repeats, rest = output.shape[0] // len(of_rows), output.shape[0] % len(of_rows)
        if value.ndim == 2:
            of_rows = of_rows.reshape(len(of_rows), *[1] * (output.ndim - 2), -1)
            added = of_rows.repeat_interleave(repeats, dim=0) if not rest else of_rows
        else:
            added = of_rows.flatten(0, 1)
        if len(added) != len(output) or (value.ndim > 2 and added.shape != output.shape):
            raise GateError(
                f"{type(module).__name__} gave a tensor of shape {tuple(output.shape)} in a pass of {len(of_rows)} "
                f"rows, where values of shape {tuple(value.shape)} have no place"
            )
        gated: Tensor = output + added.to(output)
        return gated

    return hook


def weight_gate(module: Any, gates: AxisGates, gate_output: GateOutput, note: Note) -> WeightGate:
    """The gates of a weight that a function reads."""

    def spread_over(features: Tensor, channel_axis: int) -> Tensor:
        if note is not None:
            note()
        return spread(gates.of_channels(module), features, channel_axis, module)

    def on_output(output: Tensor, bias: Tensor | None, channel_axis: int) -> Tensor:
        shape = [1] * output.ndim
        shape[channel_axis] = -1
        gate = spread_over(output, channel_axis)
        return gate_output(output, gate, None if bias is None else bias.to(output.dtype).reshape(shape))

    def on_input(features: Tensor, channel_axis: int) -> Tensor:
        return features * spread_over(features, channel_axis).to(features.dtype)

    def on_rows(tokens: Tensor, output: Tensor) -> Tensor:
        if note is not None:
            note()
        return _gated_rows(gates, tokens, output, module)

    return WeightGate(on_output, on_input, on_rows)
