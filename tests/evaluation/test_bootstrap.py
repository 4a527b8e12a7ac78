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
    values = np.array([[0.5, np.nan, np.nan], [0.7, 0.25, np.nan], [0.9, np.nan, np.nan]])
    means = means_of(values)
    np.testing.assert_array_equal(means.num_defined, [3, 1, 0])
    np.testing.assert_allclose(means.mean, [0.7, 0.25, np.nan])
    assert np.isfinite(means.low).tolist() == [True, False, False]
    assert 0.5 <= means.low[0] < 0.7 < means.high[0] <= 0.9
