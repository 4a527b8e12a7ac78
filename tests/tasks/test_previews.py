from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.previews import Previews


def examples_of(images: Tensor) -> ExampleSet:
    return ExampleSet(images, torch.zeros(len(images)))


def shown(images: Tensor) -> tuple[str, NDArray[np.uint8]]:
    """The pictures' format and pixels, (n, h, w) or (n, h, w, 3)."""
    previews = Previews.of(examples_of(images))
    assert previews is not None
    pictures = [Image.open(io.BytesIO(file)) for file in previews.encoded(0, len(images))]
    assert {picture.size for picture in pictures} == {(previews.width, previews.height)}
    return str(pictures[0].format), np.stack([np.asarray(picture) for picture in pictures])


def random_pixels(*shape: int) -> Tensor:
    """Channels with means and ranges of their own, and in each one 0 and one 255."""
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(shape, generator=generator) * 100 + 50 * torch.arange(shape[1])[:, None, None]).to(torch.uint8)
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_keep_their_pixels_whatever_their_scale(channels: int) -> None:
    pixels = random_pixels(4, channels, 5, 6)
    expected = pixels.permute(0, 2, 3, 1).numpy() if channels == 3 else pixels[:, 0].numpy()
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]))
    for images in (
        pixels,
        pixels / 255,
        (pixels / 255 - mean) / std,
        (pixels / 255 - mean) / std + 7.0,
        pixels.to(torch.int64),
        torch.empty(4, 5, 6, channels, dtype=torch.uint8).permute(0, 3, 1, 2).copy_(pixels),  # channels last
    ):
        kind, found = shown(images)
        assert kind == "PNG"
        np.testing.assert_array_equal(found, expected)
    half = shown((pixels / 255).half())[1]
    np.testing.assert_allclose(half.astype(int), expected, atol=1)


def test_floats_in_0_1_are_not_stretched_and_a_constant_channel_is_no_error() -> None:
    dim = torch.full((2, 1, 3, 3), 0.2)
    assert (shown(dim)[1] == 51).all()
    assert (shown(dim - 1)[1] == 0).all()


def test_large_images_are_scaled_down() -> None:
    ramp = torch.linspace(0, 1, 200).expand(2, 3, 100, 200) * torch.tensor([1.0, 0.5, 0.0])[:, None, None]
    kind, found = shown((ramp * 255).round().to(torch.uint8))
    assert kind == "JPEG"
    assert found.shape == (2, 32, 64, 3)
    expected = torch.nn.functional.interpolate(ramp, (32, 64), mode="area").permute(0, 2, 3, 1).numpy() * 255
    np.testing.assert_allclose(found, expected, atol=8)
    assert shown(torch.zeros(1, 1, 3, 500, dtype=torch.uint8))[1].shape == (1, 1, 64)


def test_the_bytes_are_the_same_again() -> None:
    previews = Previews.of(examples_of(random_pixels(5, 3, 100, 70)))
    assert previews is not None
    assert previews.encoded(1, 4) == previews.encoded(0, 5)[1:4]


def test_what_is_no_image_has_no_preview() -> None:
    for shape in ((2, 7), (2, 3, 7), (2, 4, 7, 7), (2, 3, 5, 7, 7), (2, 3, 0, 7)):
        assert Previews.of(examples_of(torch.zeros(shape))) is None
    pixels, tokens = torch.zeros(2, 3, 4, 4), torch.zeros(2, 9, dtype=torch.int64)
    assert Previews.of(ExampleSet({"input_ids": tokens}, tokens)) is None
    both = Previews.of(ExampleSet({"pixel_values": pixels, "input_ids": tokens}, tokens))
    assert both is not None
    assert both.pixels.shape == pixels.shape
