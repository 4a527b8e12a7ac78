from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV

from coar_dist.designs.design import MaskDesign
from coar_dist.errors import CoarWarning, ConfigError, MissingWorkError, NonFiniteMarginError
from coar_dist.regression.backends import RIDGE_BACKENDS, choose_backend
from coar_dist.regression.ridge import (
    choose_penalties,
    factorise,
    intercepts,
    penalty_grid,
    solve,
    warn_if_rank_deficient,
)
from coar_dist.regression.statistics import DesignStatistics, MarginStatistics, design_statistics, margin_statistics

HERE = ["torch", "sklearn", pytest.param("cuml", marks=pytest.mark.gpu)]


def problem(
    num_masks: int = 90, num_components: int = 12, num_examples: int = 5, seed: int = 0, kind: str = "bernoulli"
):
    """Masks and noisy margins with large, different offsets."""
    random = np.random.default_rng(seed)
    masks = MaskDesign(kind, num_components, num_masks, 0.2, seed).masks(0, num_masks)
    weights = random.normal(size=(num_components, num_examples)) * np.linspace(0.1, 3, num_examples)
    margins = masks @ weights + random.normal(size=(num_masks, num_examples)) + np.linspace(-200, 300, num_examples)
    return masks, margins.astype(np.float32)


def statistics(masks: np.ndarray, margins: np.ndarray, batch: int = 32) -> tuple[DesignStatistics, MarginStatistics]:
    starts = range(0, len(masks), batch)
    return (
        design_statistics(masks[s : s + batch] for s in starts),
        margin_statistics((masks[s : s + batch], margins[s : s + batch]) for s in starts),
    )


def test_statistics_are_exact() -> None:
    masks, margins = problem(num_masks=301)
    design, block = statistics(masks, margins)
    x, y = masks.astype(np.int64), margins.astype(np.float64)
    np.testing.assert_array_equal(design.gram, x.T @ x)
    np.testing.assert_array_equal(design.kept, x.sum(axis=0))
    np.testing.assert_allclose(block.cross, x.T @ y, rtol=1e-13)
    centred = y - y.mean(axis=0)
    np.testing.assert_allclose(block.centred_cross(design), (x - x.mean(axis=0)).T @ centred, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(block.centred_squares(design), (centred**2).sum(axis=0), rtol=1e-9)


def test_too_few_masks_and_nan_are_refused() -> None:
    masks, margins = problem()
    for few in ([], [masks[:1]]):
        with pytest.raises(MissingWorkError, match="at least 2 masks"):
            design_statistics(few)
    margins[40, 3] = np.nan
    with pytest.raises(NonFiniteMarginError, match="mask 40 and example 3"):
        statistics(masks, margins)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("kind", ["bernoulli", "fixed_size"])
def test_backends_solve_the_same_ridge_as_scikit_learn_on_the_masks(backend: str, kind: str) -> None:
    masks, margins = problem(kind=kind)
    design, block = statistics(masks, margins)
    penalties = np.array([0.01, 0.3, 2.0, 30.0, 500.0])
    weights = RIDGE_BACKENDS[backend](factorise(design, "cpu"), design, block, penalties)
    reference = Ridge(alpha=penalties).fit(masks.astype(np.float64), margins.astype(np.float64))
    np.testing.assert_allclose(weights.T, reference.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(intercepts(design, block, weights), reference.intercept_, rtol=1e-6)


@pytest.mark.parametrize("backend", HERE)
def test_no_penalty_is_least_squares(backend: str) -> None:
    masks, margins = problem()
    design, block = statistics(masks, margins)
    weights = RIDGE_BACKENDS[backend](factorise(design, "cpu"), design, block, np.zeros(5))
    reference = LinearRegression().fit(masks.astype(np.float64), margins.astype(np.float64))
    np.testing.assert_allclose(weights.T, reference.coef_, rtol=1e-4, atol=1e-6)


def test_rank_deficient_least_squares_is_the_minimum_norm_solution_and_warns() -> None:
    masks, margins = problem(num_masks=20, num_components=40)
    design, block = statistics(masks, margins)
    factor = factorise(design, "cpu")
    assert factor.rank == 19
    x = masks - masks.mean(axis=0)
    reference = np.linalg.pinv(x) @ (margins.astype(np.float64) - margins.mean(axis=0, dtype=np.float64))
    for backend in ("torch", "sklearn"):
        weights = RIDGE_BACKENDS[backend](factor, design, block, np.zeros(5))
        np.testing.assert_allclose(weights, reference, rtol=1e-6, atol=1e-8)
    with pytest.warns(CoarWarning, match=r"rank 19 < 40 components.*minimum-norm"):
        warn_if_rank_deficient(factor)


@pytest.mark.parametrize("num_components", [12, 60])
def test_penalties_are_those_of_exact_gcv(num_components: int) -> None:
    masks, margins = problem(num_components=num_components, num_masks=50)
    design, block = statistics(masks, margins)
    factor = factorise(design, "cpu")
    grid = penalty_grid(factor, 15, (1e-3, 1e3))
    x, y = masks.astype(np.float64), margins.astype(np.float64)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scores = []
    for penalty in grid:
        hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(num_components), x.T) + 1 / len(x)
        residual = y - hat @ y
        scores.append((residual**2).mean(axis=0) / (1 - np.trace(hat) / len(x)) ** 2)
    expected = grid[np.argmin(scores, axis=0)]
    np.testing.assert_allclose(choose_penalties(factor, design, block, grid), expected)
    assert len(np.unique(expected)) > 1


def test_chosen_penalties_predict_as_well_as_leave_one_out_cross_validation() -> None:
    masks, margins = problem(num_masks=150, num_components=60)
    train, test = slice(0, 100), slice(100, 150)
    design, block = statistics(masks[train], margins[train])
    factor = factorise(design, "cpu")
    grid = penalty_grid(factor, 25, (1e-3, 1e3))
    weights = solve(factor, design, block, choose_penalties(factor, design, block, grid))
    reference = RidgeCV(alphas=grid, alpha_per_target=True).fit(masks[train].astype(float), margins[train])
    error = margins[test] - (masks[test] @ weights + intercepts(design, block, weights))
    reference_error = margins[test] - reference.predict(masks[test].astype(float))
    assert (error**2).mean() < 1.05 * (reference_error**2).mean()


def test_constant_margins_get_zero_weights_and_constant_masks_are_refused() -> None:
    masks, margins = problem()
    margins[:, 2] = 7.25
    design, block = statistics(masks, margins)
    factor = factorise(design, "cpu")
    penalties = choose_penalties(factor, design, block, penalty_grid(factor, 5, (1e-3, 1e3)))
    weights = solve(factor, design, block, penalties)
    np.testing.assert_allclose(weights[:, 2], 0, atol=1e-12)
    assert intercepts(design, block, weights)[2] == pytest.approx(7.25)
    same = np.ones((10, 4), dtype=bool)
    with pytest.raises(ValueError, match="all masks of the train design are equal"):
        penalty_grid(factorise(design_statistics([same]), "cpu"), 5, (1e-3, 1e3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a CUDA device")
def test_cuml_is_refused_without_a_device() -> None:
    assert choose_backend("auto") == "torch"
    assert choose_backend("sklearn") == "sklearn"
    with pytest.raises(ConfigError, match=r"regression\.backend='cuml' cannot run here: (no CUDA|cuml is not)"):
        choose_backend("cuml")
