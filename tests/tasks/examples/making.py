"""What the tests of example sources read: random pictures, and how a user's configuration asks for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from coar_dist.config.schema import ExamplesConfig, SubsetConfig
from coar_dist.tasks.build import build_examples
from coar_dist.tasks.example_set import ExampleSet


def built(name: str, subset: dict[str, Any] | None = None, /, **arguments: Any) -> ExampleSet:
    return build_examples(ExamplesConfig(name, arguments, SubsetConfig(**(subset or {}))), "task.examples")


def picture(seed: int, height: int = 20, width: int = 26) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write_png(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(array))


def preset(array: NDArray[np.uint8], resize: int, image_size: int, filter_name: str = "BILINEAR") -> torch.Tensor:
    """torchvision's evaluation preset, written out with Pillow: (3, image_size, image_size) uint8."""
    image = Image.fromarray(array)
    short, long = sorted(image.size)
    new_long = int(resize * long / short)
    image = image.resize(
        (resize, new_long) if image.width <= image.height else (new_long, resize), getattr(Image, filter_name)
    )
    left, top = (round((side - image_size) / 2.0) for side in image.size)
    whole = torch.from_numpy(np.array(image))
    return whole[top : top + image_size, left : left + image_size].permute(2, 0, 1)


def stacked(pictures: list[NDArray[np.uint8]], change: Callable[[NDArray[np.uint8]], torch.Tensor]) -> torch.Tensor:
    return torch.stack([change(array) for array in pictures])
