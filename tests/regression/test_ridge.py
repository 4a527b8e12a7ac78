from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV

from coar_dist.errors import CoarWarning, ConfigError, ConvergenceError, TaskError
from coar_dist.regression import factor as factor_module
from coar_dist.regression.backends import (
    RIDGE_BACKENDS,
    check_backend,
    choose_backend,
    identity_of_backend,
    ridge_weights,
)
from coar_dist.regression.cross_validation import (
    Judges,
    best_penalties,
    choose,
    coordinates_of,
    gcv_scores,
    judging_masks,
    left_out_errors,
    left_out_scores,
    noise_of,
    penalty_grid,
    r2_on_new_masks,
)
from coar_dist.regression.dual import factorise_dual
from coar_dist.regression.factor import factorise, warn_if_rank_deficient
from coar_dist.regression.iterative import CentredMasks, IterativeRidge, trace_quadrature
from coar_dist.regression.ridge import coefficients, posterior_errors, project, project_rows, residual_squares, solve
from coar_dist.regression.sizes import choose_solver
from coar_dist.regression.statistics import gram, margin_statistics
from tests.regression.problems import batches, packed, problem, projected

HERE = ["torch", "sklearn", pytest.param("cuml", marks=pytest.mark.gpu)]


def grid_of(factor: factor_module.Factor, count: int = 15) -> np.ndarray:
    return penalty_grid(float(factor.values.sum()) / factor.num_components, count, (1e-3, 1e3))


def judges_of(factor: Any, masks: np.ndarray, margins: np.ndarray, rows: list[int] | None = None) -> Judges:
    """All masks, or some."""
    chosen = np.arange(len(masks)) if rows is None else np.array(rows)
    design = gram(batches(masks), "cpu").design
    centred = margins.astype(np.float64) - margins.mean(axis=0, dtype=np.float64)
    return Judges(coordinates_of(factor, design, packed(masks), chosen), torch.from_numpy(centred[chosen]))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("kind", ["bernoulli", "fixed_size"])
def test_backends_solve_the_same_ridge_as_scikit_learn_on_the_masks(backend: str, kind: str) -> None:
    masks, margins = problem(kind=kind)
    design, factor, block, part = projected(masks, margins)
    penalties = np.array([0.01, 0.3, 2.0, 30.0, 500.0])
    weights = RIDGE_BACKENDS[backend](factor, part, penalties)
    reference = Ridge(alpha=penalties).fit(masks.astype(np.float64), margins.astype(np.float64))
    np.testing.assert_allclose(weights.T, reference.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(block.intercepts(design, weights), reference.intercept_, rtol=1e-6)


def test_a_solver_of_ones_own_is_held_to_the_objective() -> None:
    masks, margins = problem()
    _, factor, _, part = projected(masks, margins)
    penalties = np.array([0.01, 0.3, 2.0, 30.0, 500.0])
    exact = solve(factor, part, penalties)

    def says(*results: Any) -> Any:
        return lambda factor, projected, penalties: results[0]

    np.testing.assert_array_equal(ridge_weights(says(exact), factor, part, penalties), exact)
    np.testing.assert_array_equal(ridge_weights("tests.regression.test_ridge:by_torch", factor, part, penalties), exact)
    ridge_weights(says(exact * (1 + 1e-6)), factor, part, penalties)
    constant = projected(masks, np.full((90, 1), 7.0, np.float32))[3]
    np.testing.assert_array_equal(ridge_weights(says(exact[:, :1] * 0), factor, constant, penalties[:1]), 0)
    with pytest.raises(TaskError, match=r"does not solve ridge: its sum of squares and penalty lies \S+ of the"):
        ridge_weights(says(exact * np.array([1.0, 1.0, 1.0, 1.0, 1.5])), factor, part, penalties)
    with pytest.raises(TaskError, match=r"of shape \(5, \d+\): must be finite weights \(\d+, 5\), components x"):
        ridge_weights(says(exact.T), factor, part, penalties)
    with pytest.raises(TaskError, match="that is not finite"):
        ridge_weights(says(exact * np.nan), factor, part, penalties)
    with pytest.raises(TaskError, match=r"ridge:solve' raises AttributeError: 'NoneType'"):
        ridge_weights("coar_dist.regression.ridge:solve", None, part, penalties)  # type: ignore[arg-type]
    for check in (lambda name: check_backend(name, "ridge"), lambda name: choose_backend(name, "ridge", "primal")):
        with pytest.raises(ConfigError, match=r"regression\.backend='nowhere:solve' cannot be imported"):
            check("nowhere:solve")
    with pytest.raises(ConfigError, match=r"by_torch' needs a factorisation"):
        choose_backend(by_torch, "ridge", "iterative")
    assert identity_of_backend(by_torch) == identity_of_backend("tests.regression.test_ridge:by_torch")
    assert re.fullmatch(r"tests\.regression\.test_ridge:by_torch sha256:[0-9a-f]{64}", identity_of_backend(by_torch))
    assert identity_of_backend("torch") == "torch"


def by_torch(factor: Any, projected: Any, penalties: Any) -> Any:
    return solve(factor, projected, penalties)


@pytest.mark.parametrize("backend", HERE)
def test_no_penalty_is_least_squares(backend: str) -> None:
    masks, margins = problem()
    _, factor, _, part = projected(masks, margins)
    weights = RIDGE_BACKENDS[backend](factor, part, np.zeros(5))
    reference = LinearRegression().fit(masks.astype(np.float64), margins.astype(np.float64))
    np.testing.assert_allclose(weights.T, reference.coef_, rtol=1e-4, atol=1e-6)


def test_rank_deficient_least_squares_is_the_minimum_norm_solution_and_warns() -> None:
    masks, margins = problem(num_masks=20, num_components=40)
    _, factor, _, part = projected(masks, margins)
    assert factor.rank == 19
    x = masks - masks.mean(axis=0)
    reference = np.linalg.pinv(x) @ (margins.astype(np.float64) - margins.mean(axis=0, dtype=np.float64))
    for backend in ("torch", "sklearn"):
        weights = RIDGE_BACKENDS[backend](factor, part, np.zeros(5))
        np.testing.assert_allclose(weights, reference, rtol=1e-6, atol=1e-8)
    with pytest.warns(CoarWarning, match=r"rank 19 < 40 components.*minimum-norm"):
        warn_if_rank_deficient(factor.rank, 20, 40)


@pytest.mark.parametrize("num_components", [41, 203])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_dual_is_the_primal(scaled: bool, num_components: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the eigenvectors of the components, which are what they are nevertheless."""
    monkeypatch.setattr("coar_dist.regression.masks._VALUES_AT_ONCE", 64 * 1024)  # blocks of 64 components
    masks, margins = problem(num_masks=40, num_components=num_components)
    masks[:, 5] = True
    scale = np.random.default_rng(1).uniform(0.3, 2.0, num_components) if scaled else None
    whole, block = gram(batches(masks), "cpu"), margin_statistics(batches(masks, 32, margins))
    design, primal = whole.design, factorise(whole, "cpu", scale)
    part = project(primal, design, block)
    dual = factorise_dual(packed(masks), "cpu", scale)
    np.testing.assert_array_equal(packed(masks).design.kept, design.kept)
    assert dual.rank == primal.rank == 39
    np.testing.assert_allclose(dual.values, primal.values, rtol=1e-9)
    vectors = dual.whole().vectors
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(39), atol=1e-9)
    centred = torch.from_numpy(margins - block.mean(design))
    in_dual, penalties = project_rows(dual, centred), np.array([0.0, 0.3, 2.0, 30.0, 500.0])
    np.testing.assert_allclose(in_dual.squares, part.squares, rtol=1e-9)
    np.testing.assert_allclose(in_dual.cross, project(dual.whole(), design, block).cross, rtol=1e-7, atol=1e-9)
    expected = primal.scaled(torch.from_numpy(solve(primal, part, penalties)))
    found = torch.cat([rows for _, rows in dual.weight_rows(coefficients(dual, in_dual, penalties))])
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert (found[5] == 0).all()
    noise = np.array([0.5, 1.0, 2.0, 3.0, np.nan])
    in_both = [posterior_errors(factor, penalties + 1, noise) for factor in (dual, primal)]
    np.testing.assert_allclose(*in_both, rtol=1e-6)
    assert np.isnan(in_both[0]).any(axis=1).tolist() == [False] * 4 + [True]
    grid = grid_of(primal, 5)
    np.testing.assert_allclose(gcv_scores(dual, in_dual, grid), gcv_scores(primal, part, grid), rtol=1e-7)
    rows = [0, 3, 17, 39]
    left_out = left_out_scores(primal, part, grid, judges_of(primal, masks, margins, rows))
    found = left_out_scores(dual, in_dual, grid, judges_of(dual, masks, margins, rows))
    np.testing.assert_allclose(found, left_out, rtol=1e-7)


@pytest.mark.parametrize("kind", ["bernoulli", "identity", "twins"])
def test_eigenvectors_are_orthonormal_also_where_eigenvalues_are_equal(kind: str) -> None:
    """Designs of single ablations have one eigenvalue many times; twins are components ablated together."""
    masks, _ = problem(num_masks=300, num_components=120)
    masks = {"bernoulli": masks, "identity": ~np.eye(120, dtype=bool), "twins": np.repeat(masks[:, :60], 2, axis=1)}[
        kind
    ]
    x = masks - masks.mean(axis=0)
    factor = factorise(gram(batches(masks), "cpu"), "cpu")
    assert factor.rank == {"bernoulli": 120, "identity": 119, "twins": 60}[kind]
    np.testing.assert_allclose(factor.vectors.T @ factor.vectors, np.eye(factor.rank), atol=1e-12)
    rebuilt = factor.vectors @ (factor.values.unsqueeze(1) * factor.vectors.T)
    np.testing.assert_allclose(rebuilt, x.T @ x, atol=1e-10)


@pytest.mark.parametrize("num_components", [12, 60])
def test_scores_are_those_of_the_definitions(num_components: int) -> None:
    masks, margins = problem(num_components=num_components, num_masks=50)
    _, factor, _, part = projected(masks, margins)
    grid = grid_of(factor)
    x, y = masks.astype(np.float64), margins.astype(np.float64)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    gcv, left_out, residuals = [], [], []
    for penalty in grid:
        hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(num_components), x.T) + 1 / len(x)
        residual = y - hat @ y
        residuals.append((residual**2).sum(axis=0))
        gcv.append((residual**2).mean(axis=0) / (1 - np.trace(hat) / len(x)) ** 2)
        left_out.append(((residual / (1 - np.diag(hat)[:, None])) ** 2).mean(axis=0))
    scores = gcv_scores(factor, part, grid)
    np.testing.assert_allclose(scores, gcv, rtol=1e-5)
    np.testing.assert_allclose(residual_squares(factor, part, np.full(5, grid[4])), residuals[4], rtol=1e-6)
    exact = left_out_scores(factor, part, grid, judges_of(factor, masks, margins))
    np.testing.assert_allclose(exact, left_out, rtol=1e-5)
    expected = grid[np.argmin(gcv, axis=0)]
    np.testing.assert_allclose(best_penalties(scores, grid), expected)
    assert len(np.unique(expected)) > 1


def test_leave_one_out_scores_are_errors_of_fits_without_the_mask() -> None:
    masks, margins = problem(num_masks=25)
    _, factor, _, part = projected(masks, margins)
    penalties = np.array([3.0, 3.0, 0.2, 3.0, 50.0])
    judges = [0, 1, 5, 24]
    found, left = left_out_errors(factor, part, penalties, judges_of(factor, masks, margins, judges))
    x = masks - masks.mean(axis=0)
    for position, row in enumerate(judges):
        rest = np.arange(25) != row
        model = Ridge(alpha=penalties).fit(masks[rest].astype(float), margins[rest].astype(float))
        expected = margins[row] - model.predict(masks[row : row + 1].astype(float))[0]
        np.testing.assert_allclose(found[position], expected, rtol=1e-7)
        for column, penalty in enumerate(penalties):
            hat = x[row] @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x[row]) + 1 / 25
            assert float(left[position, column]) == pytest.approx(1 - hat, rel=1e-9)
    scores = left_out_scores(factor, part, np.array([3.0]), judges_of(factor, masks, margins, judges))
    np.testing.assert_allclose(scores[0, [0, 1, 3]], (found**2).mean(dim=0)[[0, 1, 3]], rtol=1e-12)


def test_2048_masks_are_left_out_at_even_distances_or_all() -> None:
    assert judging_masks(20, 60, 12).tolist() == list(range(20, 60))
    assert judging_masks(60, 60, 12).tolist() == []
    many = judging_masks(100, 50_000, 2304)
    assert (len(many), many[0], many[-1]) == (2048, 100, 49_999)
    assert set(np.diff(many)) <= {24, 25}
    assert len(judging_masks(0, 100_000, 82_944)) == 2**25 // 82_944


def test_noise_is_that_of_the_margins_whatever_the_penalty() -> None:
    """Errors on masks left out are larger by 1 / (1 - h), if the prior is true that the penalty stands for."""
    random = np.random.default_rng(0)
    masks, _ = problem(num_masks=64, num_components=40)
    weights = random.normal(size=(40, 3000)) * 0.5
    margins = masks @ weights + random.normal(size=(64, 3000)) * 1.7 + 40
    _, factor, _, part = projected(masks, margins)
    errors, left = left_out_errors(factor, part, np.full(3000, (1.7 / 0.5) ** 2), judges_of(factor, masks, margins))
    assert noise_of(errors, left).mean() == pytest.approx(1.7**2, rel=0.02)
    assert np.isnan(noise_of(errors[:63], left[:63])).all()
    errors[5, 3] = torch.inf
    assert np.isnan(noise_of(errors, left)).nonzero()[0].tolist() == [3]


def test_r2_on_new_masks_and_what_each_sixteenth_of_the_masks_adds_to_it() -> None:
    """A regression of the errors on how far margins lie from their mean, at the place that all masks tell."""
    random = np.random.default_rng(0)
    deviations = random.chisquare(1, (400, 50)) * 1.1
    errors = 0.2 * deviations + 0.1 * random.chisquare(1, (400, 50))
    errors[5, 9] = np.inf
    varies = torch.arange(50) != 7
    found, influences = r2_on_new_masks(torch.from_numpy(errors), torch.from_numpy(deviations), varies, 500)
    assert np.isnan(found).nonzero()[0].tolist() == [7, 9]
    rest = np.delete(np.arange(50), [7, 9])
    x, y = deviations[:, rest].mean(axis=1), errors[:, rest].mean(axis=1)
    line = stats.linregress(x, y)
    assert 0.15 < line.slope < 0.25
    expected = 1 - (errors[:, rest].mean(axis=0) - line.slope * (deviations[:, rest].mean(axis=0) - (1 - 1 / 500)))
    np.testing.assert_allclose(found[rest], expected, rtol=1e-9)
    assert influences is not None
    residuals = y - line.slope * (x - x.mean())
    np.testing.assert_allclose(influences, [48 * residuals[group::16].mean() for group in range(16)], rtol=1e-9)
    for number in (31, 32):
        few, of_few = r2_on_new_masks(
            torch.from_numpy(errors[:number]), torch.from_numpy(deviations[:number]), varies, 500
        )
        assert np.isfinite(few[0]) == (of_few is not None) == (number == 32)
    x, y = x[:32], y[:32]
    residuals = y - np.polyfit(x, y, 1)[0] * (x - x.mean())
    expected = [48 * 128 / 32 * residuals[group::16].mean() for group in range(16)]
    np.testing.assert_allclose(of_few, expected, rtol=1e-9)
    assert r2_on_new_masks(torch.from_numpy(errors), torch.from_numpy(deviations), varies & False, 500)[1] is None


def test_a_grid_goes_on_where_its_smallest_penalty_is_best() -> None:
    def scores(best: list[float]) -> Any:
        return lambda grid: torch.from_numpy((np.log(grid)[:, None] - np.log(best)) ** 2)

    grid = np.geomspace(1e-3, 1e3, 25)
    asked: list[int] = []

    def counted(penalties: np.ndarray) -> torch.Tensor:
        asked.append(len(penalties))
        return scores([2.0, 1e-7])(penalties)

    choice = choose(counted, grid, is_given=False)
    np.testing.assert_allclose(choice.penalties, [grid[np.abs(np.log(grid / 2)).argmin()], 1e-7], rtol=1e-9)
    assert asked == [25, 12, 12]
    assert not choice.at_end.any()
    beyond = choose(scores([1e-20, 1e9, 1.0]), grid, is_given=False)
    np.testing.assert_allclose(beyond.penalties, [1e-12, 1e3, 1.0])
    assert beyond.at_end.tolist() == [True, False, False]
    flat = choose(lambda grid: 5.0 + torch.from_numpy(grid[:, None] * [1e-3, 3.0]), grid, is_given=False)
    np.testing.assert_allclose(flat.penalties, [1e-3, 1e-3])  # no other does better by 1%
    assert not flat.at_end.any()
    given = choose(scores([1e-20, 1e9, 1.0]), grid, is_given=True)
    np.testing.assert_allclose(given.penalties, [1e-3, 1e3, 1.0])
    assert given.at_end.tolist() == [True, True, False]
    fixed = choose(scores([1e-20, 1e9]), np.array([5.0]), is_given=False)
    assert (fixed.penalties.tolist(), fixed.at_end.any()) == ([5.0, 5.0], False)


def test_a_mask_that_alone_decides_its_own_prediction_has_an_infinite_score() -> None:
    """The last component is ablated by the last mask alone, so least squares fits it whatever its margin is."""
    masks, margins = problem(num_masks=30, num_components=6)
    masks[:, 5] = np.arange(30) != 29
    margins[:, 2] = 4.0  # with no residual either
    _, factor, _, part = projected(masks, margins)
    scores = left_out_scores(factor, part, np.array([0.0, 1.0]), judges_of(factor, masks, margins))
    assert torch.isinf(scores[0]).all()
    assert torch.isfinite(scores[1]).all()
    assert best_penalties(scores, np.array([0.0, 1.0])).tolist() == [1.0] * 5


def test_without_a_penalty_errors_are_the_spread_over_draws_of_noise() -> None:
    random = np.random.default_rng(0)
    masks, _ = problem(num_masks=60, num_components=8)
    truth, num_draws = random.normal(size=8) * 3, 4000
    margins = (masks @ truth)[:, None] + random.normal(size=(60, num_draws)) * 1.7 + 40
    _, factor, _, part = projected(masks, margins.astype(np.float32))
    spread = solve(factor, part, np.zeros(num_draws)).std(axis=1)
    found = posterior_errors(factor, np.zeros(1), np.full(1, 1.7**2))[0]
    np.testing.assert_allclose(found, spread, rtol=0.04)
    short, _ = problem(num_masks=6, num_components=8)
    factor = projected(short, margins[:6])[1]
    x = short - short.mean(axis=0)
    is_determined = np.diag(np.linalg.pinv(x) @ x) > 1 - 1e-9
    assert 0 < is_determined.sum() < 8
    found = posterior_errors(factor, np.zeros(1), np.ones(1))[0]
    np.testing.assert_array_equal(np.isfinite(found), is_determined)


@pytest.mark.parametrize("num_masks", [40, 90])
def test_posterior_errors_are_those_of_the_definition(num_masks: int) -> None:
    masks, _ = problem(num_masks=num_masks, num_components=60)
    scale = np.random.default_rng(1).uniform(0.3, 2.0, 60)
    penalties, noise = np.array([0.5, 8.0, 0.5]), np.array([2.0, 3.0, 4.0])
    of_mean = np.random.default_rng(2).uniform(0.0, 0.4, (3, 60))
    x = masks - masks.mean(axis=0)
    whole = gram(batches(masks), "cpu")
    for factor in (factorise(whole, "cpu", scale), factorise_dual(packed(masks), "cpu", scale)):
        found, with_mean = (posterior_errors(factor, penalties, noise, mean) for mean in (None, of_mean))
        for row in range(3):
            inverse = np.linalg.inv(x.T @ x + np.diag(penalties[row] / scale**2))
            np.testing.assert_allclose(found[row], np.sqrt(noise[row] * np.diag(inverse)), rtol=1e-6)
            left = np.diag(inverse) * penalties[row] / scale**2
            expected = np.sqrt(noise[row] * np.diag(inverse) + left**2 * of_mean[row])
            np.testing.assert_allclose(with_mean[row], expected, rtol=1e-6)


def test_chosen_penalties_predict_as_well_as_leave_one_out_cross_validation() -> None:
    masks, margins = problem(num_masks=150, num_components=60)
    train, test = slice(0, 100), slice(100, 150)
    design, factor, block, part = projected(masks[train], margins[train])
    grid = grid_of(factor, 25)
    weights = solve(factor, part, best_penalties(gcv_scores(factor, part, grid), grid))
    reference = RidgeCV(alphas=grid, alpha_per_target=True).fit(masks[train].astype(float), margins[train])
    error = margins[test] - (masks[test] @ weights + block.intercepts(design, weights))
    reference_error = margins[test] - reference.predict(masks[test].astype(float))
    assert (error**2).mean() < 1.05 * (reference_error**2).mean()


def test_rounding_of_large_eigenvalues_is_no_rank() -> None:
    """Every mask twice."""
    masks, _ = problem(num_masks=40, num_components=2000)
    dual = factorise_dual(packed(np.concatenate([masks, masks])), "cpu")
    assert dual.rank == 39
    vectors = dual.whole().vectors
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(39), atol=1e-9)


def test_designs_of_single_ablations_and_partitions_have_a_solution() -> None:
    random = np.random.default_rng(0)
    for masks in (~np.eye(9, dtype=bool), np.arange(9) // 3 != np.arange(3)[:, None]):
        margins = random.normal(size=(len(masks), 4)).astype(np.float32) + 50
        design, factor, block, part = projected(masks, margins)
        assert factor.rank == len(masks) - 1
        weights = solve(factor, part, np.zeros(4))
        predicted = masks @ weights + block.intercepts(design, weights)
        np.testing.assert_allclose(predicted, margins, rtol=1e-6)


def test_constant_margins_get_zero_weights_and_constant_masks_are_refused() -> None:
    masks, margins = problem()
    margins[:, 2] = 7.3
    design, factor, block, part = projected(masks, margins)
    grid = grid_of(factor, 5)
    weights = solve(factor, part, best_penalties(gcv_scores(factor, part, grid), grid))
    np.testing.assert_array_equal(weights[:, 2], 0)
    assert block.intercepts(design, weights)[2] == pytest.approx(7.3)
    with pytest.raises(ConfigError, match="all masks of the train design are equal"):
        penalty_grid(0.0, 5, (1e-3, 1e3))


def test_the_solver_is_chosen_by_size() -> None:
    assert choose_solver(50_000, 2304, 16e9)[0] == "primal"
    assert choose_solver(100_000, 22_720, 16e9)[0] == "primal"  # 8.3 GB
    assert choose_solver(5000, 82_944, 16e9)[0] == "dual"  # the paper's setup C at a small number of masks
    assert choose_solver(100_000, 82_944, 16e9)[0] == "iterative"
    assert "primal 0.13 GB" in choose_solver(50_000, 2304, 16e9)[1]


@pytest.mark.parametrize(("num_masks", "num_components"), [(300, 80), (60, 150), (150, 240)])
def test_conjugate_gradients_are_the_factorised_ridge(
    num_masks: int, num_components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.regression.iterative.ITERATIVE_VALUES", num_components * 37)
    masks, margins = problem(num_masks, num_components)
    design, factor, block, part = projected(masks, margins)
    products = CentredMasks(packed(masks), design, "cpu")
    assert products.mean_eigenvalue == pytest.approx(float(factor.values.sum()) / num_components)
    x = masks - masks.mean(axis=0)
    vectors = np.random.default_rng(0).normal(size=(num_masks, 3))
    np.testing.assert_allclose(products.mask_products(torch.from_numpy(vectors)), x @ (x.T @ vectors), atol=1e-9)
    solver = IterativeRidge(products, trace_quadrature(products, "cpu"), 1e-9)
    cross = torch.from_numpy(block.centred_cross(design))
    penalties = np.array([0.5, 1.0, 5.0, 50.0, 500.0])
    np.testing.assert_allclose(solver.solve(cross, penalties), solve(factor, part, penalties), rtol=1e-6, atol=1e-8)
    grid = penalty_grid(products.mean_eigenvalue, 9, (1e-3, 1e3))
    for penalty in grid:  # small where the masks are few and the penalty is, and estimated as well there
        exact_df = 1 + float((factor.values / (factor.values + penalty)).sum())
        assert solver.freedom_left(penalty) == pytest.approx(1 - exact_df / num_masks, rel=0.1)
    centred = torch.from_numpy(margins - block.mean(design)) if num_masks < num_components else None
    exact, scores = gcv_scores(factor, part, grid), solver.gcv_scores(cross, centred, part.squares, grid)
    np.testing.assert_allclose(scores, exact, rtol=0.2)
    achieved = exact.gather(0, scores.argmin(dim=0)[None])[0]
    assert (achieved < 1.05 * exact.amin(dim=0)).all()  # near the best by the exact score; the trace is a sample


@pytest.mark.parametrize("num_masks", [60, 200])
def test_the_probes_of_a_trace_are_the_same_in_every_fit(num_masks: int) -> None:
    masks, _ = problem(num_masks, 100)
    products = CentredMasks(packed(masks), packed(masks).design, "cpu")
    first = trace_quadrature(products, "cpu")
    torch.rand(7)  # the user's own random numbers
    again = trace_quadrature(products, "cpu")
    assert torch.equal(first.nodes, again.nodes)
    assert torch.equal(first.weights, again.weights)


def test_of_penalties_that_are_equally_good_the_larger_is_chosen() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, torch.inf], [1.0, 1.0, 2.0, torch.inf], [1.0, 4.0, 2.0, 5.0]])
    grid = np.array([0.1, 1.0, 10.0])
    np.testing.assert_array_equal(best_penalties(scores, grid), [10.0, 1.0, 10.0, 10.0])


def test_least_squares_by_conjugate_gradients_has_minimum_norm() -> None:
    masks, margins = problem(num_masks=20, num_components=40)
    design, factor, block, part = projected(masks, margins)
    operator = CentredMasks(packed(masks), design, "cpu")
    solver = IterativeRidge(operator, trace_quadrature(operator, "cpu"), 1e-10)
    weights = solver.solve(torch.from_numpy(block.centred_cross(design)), np.zeros(5))
    np.testing.assert_allclose(weights, solve(factor, part, np.zeros(5)), rtol=1e-5, atol=1e-7)


def test_conjugate_gradients_do_not_take_what_is_no_number_for_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.regression.iterative._MAX_ITERATIONS", 3)
    masks, _ = problem()
    products = CentredMasks(packed(masks), gram(batches(masks), "cpu").design, "cpu")
    solver = IterativeRidge(products, trace_quadrature(products, "cpu"), 1e-6)
    with pytest.raises(ConvergenceError, match="relative residual of nan after 3 iterations"):
        solver.solve(torch.full((masks.shape[1], 2), torch.nan, dtype=torch.float64), np.ones(2))
