from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from coar_dist.evaluation import bootstrap
from coar_dist.evaluation.bootstrap import means_of, resampled_means


def test_resamples_are_means_over_drawn_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(9, 3)) + 1e5
    values[2, 1] = np.nan
    whole = resampled_means(values)
    for resample in (0, 7, 1999):
        drawn = np.random.Generator(np.random.Philox(key=[0, resample])).integers(0, 9, 9)
        np.testing.assert_allclose(whole[resample], np.nanmean(values[drawn], axis=0), rtol=1e-12)
    assert len(whole) == 2000
    spread = values[:, [0, 2]].std(axis=0) / 3  # of means of nine drawn values
    np.testing.assert_allclose(whole[:, [0, 2]].std(axis=0), spread, rtol=0.05)  # 3 standard errors
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 20)
    np.testing.assert_allclose(resampled_means(values), whole, rtol=1e-12)


def test_intervals_are_scipy_s_and_of_about_1_96_standard_errors() -> None:
    values = np.random.default_rng(1).beta(8, 2, size=(400, 1))
    means = means_of(values)
    reference = stats.bootstrap((values[:, 0],), np.mean, n_resamples=4000, method="percentile", rng=3)
    error = values.std() / 20
    assert means.mean[0] == pytest.approx(values.mean())
    assert means.low[0] == pytest.approx(reference.confidence_interval.low, abs=0.2 * error)
    assert means.high[0] == pytest.approx(reference.confidence_interval.high, abs=0.2 * error)
    assert means.high[0] - means.low[0] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_undefined_examples_are_counted_and_lone_ones_have_no_interval() -> None:
    nan = np.nan
    values = np.array([[0.5, nan, nan, 0.2], [0.7, 0.25, nan, nan], [0.9, nan, nan, 0.6]])
    means = means_of(values)
    np.testing.assert_array_equal(means.num_defined, [3, 1, 0, 2])
    np.testing.assert_allclose(means.mean, [0.7, 0.25, nan, 0.4])
    assert np.isfinite(means.low).tolist() == np.isfinite(means.high).tolist() == [True, False, False, True]
    assert 0.5 <= means.low[0] < 0.7 < means.high[0] <= 0.9
    assert (means.low[3], means.high[3]) == (0.2, 0.6)
    first, second = means.split(2)
    for part, rows in ((first, slice(2)), (second, slice(2, 4))):
        for name, column in vars(means).items():
            np.testing.assert_array_equal(getattr(part, name), column[rows])
