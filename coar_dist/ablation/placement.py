"""Where tensors lie, and the layout and precision in which a device runs fastest and repeats itself exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.tasks.example_set import ExampleSet

_ROWS_MOVED = 256


def fits_on(device: torch.device, examples: ExampleSet) -> bool:
    """Whether the examples take less than a third of the device's free memory, so that they may stay there."""
    if device.type != "cuda":
        return True
    num_bytes = sum(tensor.numel() * tensor.element_size() for _, tensor in examples.tensors())
    return num_bytes < torch.cuda.mem_get_info(device)[0] / 3


def repeat_exactly(device: torch.device) -> None:
    """Make this process's CUDA kernels give the same bits for the same input, float32 ones without TF32: in 16 bits
    too, where the untouched model that forms are held to runs in float32."""
    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def on_host(tensor: Tensor) -> NDArray[Any]:
    """A copy of ``tensor`` as an array; from a CUDA device through pinned memory, which is over ten times faster."""
    if tensor.device.type != "cuda":
        return tensor.numpy(force=True)
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned.numpy()


def native_precision() -> str:
    """``bfloat16`` where this process' device has instructions for it, else ``float32``."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def placed(model: nn.Module, device: torch.device) -> tuple[nn.Module, torch.device]:
    """``model`` in eval mode, without gradients of parameters, on ``device``; and the device that takes its inputs.

    A model that accelerate has spread over several devices stays there.
    """
    model = model.eval().requires_grad_(False)
    if hasattr(model, "hf_device_map"):
        return model, next(model.parameters()).device
    return model.to(device), device


@contextlib.contextmanager
def modules_called() -> Iterator[None]:
    """``nn.TransformerEncoder`` calls its parts, where hooks and gates are: not the fused path that reads weights."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def layout_of(model: nn.Module) -> torch.memory_format:
    """Channels last where there are 2d convolutions: the layout in which they run fastest on CPUs and tensor cores."""
    has_convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if has_convolutions else torch.preserve_format


def lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    """Put the weights of 2d convolutions into a layout, in place; other tensors may have any number of axes."""
    if layout == torch.preserve_format:
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


def with_layout(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """``tensor`` in ``layout`` if it is an image batch, else unchanged."""
    return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 and layout != torch.preserve_format else tensor


def moved(tensor: Tensor, device: torch.device, layout: torch.memory_format) -> Tensor:
    """``tensor`` on a device in ``layout``, copied in pieces: the host never holds it twice."""
    if tensor.device == device:
        return with_layout(tensor, layout)
    form = layout if tensor.ndim == 4 and layout != torch.preserve_format else torch.contiguous_format
    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=form)
    for own, piece in zip(torch.split(there, _ROWS_MOVED), torch.split(tensor, _ROWS_MOVED), strict=True):
        own.copy_(piece)
    return there


def select_rows(tensor: Tensor, rows: Tensor, layout: torch.memory_format) -> Tensor:
    """``tensor[rows]`` in ``layout``; a channels-last image batch is copied only once."""
    if tensor.ndim == 4 and layout == torch.channels_last:
        return with_layout(tensor.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2), layout)
    return tensor.index_select(0, rows)
