from __future__ import annotations

import numpy as np

from coar_dist.evaluation.correlation import pearson


def test_pearson_in_batches_is_pearson_at_once() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(300, 6)) + 1e4 * np.arange(6)
    second = first * np.array([1, -1, 0.1, 2, 0.5, 1]) + random.normal(size=(300, 6)) * 3 - 500
    expected = [np.corrcoef(first[:, i], second[:, i])[0, 1] for i in range(6)]
    for size in (1, 7, 300):
        batches = [(first[s : s + size], second[s : s + size]) for s in range(0, 300, size)]
        np.testing.assert_allclose(pearson(batches), expected, rtol=1e-8)


def test_constant_columns_are_undefined_not_zero() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=(50, 3)), random.normal(size=(50, 3))
    first[:, 1] = 123.456
    second[:, 2] = -7e8
    correlation = pearson([(first, second)])
    assert np.isnan(correlation).tolist() == [False, True, True]
    np.testing.assert_allclose(pearson([(first, first)])[0], 1.0)
