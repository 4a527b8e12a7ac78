"""Normalisation inside a model: its inputs may stay uint8 in memory, and its parameters keep their names.

A model gets a subclass of its own class, as in ``torch.nn.utils.parametrize``: a wrapper would rename every parameter,
and a hook would be lost on whoever traces ``forward``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from coar_dist.errors import TaskError, counted


def normalise_inputs(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Let ``model`` scale and normalise its first input itself: ``(x / 255 - mean) / std`` of uint8 pixels,
    ``(x - mean) / std`` of pixels in [0, 1].

    Args:
        model: takes images (..., channels, height, width) as its first argument; changed in place.
        mean: per channel, of pixels scaled to [0, 1].
        std: the same, positive.

    Returns:
        ``model`` itself, of a subclass of its class. Parameters, their names and the state dict are as before.

    Raises:
        TaskError: the model normalises its inputs already, takes none, or has something under the buffers' names.
    """
    taken = [name for name in ("input_mean", "input_std") if hasattr(model, name)]
    if isinstance(model, _Normalises) or taken:
        raise TaskError(
            f"task.model.input_mean: {type(model).__name__} normalises its inputs already"
            f"{f' (it has {taken[0]})' if taken else ''}. Leave input_mean and input_std out."
        )
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    device = None if parameter is None else parameter.device
    for name, values in [("input_mean", mean), ("input_std", std)]:
        tensor = torch.tensor(list(values), dtype=dtype, device=device).reshape(-1, 1, 1)
        model.register_buffer(name, tensor, persistent=False)
    kind: Any = type(model)
    model.__class__ = _normalising(kind)
    return model


@fx.wrap
def normalised(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``inputs`` (..., channels, height, width), scaled to [0, 1] and normalised, in the dtype of ``mean``.

    Raises:
        TaskError: inputs are neither uint8 nor floating point, or have another number of channels.
    """
    if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
        raise TaskError(
            f"task.model.input_mean is set, but the model's inputs are {inputs.dtype}: they must be uint8 pixels, or "
            f"floats in [0, 1]."
        )
    if inputs.ndim < 3 or inputs.shape[-3] != mean.shape[0]:
        raise TaskError(
            f"task.model.input_mean has {counted(mean.shape[0], 'value')}, but the model's inputs have shape "
            f"{tuple(inputs.shape)}: there must be one for each channel of (num_rows, channels, height, width)."
        )
    pixels = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
    mean, std = mean.to(inputs.device), std.to(inputs.device)  # a model spread over devices keeps them on one
    return ((pixels - mean.float()) / std.float()).to(mean.dtype)


class _Normalises:
    """Marks the classes that ``_normalising`` makes."""

    input_mean: Tensor
    input_std: Tensor

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles name the class it was made from: the one made here has no name to be imported by."""
        del protocol
        return (_new, (type(self).__mro__[2],), *super().__reduce_ex__(2)[2:])

    def extra_repr(self) -> str:
        """Part of the model's identity, as the buffers are not in its state dict."""
        own = f"input_mean={self.input_mean.flatten().tolist()}, input_std={self.input_std.flatten().tolist()}"
        rest: str = super().extra_repr()  # type: ignore[misc]
        return f"{own}, {rest}" if rest else own


@functools.cache
def _normalising(kind: Any) -> type[nn.Module]:
    """A subclass of the module class ``kind`` whose ``forward`` normalises its first argument."""
    names = [name for name in inspect.signature(kind.forward).parameters if name != "self"]
    if not names:
        raise TaskError(f"task.model.input_mean: {kind.__name__}.forward takes no input.")
    own = [name for name in ("__reduce__", "__reduce_ex__") if getattr(kind, name) is not getattr(object, name)]
    if own or hasattr(kind, "__deepcopy__"):
        raise TaskError(
            f"task.model.input_mean: {kind.__name__} is copied or pickled in a way of its own "
            f"({(own or ['__deepcopy__'])[0]}). Normalise the inputs in its forward."
        )
    first = names[0]

    @functools.wraps(kind.forward)  # a tracer reads the arguments of what is wrapped
    def forward(self: Any, *inputs: Any, **named_inputs: Any) -> Any:
        if inputs:
            inputs = (normalised(inputs[0], self.input_mean, self.input_std), *inputs[1:])
        elif first in named_inputs:
            named_inputs[first] = normalised(named_inputs[first], self.input_mean, self.input_std)
        else:
            raise TaskError(f"task.model.input_mean: the examples have no {first!r}, the model's first input.")
        return kind.forward(self, *inputs, **named_inputs)

    return type(f"Normalised{kind.__name__}", (_Normalises, kind), {"forward": forward, "__module__": __name__})


def _new(kind: Any) -> nn.Module:
    made = _normalising(kind)
    return made.__new__(made)
