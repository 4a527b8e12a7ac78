"""The ceiling against functions whose degrees are known, against loops, and in a run."""

from __future__ import annotations

import io
import re
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig, Config, EvaluationConfig, RunConfig
from coar_dist.designs.independent import Bernoulli, Correlated
from coar_dist.designs.subsets import FixedSize
from coar_dist.errors import MissingWorkError, RunMismatchError
from coar_dist.evaluation import ceiling
from coar_dist.evaluation.ceiling import NUM_GROUPS, Pairs, Shares, linear_shares, mean_correlation, stability_bounds
from coar_dist.report.numbers import number
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.reader import RunReader
from tests.models import small_task
from tests.small_run import files_of, without_ray

ALPHA, COMPONENTS, RHO = 0.1, 60, 0.3
STEP = np.sqrt(ALPHA * (1 - ALPHA))
Values = NDArray[np.float64]


class World:
    """Functions with an offset and parts of degree 1 to 3, whose share of the best linear model is exact."""

    def __init__(self, num_examples: int, degrees: tuple[float, float, float] = (0.6, 0.25, 0.15)) -> None:
        random = np.random.default_rng(0)
        self.sets = [
            np.array([sorted(random.choice(COMPONENTS, degree, replace=False)) for _ in range(80)]).reshape(80, degree)
            for degree in (1, 2, 3)
        ]
        self.sets = [np.unique(sets, axis=0) for sets in self.sets]
        self.coefficients = []
        self.weight = random.dirichlet(20 * np.array(degrees) + 1e-9, size=num_examples) * random.gamma(
            5.0, size=(num_examples, 1)
        )
        for part, sets in enumerate(self.sets):
            values = random.normal(size=(num_examples, len(sets)))
            values *= np.sqrt(self.weight[:, part] / (values**2).sum(1))[:, None]
            self.coefficients.append(values)
        self.shares = self.weight[:, 0] / self.weight.sum(1)
        self.linear = np.zeros((num_examples, COMPONENTS))
        self.linear[:, self.sets[0][:, 0]] = self.coefficients[0] / STEP

    def __call__(self, masks: NDArray[np.bool_]) -> Values:
        phi = (masks - (1 - ALPHA)) / STEP
        parts = zip(self.sets, self.coefficients, strict=True)
        return np.asarray(300.0 + sum(phi[:, sets].prod(2) @ coefficients.T for sets, coefficients in parts))


def designs(num_masks: int, num_pairs: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    masks = Bernoulli(COMPONENTS, num_masks, ALPHA, seed).masks(0, num_masks)
    return masks, Correlated(COMPONENTS, num_pairs, ALPHA, seed, correlation=RHO).masks(0, num_pairs)


def slow_share(
    masks: NDArray[np.bool_],
    outputs: Values,
    weights: Values,
    partners: NDArray[np.bool_],
    of_partners: Values,
    without_group: int | None = None,
) -> float:
    """One example's share, pair by pair, in float64; without a group of masks, around the centre of all of them."""
    rows = [(i, *row) for i, row in enumerate(zip(masks, outputs, strict=True))]
    rows += [(i, *row) for i, row in enumerate(zip(partners, of_partners, strict=True))]
    values = np.array([output for _, _, output in rows])
    residuals = values - np.array([mask @ weights for _, mask, _ in rows])
    residuals -= residuals.mean()
    phi = [(mask - (1 - ALPHA)) / STEP for _, mask, _ in rows]
    used = [at for at, (number, _, _) in enumerate(rows) if number % NUM_GROUPS != without_group]
    products = [
        residuals[a] * residuals[b] * (phi[a] @ phi[b]) for a, b in combinations(used, 2) if rows[a][0] != rows[b][0]
    ]
    size = len(rows)
    kept = 1 - 2 * (1 + RHO * 2 * len(partners) / size) / size + 2 / size**2
    first_degree = np.mean(products) / kept
    return float(1 - (residuals[used].var(ddof=1) - first_degree) / values[used].var(ddof=1))


@pytest.mark.parametrize("num_pairs", [0, 44])
def test_products_of_all_pairs_are_a_loop_s(num_pairs: int) -> None:
    world = World(7)
    masks, partners = designs(50, num_pairs, seed=1)
    weights = world.linear + np.random.default_rng(2).normal(size=world.linear.shape)
    pairs = Pairs(RHO, partners, world(partners)) if num_pairs else None
    found = linear_shares(masks, world(masks), ALPHA, weights, pairs)
    outputs, of_partners = world(masks), world(partners)
    for z in range(7):
        slow = slow_share(masks, outputs[:, z], weights[z], partners, of_partners[:, z])
        np.testing.assert_allclose(found.share[z], slow, rtol=1e-5)
    joined = Shares.join(
        [
            linear_shares(
                masks, outputs[:, rows], ALPHA, weights[rows], pairs and Pairs(RHO, partners, of_partners[:, rows])
            )
            for rows in (slice(3), slice(3, 7))
        ]
    )
    for name in ("share", "without", "double", "products"):
        np.testing.assert_allclose(getattr(joined, name), getattr(found, name), rtol=1e-4, atol=1e-9)
    for group in (3, NUM_GROUPS - 1):
        slow = slow_share(masks, outputs[:, 0], weights[0], partners, of_partners[:, 0], group)
        np.testing.assert_allclose(found.without[group, 0], slow, rtol=1e-5)


@pytest.mark.parametrize("without_group", [None, 3])
def test_bounds_are_those_of_an_unbiased_covariance(without_group: int | None) -> None:
    """Of few pairs: products of what is not paired tell the square of the mean without bias."""
    world = World(7)
    masks, partners = designs(44, 44, seed=1)
    values = np.stack([world(masks), world(partners)])  # (2, pairs, examples)
    bounds = stability_bounds(masks, values[0], Pairs(RHO, partners, values[1]))
    used = np.flatnonzero(np.arange(44) % NUM_GROUPS != without_group)
    rows = values[:, used] - values.mean((0, 1))
    paired = (rows[0] * rows[1]).mean(0)
    apart = [rows[s, i] * rows[t, j] for i, j in permutations(range(len(used)), 2) for s in (0, 1) for t in (0, 1)]
    variance = values[:, used].reshape(-1, 7).var(axis=0, ddof=1)
    if without_group is None:
        covariance, tolerance = paired - np.mean(apart, axis=0), 2e-3
    else:  # around the centre of all masks, whose variance was taken away
        covariance, tolerance = paired + (variance + paired) / (2 * 44), 1e-9
    upper = covariance / RHO / variance
    lower = (upper - RHO) / (1 - RHO)
    for bound, expected in zip(bounds, (lower, upper), strict=True):
        found = bound.share if without_group is None else bound.without[without_group]
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_what_stems_from_products_of_two_groups_is_told_from_what_stems_from_each() -> None:
    """The variance of a sum over ordered pairs, 4 per pair that is added twice; effects of groups are left out."""
    random = np.random.default_rng(0)
    effects = random.normal(size=(500, NUM_GROUPS))
    noise = 0.3 * random.normal(size=(500, NUM_GROUPS, NUM_GROUPS))
    noise = np.triu(noise, 1) + np.triu(noise, 1).transpose(0, 2, 1)
    of_groups = 7.0 + effects[:, :, None] + effects[:, None, :]
    np.testing.assert_allclose(ceiling._double(of_groups), 0.0, atol=1e-20)
    expected = 4 * 0.3**2 * NUM_GROUPS**2 / 2  # as if a group were paired with itself, too: as the jackknife counts
    assert ceiling._double(of_groups + noise).mean() == pytest.approx(expected, rel=0.01)
    assert (noise.sum((1, 2)) ** 2).mean() == pytest.approx(expected, rel=0.2)  # 3 standard errors of 500 sums


def test_shares_are_drawn_together_by_the_share_of_their_spread_that_noise_explains() -> None:
    """By hand: shares .2, .4, .6 and .8 have variance .05; noise of a jackknife variance of .018 leaves .8 of it."""
    share = np.array([0.2, 0.4, 0.6, 0.8])
    alternating = np.where(np.arange(NUM_GROUPS) % 2 == 0, 1.0, -1.0)[:, None]
    own = np.sqrt(0.018 / (NUM_GROUPS - 1)) * np.array([1.0, -1.0, 1.0, -1.0])  # which no mean over examples shows
    common = 0.01
    nothing = np.zeros(4), np.zeros((NUM_GROUPS, NUM_GROUPS))
    shares = Shares(share, share + alternating * (own + common), *nothing)
    mean, error, correlations = mean_correlation(shares)
    drawn = np.sqrt(1 - 0.018 / 0.05)
    assert drawn == pytest.approx(0.8)
    np.testing.assert_allclose(correlations, np.sqrt([0.26, 0.42, 0.58, 0.74]), rtol=1e-12)
    assert mean == pytest.approx(np.sqrt([0.26, 0.42, 0.58, 0.74]).mean(), rel=1e-12)
    estimates = []
    for sign in (1.0, -1.0):
        values = share + sign * (own + common)
        estimates.append(np.sqrt(values.mean() + drawn * (values - values.mean())).mean())
    jackknife = (NUM_GROUPS - 1) / NUM_GROUPS * NUM_GROUPS * ((estimates[0] - estimates[1]) / 2) ** 2
    assert error == pytest.approx(np.sqrt(jackknife), rel=1e-9)
    half = Shares(share, shares.without, np.full(4, 0.005), nothing[1])  # counted twice, and so taken off
    drawn = np.sqrt(1 - 0.013 / 0.05)
    np.testing.assert_allclose(mean_correlation(half)[2], np.sqrt(0.5 + drawn * (share - 0.5)), rtol=1e-12)


@pytest.mark.parametrize("has_weights", [False, True])
def test_estimates_are_without_bias_and_know_their_error(has_weights: bool) -> None:
    """100 repetitions: the mean is the truth, the standard errors are the spread. Neither needs a good g."""
    world = World(12)
    truth = np.sqrt(world.shares).mean()
    random = np.random.default_rng(3)
    weights = world.linear + 0.4 * random.normal(size=world.linear.shape) / STEP / COMPONENTS**0.5
    found, errors, shares, bounds = [], [], [], []
    for seed in range(100):
        masks, partners = designs(300, 300, seed)
        outputs, pairs = world(masks), Pairs(RHO, partners, world(partners))
        of = weights if has_weights else None
        estimate = linear_shares(masks, outputs, ALPHA, of, pairs)
        mean, error, correlations = mean_correlation(estimate)
        assert correlations.mean() == pytest.approx(mean)
        found.append(mean)
        errors.append(error)
        shares.append(estimate.share.mean())
        bounds.append([bound.share.mean() for bound in stability_bounds(masks, outputs, pairs, of)])
    spread = np.std(found)
    assert np.mean(found) == pytest.approx(truth, abs=4 * spread / 10)
    assert np.mean(shares) == pytest.approx(world.shares.mean(), abs=4 * np.std(shares) / 10)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(
        spread, rel=0.2
    )  # 3 standard errors of the spread of 100
    # The bounds' own expectations are exact: W2 and W3 leak in with known coefficients.
    part = world.weight / world.weight.sum(1, keepdims=True)
    upper = (part @ [1.0, RHO, RHO**2]).mean()
    lower = (part @ [1.0, 0.0, (RHO**2 - RHO) / (1 - RHO)]).mean()
    for column, expected in enumerate((lower, upper)):
        values = np.array(bounds)[:, column]
        assert values.mean() == pytest.approx(expected, abs=4 * values.std() / 10)
    assert lower < world.shares.mean() < upper


@pytest.mark.parametrize("degrees", [(0.95, 0.03, 0.02), (0.02, 0.5, 0.48)], ids=["near 1", "near 0"])
def test_few_masks_do_not_pretend_to_know_a_ceiling_that_noise_carries_out_of_range(
    degrees: tuple[float, float, float],
) -> None:
    """Where all estimates are clipped they agree, which is no certainty: 40 masks, 100 repetitions."""
    world = World(12, degrees)
    truth, covered = np.sqrt(world.shares).mean(), 0
    for seed in range(100):
        masks, _ = designs(40, 0, seed)
        mean, error, _ = mean_correlation(linear_shares(masks, world(masks), ALPHA))
        assert error > 0.0 or mean == 0.0  # of shares that are below 0 by more than their noise
        assert error < 0.7
        covered += abs(mean - truth) <= 1.96 * error
    assert covered >= 80  # 70 to 83 without; some are missed as the root of a noisy share is too low


def test_a_better_g_means_a_smaller_error_alone() -> None:
    world = World(12)
    all_masks = [designs(300, 0, seed)[0] for seed in range(12)]
    without, good = (
        np.array([mean_correlation(linear_shares(masks, world(masks), ALPHA, of))[:2] for masks in all_masks])
        for of in (None, world.linear)
    )
    assert good[:, 1].mean() < 0.8 * without[:, 1].mean()
    assert good[:, 0].mean() == pytest.approx(without[:, 0].mean(), abs=3 * without[:, 1].mean() / 12**0.5)


def test_fixed_sizes_have_a_kernel_of_their_own() -> None:
    """Of few components, where it matters: the linear part by least squares over all subsets."""
    size, ablated, num_masks = 8, 2, 20_000
    every = np.ones((28, size), np.bool_)
    for row, subset in enumerate(combinations(range(size), ablated)):
        every[row, list(subset)] = False
    random = np.random.default_rng(0)
    values = every @ random.normal(size=(size, 3)) + 0.5 * random.normal(size=(28, 3)) + 40.0
    design = np.concatenate([np.ones((28, 1)), every], axis=1)
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    expected = 1 - left.var(0) / values.var(0)
    masks = FixedSize(size, num_masks, ablated / size, seed=0).masks(0, num_masks)
    row_of = {tuple(mask): row for row, mask in enumerate(every)}
    outputs = values[[row_of[tuple(mask)] for mask in masks]]
    found = linear_shares(masks, outputs, ablated / size, is_fixed_size=True)
    error = np.sqrt(found.without.var(0) * (NUM_GROUPS - 1))
    assert (np.abs(found.share - expected) < 4 * error).all()
    assert (error < 0.02).all()  # 1 / size, which another kernel would be wrong by, is .125


def test_what_noise_does_to_the_root_is_taken_away() -> None:
    """Shares that differ by noise alone: the mean root is the root of the mean."""
    random = np.random.default_rng(0)
    without = 0.5 + random.normal(size=(NUM_GROUPS, 2_000)) * 0.2 / NUM_GROUPS**0.5
    nothing = np.zeros(2_000), np.zeros((NUM_GROUPS, NUM_GROUPS))
    share = 0.5 + random.normal(size=2_000) * 0.2
    mean, _, correlations = mean_correlation(Shares(share, without, *nothing))
    assert np.sqrt(np.clip(share, 0, 1)).mean() < 0.5**0.5 - 0.01
    assert mean == pytest.approx(0.5**0.5, abs=0.006)
    assert correlations.std() < 0.05


def test_constant_outputs_have_no_ceiling() -> None:
    world = World(3)
    masks, partners = designs(60, 60, seed=0)
    outputs, of_partners = world(masks), world(partners)
    outputs[:, 1] = of_partners[:, 1] = 1234.567
    pairs = Pairs(RHO, partners, of_partners)
    for shares in (linear_shares(masks, outputs, ALPHA, None, pairs), *stability_bounds(masks, outputs, pairs)):
        mean, error, correlations = mean_correlation(shares)
        assert np.isnan(correlations).tolist() == [False, True, False]
        assert mean == pytest.approx(correlations[[0, 2]].mean())
        assert np.isfinite(error)
    mean, error, correlations = mean_correlation(linear_shares(masks, outputs[:, [1]], ALPHA))
    assert np.isnan([mean, error, *correlations]).all()


def small(root: Path, stages: tuple[str, ...] = ("ablate", "fit", "evaluate"), **evaluation: object) -> RunReader:
    task = small_task()
    held_out = EvaluationConfig(
        **{"num_masks": 60, "ablation_fractions": [0.2, 0.1], "seed": 7, "ceiling_pairs": 50, **evaluation}  # type: ignore[arg-type]
    )
    with without_ray():
        return coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=root,
            num_masks=150,
            ablation_fraction=0.2,
            stages=stages,
            evaluation=held_out,
            ablation=AblationConfig(
                masks_per_shard=8, mode="weights", rows_per_forward=7, compile=False, examples_per_block=4
            ),
            console=Console(file=io.StringIO()),
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    """A run with partners: read it, do not change it."""
    return small(tmp_path_factory.mktemp("ceiling") / "run")


def report_of(run: RunReader, stages: tuple[str, ...] = ("report",)) -> str:
    output = io.StringIO()
    config = Config(stages=list(stages), run=RunConfig(run.directory.storage.location))
    run_stages(config, Console(file=output, width=160))
    return output.getvalue()


def test_a_run_knows_its_ceiling(made: RunReader) -> None:
    found = made.ceiling()
    masks, margins = made.margins("evaluation_0.2")
    partners, of_partners = made.margins("ceiling_evaluation_0.2")
    pairs = Pairs(0.25, partners, of_partners)
    mean, error, correlations = mean_correlation(linear_shares(masks, margins, 0.2, made.weights(), pairs))
    np.testing.assert_allclose([found.mean, found.standard_error], [mean, error], rtol=1e-5)
    np.testing.assert_allclose(found.correlations, correlations, rtol=1e-5)
    lower, upper = stability_bounds(masks, margins, pairs, made.weights())
    np.testing.assert_allclose([found.lower, found.upper], [mean_correlation(x)[0] for x in (lower, upper)], rtol=1e-5)
    assert (found.num_masks, found.num_pairs, found.method) == (60, 50, "coar")
    elsewhere = made.ceiling("evaluation_0.1")
    assert elsewhere.num_pairs == 0
    assert np.isnan(elsewhere.lower)
    text = report_of(made)
    assert "Ceiling, linear" in text
    assert re.search(rf"Ceiling, linear +{number(found.mean)}±{number(1.96 * found.standard_error)} ", text)
    assert "Ceiling at 0.2 by noise stability, 50 pairs" in text
    with pytest.raises(MissingWorkError, match=r"no design 'evaluation_0\.3'"):
        made.ceiling("evaluation_0.3")


def test_an_interrupted_run_ends_in_the_same_bytes(made: RunReader, tmp_path: Path) -> None:
    root = tmp_path / "run"
    small(root, ceiling_pairs=0)  # partners come later, and the ceiling of the held-out masks alone gives way
    alone = coar_dist.open_run(root).ceiling()
    assert alone.num_pairs == 0
    small(root, stages=("ablate",))
    shards = sorted((root / "margins" / "ceiling_evaluation_0.2").iterdir())
    shards[2].unlink()
    shards[3].write_bytes(shards[3].read_bytes()[:-40])
    small(root)
    assert files_of(root) == files_of(Path(made.directory.storage.location))
    (root / "evaluation" / "ceiling.evaluation_0.2.parquet").unlink()
    with pytest.raises(MissingWorkError, match=r"ceiling\.evaluation_0\.2\.parquet is missing .* evaluate stage"):
        coar_dist.open_run(root).ceiling()
    report_of(coar_dist.open_run(root), ("evaluate",))
    assert files_of(root) == files_of(Path(made.directory.storage.location))


def test_partners_of_another_correlation_are_refused(made: RunReader) -> None:
    message = r"evaluation\.ceiling_correlation is 0\.5, but .* with 0\.25.*evaluation\.ceiling_correlation=0\.25"
    with pytest.raises(RunMismatchError, match=message):
        small(Path(made.directory.storage.location), ceiling_correlation=0.5)


@pytest.mark.parametrize(
    ("evaluation", "reason"),
    [
        ({"num_masks": 12}, "it takes 40 held-out masks, there are 12"),
        ({"kind": "balanced", "ablation_fractions": [0.2]}, "balanced masks are not independent"),
    ],
)
def test_where_there_is_none_the_report_says_why(tmp_path: Path, evaluation: dict[str, object], reason: str) -> None:
    run = small(tmp_path / "run", ceiling_pairs=0, **evaluation)
    assert reason in report_of(run)
    with pytest.raises(MissingWorkError, match=reason):
        run.ceiling()


def test_fixed_size_held_out_masks_have_one(tmp_path: Path) -> None:
    run = small(tmp_path / "run", ceiling_pairs=0, kind="fixed_size")
    masks, margins = run.margins("evaluation_0.2")  # 2 of 12 components
    shares = linear_shares(masks, margins, 2 / 12, run.weights(), is_fixed_size=True)
    assert run.ceiling().mean == pytest.approx(mean_correlation(shares)[0], rel=1e-5)
