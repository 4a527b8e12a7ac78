"""Attention heads as a forward pass shows them, without any name: which inputs of a projection came from which head.

The product of softmaxed scores and values, or the output of fused attention, is followed through views and elementwise
operations to the matrix product that reads it. What is found holds ``attention_sites`` to the model's own computation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from coar_dist.ablation.placement import modules_called

aten = torch.ops.aten
_BITS = 24
"""An element's owner is ``call << 48 | place << 24 | row``: of a product, of its batch, and of the softmaxes there."""
_MOST_CALLS = 1 << 14
_NOBODY = -1
_SOFTMAX = (aten._softmax, aten._safe_softmax)
_FUSED = tuple(
    getattr(aten, name)
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(aten, name)
)
_RESHAPES = (aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
_MOVES = (
    *(aten.permute, aten.transpose, aten.t, aten.expand, aten.squeeze, aten.unsqueeze, aten.slice, aten.select),
    *(aten.split, aten.split_with_sizes, aten.unbind, aten.flip, aten.roll, aten.index_select, aten.index),
    *(aten.repeat, aten.unfold),
)
_COPIES = (aten.clone, aten._to_copy, aten.contiguous, aten.alias, aten.detach, aten.lift_fresh)
_UNTAGGED = (aten.hardswish, aten.native_dropout)
"""Elementwise operations that PyTorch does not say are."""
_NORMS = (aten.native_layer_norm, aten.native_group_norm, aten._fused_rms_norm)


@dataclass(frozen=True)
class HeadsRead:
    """Inputs of a parameter that attention heads fill.

    Attributes:
        parameter: dotted name of the matrix that reads them.
        axis: its axis of inputs.
        heads: per input, the first input that the same head fills: the same product's same place in the batch. -1 where
            no head fills it.
        others: the same by other reasons why inputs may be of one head. They are of one place in the batch, whatever
            the product, where a head's values are read in parts. They are of one softmax alone, where heads share a
            place in the batch, as in some multi-query attention, and where attention is over channels.
    """

    parameter: str
    axis: int
    heads: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]

    @property
    def several(self) -> bool:
        """Whether there is more than one head."""
        return len(set(self.heads) - {_NOBODY}) > 1

    def are_one(self, start: int, size: int) -> bool:
        """Whether the inputs from ``start`` on are all of one head, and no more; also where the pass does not tell."""
        return self._are_whole(start, size, {1})

    def are_whole(self, start: int, size: int) -> bool:
        """Whether they are all of one or several heads, and no more; also where the pass does not tell."""
        return self._are_whole(start, size, range(1, size + 1))

    def _are_whole(self, start: int, size: int, nums: Container[int]) -> bool:
        def whole(owners: tuple[int, ...]) -> bool:
            inside = Counter(owners[start : start + size])
            if _NOBODY in inside:
                return True
            return len(inside) in nums and sum(owners.count(owner) for owner in inside) == size

        return any(whole(owners) for owners in (self.heads, *self.others))

    def __str__(self) -> str:
        sizes = Counter(self.heads)
        sizes.pop(_NOBODY, None)
        each = sorted(set(sizes.values()))
        return f"{len(sizes)} of {' or '.join(map(str, each))}"


def heads_read(model: nn.Module, run: Callable[[], object]) -> list[HeadsRead]:
    """The parameters that read attention heads in a forward pass, in the order in which they do.

    Args:
        model: whose parameters are told apart.
        run: runs the model on a few examples; its result is not used.

    Returns:
        One entry per parameter and arrangement of heads. Attention that is not computed by PyTorch's own softmax and
        products, and what reads it in another way than a linear map or a 1x1 convolution, is not in it.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> [(read.parameter, read.heads) for read in heads_read(layer, lambda: layer(torch.rand(1, 3, 8)))]
        [('self_attn.out_proj.weight', (0, 0, 0, 0, 4, 4, 4, 4))]
    """
    follower = _Follower({id(value): name for name, value in model.named_parameters()})
    with torch.no_grad(), modules_called(), follower:
        run()
    return list(dict.fromkeys(follower.found))


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries with tensors who owns each element, whether they are softmaxed scores, which parameter they are."""

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[HeadsRead] = []
        self._num_calls = 0
        self._parameters = parameters
        self._owners: Any = WeakTensorKeyDictionary()  # tensor -> int64 of its shape
        self._scores: Any = WeakTensorKeyDictionary()  # softmaxed -> True
        self._weights: Any = WeakTensorKeyDictionary()  # tensor -> name, and which of the parameter's axes its are

    @classmethod
    @override
    def _should_skip_dynamo(cls) -> bool:
        return False  # what is followed is not compiled, and to say so to the compiler costs its import: seconds

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for arg in args for each in _tensors_of(arg)]
        if tensors:
            self._follow(func, tensors, args, kwargs or {}, result)
        return result

    def _follow(self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, result: Any) -> None:
        packet, first = func.overloadpacket, tensors[0]
        if packet in _SOFTMAX:
            self._scores[result] = True
        elif packet in _FUSED:
            self._owners[result[0]] = self._rows(result[0])[..., None].expand(result[0].shape)
        elif packet in (aten.bmm, aten.baddbmm):
            self._product(tensors[-2], tensors[-1], result)
        elif packet in (aten.mm, aten.addmm):
            self._read(tensors[-2], tensors[-1], result)
        elif packet is aten.convolution:
            self._convolve(tensors, args, result)
        elif packet in _NORMS:
            self._pass_on([first], result[0])
        elif packet is aten.copy_:
            self._owners.pop(first, None)
            self._pass_on(tensors[1:], result)
        elif packet in (aten.cat, aten.stack):
            self._concatenate(tensors, func, args, result)
        elif packet is aten.constant_pad_nd:
            self._move(first, result, lambda owners: func(owners, args[1], _NOBODY))
        elif packet in _RESHAPES:
            self._move(first, result, lambda owners: owners.reshape(result.shape))
        elif packet in _MOVES:
            self._move(first, result, lambda owners: func(owners, *args[1:], **kwargs))
        elif packet in (*_COPIES, *_UNTAGGED) or torch.Tag.pointwise in func.tags:
            self._pass_on(tensors, result)
        if packet in (*_RESHAPES, *_MOVES, *_COPIES):
            self._view(func, first, args, kwargs, result)

    def _product(self, one: Tensor, other: Tensor, result: Tensor) -> None:
        """Scores times values: the output's rows, or columns, are a softmax each."""
        if one in self._scores and self._weight(other) is None:
            self._owners[result] = self._rows(result)[..., None].expand(result.shape)
        elif other in self._scores and self._weight(one) is None:
            self._owners[result] = self._rows(result.mT)[..., None, :].expand(result.shape)

    def _rows(self, product: Tensor) -> Tensor:
        """(*batch, num_rows) int64: an owner for each row of a product."""
        *batch, num_rows, _ = product.shape
        self._num_calls = (self._num_calls + 1) % _MOST_CALLS
        places = torch.arange(math.prod(batch), device=product.device).reshape(*batch, 1)
        rows = torch.arange(num_rows, device=product.device)
        return self._num_calls << 2 * _BITS | places << _BITS | rows

    def _read(self, one: Tensor, other: Tensor, result: Tensor) -> None:
        owners, weight = self._owners.get(one), self._weight(other)
        if owners is not None and weight is not None:
            self._note(weight, weight[1][0], owners)
        elif (owners := self._owners.get(other)) is not None and (weight := self._weight(one)) is not None:
            self._note(weight, weight[1][1], owners.t())
        elif weight is not None and one in self._scores:  # heads mixed after the softmax (CaiT)
            self._scores[result] = True

    def _convolve(self, tensors: Sequence[Tensor], args: Sequence[Any], result: Tensor) -> None:
        owners, weight = self._owners.get(tensors[0]), self._weight(tensors[1])
        is_linear = set(tensors[1].shape[2:]) <= {1} and args[8] == 1 and not args[6]
        if owners is not None and weight is not None and is_linear:
            self._note(weight, weight[1][1], owners.movedim(1, -1).flatten(0, -2))
        elif weight is not None and is_linear and tensors[0] in self._scores:
            self._scores[result] = True

    def _note(self, weight: tuple[str, tuple[int, ...]], axis: int, owners: Tensor) -> None:
        """Which inputs belong together, where all rows agree; an input that one row has of nobody is nobody's."""

        def by(part: Callable[[Tensor], Tensor]) -> tuple[int, ...] | None:
            return _partition(torch.where(owners == _NOBODY, _NOBODY, part(owners)))

        heads = by(lambda owners: owners >> _BITS)
        others = by(lambda owners: owners >> _BITS & (1 << _BITS) - 1), by(lambda owners: owners)
        if heads is not None:
            known = tuple(other for other in others if other is not None)
            self.found.append(HeadsRead(weight[0], axis, heads, known))

    def _concatenate(self, tensors: Sequence[Tensor], func: Any, args: Sequence[Any], result: Tensor) -> None:
        if any(self._owners.get(each) is not None for each in tensors):
            owners = [self._owners.get(each) for each in tensors]
            filled = [
                torch.full(each.shape, _NOBODY, dtype=torch.int64, device=each.device) if owner is None else owner
                for each, owner in zip(tensors, owners, strict=True)
            ]
            self._owners[result] = func(filled, *args[1:])

    def _move(self, source: Tensor, result: Any, move: Callable[[Tensor], Any]) -> None:
        """What holds of the source holds of what is the same elements in other places."""
        is_score, owners = source in self._scores, self._owners.get(source)
        results = list(_tensors_of(result))
        if is_score:
            for each in results:
                self._scores[each] = True
        if owners is not None:
            for each, moved in zip(results, _tensors_of(move(owners)), strict=True):
                self._owners[each] = moved

    def _pass_on(self, sources: Sequence[Tensor], result: Any) -> None:
        """An elementwise result has the owners of its first operand that has any."""
        if not isinstance(result, Tensor):
            return
        if any(each in self._scores and each.shape == result.shape for each in sources):
            self._scores[result] = True
        owners = next((found for each in sources if (found := self._owners.get(each)) is not None), None)
        if owners is not None:
            self._owners[result] = owners.expand(result.shape)

    def _weight(self, tensor: Tensor) -> tuple[str, tuple[int, ...]] | None:
        name = self._parameters.get(id(tensor))
        if name is not None and isinstance(tensor, nn.Parameter):
            return name, tuple(range(tensor.ndim))
        found: tuple[str, tuple[int, ...]] | None = self._weights.get(tensor)
        return found

    def _view(self, func: Any, source: Tensor, args: Sequence[Any], kwargs: Any, result: Any) -> None:
        """A parameter transposed, cast, or with axes of length 1 taken away or put to it, is that parameter."""
        weight = self._weight(source)
        if weight is None or not isinstance(result, Tensor) or result.numel() != source.numel():
            return
        axes = torch.empty(source.shape, device="meta")  # strides tell where each axis went
        strides = {stride: axis for axis, (stride, length) in enumerate(_steps(axes)) if length > 1}
        if func.overloadpacket in _COPIES:
            moved = axes
        elif func.overloadpacket in _RESHAPES:
            if [n for n in source.shape if n > 1] != [n for n in result.shape if n > 1]:
                return
            moved = axes.reshape(result.shape)
        else:
            moved = func(axes, *args[1:], **kwargs)
        if not isinstance(moved, Tensor) or moved.shape != result.shape:
            return
        self._weights[result] = weight[0], tuple(weight[1][strides.get(step, 0)] for step, _ in _steps(moved))


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    return list(zip(tensor.stride(), tensor.shape, strict=True))


def _partition(owners: Tensor) -> tuple[int, ...] | None:
    """Per column the first one with the same owner, -1 for nobody's; None if the rows contradict each other."""
    owners = owners[(owners != _NOBODY).any(dim=1)]
    if not len(owners):
        return None
    owners = torch.where((owners == _NOBODY).any(dim=0), _NOBODY, owners)
    ordered, order = owners.sort(dim=1, stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    places = torch.arange(ordered.shape[1], device=owners.device).expand_as(ordered)
    firsts = order.gather(1, torch.where(is_first, places, 0).cummax(dim=1).values)
    labels = torch.empty_like(order).scatter_(1, order, firsts)
    labels = torch.where(owners == _NOBODY, _NOBODY, labels)
    return tuple(labels[0].tolist()) if bool((labels == labels[0]).all()) else None


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [each for each in value if isinstance(each, Tensor)] if isinstance(value, list | tuple) else []
