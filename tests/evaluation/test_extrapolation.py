from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from coar_dist.evaluation.extrapolation import extrapolate

MASKS = np.array([250, 500, 1000, 2000, 4000])


def curve(limit: float, amount: float, exponent: float, masks: Any = MASKS) -> Any:
    return (limit**-2 + amount * (masks / 4000) ** -exponent) ** -0.5


def around(means: Any, num_examples: int = 40, spread: float = 0.02) -> Any:
    """Examples of their own height; their noise sums to 0, so the means are exact."""
    noise = np.random.default_rng(0).normal(size=(num_examples, 1)) * spread
    return means + noise - noise.mean()


@pytest.mark.parametrize(("limit", "amount", "exponent"), [(0.8, 0.1, 1.0), (0.93, 0.02, 1.5), (0.6, 1.0, 0.7)])
def test_a_curve_of_the_law_is_followed_to_its_limit(limit: float, amount: float, exponent: float) -> None:
    found = extrapolate(MASKS, around(curve(limit, amount, exponent)), num_components=100)
    assert found.why_not == ""
    assert found.twice is not None
    assert found.four_times is not None
    assert found.limit is not None
    assert found.twice.value == pytest.approx(curve(limit, amount, exponent, 8000), abs=1e-4)
    assert found.four_times.value == pytest.approx(curve(limit, amount, exponent, 16000), abs=2e-4)
    assert found.limit.value == pytest.approx(limit, abs=1e-3)
    assert 0.002 <= found.twice.half_width <= found.limit.half_width


def fitted_law(masks: Any, means: Any) -> Any:
    """Least squares of r**-2 = floor + amount m**-exponent, floor at least 1 and amount at least 0, by SciPy."""
    best = (np.inf, None)
    for exponent in np.linspace(0.1, 2.5, 97):
        weights = masks / masks[-1] * means**3 / 2
        features = np.stack([np.ones(len(masks)), masks**-exponent], axis=1)
        found = lsq_linear(features * weights[:, None], means**-2 * weights, ([1, 0], [np.inf, np.inf]), tol=1e-14)
        if found.cost < best[0]:
            best = found.cost, (*found.x, exponent)
    floor, amount, exponent = best[1]
    return lambda times: (floor + amount * times**-exponent) ** -0.5


@pytest.mark.parametrize(
    "means",
    [
        [0.30, 0.45, 0.55, 0.63, 0.66],  # missed by what came before
        [0.80, 0.81, 0.8149, 0.8172, 0.8184],  # nearly flat
        [0.62, 0.61, 0.70, 0.72, 0.76],  # not monotonous
        [0.97, 0.985, 0.992, 0.996, 0.998],  # near 1
    ],
)
def test_forecasts_are_least_squares_and_their_widths_the_largest_of_what_is_said(means: list[float]) -> None:
    law = fitted_law(MASKS / 4000, np.array(means))
    before = fitted_law(MASKS[:-1] / 4000, np.array(means[:-1]))
    found = extrapolate(MASKS, around(np.array(means), spread=1e-7), num_components=100)
    miss = abs(before(1.0) - means[-1])
    clear = found.why_not == ""
    assert found.twice is not None
    assert found.twice.value == pytest.approx(law(2.0), abs=1e-6)
    assert found.twice.half_width == pytest.approx(max(miss, abs(law(2.0) - means[-1]), 0.002), abs=1e-6)
    if clear:
        for forecast, times in ((found.four_times, 4.0), (found.limit, np.inf)):
            assert forecast is not None
            assert forecast.value == pytest.approx(law(times), abs=1e-6)
            width = max(2 * miss, abs(law(times) - means[-1]), 0.002)
            assert forecast.half_width == pytest.approx(width, abs=1e-6)


def ridge_curve(seed: int, noise: float, masks: list[int]) -> Any:
    """Correlations (examples, masks) of ridge with the best penalty on linear margins with noise."""
    random = np.random.default_rng(seed)
    num_components, num_examples, num_held_out = 60, 48, 400
    weights = random.standard_t(3, size=(num_components, num_examples))
    x = (random.random((masks[-1] + num_held_out, num_components)) >= 0.1).astype(np.float64)
    linear = x @ weights
    y = linear / linear.std(axis=0) + noise * random.normal(size=linear.shape) + 100
    held_x, held_y = x[masks[-1] :], y[masks[-1] :] - y[masks[-1] :].mean(axis=0)
    columns = []
    for number in masks:
        design, margins = x[:number] - x[:number].mean(axis=0), y[:number] - y[:number].mean(axis=0)
        penalty = 0.09 * num_components * (1 + noise**2)
        solved = np.linalg.solve(design.T @ design + penalty * np.eye(num_components), design.T @ margins)
        predicted = (held_x - held_x.mean(axis=0)) @ solved
        norms = np.linalg.norm(predicted, axis=0) * np.linalg.norm(held_y, axis=0)
        columns.append((predicted * held_y).sum(axis=0) / norms)
    return np.stack(columns, axis=1)


def test_forecasts_of_simulated_regressions_hold() -> None:
    masks = [50, 100, 200, 400, 800, 1600, 3200]
    misses, held = [], []
    for seed, noise in enumerate((0.3, 0.7, 1.5) * 2):
        correlations = ridge_curve(seed, noise, masks)
        found = extrapolate(np.array(masks[:5]), correlations[:, :5], num_components=60)
        assert found.twice is not None
        assert found.four_times is not None
        assert found.limit is not None
        truths = [*correlations[:, 5:].mean(axis=0), (1 + noise**2) ** -0.5]
        for forecast, truth in zip((found.twice, found.four_times, found.limit), truths, strict=True):
            misses.append(abs(forecast.value - truth))
            held.append(misses[-1] <= forecast.half_width)
    assert max(misses) < 0.03
    assert np.mean(held) >= 0.8


@pytest.mark.parametrize(
    ("means", "num_components", "reason"),
    [
        (curve(0.8, 0.1, 1.0)[:3], 100, "a curve of 3 points is too short, it takes 4"),
        (np.array([0.3, 0.5, 0.6, 0.7, 0.65]), 100, "falls as masks are added"),
        (np.array([-0.1, 0.1, 0.3, 0.5, 0.6]), 100, "not positive"),
        (curve(0.8, 0.1, 1.0) * np.nan, 100, "no example has all correlations defined"),
        (curve(0.8, 0.1, 1.0), 2001, "2 masks per component, below 2 forecasts do not hold"),
    ],
)
def test_nothing_is_forecast_without_grounds(means: Any, num_components: int, reason: str) -> None:
    found = extrapolate(MASKS[: len(means)], around(means), num_components)
    assert reason in found.why_not
    assert found.twice is found.four_times is found.limit is None


@pytest.mark.parametrize(("fewer", "is_known"), [(32, False), (31, True)])
def test_few_masks_do_not_forecast(fewer: int, is_known: bool) -> None:
    found = extrapolate(MASKS // fewer, around(curve(0.8, 0.1, 1.0)), num_components=10)
    assert (found.twice is not None) == is_known
    assert found.why_not == ("" if is_known else "125 masks, below 128 forecasts do not hold")


@pytest.mark.parametrize(
    ("means", "num_components", "reason"),
    [
        (np.array([0.1, 0.2, 0.4, 0.7, 0.95]), 2000, "does not show a limit yet"),
    ],
)
def test_where_a_curve_shows_little_only_the_next_doubling_is_forecast(
    means: Any, num_components: int, reason: str
) -> None:
    found = extrapolate(MASKS, around(means), num_components)
    assert found.twice is not None
    assert found.four_times is None
    assert found.limit is None
    assert reason in found.why_not
    assert found.twice.half_width >= 0.5 * (found.twice.value - means[-1])


def test_the_gain_of_examples_with_all_points_is_added_to_the_mean_of_all() -> None:
    whole = around(curve(0.8, 0.1, 1.0))
    correlations = np.vstack([whole, whole[:10]])
    correlations[-10:, 0] = np.nan
    correlations[-10:, 1:] = 0.2
    alone, found = (extrapolate(MASKS, given, num_components=100) for given in (whole, correlations))
    assert found.num_examples == 40
    np.testing.assert_allclose(found.measured, np.nanmean(correlations, axis=0))
    for name in ("twice", "four_times", "limit"):
        forecast, of_whole = getattr(found, name), getattr(alone, name)
        assert forecast.value - found.measured[-1] == pytest.approx(of_whole.value - alone.measured[-1])
        assert forecast.half_width == pytest.approx(of_whole.half_width)
