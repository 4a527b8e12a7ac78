"""CUDA graphs: all that a function launches on the device, recorded once and then launched at once.

With few rows, or a small model, the device is done with a layer before Python has launched the next one, and waits for
the host. A recorded pass does not wait. Shapes and addresses are fixed when it is recorded; weights and gates are
written in place, and the next replay sees them.
"""

from __future__ import annotations

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


class RecordedFunction:
    """A function of tensors, recorded on the device where they lie.

    Args:
        function: from tensors and dicts of tensors to tensors. It must not wait for the device, and nothing on the
            host may depend on values there.
        arguments: of a first call; later ones have their shapes and dtypes.

    Raises:
        torch.OutOfMemoryError: from the function.
        RuntimeError: the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._arguments = tree_map(torch.clone, arguments)
        device = tree_leaves(arguments)[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function(*self._arguments)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.empty_cache()  # the recording has memory of its own
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._results = function(*self._arguments)

    def __call__(self, *arguments: Any) -> Any:
        """The function's results, which the next call overwrites."""
        own: list[Tensor] = tree_leaves(self._arguments)
        for tensor, given in zip(own, tree_leaves(arguments), strict=True):
            tensor.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._results
