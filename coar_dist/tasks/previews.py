"""Small pictures of examples that are images, for whoever looks at a run without its data."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from coar_dist.tasks.example_set import ExampleSet

LONGEST_SIDE = 64
_SAMPLE = 256
"""Images that tell the range of the pixels, about."""
_QUALITY = 85


@dataclass(frozen=True)
class Previews:
    """Makes the pictures of the images of an example set.

    Up to ``LONGEST_SIDE`` pixels wide and high an image keeps its pixels (PNG); a larger one is scaled down (JPEG, a
    quarter of the bytes for photos). uint8 values and floats in [0, 1] are shown as they are; of others, such as
    normalised ones, each channel is stretched from its least value to its greatest over a sample of the images.

    Attributes:
        pixels: (num_examples, channels, height, width), 1 or 3 channels.
        low, span: (channels, 1, 1) float32, the value shown as 0 and how far above it is 255; None for uint8.
        width, height: of every picture.
    """

    pixels: Tensor
    low: Tensor | None
    span: Tensor | None
    width: int
    height: int

    @classmethod
    def of(cls, examples: ExampleSet) -> Previews | None:
        """The previews of the inputs, or of ``pixel_values`` among them; None where they are not images."""
        inputs = examples.inputs.get("pixel_values") if isinstance(examples.inputs, dict) else examples.inputs
        if inputs is None or inputs.ndim != 4 or inputs.shape[1] not in (1, 3) or inputs.is_complex():
            return None
        height, width = inputs.shape[2:]
        if not height or not width:
            return None
        shrink = min(LONGEST_SIDE / max(height, width), 1.0)
        low, span = (None, None) if inputs.dtype == torch.uint8 else _range(inputs)
        return cls(inputs.detach(), low, span, max(round(width * shrink), 1), max(round(height * shrink), 1))

    def encoded(self, first: int, end: int) -> list[bytes]:
        """A PNG or JPEG file of each of the examples ``first .. end - 1``: the same bytes every time."""
        block = self.pixels[first:end].cpu()
        with ThreadPoolExecutor(min(32, len(os.sched_getaffinity(0)))) as pool:
            return list(pool.map(self._encoded, block))

    def _encoded(self, pixels: Tensor) -> bytes:
        if self.low is not None and self.span is not None:
            shown = pixels.float().sub(self.low).div_(self.span).mul_(255)
            pixels = shown.round_().clamp_(0, 255).to(torch.uint8)
        planes = [Image.fromarray(plane) for plane in pixels.contiguous().numpy()]
        is_smaller = planes[0].size != (self.width, self.height)
        if is_smaller:
            size = (self.width, self.height)
            planes = [plane.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0) for plane in planes]
        picture = planes[0] if len(planes) == 1 else Image.merge("RGB", planes)
        file = BytesIO()
        if is_smaller:
            picture.save(file, "JPEG", quality=_QUALITY)
        else:
            picture.save(file, "PNG", compress_level=1)
        return file.getvalue()


def _range(pixels: Tensor) -> tuple[Tensor, Tensor]:
    sample = pixels[:: max(len(pixels) // _SAMPLE, 1)].detach()
    low, high = (extreme.float().cpu()[:, None, None] for extreme in (sample.amin((0, 2, 3)), sample.amax((0, 2, 3))))
    if low.min() >= 0 and high.max() <= 1:
        return torch.zeros_like(low), torch.ones_like(high)
    return low, torch.where(high > low, high - low, 1.0)
