"""Statistics over examples, beside those of float64 in one piece."""

from __future__ import annotations

import numpy as np
import pytest

from coar_dist.evaluation import component_statistics
from coar_dist.evaluation.component_statistics import ComponentSums, layer_shares

OFFSETS = np.array([0, 2, 7])


@pytest.mark.parametrize("sizes", [(1,), (2, 5), (300, 1, 77), (1000,)], ids=str)
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (-3.0, 1e-3), (100.0, 0.01)])
def test_statistics_of_blocks_are_those_of_all_examples(
    sizes: tuple[int, ...], offset: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component_statistics, "_VALUES_AT_ONCE", 7 * 20)
    n, random = sum(sizes), np.random.default_rng(len(sizes))
    weights = (offset + scale * random.standard_normal((n, 7)) * np.arange(7)).astype(np.float32)
    weights[0] *= 1.5  # the first is unlike all others
    weights[n // 2, 3] = weights[n - 1, 3] = weights.max() + 1  # the first of equal ones counts
    ends = np.cumsum(sizes)
    found, *others = [
        ComponentSums.of(np.arange(end - size, end), weights[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]
    for other in others:
        found.add(other)
    statistics, exact = found.statistics(), weights.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean(axis=0), rtol=1e-6, atol=1e-7 * (abs(offset) + scale))
    np.testing.assert_allclose(statistics.mean_absolute, np.abs(exact).mean(axis=0), rtol=1e-6)
    expected = exact.std(axis=0, ddof=1) if n > 1 else np.full(7, np.nan)
    np.testing.assert_allclose(statistics.spread, expected, rtol=1e-5, atol=1e-7 * scale)
    np.testing.assert_array_equal(statistics.lowest, weights.min(axis=0))
    np.testing.assert_array_equal(statistics.highest, weights.max(axis=0))
    np.testing.assert_array_equal(statistics.lowest_example, weights.argmin(axis=0))
    np.testing.assert_array_equal(statistics.highest_example, weights.argmax(axis=0))
    assert statistics.strongest(3).tolist() == np.argsort(-statistics.mean_absolute, kind="stable")[:3].tolist()


def test_a_block_is_not_written_to() -> None:
    weights = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    before = weights.copy()
    sums = ComponentSums.of(np.arange(50), weights)
    sums.add(ComponentSums.of(np.arange(50, 100), weights + 1))
    np.testing.assert_array_equal(weights, before)


def test_shares_of_layers_add_up_to_1_and_are_unknown_where_nothing_weighs() -> None:
    weights = np.random.default_rng(1).normal(5.0, 9.0, (200, 7)).astype(np.float32)
    weights[13] = 0.0
    found = layer_shares(weights, OFFSETS)
    absolute = np.abs(weights.astype(np.float64))
    with np.errstate(invalid="ignore"):
        expected = np.stack([absolute[:, :2].sum(axis=1), absolute[:, 2:].sum(axis=1)], axis=1)
        expected /= absolute.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isnan(found[13]).all()
