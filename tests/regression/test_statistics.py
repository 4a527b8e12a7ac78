from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coar_dist.errors import MissingWorkError, NonFiniteMarginError
from coar_dist.regression import statistics
from coar_dist.regression.masks import unpacked
from coar_dist.regression.statistics import Gram, gram, margin_statistics
from tests.models import random_masks
from tests.regression.problems import batches, fitted, packed, problem


def test_statistics_are_exact() -> None:
    masks, margins = problem(num_masks=301)
    design, _, block = fitted(masks, margins)
    x, y = masks.astype(np.int64), margins.astype(np.float64)
    np.testing.assert_array_equal(gram(batches(masks), "cpu").products, x.T @ x)
    np.testing.assert_array_equal(design.kept, x.sum(axis=0))
    centred = y - y.mean(axis=0)
    np.testing.assert_allclose(block.centred_cross(design), (x - x.mean(axis=0)).T @ centred, rtol=1e-11, atol=1e-10)
    np.testing.assert_allclose(block.centred_squares(design), (centred**2).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(block.mean(design), y.mean(axis=0), rtol=1e-14)


def test_parts_add_up_exactly_whatever_their_order_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, margins = problem(num_masks=301)
    whole = gram(batches(masks), "cpu")
    parts = [gram(batches(masks[rows]), "cpu") for rows in (slice(200, 301), slice(0, 77), slice(77, 200))]
    total = Gram.total(parts)
    assert total.num_masks == 301
    np.testing.assert_array_equal(total.products, whole.products)
    rest = total - parts[1]
    assert rest.num_masks == 301 - 77
    np.testing.assert_array_equal(rest.products, Gram.total([parts[0], parts[2]]).products)
    monkeypatch.setattr(statistics, "_EXACT_IN_FLOAT32", 70)  # float32 sums are emptied into float64 in time
    np.testing.assert_array_equal(gram(batches(masks, 32), "cpu").products, whole.products)
    first = margin_statistics(batches(masks[:100], 32, margins[:100]))
    rest_of_it = margin_statistics(batches(masks[100:], 32, margins[100:]), shift=first.shift)
    together = margin_statistics(batches(masks, 32, margins))
    for part in ("cross", "sums", "square_sums"):
        np.testing.assert_allclose(getattr(first + rest_of_it, part), getattr(together, part), rtol=1e-12)


def test_counts_beyond_what_float32_holds_are_exact() -> None:
    """2**24 + 3 masks, all of which keep both components; float32 has no such number."""
    parts = itertools.chain(itertools.repeat(np.ones((2**20, 2), np.bool_), 16), [np.ones((3, 2), np.bool_)])
    found = gram(parts, "cpu")
    assert int(np.float32(2**24 + 3)) != 2**24 + 3 == found.num_masks
    np.testing.assert_array_equal(found.products, np.full((2, 2), 2**24 + 3))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_counts_beyond_what_16_bits_hold_are_exact(device: str) -> None:
    masks, _ = problem(num_masks=3001)
    x = masks.astype(np.int64)
    assert (x.T @ x).min() > 2**10  # bfloat16 skips every other number from 256 on, float16 from 2048
    np.testing.assert_array_equal(gram(batches(masks, 1024), device).products, x.T @ x)


def test_products_on_tensor_cores_are_asked_for_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the device: ones are exact in 16 bits, their sums are not."""

    def mm(left: torch.Tensor, right: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        assert left.dtype == right.dtype == torch.bfloat16
        return (left.double() @ right.double()).to(out_dtype or left.dtype)

    monkeypatch.setattr(torch, "mm", mm)
    masks, _ = problem(num_masks=3001)
    bits = torch.from_numpy(masks.view(np.uint8))
    on_device: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), to=bits.to)
    x = masks.astype(np.int64)
    total = statistics._add_product(None, on_device)
    np.testing.assert_array_equal(total, x.T @ x)
    np.testing.assert_array_equal(statistics._add_product(total, on_device), 2 * (x.T @ x))


def test_centring_about_other_means() -> None:
    masks, _ = problem(num_masks=60)
    mean = np.linspace(0.1, 0.9, masks.shape[1])
    x = masks - mean
    np.testing.assert_allclose(gram(batches(masks), "cpu").centred(mean, "cpu"), x.T @ x, rtol=1e-12)


def test_constant_margins_are_seen_exactly() -> None:
    masks, margins = problem(num_masks=500)
    margins[:, 2] = np.float32(0.1)
    margins[:, 3] = np.float32(1e6)
    margins[7, 3] = np.nextafter(np.float32(1e6), np.float32(2e6))
    block = margin_statistics(batches(masks, 64, margins))
    assert block.is_constant.tolist() == [False, False, True, False, False]


def test_no_masks_and_nan_are_refused() -> None:
    masks, margins = problem()
    with pytest.raises(MissingWorkError, match="at least 2 masks"):
        gram([], "cpu")
    with pytest.raises(MissingWorkError, match="at least 2 masks"):
        margin_statistics([])
    margins[70, 3] = np.nan
    with pytest.raises(NonFiniteMarginError, match="mask 70 and example 3"):
        margin_statistics(batches(masks, 32, margins))


@pytest.mark.parametrize("num_components", [1, 8, 13, 64])
def test_packed_masks_are_unpacked_where_they_are_used(num_components: int) -> None:
    """As on a device, where an eighth of the bytes arrives, and as on the CPU."""
    masks = random_masks(21, num_components)
    of_design = packed(masks)
    on_device = unpacked(torch.from_numpy(of_design.bits), num_components)
    assert on_device.dtype == torch.uint8
    for found in (on_device, of_design.on("cpu")):
        np.testing.assert_array_equal(found.numpy(), masks)
    parts = list(of_design.parts(8))
    assert [len(part) for part in parts] == [8, 8, 5]
    np.testing.assert_array_equal(gram(parts, "cpu").products, gram([masks], "cpu").products)
