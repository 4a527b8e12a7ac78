"""Images into one uint8 array: decoded and resized by Pillow in parallel, no more of them at once than threads need.

The pixels are those of torchvision's evaluation presets on PIL images (``Resize``, ``CenterCrop``, ``PILToTensor``),
bit for bit: resized with Pillow's own antialiasing, converted to RGB first, EXIF orientation left alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from coar_dist.errors import ConfigError, TaskError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
MODES = {"RGB": 3, "L": 1}
_IN_FLIGHT_PER_THREAD = 4
_FIRST_GUESS = 64
"""Images that there is room for at first where their number is not known."""
_PIXELS_AT_ONCE = 2**27
"""What all threads together decode: 1 GB, as decoded and as converted."""


@dataclass(frozen=True)
class Geometry:
    """How an image becomes pixels of a fixed size.

    Attributes:
        image_size: side of the square that is cut from the centre; None leaves the image whole.
        resize: the shorter side's length before that, or [height, width] whatever the image's proportions; None
            leaves the size.
        interpolation: one of ``INTERPOLATIONS``.
        mode: ``RGB``, or ``L`` for one grey channel.

    Raises:
        ConfigError: a value is unknown, or the square does not fit in the resized image.
    """

    image_size: int | None
    resize: int | list[int] | None
    interpolation: str
    mode: str

    def __post_init__(self) -> None:
        sides = self.resize if isinstance(self.resize, list) else [self.resize] * 2
        if len(sides) != 2 or any(side is not None and (isinstance(side, bool) or side < 1) for side in sides):
            raise ConfigError(f"resize={self.resize!r}: must be null, a length >= 1, or [height, width].")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image_size={self.image_size}: must be null or at least 1.")
        if self.image_size is not None and any(side is not None and side < self.image_size for side in sides):
            raise ConfigError(
                f"image_size={self.image_size} is larger than resize={self.resize}: the square would not fit in the "
                f"resized image. Raise resize."
            )
        for name, value, choices in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("mode", self.mode, tuple(MODES)),
        ):
            if value not in choices:
                raise ConfigError(f"{name}={value!r}: must be one of {', '.join(choices)}.")

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """(channels, height, width) uint8 of one image."""
        image = image.convert(self.mode)
        width, height = image.size
        if self.resize is not None:
            if isinstance(self.resize, list):
                height, width = self.resize
            elif width <= height:
                width, height = self.resize, int(self.resize * height / width)
            else:
                width, height = int(self.resize * width / height), self.resize
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.image_size is not None:
            side = self.image_size
            if side > min(width, height):
                raise ValueError(f"it has {width} x {height} pixels, fewer than image_size={side}; set resize")
            left, top = round((width - side) / 2), round((height - side) / 2)
            image = image.crop((left, top, left + side, top + side))
        array = np.asarray(image)
        return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


class _Room:
    """Room for pixels, which threads take while they decode. One image may have all of it, however large it is."""

    def __init__(self, num_pixels: int) -> None:
        self._left, self._num_pixels = num_pixels, num_pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, num_pixels: int) -> Iterator[None]:
        """So much of it for the ``with`` block, once there is so much."""
        needed = min(num_pixels, self._num_pixels)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= needed)
            self._left -= needed
        try:
            yield
        finally:
            with self._changed:
                self._left += needed
                self._changed.notify_all()


def decode(
    images: Iterable[tuple[str, Path | bytes | Image.Image]], geometry: Geometry, num_images: int | None
) -> NDArray[np.uint8]:
    """All images, in their order.

    Args:
        images: a name for messages, and a file, its bytes, or an open image.
        geometry: the size.
        num_images: their number, None where it is not known.

    Returns:
        (num_images, channels, height, width) uint8.

    Raises:
        TaskError: one cannot be decoded, has more pixels than Pillow's limit, or sizes differ; the message names the
            image.
    """
    num_threads = min(32, len(os.sched_getaffinity(0)))
    room = _Room(_PIXELS_AT_ONCE)
    pixels: NDArray[np.uint8] | None = None
    num_done = 0
    pending: deque[tuple[str, Future[NDArray[np.uint8]]]] = deque()

    def finish_one() -> None:
        nonlocal pixels, num_done
        name, future = pending.popleft()
        image = future.result()
        if pixels is None:
            pixels = np.empty((num_images or _FIRST_GUESS, *image.shape), dtype=np.uint8)
        if image.shape != pixels.shape[1:]:
            raise TaskError(
                f"{name} has (channels, height, width) {image.shape}, the images before it {pixels.shape[1:]}. Set "
                f"image_size, or resize=[height, width]."
            )
        if num_done == len(pixels):  # in place: no second array of this size
            pixels.resize((2 * num_done, *image.shape), refcheck=False)
        pixels[num_done] = image
        num_done += 1

    with ThreadPoolExecutor(num_threads) as pool:
        for name, content in images:
            pending.append((name, pool.submit(_decode_one, name, content, geometry, room)))
            if len(pending) >= _IN_FLIGHT_PER_THREAD * num_threads:
                finish_one()
        while pending:
            finish_one()
    if pixels is None:
        raise TaskError("there are no images.")
    pixels.resize((num_done, *pixels.shape[1:]), refcheck=False)
    return pixels


def _decode_one(name: str, content: Path | bytes | Any, geometry: Geometry, room: _Room) -> NDArray[np.uint8]:
    try:
        if not isinstance(content, bytes | Path):
            return geometry.pixels(content)
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            num_pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most is not None and num_pixels > most:
                raise _too_large(name, f"{image.width:,} x {image.height:,} pixels, and {most:,} is the limit")
            with room.taken(num_pixels):
                return geometry.pixels(image)
    except TaskError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error).partition(",")[0]) from error
    except Exception as error:  # damaged files make Pillow's decoders raise anything
        raise TaskError(f"{name} cannot be decoded: {type(error).__name__}: {error}") from error


def _too_large(name: str, what: str) -> TaskError:
    return TaskError(
        f"{name} is too large to decode: {what}. A small file can hold that many to fill the memory. Scale the image "
        f"down or leave it out; or, if it is sound, raise PIL.Image.MAX_IMAGE_PIXELS in Python."
    )


def text_coverage(text: str, font_size: int, position: str, height: int, width: int) -> NDArray[np.float64]:
    """How much of each pixel the letters of a text cover, in the font that comes with Pillow.

    Args:
        text: one line.
        font_size: in pixels.
        position: ``top``, ``centre`` or ``bottom``; the text is centred from left to right.
        height, width: of the image.

    Returns:
        (height, width) float64 in [0, 1].

    Raises:
        ConfigError: the text has no ink, or is larger than the image.
    """
    font = ImageFont.load_default(font_size)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=font)
    ink_width, ink_height = int(right - left), int(bottom - top)
    if not 0 < ink_width <= width or not 0 < ink_height <= height:
        raise ConfigError(
            f"the text {text!r} at font_size={font_size} takes {ink_height} x {ink_width} pixels of an image of "
            f"{height} x {width}. Change font_size, or enlarge the images."
        )
    down = {"top": 0, "centre": (height - ink_height) // 2, "bottom": height - ink_height}[position]
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).text(((width - ink_width) // 2 - left, down - top), text, fill=255, font=font)
    return np.asarray(canvas, dtype=np.float64) / 255


def missing(package: str, extra: str, error: Exception) -> TaskError:
    """The error for a package that only some sources need."""
    return TaskError(f"{package} cannot be imported ({error}). Install it: pip install 'coar-dist[{extra}]'.")
