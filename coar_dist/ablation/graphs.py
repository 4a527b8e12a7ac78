"""CUDA graphs: all that a function launches on the device, recorded once and then launched at once.

With few rows, or a small model, the device is done with a layer before Python has launched the next one, and waits for
the host. A recorded pass does not wait. Shapes and addresses are fixed when it is recorded; weights and gates are
written in place, and the next replay sees them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_WARM_UPS = 3
"""Calls before recording: libraries choose their kernels, and allocate their workspaces, in the first."""


def why_not_recorded(model: nn.Module, device: torch.device) -> str | None:
    """Why a model's passes cannot be recorded; None where they may be."""
    if device.type != "cuda":
        return f"there are no CUDA graphs on {device.type}"
    if hasattr(model, "hf_device_map"):
        return "the model is spread over several devices"
    return None


class Source:
    """What a tensor was copied from, to tell whether another copy would bring the same values.

    It holds no memory: of what is gone nothing is the same, whatever lies at its address now.

    Args:
        tensor: as it is now; later changes in place are noticed.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._owner = weakref.ref(_owner_of(tensor))
        self._where = _where(tensor)

    def is_still(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is the same values at the same place."""
        owner = self._owner()
        return owner is not None and owner is _owner_of(tensor) and self._where == _where(tensor)


def _owner_of(tensor: Tensor) -> Tensor:
    """Slices are new tensors each time; what they are cut from stays."""
    return tensor if tensor._base is None else tensor._base


def _where(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, _version(tensor)


def _version(tensor: Tensor) -> object:
    """What is another after a change in place; always another where PyTorch does not keep account."""
    return object() if tensor.is_inference() else tensor._version


class RecordedFunction:
    """A function of tensors, recorded on the device where they lie.

    Args:
        function: from tensors, and dicts of tensors and constants, to tensors. It must not wait for the device, and
            nothing on the host may depend on values there.
        arguments: of a first call; later ones have their shapes and dtypes, and the same constants.

    Raises:
        torch.OutOfMemoryError: from the function.
        RuntimeError: the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._arguments = tree_map(lambda given: given.clone() if isinstance(given, Tensor) else given, arguments)
        self._own = _tensors(self._arguments)
        device = self._own[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function(*self._arguments)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.empty_cache()  # the recording has memory of its own
            self._graph = torch.cuda.CUDAGraph()
            before = [_version(tensor) for tensor in self._own]
            with torch.cuda.graph(self._graph):
                self._results = function(*self._arguments)
        self._changed = [_version(tensor) != version for tensor, version in zip(self._own, before, strict=True)]
        self._sources: list[Source | None] = [None] * len(self._own)

    def __call__(self, *arguments: Any) -> Any:
        """The function's results, which the next call overwrites.

        Arguments that are where they were at the last call, unchanged, are not copied again: all masks share examples.
        """
        for number, (tensor, given) in enumerate(zip(self._own, _tensors(arguments), strict=True)):
            source = self._sources[number]
            if source is None or not source.is_still(given):
                tensor.copy_(given, non_blocking=True)
                self._sources[number] = None if self._changed[number] else Source(given)
        self._graph.replay()
        return self._results


def _tensors(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
