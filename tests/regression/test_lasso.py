from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet

from coar_dist.errors import ConvergenceError
from coar_dist.regression import lasso
from coar_dist.regression.backends import LASSO_BACKENDS, LassoTarget, lasso_weights, torch_lasso
from coar_dist.regression.factor import factorise
from coar_dist.regression.lasso import LassoProblem, extremes_of, largest_alphas, problem_of
from coar_dist.regression.lasso_path import HeldOut, choose_on_path
from coar_dist.regression.statistics import MarginStatistics, gram, margin_statistics
from tests.regression.problems import batches, packed, problem
from tests.regression.test_fit import fitted, run_of

HERE = ["torch", "sklearn", pytest.param("cuml", marks=pytest.mark.gpu)]
CASES = [("bernoulli", 200, 30), ("fixed_size", 200, 30), ("bernoulli", 40, 70)]


def lasso_problem(masks: np.ndarray, margins: np.ndarray) -> tuple[LassoProblem, MarginStatistics]:
    whole, block = gram(batches(masks), "cpu"), margin_statistics(batches(masks, 32, margins))
    return problem_of(whole, extremes_of(whole, "cpu"), block, "cpu"), block


def objective(
    masks: np.ndarray, margins: np.ndarray, weights: np.ndarray, alphas: np.ndarray, l1_ratio: float
) -> float:
    x, y = masks - masks.mean(axis=0), margins.astype(float) - margins.astype(float).mean(axis=0)
    squares = ((y - x @ weights) ** 2).sum(axis=0) / (2 * len(x))
    return squares + alphas * (l1_ratio * abs(weights).sum(axis=0) + (1 - l1_ratio) / 2 * (weights**2).sum(axis=0))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("l1_ratio", [1.0, 0.4])
@pytest.mark.parametrize(("kind", "num_masks", "num_components"), CASES)
def test_backends_reach_scikit_learn_s_minimum_on_the_masks(
    backend: str, l1_ratio: float, kind: str, num_masks: int, num_components: int
) -> None:
    masks, margins = problem(num_masks, num_components, kind=kind)
    part, _ = lasso_problem(masks, margins)
    alphas = largest_alphas(part, l1_ratio) * torch.tensor([1.01, 0.5, 0.2, 0.05, 0.01])
    target = LassoTarget(part, alphas, l1_ratio, torch.zeros_like(part.cross), 1e-11)
    factor = factorise(gram(batches(masks), "cpu"), "cpu")
    weights = LASSO_BACKENDS[backend](factor, target)
    if backend == "torch":  # a user's own goes the same way
        own, _ = lasso_weights(lambda factor, target: torch_lasso(factor, target).numpy(), factor, target)
        assert torch.equal(own, weights)
    assert (weights[:, 0] == 0).all()
    reference = np.stack(
        [
            ElasticNet(alpha=float(alpha), l1_ratio=l1_ratio, tol=1e-12, max_iter=200_000)
            .fit(masks.astype(float), margins[:, column].astype(float))
            .coef_
            for column, alpha in enumerate(alphas)
        ],
        axis=1,
    )
    reached = objective(masks, margins, weights.numpy(), alphas.numpy(), l1_ratio)
    np.testing.assert_allclose(reached, objective(masks, margins, reference, alphas.numpy(), l1_ratio), rtol=1e-7)
    if num_masks > num_components and kind == "bernoulli":  # elsewhere the minimum has no unique place
        np.testing.assert_allclose(weights, reference, rtol=1e-4, atol=1e-4)
    assert (lasso.exact_gaps(part, weights, alphas, l1_ratio) < 1e-7).all()


def test_the_gap_is_primal_minus_dual() -> None:
    masks, margins = problem(60, 9)
    part, _ = lasso_problem(masks, margins)
    x, y = masks - masks.mean(axis=0), margins.astype(float) - margins.astype(float).mean(axis=0)
    weights, alphas = np.random.default_rng(1).normal(size=(9, 5)), np.full(5, 0.07)
    residual = y - x @ weights
    dual_point = residual * np.minimum(1, alphas / (abs(x.T @ residual).max(axis=0) / 60))
    dual = ((y**2).sum(axis=0) - ((y - dual_point) ** 2).sum(axis=0)) / 120
    expected = (objective(masks, margins, weights, alphas, 1.0) - dual) / ((y**2).sum(axis=0) / 60)
    gaps = lasso.exact_gaps(part, torch.from_numpy(weights), torch.from_numpy(alphas), 1.0)
    np.testing.assert_allclose(gaps, expected, rtol=1e-9)
    assert (expected > 0).all()


def test_examples_converge_on_their_own_and_constant_ones_have_no_weights() -> None:
    masks, margins = problem(200, 30, num_examples=90)
    margins[:, 4] = 0.1
    part, _ = lasso_problem(masks, margins)
    alphas = largest_alphas(part, 1.0) * torch.logspace(0.1, -3, 90)
    together = lasso.solve(part, alphas, 1.0, torch.zeros_like(part.cross), 1e-10)
    assert (together.weights[:, 4] == 0).all()
    assert together.gaps.max() <= 1e-10
    for column in (0, 40, 89):
        alone = lasso.solve(part.of(torch.tensor([column])), alphas[[column]], 1.0, torch.zeros(30, 1), 1e-10)
        np.testing.assert_allclose(together.weights[:, [column]], alone.weights, atol=1e-4)


def test_a_tolerance_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasso, "_MAX_STEPS", 6)
    masks, margins = problem(40, 70)
    part, _ = lasso_problem(masks, margins)
    alphas = largest_alphas(part, 1.0) * 1e-3
    with pytest.raises(ConvergenceError, match=r"after 6 steps, regression\.tolerance=1e-12"):
        lasso.solve(part, alphas, 1.0, torch.zeros_like(part.cross), 1e-12)


def held_out_of(masks: np.ndarray, margins: np.ndarray, num_train: int) -> HeldOut:
    mean = margins[:num_train].astype(float).mean(axis=0)
    about = torch.from_numpy(margins[num_train:].astype(float) - mean)
    return HeldOut(packed(masks[num_train:]), masks[:num_train].mean(axis=0), about)


def test_held_out_errors_are_those_of_predictions() -> None:
    masks, margins = problem(120, 9)
    train_block = margin_statistics(batches(masks[:100], 32, margins[:100]))
    weights = np.random.default_rng(1).normal(size=(9, 5))
    intercepts = train_block.intercepts(gram(batches(masks[:100]), "cpu").design, weights)
    expected = (masks[100:] @ weights + intercepts - margins[100:]) ** 2
    found = held_out_of(masks, margins, 100).squared_errors(torch.from_numpy(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("by", ["held_out", "bic"])
def test_the_path_finds_what_is_there(by: str) -> None:
    """Few of many components matter: the chosen point keeps them, and predicts better than either end of the path."""
    random = np.random.default_rng(0)
    masks, _ = problem(400, 60)
    truth = np.zeros((60, 20))
    truth[:6] = random.normal(size=(6, 20)) + 4
    margins = (masks @ truth + random.normal(size=(400, 20)) * 3 - 70).astype(np.float32)
    part, block = lasso_problem(masks[:300], margins[:300])
    design = gram(batches(masks[:300]), "cpu").design
    held = held_out_of(masks, margins, 300)
    ratios = np.geomspace(1.0, 1e-3, 20)
    choice = choose_on_path(part, ratios, 1.0, 300, held if by == "held_out" else None)
    weights = choice.weights.numpy()
    assert (weights[:6] != 0).mean() > 0.95
    assert (weights[6:] != 0).mean() < 0.5
    fresh = problem(500, 60, seed=5)[0]
    error = ((fresh @ (weights - truth) + block.intercepts(design, weights) + 70) ** 2).mean()
    for ratio in (1.0, 1e-3):
        end = lasso.solve(
            part, largest_alphas(part, 1.0) * ratio, 1.0, torch.zeros_like(part.cross), 1e-6
        ).weights.numpy()
        assert error < ((fresh @ (end - truth) + block.intercepts(design, end) + 70) ** 2).mean()


@pytest.mark.parametrize("l1_ratio", [1.0, 0.6])
def test_the_path_is_judged_by_bayes_criterion_and_its_ends_are_known(l1_ratio: float) -> None:
    """Pure noise, which asks for the largest penalty; few effects; many effects without noise, for the smallest."""
    random = np.random.default_rng(3)
    masks, _ = problem(150, 20)
    truth = random.normal(size=(20, 6))
    truth[:, :2] = 0.0
    truth[5:, 2:4] = 0.0
    noise = np.array([1.0, 1.0, 2.0, 1.0, 1e-3, 1e-3])
    margins = (masks @ truth + random.normal(size=(150, 6)) * noise + 20).astype(np.float32)
    x, y = masks.astype(float), margins.astype(float)
    centred = x - x.mean(axis=0), y - y.mean(axis=0)
    largest = abs(centred[0].T @ centred[1]).max(axis=0) / 150 / l1_ratio
    ratios = np.geomspace(1.0, 1e-2, 12)
    bic, aic = np.empty((2, 12, 6))
    for (point, ratio), column in itertools.product(enumerate(ratios), range(6)):
        model = ElasticNet(alpha=largest[column] * ratio, l1_ratio=l1_ratio, tol=1e-10, max_iter=100_000)
        model.fit(x, y[:, column])
        error = ((model.predict(x) - y[:, column]) ** 2).mean()
        num_weights = (abs(model.coef_) > 1e-9).sum()
        bic[point, column] = 150 * np.log(error) + np.log(150) * num_weights
        aic[point, column] = 150 * np.log(error) + 2 * num_weights
    best = bic.argmin(axis=0)
    assert (best != aic.argmin(axis=0)).any()
    assert {0, 11} < set(best)
    part, _ = lasso_problem(masks, margins)
    choice = choose_on_path(part, ratios, l1_ratio, 150, None)
    np.testing.assert_allclose(choice.alphas, largest * ratios[best], rtol=1e-6)
    np.testing.assert_allclose(choice.scores, bic.min(axis=0), rtol=1e-3, atol=0.05)  # of points near the solution
    assert choice.at_edge.tolist() == [at in (0, 11) for at in best]


def test_fewer_masks_than_components_converge_too() -> None:
    """Momentum that is restarted when it overshoots: some hundred steps, where plain steps take tens of thousands."""
    masks, margins = problem(100, 150, num_examples=8)
    part, _ = lasso_problem(masks, margins)
    assert part.extremes[0] < 1e-12
    alphas = largest_alphas(part, 1.0) * 1e-3
    solution = lasso.solve(part, alphas, 1.0, torch.zeros_like(part.cross), 1e-6)
    assert solution.num_steps < 5000
    assert float(lasso.exact_gaps(part, solution.weights, alphas, 1.0).max()) <= 1e-6
    choice = choose_on_path(part, np.geomspace(1.0, 1e-3, 8), 1.0, 100, None)  # its end is beyond float32
    assert torch.isfinite(choice.scores).all()


@pytest.mark.parametrize("backend", ["torch", "sklearn"])
@pytest.mark.parametrize("l1_ratio", [1.0, 0.4])
@pytest.mark.parametrize("alpha", [None, 0.03])
def test_the_unit_of_the_margins_does_not_matter(
    backend: str, l1_ratio: float, alpha: float | None, tmp_path: Path
) -> None:
    """Scikit-learn's solution for margins in units of their standard deviation, brought back; offsets are 100 of it."""
    masks, margins = problem(120, 10)
    found = {}
    for unit in (1.0, 1e-30, 1e18, 1e30):
        run = run_of(tmp_path / f"{unit}", masks, (margins.astype(float) * unit).astype(np.float32), per_block=2)
        options = {"regularisation": alpha, "l1_ratio": l1_ratio, "tolerance": 1e-11, "backend": backend}
        found[unit] = fitted(run, method="lasso", **options), "coar_lasso" if l1_ratio == 1.0 else "coar_elastic_net"
    reader, method = found[1.0]
    alphas = reader.quality(method=method)["regularisation"]
    y = margins.astype(float) / margins.astype(float).std(axis=0)
    for column, chosen in enumerate(alphas if alpha is None else [alpha] * 5):
        model = ElasticNet(alpha=chosen, l1_ratio=l1_ratio, tol=1e-12, max_iter=200_000).fit(masks, y[:, column])
        unit = margins[:, column].astype(float).std()
        np.testing.assert_allclose(reader.weights([column], method=method)[0], model.coef_ * unit, atol=1e-5 * unit)
        assert reader.intercepts([column], method=method)[0] == pytest.approx(model.intercept_ * unit, rel=1e-6)
    for unit, (other, _) in found.items():
        np.testing.assert_allclose(other.weights(method=method) / unit, reader.weights(method=method), atol=1e-4)
        np.testing.assert_allclose(other.intercepts(method=method) / unit, reader.intercepts(method=method), rtol=1e-5)
        for name, values in reader.quality(method=method).items():
            np.testing.assert_allclose(other.quality(method=method)[name], values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-25, 1e20])
def test_what_overflows_has_not_converged(unit: float) -> None:
    """In float32, of margins that are not in units of their standard deviation; float64 then solves them."""
    masks, margins = problem(100, 12)
    part, _ = lasso_problem(masks, margins)
    scaled = LassoProblem(part.gram, part.extremes, part.cross * unit, part.squares * unit**2)
    rough, start = scaled.to(torch.float32), torch.zeros_like(part.cross)
    alphas = largest_alphas(scaled, 1.0) / 10
    assert (lasso.iterate(rough, alphas, 1.0, start, 1e-4, 30).gaps > 1e-4).all()
    assert (lasso.exact_gaps(scaled, start + torch.nan, alphas, 1.0) == torch.inf).all()
    ratios = np.geomspace(1.0, 1e-2, 5)
    choice, exact = (choose_on_path(whole, ratios, 1.0, 100, None) for whole in (part, scaled))
    np.testing.assert_allclose(exact.alphas / unit, choice.alphas, rtol=1e-6)
    np.testing.assert_allclose(exact.weights / unit, choice.weights, atol=0.05)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e200])
def test_weights_that_are_no_solution_do_not_pass(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, margins = problem(60, 9)
    part, _ = lasso_problem(masks, margins)
    target = LassoTarget(part, largest_alphas(part, 1.0), 1.0, torch.zeros_like(part.cross), 1e-6)
    monkeypatch.setitem(LASSO_BACKENDS, "sklearn", lambda *_: torch.full_like(part.cross, wrong))
    with pytest.raises(ConvergenceError, match="backend='sklearn' gives lasso weights that are not finite"):
        lasso_weights("sklearn", None, target)
