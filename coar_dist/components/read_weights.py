"""Gates on weights that a forward method reads itself: they stand where the weight is used, whatever module owns it.

``functional.linear(x, self.qkv.weight)`` never calls ``self.qkv``, so a hook on that module does not see it. While such
a weight is gated, a parameter of a class that catches the functions that read it stands in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunctionSubclass
from torch.nn import functional

from coar_dist.errors import in_one_line

_LINEARS = {functional.linear: -1, functional.conv1d: 1, functional.conv2d: 1, functional.conv3d: 1}
"""Functions of (input, weight (out, in, ...), bias, ...), with the channel axis of what they read and give."""
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}
"""Functions of (input, weight (in, out))."""
_READERS = {*_LINEARS, *_PRODUCTS, functional.embedding}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightGate:
    """What happens where a weight with components along one of its axes is read.

    Attributes:
        on_output: from an output without bias, the bias or None, and the channel axis to the gated output.
        on_input: from what is multiplied with the weight, and its channel axis, to the gated input.
        on_rows: from tokens and what an embedding gives for them to the gated output.
    """

    on_output: Callable[[Tensor, Tensor | None, int], Tensor]
    on_input: Callable[[Tensor, int], Tensor]
    on_rows: Callable[[Tensor, Tensor], Tensor]


class ReadWeight(nn.Parameter):
    """A parameter with gates where a function reads it; for all others it is the plain parameter.

    Attributes:
        plain: the parameter, whose storage is shared.
        gates: by the axis of the weight that is cut into components.
        note: called at every use; None is not.
    """

    plain: Tensor
    gates: Mapping[int, WeightGate]
    note: Callable[[], None] | None

    @staticmethod
    def of(parameter: Tensor, gates: Mapping[int, WeightGate], note: Callable[[], None] | None = None) -> ReadWeight:
        """Stands in for ``parameter``, and keeps gates that it has already."""
        weight: ReadWeight = torch.Tensor._make_subclass(ReadWeight, parameter.detach(), False)
        before = parameter.gates if isinstance(parameter, ReadWeight) else {}
        weight.plain, weight.gates, weight.note = _plain(parameter), {**before, **gates}, note
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Gates the functions that read a weight as their second argument."""
        kwargs = kwargs or {}
        with DisableTorchFunctionSubclass():
            if func in _READERS and len(args) > 1 and isinstance(args[1], ReadWeight):
                return _read(func, args[0], args[1], args[2:], kwargs)
            return func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def _plain(value: Any) -> Any:
    return value.plain if isinstance(value, ReadWeight) else value


def _read(func: Callable[..., Any], x: Any, weight: ReadWeight, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first, second = weight.gates.get(0), weight.gates.get(1)
    if weight.note is not None:
        weight.note()
    if func is functional.embedding:
        embedded = func(x, weight.plain, *rest, **kwargs)
        if second is not None:
            embedded = second.on_output(embedded, None, -1)
        return embedded if first is None else first.on_rows(x, embedded)
    of_output, of_input = (second, first) if func in _PRODUCTS else (first, second)
    channel_axis = _LINEARS.get(func, -1)
    if of_input is not None:
        x = of_input.on_input(x, channel_axis)
    if of_output is None:
        return func(x, weight.plain, *rest, **kwargs)
    if func in _PRODUCTS:
        return of_output.on_output(func(x, weight.plain), None, channel_axis)
    bias = rest[0] if rest else kwargs.pop("bias", None)
    return of_output.on_output(func(x, weight.plain, None, *rest[1:], **kwargs), bias, channel_axis)


def read_directly(model: nn.Module, is_hooked: Mapping[str, bool], run: Callable[[], object]) -> frozenset[str]:
    """The parameters that functions read where no hook on their module can stand in.

    That is outside the module's own forward method, or where the module gives no tensor or has no place for a gate.

    Args:
        model: is as before on every exit.
        is_hooked: by dotted name of a parameter, whether a hook on its module could stand in.
        run: a forward pass of ``model``.
    """
    found: set[str] = set()
    running: list[nn.Module] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, _inputs: Any, output: Any) -> None:
        running.pop()
        if not isinstance(output, Tensor):
            found.update(name for name, owner in owners.items() if owner is module and name in seen)

    owners: dict[str, nn.Module] = {}
    seen: set[str] = set()
    with ExitStack() as stack:
        for name in is_hooked:
            owners[name] = owner = model.get_submodule(name.rpartition(".")[0])

            def note(name: str = name, owner: nn.Module = owner) -> None:
                seen.add(name)
                if owner not in running or not is_hooked[name]:
                    found.add(name)

            stack.callback(stand_in(owner, name.rpartition(".")[2], {}, note))
        for owner in set(owners.values()):
            stack.callback(owner.register_forward_pre_hook(enter).remove)
            stack.callback(owner.register_forward_hook(leave).remove)
        try:
            run()
        except Exception as error:  # the user's own forward may raise anything when a weight is not what it was
            _log.info("whether weights are read directly is not known: %s", in_one_line(error))
            return frozenset()
    return frozenset(found)


def stand_in(
    module: nn.Module, name: str, gates: Mapping[int, WeightGate], note: Callable[[], None] | None = None
) -> Callable[[], None]:
    """Put gates where a parameter of ``module`` is read; what is given takes them off again."""
    before = module._parameters[name]
    assert before is not None, name
    module._parameters[name] = ReadWeight.of(before, gates, note)

    def undo() -> None:
        module._parameters[name] = before

    return undo
