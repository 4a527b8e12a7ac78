"""Which of some tensors a function reads on the way to its result, and which it overwrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows through every operation which tensors its results come from, as bits per storage."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bits: dict[int, int] = {}
        self.used_on_host = 0
        for number, tensor in enumerate(tensors):
            self._bits[_storage(tensor)] = self.of(tensor) | 1 << number

    @classmethod
    @override
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation loads the compiler, which takes seconds

    def of(self, tensor: Tensor) -> int:
        return self._bits.get(_storage(tensor), 0)

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        origins = 0
        for tensor in given:
            origins |= self.of(tensor)
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not made:  # a number for the host, or an operation in place that returns nothing
            self.used_on_host |= origins
        aliased = {_storage(tensor) for tensor in given}
        for tensor in made:
            storage = _storage(tensor)
            self._bits[storage] = origins | (self._bits.get(storage, 0) if storage in aliased else 0)
        return result


def read_and_overwritten(run: Callable[[], Tensor], tensors: Mapping[str, Tensor]) -> tuple[set[str], set[str]]:
    """Names of the tensors that the result of ``run`` comes from, and of those that it works in place on.

    Args:
        run: reads the tensors.
        tensors: none shares its memory with another.

    Example:
        >>> one, other = torch.ones(2), torch.ones(2)
        >>> read_and_overwritten(lambda: (one.add_(1), other * 2)[1] + 1, {"one": one, "other": other})
        ({'other'}, {'one'})
    """
    versions = {name: tensor._version for name, tensor in tensors.items()}
    with _Origins(list(tensors.values())) as origins:
        bits = origins.of(run()) | origins.used_on_host
    read = {name for number, name in enumerate(tensors) if bits >> number & 1}
    return read, {name for name, tensor in tensors.items() if tensor._version != versions[name]}


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
