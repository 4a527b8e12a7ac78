from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from coar_dist.store import agreement
from coar_dist.store.agreement import METRICS, average_ranks, correlation_of, metrics_of


def slow_metrics(predicted: Any, true: Any) -> dict[str, float]:
    """One example, float64, as the definitions say."""
    p, y = predicted.astype(np.float64), true.astype(np.float64)
    slope, intercept = np.polyfit(p - p.mean(), y, 1)
    return {
        "correlation": np.corrcoef(p, y)[0, 1],
        "spearman": stats.spearmanr(p, y).statistic,
        "r2": 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
        "slope": slope,
        "intercept": intercept - slope * p.mean(),
    }


@pytest.mark.parametrize("offset", [0.0, -3e4, 1e5, 1e6])
def test_metrics_are_their_definitions(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "_EXAMPLES_AT_ONCE", 4)
    random = np.random.default_rng(0)
    true = (random.normal(size=(60, 9)) + offset).astype(np.float32)
    predicted = (true.astype(np.float64) - offset) * np.linspace(-1, 2, 9) + random.normal(size=(60, 9))
    predicted += offset + np.arange(9) / 3
    predicted[:, 3] = np.round(predicted[:, 3])  # ties
    metrics = metrics_of(predicted, true)
    assert tuple(metrics) == METRICS
    for i in range(9):
        for name, value in slow_metrics(predicted[:, i], true[:, i]).items():
            scale = max(abs(offset), 1.0) if name == "intercept" else 1.0
            assert metrics[name][i] == pytest.approx(value, rel=1e-6, abs=1e-8 * scale), name
    np.testing.assert_allclose(metrics["correlation"], correlation_of(predicted, true), rtol=1e-12)


def test_ranks_are_scipy_s() -> None:
    values = np.random.default_rng(1).integers(0, 7, size=(41, 5)).astype(np.float32)
    values[:, 4] = 2.0
    np.testing.assert_array_equal(average_ranks(values) + 1, stats.rankdata(values, axis=0))


def test_constant_columns_are_undefined_where_they_must_be() -> None:
    random = np.random.default_rng(1)
    predicted, true = random.normal(size=(50, 4)), random.normal(size=(50, 4)).astype(np.float32)
    predicted[:, 1] = 123.456
    true[:, 2] = -7e8
    true[:, 3] = 12.0
    true[::2, 3] = np.nextafter(np.float32(12.0), np.float32(13.0))  # what another kernel's rounding would give
    undefined = {name: np.isnan(values).tolist() for name, values in metrics_of(predicted, true).items()}
    assert undefined == {
        "correlation": [False, True, True, True],
        "spearman": [False, True, True, True],
        "r2": [False, False, True, True],
        "slope": [False, True, False, False],
        "intercept": [False, True, False, False],
    }
    np.testing.assert_allclose(metrics_of(true[:, :1], true[:, :1])["correlation"], 1.0)
