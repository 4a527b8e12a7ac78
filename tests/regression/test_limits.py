"""Where one way of fitting ends and another begins, what is reported of a fit, and what each is by definition."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Ridge

from coar_dist.cluster.execution import in_this_process
from coar_dist.config.schema import RegressionConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.designs.subsets import Balanced
from coar_dist.errors import CoarWarning, ConfigError, MissingWorkError
from coar_dist.regression import masks as masks_module
from coar_dist.regression import planning
from coar_dist.regression.fit import fit, solver_of
from coar_dist.regression.gate_prior import prior_variances, sampling_variances
from coar_dist.regression.gate_sources import GateSources, SourceStatistics
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import BlockMargins, Observations, Residuals
from coar_dist.regression.planning import gradient_plan, lasso_plan, ridge_plan
from coar_dist.regression.shared import SharedFactor
from coar_dist.regression.sizes import choose_solver
from coar_dist.store.reader import RunReader
from coar_dist.store.tables import AttributionTable
from tests.regression import test_gradient_ridge as gradients
from tests.regression.problems import packed, problem, projected
from tests.regression.test_fit import run_of
from tests.regression.test_gradient_ridge import BALANCED, EXAMPLES, World


@pytest.mark.parametrize(
    ("num_masks", "num_components", "gigabytes", "solver"),
    [
        # 19 MB of masks x masks are 8 when masks are left out: their 8 MB, and work space of 34; 0.25 MB of masks.
        (1000, 2000, 0.04981, "dual"),
        (1000, 2000, 0.04980, "iterative"),
        (4999, 5000, 0.479, "dual"),
        (4999, 5000, 0.441, "primal"),  # 437.5 MB of components x components, 3.1 MB of masks
        (2000, 2000, 1.0, "primal"),
        (9000, 5000, 0.4432, "primal"),  # 437.5 MB of components x components, 5.6 MB of masks
        (9000, 5000, 0.4431, "iterative"),
    ],
)
def test_the_solver_is_the_cheapest_that_fits(
    num_masks: int, num_components: int, gigabytes: float, solver: str
) -> None:
    assert choose_solver(num_masks, num_components, gigabytes * 1e9)[0] == solver


def test_the_sizes_of_solvers_are_said() -> None:
    said = choose_solver(1000, 2000, 16e9)[1]
    assert said == "1000 masks, 2000 components; primal 0.08 GB, dual 0.05 GB, regression.memory_gb=16"


@pytest.mark.parametrize(("solver", "used"), [("dual", "factorise_dual"), ("primal", "factorise")])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_plan_factorises_what_it_is_told_to(
    solver: str, used: str, with_gradients: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either gives the same weights; the memory it takes is another."""
    calls = []
    for name in ("factorise", "factorise_dual"):
        function = getattr(planning, name)
        monkeypatch.setattr(planning, name, lambda *given, _f=function, _n=name: (calls.append(_n), _f(*given))[1])
    run, config = gradients.run_of(tmp_path, World()), RegressionConfig()
    sources = GateSources(tuple(run.gradients("gradients")), None)
    observations = Observations(run.margins("train"), sources.gradients if with_gradients else ())
    if with_gradients:
        gradient_plan(observations, sources, config, solver, "torch", in_this_process)
    else:
        ridge_plan(observations, config, solver, "torch", in_this_process)
    assert set(calls) == {used}


def test_a_solver_that_cannot_do_without_a_factorisation_is_refused(tmp_path: Path) -> None:
    masks, margins = problem(num_masks=40, num_components=30)
    with pytest.raises(ConfigError, match=r"backend='sklearn' needs a factorisation"):
        fit(run_of(tmp_path, masks, margins), RegressionConfig(backend="sklearn", memory_gb=1e-6), lambda _: None)


@pytest.mark.parametrize("num_masks", [1, 2])
def test_a_regression_takes_two_masks(num_masks: int, tmp_path: Path) -> None:
    masks, margins = np.eye(2, dtype=bool)[:num_masks], np.array([[3.0], [7.0]], np.float32)[:num_masks]
    run = run_of(tmp_path, masks, margins)
    few = contextlib.nullcontext() if num_masks == 2 else pytest.raises(MissingWorkError, match="there are 1")
    with few:
        fit(run, RegressionConfig(regularisation=0.5), lambda _: None)
        expected = Ridge(alpha=0.5).fit(masks.astype(float), margins).coef_
        np.testing.assert_allclose(RunReader(run).weights(), expected.reshape(1, 2), rtol=1e-6)


@pytest.mark.parametrize(
    ("num_masks", "options", "message"),
    [
        (30, {"selection": "bic"}, "'bic' cannot judge 30 masks of 30 components"),
        (31, {"selection": "bic"}, None),
        (30, {"selection": "bic", "regularisation": 0.1}, None),
        (40, {"memory_gb": (28 * 30**2 + 150) / 1e9}, None),
        (40, {"memory_gb": (28 * 30**2 + 149) / 1e9}, r"of 30 components, 2\.5e-05 GB with its copies"),
        (40, {"held_out_fraction": 0.05}, None),  # 2 of 40
        (40, {"held_out_fraction": 0.03}, "leaves fewer than 2"),
        (40, {"held_out_fraction": 0.95}, None),  # all but 2
        (40, {"held_out_fraction": 0.97}, "leaves fewer than 2"),
        (40, {"held_out_fraction": 0.97, "regularisation": 0.1}, None),
        (40, {"held_out_fraction": 0.97, "selection": "bic"}, None),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:nothing can be said")
def test_what_the_lasso_can_be_asked_for(
    num_masks: int, options: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    masks, margins = problem(num_masks=num_masks, num_components=30)
    store, config = run_of(tmp_path, masks, margins).margins("train"), RegressionConfig(method="lasso", **options)
    refused = pytest.raises((ConfigError, MissingWorkError), match=message)
    with contextlib.nullcontext() if message is None else refused:
        solver_of(Observations(store), config)
        plan = lasso_plan(store, config, "torch", in_this_process)
        held_out = plan.statistics.read().held_out
        num_held = 0 if held_out is None else held_out.num_masks
        assert plan.num_held_out == num_held
        is_chosen_by_them = "regularisation" not in options and "selection" not in options
        assert num_held == (round(num_masks * options.get("held_out_fraction", 0.1)) if is_chosen_by_them else 0)
        assert (plan.ratios is None) == ("regularisation" in options)


@pytest.mark.parametrize("options", [{}, {"regularisation": 3.0}, {"memory_gb": 1e-6, "tolerance": 1e-10}])
@pytest.mark.parametrize(("num_masks", "num_components"), [(130, 12), (40, 60), (31, 8)])
def test_r2_is_the_share_that_is_explained_and_r2_new_that_of_masks_left_out(
    num_masks: int, num_components: int, options: dict[str, Any], tmp_path: Path
) -> None:
    masks, margins = problem(num_masks, num_components)
    run = run_of(tmp_path, masks, margins, per_block=3)
    fit(run, RegressionConfig(**options), lambda _: None)
    parts = [AttributionTable(run, "coar").read_quality(block) for block in ((0, 3), (3, 5))]
    found = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
    x, y = masks - masks.mean(axis=0), margins.astype(float) - margins.astype(float).mean(axis=0)
    errors = np.full_like(y, np.nan)
    is_known = num_masks >= 32 and "memory_gb" not in options
    for column, penalty in enumerate(found["regularisation"]):
        hat = x @ np.linalg.solve(x.T @ x + penalty * np.eye(num_components), x.T)
        residual = y[:, column] - hat @ y[:, column]
        assert found["r2"][column] == pytest.approx(1 - (residual**2).sum() / (y[:, column] ** 2).sum(), abs=1e-6)
        errors[:, column] = (residual / (1 - np.diag(hat) - 1 / num_masks)) ** 2 / y[:, column].var(ddof=1)
    if is_known:
        squares, influences = y**2 / y.var(axis=0, ddof=1), 0.0
        for block in (slice(0, 3), slice(3, 5)):
            of_block, own = squares[:, block].mean(axis=1), errors[:, block].mean(axis=1)
            slope = np.polyfit(of_block, own, 1)[0]
            expected = 1 - errors[:, block].mean(axis=0)  # all masks are left out, so that nothing is corrected
            np.testing.assert_allclose(found["r2_new"][block], expected, atol=1e-6)
            influences += (own - slope * of_block) * (block.stop - block.start)
        groups = np.array([influences[group::16].mean() for group in range(16)]) / 5 * max(1, 128 / num_masks)
        assert RunReader(run).r2_new_error() == pytest.approx(groups.std(ddof=1) / 4, rel=1e-5)
    else:
        assert np.isnan(found["r2_new"]).all()
        assert np.isnan(RunReader(run).r2_new_error())
    is_told = RunReader(run).r2_new_error() <= 0.015
    assert np.isfinite(RunReader(run).quality()["r2_new"]).tolist() == [is_told] * 5


@pytest.mark.parametrize(("num_masks", "is_told"), [(60, False), (600, True)])
def test_r2_on_new_masks_is_told_where_its_mean_is_known_to_015(num_masks: int, is_told: bool, tmp_path: Path) -> None:
    masks, margins = problem(num_masks + 3000, 12)
    run = run_of(tmp_path, masks[:num_masks], margins[:num_masks], per_block=1)
    fit(run, RegressionConfig(), lambda _: None)
    reader = RunReader(run)
    assert (reader.r2_new_error() <= 0.015) == is_told
    assert np.isfinite(reader.quality()["r2_new"]).tolist() == [is_told] * 5
    assert np.isfinite(reader.quality([2])["r2_new"]).tolist() == [is_told]
    if is_told:
        errors = reader.predict(masks[num_masks:]) - margins[num_masks:]
        real = 1 - (errors**2).mean(axis=0) / margins[num_masks:].var(axis=0)
        assert reader.quality()["r2_new"].mean() == pytest.approx(real.mean(), abs=0.03)


@pytest.mark.filterwarnings("ignore:.*chose a penalty at an end")
@pytest.mark.parametrize("l1_ratio", [1.0, 0.5])
def test_r2_of_the_lasso_is_that_of_the_masks_it_has_and_has_not_seen(l1_ratio: float, tmp_path: Path) -> None:
    """Of new masks: what one half of those held out makes of the point that is best on the other half."""
    masks, margins = problem(400, 8, kind="bernoulli")
    run = run_of(tmp_path, masks, margins, per_block=5)
    config = RegressionConfig(
        method="lasso",
        l1_ratio=l1_ratio,
        held_out_fraction=0.5,
        tolerance=1e-9,
        num_penalties=6,
        penalty_range=[0.1, 1],
    )
    fit(run, config, lambda _: None)
    found, _ = AttributionTable(run, "coar_lasso" if l1_ratio == 1.0 else "coar_elastic_net").read_quality((0, 5))
    x, y = masks.astype(float), margins / margins.std(axis=0, dtype=float)
    errors = np.empty((6, 200, 5))
    for column, alpha in enumerate(found["regularisation"]):
        model = ElasticNet(alpha=alpha, l1_ratio=l1_ratio, tol=1e-12, max_iter=100_000)
        whole = model.fit(x, y[:, column]).score(x, y[:, column])
        assert found["r2"][column] == pytest.approx(whole, abs=1e-6)
        about = x[:200] - x[:200].mean(axis=0)
        largest = abs(about.T @ (y[:200, column] - y[:200, column].mean())).max() / 200 / l1_ratio
        for point, ratio in enumerate(np.geomspace(1, 0.1, 6)):
            model.set_params(alpha=largest * ratio).fit(x[:200], y[:200, column])
            errors[point, :, column] = (model.predict(x[200:]) - y[200:, column]) ** 2
    crossed = np.empty((200, 5))
    for half, column in itertools.product((0, 1), range(5)):
        best = errors[:, half::2, column].mean(axis=1).argmin()
        crossed[1 - half :: 2, column] = errors[best, 1 - half :: 2, column]
    deviations = (y[200:] - y.mean(axis=0)) ** 2
    slope = np.polyfit(deviations.mean(axis=1), crossed.mean(axis=1), 1)[0]
    expected = 1 - (crossed.mean(axis=0) - slope * (deviations.mean(axis=0) - 1)) / (400 / 399)
    np.testing.assert_allclose(found["r2_new"], expected, atol=2e-3)
    assert 0.1 < expected.mean() < 0.99


@pytest.mark.parametrize(("tenth", "is_said"), [(1, False), (2, True)])
def test_ends_of_the_grid_are_said_where_more_than_a_tenth_choose_them(
    tenth: int, is_said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, margins = problem(num_examples=10)
    run = run_of(tmp_path, masks, margins, per_block=10)
    monkeypatch.setattr("coar_dist.regression.plans._at_edge", lambda *_: tenth)
    config = RegressionConfig(penalty_range=[0.1, 10.0])
    with pytest.warns(CoarWarning, match=rf"^{tenth} of 10") if is_said else contextlib.nullcontext():
        fit(run, config, lambda _: None)


@pytest.mark.parametrize(("factor", "is_said"), [(1.9, False), (2.1, True)])
def test_a_gap_is_said_where_it_is_twice_what_was_asked_for(
    factor: float, is_said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library measures its own gap otherwise."""
    masks, margins = problem(num_examples=3)
    gaps = torch.tensor([0.0, factor * 1e-3, 1e-4], dtype=torch.float64)
    monkeypatch.setattr("coar_dist.regression.backends.exact_gaps", lambda *_: gaps)
    config = RegressionConfig(method="lasso", backend="sklearn", regularisation=0.1, tolerance=1e-3)
    said = pytest.warns(CoarWarning, match=r"^sklearn left a duality gap of 2\.1e-03, .*tolerance=0\.001 was asked")
    with said if is_said else contextlib.nullcontext():
        fit(run_of(tmp_path, masks, margins), config, lambda _: None)


def constant_at(example: int) -> Callable[[World], World]:
    def change(world: World) -> World:
        world.weights[example], world.pairs[example] = 0.0, 0.0
        return world

    return change


def test_an_example_with_constant_margins_leaves_the_prior_of_the_others(tmp_path: Path) -> None:
    """It has gradients, of noise, all the same."""
    run = gradients.run_of(tmp_path, constant_at(5)(World()))
    with pytest.warns(CoarWarning, match=f"same margin under every mask: 1 of {EXAMPLES}"):
        fit(run, RegressionConfig(), lambda _: None)
    sources = GateSources(tuple(run.gradients("gradients")), None)
    found = RunReader(run).quality(method="gradient_ridge")
    assert np.isnan(found["r2"]).nonzero()[0].tolist() == [5]
    observations = Observations(run.margins("train"), sources.gradients)
    design = observations.packed_masks().design
    parts = [gradients.statistics_of(observations, sources, design, block)[0] for block in ((0, 4), (4, 8), (8, 11))]
    assert all(np.isfinite(part.products).all() and part.products.max() < 1e3 for part in parts)


def test_statistics_of_the_prior_s_sources_are_their_definitions(tmp_path: Path) -> None:
    world = World()
    run = gradients.run_of(tmp_path, world, plain=40, loo=False)
    sources = GateSources(tuple(run.gradients("gradients")), None)
    observations = Observations(run.margins("train"), sources.gradients)
    masks = np.concatenate(list(observations.packed_masks().rows(16)))
    y = world.margins(masks).astype(float)[:, 4:8]
    yc, xc = y - y.mean(axis=0), masks - masks.mean(axis=0)
    found, sampled = gradients.statistics_of(observations, sources, observations.packed_masks().design, (4, 8))
    values = [source.astype(float) for source in sources.read((4, 8)).values]
    predicted, sizes = [xc @ source.T for source in values], (yc**2).sum(axis=0)
    np.testing.assert_allclose(sampled.margins, (y - y[0])[:, 1:3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sampled.squares, sizes[1:3], rtol=1e-5)
    left = (y - y[0] - 0.3 * predicted[0] + 0.2 * predicted[1])[:, 1:3]
    np.testing.assert_allclose(sampled.residuals(np.array([0.3, -0.2])), left, rtol=1e-5, atol=1e-5)
    products = [[((a * b).sum(axis=0) / sizes).sum() for b in predicted] for a in predicted]
    np.testing.assert_allclose(found.products, products, rtol=1e-12)
    np.testing.assert_allclose(found.cross, [((a * yc).sum(axis=0) / sizes).sum() for a in predicted], rtol=1e-11)
    np.testing.assert_allclose(found.sizes, [[(a * b).sum(axis=0) for b in values] for a in values], rtol=1e-12)
    assert found.variance == pytest.approx(y.var(axis=0).sum(), rel=1e-12)
    assert (found.num_examples, found.mean_variance) == (4, pytest.approx(y.var(axis=0).mean(), rel=1e-12))
    both = found + found
    for name, value in vars(found).items():
        expected = value if name in ("counts", "known") else 2 * value
        np.testing.assert_array_equal(getattr(both, name), expected, name)


@pytest.mark.parametrize("case", ["all", "some", "none", "no noise", "no size"])
def test_prior_variances_are_those_of_the_gradients_and_wide_without(case: str) -> None:
    random = np.random.default_rng(0)
    known = {"some": np.arange(6) < 4, "none": np.zeros(6, np.bool_)}.get(case, np.ones(6, np.bool_))
    counts = np.array([[8.0, 8, 8, 8, 10, 0], [2.0, 2, 2, 2, 0, 10]])
    within, sizes = random.random(6), random.random((2, 2, 6))
    within[~known] = sizes[:, :, ~known] = 0.0
    within, sizes = within * (case != "no noise"), sizes * (case != "no size")
    statistics = SourceStatistics(np.eye(2), np.ones(2), sizes, within, counts, 1.0, 3, known)
    b = np.array([0.7, 0.2])
    freedom = np.array([8, 8, 8, 8, 9, 9]) * 3
    noise = within / freedom * (0.49 / np.maximum(counts[0], 1) + 0.04 / np.maximum(counts[1], 1))
    size = sum(b[i] * b[j] * sizes[i, j] for i in (0, 1) for j in (0, 1))
    if case == "none":
        expected = np.ones(6)
    else:
        parts = [part / part[known].mean() if part.any() else np.ones(6) for part in (noise, size)]
        variances = parts[0] + parts[1] + 0.02
        expected = np.where(known, variances, 10 * variances[known].mean())
        expected /= expected.mean()
    np.testing.assert_allclose(prior_variances(statistics, b), expected, rtol=1e-12)


def test_a_prior_mean_varies_less_where_every_component_is_ablated_equally_often() -> None:
    """A gate gradient that is linear in the masks: a + B'(x - mean), its means over kept and ablated masks."""
    random = np.random.default_rng(0)
    b, couplings = np.array([0.5, 0.6]), random.normal(size=(60, 60))
    np.fill_diagonal(couplings, 0.0)
    per_pass = (couplings**2).sum(axis=1) * 0.2 * 0.8
    for is_balanced in (True, False):
        errors = []
        for seed in range(1000):
            kind = Balanced(60, 20, 0.2, seed) if is_balanced else Bernoulli(60, 60, 0.2, seed)
            masks = kind.masks(0, kind.num_masks)
            gradients = (masks - 0.8) @ couplings.T
            ends = [(gradients * state).sum(axis=0) / state.sum(axis=0) for state in (masks, ~masks)]
            errors.append(b[0] * ends[0] + b[1] * ends[1])
        counts = np.array([[16.0] * 60, [4.0] * 60]) if is_balanced else np.array([[48.0] * 60, [12.0] * 60])
        if not is_balanced:
            counts[:, 0] += [1, -1]  # of other components as often, else they would count as balanced
        number = counts.sum(axis=0) - 2
        statistics = SourceStatistics(
            np.eye(2), np.ones(2), np.ones((2, 2, 60)), per_pass * number, counts, 1.0, 1, np.ones(60, np.bool_)
        )
        found = sampling_variances(statistics, b)
        np.testing.assert_allclose(found, np.var(errors, axis=0), rtol=0.3)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_masks_with_gradients_come_first_whatever_the_number_of_blocks(num_blocks: int, tmp_path: Path) -> None:
    run = gradients.run_of(tmp_path, World())
    stores = tuple(run.gradients("gradients"))[:num_blocks]
    observations = Observations(run.margins("train"), stores)
    whole = np.concatenate([BALANCED.masks(0, 20), gradients.BERNOULLI.masks(0, 40)])
    np.testing.assert_array_equal(np.concatenate(list(observations.packed_masks().rows(16))), whole)
    assert (observations.num_masks, observations.num_gradient_masks) == (60, 20)
    without = Observations(run.margins("train"))
    assert (without.num_masks, without.num_gradient_masks) == (40, 0)
    design = observations.packed_masks().design
    np.testing.assert_array_equal(design.kept, whole.sum(axis=0))
    block = observations.of_block((0, 4), observations.packed_masks())
    np.testing.assert_array_equal(block.whole(), World().margins(whole)[:, :4])
    for start, stop in ((0, 60), (5, 15), (15, 45), (20, 60), (30, 31)):
        parts = list(block.batches(start, stop))
        np.testing.assert_array_equal(np.concatenate([masks.on("cpu") for masks, _ in parts]), whole[start:stop])
        np.testing.assert_array_equal(
            np.concatenate([margins for _, margins in parts]), World().margins(whole[start:stop])[:, :4]
        )


def test_margins_less_a_prior_mean_keep_their_own_sum_of_squares(tmp_path: Path) -> None:
    masks, margins = problem(num_masks=70, num_examples=4)
    store = run_of(tmp_path, masks, margins, [0, 30, 70]).margins("train")
    mean = np.random.default_rng(1).normal(size=(4, masks.shape[1])).astype(np.float32)
    residuals = Residuals(BlockMargins((0, 4), packed(masks), store), mean, "cpu")
    read = list(residuals.batches())
    exact = margins.astype(float)[:, :4] - masks @ mean.T.astype(float)
    np.testing.assert_array_equal(np.concatenate([part.on("cpu") for part, _ in read]), masks)
    np.testing.assert_allclose(np.concatenate([part for _, part in read]), exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(residuals.whole(), exact, rtol=1e-12, atol=1e-12)
    y = margins.astype(float)[:, :4]
    np.testing.assert_allclose(residuals.squares(), ((y - y.mean(axis=0)) ** 2).sum(axis=0), 1e-9)


@pytest.mark.parametrize("regularisation", [None, 2.5])
def test_a_penalty_that_is_given_is_used_with_gradients_too(regularisation: float | None, tmp_path: Path) -> None:
    run = gradients.run_of(tmp_path, World())
    fit(run, RegressionConfig(regularisation=regularisation, shared_penalty=True), lambda _: None)
    penalties = np.unique(RunReader(run).quality(method="gradient_ridge")["regularisation"])
    assert len(penalties) == 1
    assert (penalties.tolist() == [2.5]) == (regularisation is not None)


@pytest.mark.parametrize("num_components", [5, 8, 16, 17, 40])
def test_packed_masks_are_unpacked_in_blocks(num_components: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "_VALUES_AT_ONCE", 16 * 1024)
    masks = np.random.default_rng(0).random((11, num_components)) < 0.7
    found: PackedMasks = packed(masks)
    columns = list(found.columns())
    assert [(part.start, part.stop) for part, _ in columns] == [
        (start, min(start + 16, num_components)) for start in range(0, num_components, 16)
    ]
    np.testing.assert_array_equal(np.concatenate([bits for _, bits in columns], axis=1), masks)
    for size in (1, 4, 11, 20):
        rows = list(found.rows(size))
        assert [len(part) for part in rows] == [size] * (11 // size) + ([11 % size] if 11 % size else [])
        np.testing.assert_array_equal(np.concatenate(rows), masks)
    np.testing.assert_array_equal(found.design.kept, masks.sum(axis=0))


def test_a_factor_travels_as_arrays() -> None:
    _, factor, _, _ = projected(*problem())
    for scale in (None, torch.arange(1.0, 13.0, dtype=torch.float64)):
        back = SharedFactor.of(replace(factor, scale=scale)).on("cpu")
        assert torch.equal(back.vectors, factor.vectors)
        assert torch.equal(back.values, factor.values)
        assert back.num_masks == factor.num_masks
        assert (back.scale is None) == (scale is None)
        rows = torch.ones(12, 2, dtype=torch.float64)
        expected = torch.ones(12, 2) if scale is None else torch.arange(1.0, 13.0)[:, None].expand(12, 2)
        assert torch.equal(back.scaled(rows), expected.double())
        assert torch.equal(back.scaled(rows[:, 0]), expected[:, 0].double())
