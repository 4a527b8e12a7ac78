"""Gate gradients that see through the nonlinearity after a layer: its exact change, not its derivative.

A gated output is ``bias + gate * linear``. Where it reaches a pointwise nonlinearity, directly or through additions
and BatchNorm, the derivative at the gate says little of what flipping the gate does: a ReLU that is off has none. The
change of the nonlinearity over the flip is known exactly, elementwise, and takes the derivative's place. This is the
Rescale rule of DeepLIFT (Shrikumar et al. 2017, section 3.5.1) with one channel's ablation as the reference. Whatever
else reads a gated output, and whatever lies further upstream, has its ordinary derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_POINTWISE_NAMES = (
    "relu relu6 leaky_relu prelu elu selu celu gelu silu mish softplus softsign tanh sigmoid hardtanh hardsigmoid "
    "hardswish logsigmoid tanhshrink softshrink hardshrink threshold clamp clamp_min clamp_max"
)


def _spellings() -> dict[Any, Callable[..., Tensor]]:
    """Every spelling of a pointwise nonlinearity, and what computes it out of place."""
    found: dict[Any, Callable[..., Tensor]] = {}
    for owner in (torch, Tensor, functional):
        for name in _POINTWISE_NAMES.split():
            function = getattr(owner, name, None)
            if function is not None:
                found[function] = function
                in_place = getattr(owner, f"{name}_", None)
                if in_place is not None:
                    found[in_place] = function
    return found


_POINTWISE = _spellings()
_ADDITIONS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
_DROPOUTS = (
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
)


class _Attach(Function):
    """``value``, with ``slope`` as its derivative by ``gate``: the gate's part of the backward pass, set by hand."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.gate_shape, ctx.gate_dtype = gate.shape, gate.dtype
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = ctx.saved_tensors
        product = gradient * slope
        summed = [axis for axis, length in enumerate(ctx.gate_shape) if length == 1 and product.shape[axis] != 1]
        if not summed:
            return gradient, product.to(ctx.gate_dtype), None
        return gradient, product.sum(summed, keepdim=True, dtype=ctx.gate_dtype), None


@dataclass(frozen=True)
class _Term:
    """What a gate contributes to a tensor: ``gate * linear``; ``gate`` broadcasts to ``linear``."""

    linear: Tensor
    gate: Tensor


@dataclass(frozen=True)
class _Sum:
    """A tensor that gates contribute to: its value, without derivatives by these gates, and their terms."""

    value: Tensor
    terms: tuple[_Term, ...]


class LocalSecants(TorchFunctionMode):
    """While active, backward passes give a gate of 0 or 1 the change over its flip, where a nonlinearity follows.

    Values of the forward pass stay what they are; in-place nonlinearities and additions on gated outputs are computed
    out of place, so that a model that relies on their side effect computes something else.

    Example:
        >>> secants = LocalSecants()
        >>> gate = torch.zeros(1, 2, requires_grad=True)
        >>> with secants:
        ...     output = secants.gate_output(torch.tensor([[3.0, -2.0]]), gate, torch.tensor([-1.0, 1.0])).relu()
        >>> output.tolist(), torch.autograd.grad(output.sum(), gate)[0].tolist()
        ([[0.0, 1.0]], [[2.0, -1.0]])
    """

    def __init__(self) -> None:
        super().__init__()
        self._sums: MutableMapping[Tensor, _Sum] = WeakTensorKeyDictionary()

    def gate_output(self, linear: Tensor, gate: Tensor, bias: Tensor | None) -> Tensor:
        """``bias + gate * linear``, remembered as such.

        Args:
            linear: (num_rows, ...) a linear map's output without its bias.
            gate: broadcasts to ``linear``, 0 or 1; its derivative is summed in its own dtype.
            bias: broadcasts to ``linear``; None is zero.

        Returns:
            Shape and dtype of ``linear``.
        """
        factor = gate.detach().to(linear.dtype)
        value = linear * factor if bias is None else torch.addcmul(bias, linear, factor)
        return self._remember(_Sum(value, (_Term(linear.detach(), gate),)))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Pointwise nonlinearities, additions and what is linear per channel know gated outputs; the rest need not."""
        kwargs = dict(kwargs or {})
        first = self._sum_of(args[0]) if args else None
        if func in _ADDITIONS and not kwargs and len(args) == 2:
            second = self._sum_of(args[1])
            if first is not None or second is not None:
                return self._add(args, first, second)
        elif first is not None:
            if func in _POINTWISE:
                kwargs.pop("inplace", None)
                return _flipped(first, lambda tensor: _POINTWISE[func](tensor, *args[1:], **kwargs))
            if func in _DROPOUTS and kwargs.get("training") is False:
                return args[0]
            if func is functional.batch_norm and not kwargs.get("training") and len(args) == 3 and args[1] is not None:
                return self._batch_norm(first, args[1], args[2], kwargs)
        return func(*args, **kwargs)

    def _sum_of(self, operand: Any) -> _Sum | None:
        return self._sums.get(operand) if isinstance(operand, Tensor) else None

    def _remember(self, summed: _Sum) -> Tensor:
        """The tensor for everybody, with its ordinary derivatives by the gates."""
        tensor = summed.value
        for term in summed.terms:
            tensor = _attach(tensor, term.gate, term.linear)
        self._sums[tensor] = summed
        return tensor

    def _add(self, operands: tuple[Any, ...], *sums: _Sum | None) -> Tensor:
        first, second = (
            operand if summed is None else summed.value for operand, summed in zip(operands, sums, strict=True)
        )
        if not isinstance(first, Tensor):
            first, second = second, first
        value = first + second
        known = [summed for summed in sums if summed is not None]
        if any(summed.value.shape != value.shape for summed in known):  # broadcast: a term is no longer elementwise
            return torch.add(*operands)
        return self._remember(_Sum(value, tuple(term for summed in known for term in summed.terms)))

    def _batch_norm(self, summed: _Sum, mean: Tensor, variance: Tensor, options: dict[str, Any]) -> Tensor:
        value = functional.batch_norm(summed.value, mean, variance, **options)
        scale = (variance + options.get("eps", 1e-5)).rsqrt()
        if options.get("weight") is not None:
            scale = scale * options["weight"]
        scale = scale.detach().reshape(1, -1, *[1] * (value.ndim - 2))
        terms = tuple(_Term((term.linear * scale).to(value.dtype), term.gate) for term in summed.terms)
        return self._remember(_Sum(value, terms))


def _attach(value: Tensor, gate: Tensor, slope: Tensor) -> Tensor:
    attached: Tensor = _Attach.apply(value, gate, slope)  # type: ignore[no-untyped-call]
    return attached


def _flipped(summed: _Sum, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` of a sum; its derivative by each gate is its change over the gate's going from 0 to 1."""
    result = value = function(summed.value)
    for term in summed.terms:
        with torch.no_grad():
            towards = 1 - 2 * term.gate.to(value.dtype)
            secant = (function(torch.addcmul(summed.value, term.linear, towards)) - value) * towards
        result = _attach(result, term.gate, secant)
    return result
