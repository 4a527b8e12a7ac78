"""Gate gradients that see through the nonlinearity after a layer: its exact change, not its derivative.

A gated output is ``bias + gate * linear``. Where it reaches a pointwise nonlinearity, directly or through additions
and BatchNorm, the derivative at the gate says little of what flipping the gate does: a ReLU that is off has none. The
change of the nonlinearity over the flip is known exactly, elementwise, and takes the derivative's place. This is the
Rescale rule of DeepLIFT (Shrikumar et al. 2017, section 3.5.1) with one channel's ablation as the reference. The same
holds for nonlinearities that are written out in products and powers (GELU in many language models), and for products
of two gated outputs (SwiGLU). Whatever else reads a gated output, and whatever lies further upstream, has its ordinary
derivative: so has what is added to something else behind the nonlinearity, as in a residual stream.
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
_PRODUCTS = (torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__)
_WRITTEN_OUT = (
    *(torch.pow, Tensor.pow, Tensor.__pow__, torch.square, Tensor.square, torch.exp, Tensor.exp, torch.erf, Tensor.erf),
    *(torch.neg, Tensor.neg, Tensor.__neg__, torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__),
    *(torch.div, Tensor.div, Tensor.__truediv__, Tensor.__rtruediv__),
)
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
    """What a gate contributes to a tensor: ``gate * change``; ``gate`` broadcasts to ``change``."""

    change: Tensor
    gate: Tensor


@dataclass(frozen=True)
class _Tracked:
    """A tensor that gates contribute to, each to every element on its own.

    Attributes:
        value: without derivatives by these gates.
        terms: of the gates; exact for the flip of one of them.
        is_linear: whether no nonlinearity lies between the gates and the tensor.
    """

    value: Tensor
    terms: tuple[_Term, ...]
    is_linear: bool = True

    @property
    def gates(self) -> dict[int, Tensor]:
        return {id(term.gate): term.gate for term in self.terms}

    def flipped(self, gate: Tensor) -> Tensor:
        """The value with another gate."""
        for term in self.terms:
            if term.gate is gate:
                return torch.addcmul(self.value, term.change, _towards(gate, self.value.dtype))
        return self.value


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
        self._tracked: MutableMapping[Tensor, _Tracked] = WeakTensorKeyDictionary()

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
        return self._remember(_Tracked(value, (_Term(linear.detach(), gate),)))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What is elementwise, or linear per channel, knows gated outputs; the rest need not."""
        kwargs = dict(kwargs or {})
        tracked = [self._tracked.get(operand) if isinstance(operand, Tensor) else None for operand in args]
        if any(tracked):
            result = self._apply(func, args, kwargs, tracked)
            if result is not None:
                return result
        return func(*args, **kwargs)

    def _apply(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tracked: list[_Tracked | None]
    ) -> Tensor | None:
        """The result of a function that is known; None for the others."""
        is_binary = len(args) == 2 and not kwargs
        first = tracked[0]
        if func in _ADDITIONS and is_binary:
            return self._add(args, tracked)
        if func in _PRODUCTS and is_binary:
            return self._flip(torch.mul, args, tracked) if all(tracked) else self._scale(args, tracked)
        if func in _WRITTEN_OUT and not kwargs:
            return self._flip(func, args, tracked)
        if first is None:
            return None
        if func in _POINTWISE:
            kwargs.pop("inplace", None)
            rest = args[1:]
            return self._flip(lambda tensor: _POINTWISE[func](tensor, *rest, **kwargs), args[:1], tracked[:1])
        if func in _DROPOUTS and kwargs.get("training") is False:
            return args[0]  # type: ignore[no-any-return]
        if func is functional.batch_norm and not kwargs.get("training") and len(args) == 3 and args[1] is not None:
            return self._batch_norm(first, args[1], args[2], kwargs)
        return None

    def _remember(self, tracked: _Tracked) -> Tensor:
        """The tensor for everybody, with derivatives by the gates."""
        tensor = tracked.value
        for term in tracked.terms:
            tensor = _attach(tensor, term.gate, term.change)
        self._tracked[tensor] = tracked
        return tensor

    def _add(self, operands: tuple[Any, ...], tracked: list[_Tracked | None]) -> Tensor | None:
        """Terms of a sum are those of its operands; what a nonlinearity made is added to something else untracked."""
        if all(isinstance(operand, Tensor) for operand in operands):
            gates = [frozenset() if one is None else frozenset(one.gates) for one in tracked]
            if gates[0] == gates[1]:
                return self._flip(torch.add, operands, tracked)
            tracked = [one if one is not None and one.is_linear else None for one in tracked]
        known = [one for one in tracked if one is not None]
        if not known:
            return None
        first, second = (operand if one is None else one.value for operand, one in zip(operands, tracked, strict=True))
        value = first + second
        if any(one.value.shape != value.shape for one in known):  # broadcast: a term is no longer elementwise
            return None
        terms = tuple(term for one in known for term in one.terms)
        return self._remember(_Tracked(value, terms, all(one.is_linear for one in known)))

    def _scale(self, operands: tuple[Any, ...], tracked: list[_Tracked | None]) -> Tensor | None:
        """The product with something that has no gates here; its own derivative, by gates upstream, stays."""
        (one,) = (each for each in tracked if each is not None)
        factor = operands[0] if tracked[0] is None else operands[1]
        value = one.value * factor
        if value.shape != one.value.shape:
            return None
        constant = factor.detach() if isinstance(factor, Tensor) else factor
        terms = tuple(_Term((term.change * constant).to(value.dtype), term.gate) for term in one.terms)
        return self._remember(_Tracked(value, terms, one.is_linear))

    def _flip(
        self, function: Callable[..., Tensor], operands: tuple[Any, ...], tracked: list[_Tracked | None]
    ) -> Tensor | None:
        """``function`` of operands, elementwise; its change by each gate is that over the gate's going from 0 to 1."""
        value = function(
            *(operand if one is None else one.value for operand, one in zip(operands, tracked, strict=True))
        )
        known = [one for one in tracked if one is not None]
        if any(one.value.ndim != value.ndim for one in known):
            return None
        terms = []
        for gate in {key: gate for one in known for key, gate in one.gates.items()}.values():
            with torch.no_grad():
                flipped = function(
                    *(
                        operand if one is None else one.flipped(gate)
                        for operand, one in zip(operands, tracked, strict=True)
                    )
                )
                terms.append(_Term((flipped - value) * _towards(gate, value.dtype), gate))
        return self._remember(_Tracked(value, tuple(terms), is_linear=False))

    def _batch_norm(self, one: _Tracked, mean: Tensor, variance: Tensor, options: dict[str, Any]) -> Tensor:
        value = functional.batch_norm(one.value, mean, variance, **options)
        scale = (variance + options.get("eps", 1e-5)).rsqrt()
        if options.get("weight") is not None:
            scale = scale * options["weight"]
        scale = scale.detach().reshape(1, -1, *[1] * (value.ndim - 2))
        terms = tuple(_Term((term.change * scale).to(value.dtype), term.gate) for term in one.terms)
        return self._remember(_Tracked(value, terms, one.is_linear))


def _towards(gate: Tensor, dtype: torch.dtype) -> Tensor:
    """1 for a gate of 0, -1 for a gate of 1."""
    return 1 - 2 * gate.detach().to(dtype)


def _attach(value: Tensor, gate: Tensor, slope: Tensor) -> Tensor:
    attached: Tensor = _Attach.apply(value, gate, slope)  # type: ignore[no-untyped-call]
    return attached
