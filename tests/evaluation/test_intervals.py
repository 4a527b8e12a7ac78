from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from coar_dist.evaluation.intervals import means_of, students_half


def by_roots(values: np.ndarray) -> tuple[float, float]:
    """Hall (1992): the means at which the transformed t is a quantile of Student's t."""
    count, deviation, skewness = len(values), values.std(ddof=1), stats.skew(values)

    def transformed(mean: float) -> float:
        t = (values.mean() - mean) / deviation
        return np.sqrt(count) * (t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / (6 * count))

    quantile, far = stats.t.ppf(0.975, count - 1), 20 * deviation
    low, high = (
        brentq(lambda mean, end=end: transformed(mean) - end, values.mean() - far, values.mean() + far)
        for end in (quantile, -quantile)
    )
    return low, high


@pytest.mark.parametrize("count", [20, 400])
def test_intervals_are_of_hall_s_transformed_t(count: int) -> None:
    random = np.random.default_rng(1)
    values = np.stack(
        [random.beta(8, 2, count), 1 - random.exponential(0.02, count), random.normal(size=count)], axis=1
    )
    values = np.concatenate([values, -values[:, :1] + 100], axis=1)
    means = means_of(values)
    np.testing.assert_allclose(means.mean, values.mean(axis=0))
    for column in range(4):
        found = means.low[column], means.high[column]
        np.testing.assert_allclose(found, by_roots(values[:, column]), atol=1e-3 * values[:, column].std())
    assert means.mean[1] - means.low[1] > means.high[1] - means.mean[1]  # the tail is on the left
    both = np.concatenate([values, -values])  # without skewness
    np.testing.assert_allclose(means_of(both).high, stats.sem(both) * stats.t.ppf(0.975, 2 * count - 1), rtol=1e-4)


def test_intervals_of_skewed_values_hold() -> None:
    random = np.random.default_rng(0)
    near_one, true = 1 - random.exponential(0.02, size=(20, 4000)), 0.98
    means = means_of(near_one)
    assert 0.92 <= ((means.low <= true) & (true <= means.high)).mean() <= 0.97
    by_t = stats.t.interval(0.95, 19, means.mean, stats.sem(near_one))
    assert ((by_t[0] <= true) & (true <= by_t[1])).mean() < 0.92


def test_undefined_examples_are_counted_and_few_have_no_interval() -> None:
    values = np.random.default_rng(0).normal(size=(30, 5))
    values[20:, 1], values[19:, 2], values[1:, 3], values[:, 4] = np.nan, np.nan, np.nan, np.nan
    means = means_of(values)
    np.testing.assert_array_equal(means.num_defined, [30, 20, 19, 1, 0])
    np.testing.assert_allclose(means.mean, [values[:, 0].mean(), *np.nanmean(values[:, 1:4], axis=0), np.nan])
    assert np.isfinite(means.low).tolist() == np.isfinite(means.high).tolist() == [True, True, False, False, False]
    few = means_of(values[:20, 1:2])
    assert (few.low[0], few.high[0]) == (pytest.approx(means.low[1]), pytest.approx(means.high[1]))


def test_equal_values_have_an_interval_of_no_width() -> None:
    means = means_of(np.full((25, 1), 0.7))
    np.testing.assert_allclose([means.low[0], means.high[0]], 0.7)


def test_half_of_student_s_interval() -> None:
    freedom = np.arange(4.0, 60.0)
    np.testing.assert_allclose(students_half(freedom), stats.t.ppf(0.975, freedom), atol=0.01)
    np.testing.assert_allclose(students_half(freedom[15:]), stats.t.ppf(0.975, freedom[15:]), atol=1e-4)
