"""The regression with gradients, held to a dense float64 posterior that is written out here."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coar_dist.cluster.execution import in_this_process
from coar_dist.cluster.ray_tasks import on_cluster
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ClusterConfig, RegressionConfig
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Bernoulli
from coar_dist.designs.subsets import Balanced
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError, RunMismatchError
from coar_dist.regression.fit import fit, plan_passes
from coar_dist.regression.gate_sources import GateSources, SampledRows, SourceStatistics, source_statistics
from coar_dist.regression.observations import Observations
from coar_dist.regression.statistics import DesignStatistics
from coar_dist.store.gradients import GateGradients
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage

COMPONENTS, EXAMPLES, PER_BLOCK = 30, 11, 4
BERNOULLI = Bernoulli(COMPONENTS, 40, 0.2, 0)
BALANCED = Balanced(COMPONENTS, 20, 0.2, 7)
ALL_KNOWN = np.ones(COMPONENTS, np.bool_)


class World:
    """Margins with interactions, and gradients that see the weights through a bias and noise."""

    def __init__(self, informative: bool = True, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.weights = generator.normal(size=(EXAMPLES, COMPONENTS)) * np.linspace(0.1, 1.5, COMPONENTS) + 0.1
        self.pairs = generator.normal(size=(EXAMPLES, COMPONENTS, COMPONENTS)) * 0.08
        self._noise = generator.normal(size=(BALANCED.num_masks, EXAMPLES, COMPONENTS)) * np.linspace(
            0.1, 1, COMPONENTS
        )
        self._informative = informative

    def margins(self, masks: Any) -> Any:
        x = masks.astype(float)
        interactions = np.einsum("mc,ncd,md->mn", x - 0.8, self.pairs, x - 0.8)
        return (x @ self.weights.T + interactions + 50.0).astype(np.float32)

    def gradients(self, masks: Any) -> Any:
        """(m, n, d): of the kept ones .6, of the ablated ones 1.3 times the weight, with noise."""
        ends = np.where(masks[:, None, :], 0.6, 1.3) * self.weights if self._informative else 0.0
        return (ends + self._noise[: len(masks)] + 0.02).astype(np.float32)


def run_of(
    root: Path,
    world: World,
    plain: int = 40,
    cuts: tuple[int, ...] = (0, 10, 20),
    loo: bool = False,
    known: NDArray[np.bool_] = ALL_KNOWN,
) -> RunDirectory:
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, COMPONENTS),))
    identity = {"ablation.examples_per_block": PER_BLOCK, "ablation.margins_dtype": "float32"}
    run = RunDirectory.create(local_storage(root), identity, components, EXAMPLES)
    designs = {
        "train": RunDesign("train", Bernoulli(COMPONENTS, plain, 0.2, 0)),
        "gradients": RunDesign("gradients", BALANCED),
    }
    if loo:
        designs["leave_one_out"] = RunDesign("baseline", LeaveOneOut.of(COMPONENTS))
    run.set_designs(designs)
    if plain:
        masks = BERNOULLI.masks(0, plain)
        run.margins("train").write(0, masks, world.margins(masks), {})
    for store in run.gradients("gradients"):
        examples = slice(*store.block)
        for start, stop in pairwise(cuts):
            masks = BALANCED.masks(start, stop)
            g = world.gradients(BALANCED.masks(0, 20))[start:stop, examples]
            kept = masks[:, None, :]
            parts = [np.where(state, g, 0).sum(axis=0) for state in (kept, ~kept)]
            squares = [np.where(state, g.astype(float) ** 2, 0).sum(axis=(0, 1)) for state in (kept, ~kept)]
            parts = [np.where(known, part, 0) for part in parts]
            squares = [np.where(known, part, 0) for part in squares]
            gradients = GateGradients(world.margins(masks)[:, examples], *parts, *squares, known)
            store.write(start, masks, gradients, {})
    if loo:
        table = AttributionTable(run, "leave_one_out")
        for block in run.margins("train").blocks:
            weights = (world.weights[slice(*block)] * 0.9).astype(np.float32)
            table.write(block, {}, Attributions.of_weights(weights, np.zeros(len(weights))))
    return run


@dataclass(frozen=True)
class Posterior:
    """What one prior makes of the margins.

    Attributes:
        error: of all examples together, each relative to its margins' variance: on masks without gradients left out in
            turn, or where they are fewer than 32 by generalised cross-validation.
        penalty: residual variance over prior variance.
        weights: (n, d).
        intercepts: (n,).
        deviations: posterior standard deviations of the weights (n, d), with those of the prior mean; NaN with fewer.
        r2_new: (n,).
    """

    error: float
    penalty: float
    weights: Any
    intercepts: Any
    deviations: Any
    r2_new: Any


def posteriors(world: World, plain: int, loo: bool) -> list[Posterior]:
    """In float64, from the definitions: with the mean and variances of the prior, and without either, at the best of
    the penalties of the default grid."""
    gradient_masks = BALANCED.masks(0, 20)
    masks = np.concatenate([gradient_masks, BERNOULLI.masks(0, plain)])
    y = world.margins(masks).astype(float)
    yc, x = y - y.mean(axis=0), masks.astype(float)
    xc = x - x.mean(axis=0)
    g = world.gradients(gradient_masks).astype(float)
    counts = np.array([gradient_masks.sum(axis=0), (~gradient_masks).sum(axis=0)])
    ends = [
        np.where(state[:, None, :], g, 0).sum(axis=0) / count
        for state, count in zip((gradient_masks, ~gradient_masks), counts, strict=True)
    ]
    sources = [*ends, *([world.weights * 0.9] if loo else [])]
    scale = 1 / np.linalg.norm(yc, axis=0)
    features = np.stack([(xc @ s.T * scale).ravel() for s in sources], axis=1)
    b = np.linalg.lstsq(features, (yc * scale).ravel(), rcond=None)[0]
    mean = sum(k * s for k, s in zip(b, sources, strict=True))
    around = np.where(gradient_masks[:, None, :], g - ends[0], g - ends[1])
    per_pass = (around**2).sum(axis=(0, 1)) / (EXAMPLES * (len(gradient_masks) - 2))
    noise, size = b[0] ** 2 * per_pass / counts[0] + b[1] ** 2 * per_pass / counts[1], (mean**2).sum(axis=0)
    variances = noise / noise.mean() + size / size.mean() + 0.02
    # 16 kept and 4 ablated of 20, in balanced rounds: what the first end has too much, the other has too little.
    of_mean = np.outer(yc.var(axis=0), (b[1] - b[0] * 4 / 16) ** 2 * per_pass / 4 / yc.var(axis=0).mean())
    judges = np.arange(20, len(masks))
    found = []
    for d in (variances / variances.mean(), np.ones(COMPONENTS)):
        for prior_mean in (mean, np.zeros_like(mean)):
            tried = []
            for penalty in np.geomspace(1e-3, 1e3, 25) * np.trace(np.diag(d) @ xc.T @ xc) / COMPONENTS:
                precision = xc.T @ xc + penalty * np.diag(1 / d)
                weights = prior_mean.T + np.linalg.solve(precision, xc.T @ (yc - xc @ prior_mean.T))
                errors = yc - xc @ weights
                hat = xc @ np.linalg.solve(precision, xc.T) + 1 / len(x)
                score = (errors**2).mean(axis=0) / (1 - np.trace(hat) / len(x)) ** 2
                left = (1 - np.diag(hat))[judges, None]
                left_out = errors[judges] / left
                inverse, deviations, r2_new = np.linalg.inv(precision), np.full_like(weights, np.nan), np.nan
                if plain >= 32:
                    score = (left_out**2).mean(axis=0)
                    variance = np.outer(np.diag(inverse), (left_out**2 * left).mean(axis=0))
                    share = (penalty * np.diag(inverse) / d)[:, None]
                    noise = (score * scale**2).sum() / EXAMPLES
                    covariance = np.linalg.inv(features.T @ features) * noise
                    of_coefficients = np.einsum("knd,lnd,kl->nd", np.stack(sources), np.stack(sources), covariance)
                    of_prior = share**2 * (of_mean + of_coefficients).T if prior_mean is mean else 0.0
                    variance = variance if plain >= 64 else np.nan
                    deviations = np.sqrt(variance + of_prior)
                    squares, own = (part**2 / yc.var(axis=0, ddof=1) for part in (yc[judges], left_out))
                    slopes = [
                        np.polyfit(squares[:, block].mean(axis=1), own[:, block].mean(axis=1), 1)[0]
                        for block in (slice(0, 4), slice(4, 8), slice(8, 11))
                    ]
                    r2_new = (
                        1 - own.mean(axis=0) + np.repeat(slopes, [4, 4, 3]) * (squares.mean(axis=0) - 1 + 1 / len(x))
                    )
                intercepts = y.mean(axis=0) - x.mean(axis=0) @ weights
                tried.append(Posterior((score * scale**2).sum(), penalty, weights.T, intercepts, deviations.T, r2_new))
            found.append(min(tried, key=lambda posterior: posterior.error))
    return found


def statistics_of(
    observations: Observations, sources: GateSources, design: DesignStatistics, block: tuple[int, int]
) -> tuple[SourceStatistics, SampledRows]:
    """Of one block, with a sample of its second and third example."""
    found = sources.read(block)
    margins = observations.of_block(block, observations.packed_masks(), found.margins)
    return source_statistics(margins, found, design, np.array([1, 2]), "cpu")


def fitted(run: RunDirectory, **options: Any) -> RunReader:
    fit(run, RegressionConfig(**options), lambda _: None)
    return RunReader(run)


@pytest.mark.filterwarnings("ignore:nothing can be said")  # by five masks alone
@pytest.mark.parametrize(
    ("plain", "loo", "backend"), [(140, False, "torch"), (0, False, "torch"), (5, True, "torch"), (40, True, "sklearn")]
)
def test_the_fit_is_the_posterior_mean(plain: int, loo: bool, backend: str, tmp_path: Path) -> None:
    """Primal (140 or 40 plain masks and 20) and dual (20, 25 masks of 30 components) alike."""
    world = World()
    run = fitted(run_of(tmp_path, world, plain, loo=loo), standard_errors=True, backend=backend)
    candidates = posteriors(world, plain, loo)
    expected = min(candidates, key=lambda posterior: posterior.error)
    assert loo or expected is candidates[0]
    np.testing.assert_allclose(run.quality(method="gradient_ridge")["regularisation"], expected.penalty, rtol=1e-5)
    np.testing.assert_allclose(run.weights(method="gradient_ridge"), expected.weights, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run.intercepts(method="gradient_ridge"), expected.intercepts, rtol=1e-6)
    errors = run.standard_errors(method="gradient_ridge")
    np.testing.assert_allclose(errors, expected.deviations, rtol=1e-4, atol=1e-5)
    table = AttributionTable(run.directory, "gradient_ridge")
    r2_new = np.concatenate([table.read_quality(block)[0]["r2_new"] for block in ((0, 4), (4, 8), (8, 11))])
    np.testing.assert_allclose(r2_new, np.full(EXAMPLES, expected.r2_new), rtol=1e-4)
    assert ("coar" in {path.name.split(".")[0] for path in (tmp_path / "attributions").iterdir()}) == bool(plain)


def test_a_budget_is_spent_by_what_the_pilot_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    asked: list[Any] = []
    monkeypatch.setattr("coar_dist.regression.fit.spend", lambda *arguments: asked.extend(arguments))
    plan_passes(run_of(tmp_path, world), RegressionConfig(), 2.5, 300.0, in_this_process)
    pilot, *others = asked
    assert others == [(20, 40), 0.2, 5, 2.5, 300.0]
    expected = posteriors(world, 40, False)[0]
    assert pilot.error == pytest.approx(expected.error * 60 / EXAMPLES, rel=1e-5)
    assert pilot.penalty == pytest.approx(expected.penalty, rel=1e-5)


def test_a_gate_gradient_s_variance_is_that_within_either_state_of_its_gate(tmp_path: Path) -> None:
    """One component is kept by every mask: it has one mean, and so a degree of freedom more."""
    world = World()
    masks = BALANCED.masks(0, 20)
    masks[:, 3] = True
    run, g = run_of(tmp_path, world, plain=0), world.gradients(masks)
    for store in run.gradients("gradients"):
        own, kept = g[:, slice(*store.block)], masks[:, None, :]
        sums = [np.where(state, own, 0).sum(axis=0) for state in (kept, ~kept)]
        squares = [np.where(state, own.astype(float) ** 2, 0).sum(axis=(0, 1)) for state in (kept, ~kept)]
        margins = world.margins(masks)[:, slice(*store.block)]
        for start, stop in ((0, 10), (10, 20)):
            (tmp_path / store.file(start, stop)).unlink()
        store.write(0, masks, GateGradients(margins, *sums, *squares, ALL_KNOWN), {})
    sources = GateSources(tuple(run.gradients("gradients")), None)
    observations = Observations(run.margins("train"), sources.gradients)
    design = DesignStatistics(20, masks.sum(axis=0).astype(float))
    blocks = run.margins("train").blocks
    parts = [statistics_of(observations, sources, design, block)[0] for block in blocks]
    found = functools.reduce(operator.add, parts)
    expected = []
    for component in range(COMPONENTS):
        states = [g[masks[:, component] == state, :, component].astype(float) for state in (True, False)]
        squares = sum(((of_state - of_state.mean(axis=0)) ** 2).sum() for of_state in states if len(of_state))
        expected.append(squares / EXAMPLES / (20 - sum(len(of_state) > 0 for of_state in states)))
    np.testing.assert_allclose(found.per_pass_variances, expected, rtol=1e-4)
    assert found.mean_variance == pytest.approx(world.margins(masks).astype(float).var(axis=0).mean(), rel=1e-6)


def test_it_is_nearer_to_the_truth_than_ridge_without_gradients(tmp_path: Path) -> None:
    world = World()
    run = fitted(run_of(tmp_path, world))
    everything = np.random.default_rng(5).random((20_000, COMPONENTS)) < 0.8
    y, x = world.margins(everything).astype(float), everything - 0.8
    best = (x.T @ (y - y.mean(axis=0)) / (0.16 * len(x))).T
    errors = {name: np.linalg.norm(run.weights(method=name) - best) for name in ("coar", "gradient_ridge")}
    assert errors["gradient_ridge"] < 0.6 * errors["coar"]


def test_components_without_gradients_are_told_by_the_margins(tmp_path: Path) -> None:
    """Large effects that no gradient tells of: they are neither shrunk to nothing nor in the way of the others."""
    world = World()
    known = np.arange(COMPONENTS) % 5 != 4
    run = fitted(run_of(tmp_path / "part", world, plain=120, known=known))
    everything = np.random.default_rng(5).random((20_000, COMPONENTS)) < 0.8
    y, x = world.margins(everything).astype(float), everything - 0.8
    best = (x.T @ (y - y.mean(axis=0)) / (0.16 * len(x))).T
    found = {name: run.weights(method=name) for name in ("coar", "gradient_ridge")}
    errors = {name: np.linalg.norm((weights - best)[:, ~known]) for name, weights in found.items()}
    assert errors["gradient_ridge"] < 1.1 * errors["coar"]
    assert np.linalg.norm(found["gradient_ridge"][:, ~known]) > 0.7 * np.linalg.norm(best[:, ~known])
    errors = {name: np.linalg.norm((weights - best)[:, known]) for name, weights in found.items()}
    assert errors["gradient_ridge"] < 0.9 * errors["coar"]


def test_gradients_that_say_nothing_leave_ridge_as_good_as_it_was(tmp_path: Path) -> None:
    world = World(informative=False)
    run = fitted(run_of(tmp_path, world), shared_penalty=True)
    held_out = np.random.default_rng(5).random((2_000, COMPONENTS)) < 0.8
    truth = world.margins(held_out)
    errors = {}
    for name in ("coar", "gradient_ridge"):
        errors[name] = ((run.predict(held_out, method=name) - truth) ** 2).mean()
    assert errors["gradient_ridge"] < 1.05 * errors["coar"]  # it has 20 more margins, too


def test_the_same_bits_in_any_order_and_on_a_cluster(tmp_path: Path, ray_cluster: None) -> None:
    world = World()
    first, second = (run_of(tmp_path / name, world) for name in ("a", "b"))
    fit(first, RegressionConfig(), lambda _: None)
    with on_cluster(ClusterConfig(max_actors=1, cpus_per_actor=2), way_out="") as execute:
        fit(second, RegressionConfig(), lambda _: None, execute)
    a, b = (RunReader(run).weights(method="gradient_ridge") for run in (first, second))
    np.testing.assert_array_equal(a, b)
    assert not any(result.is_new for result in fit(second, RegressionConfig(), lambda _: None))


def test_blocks_that_are_there_stay_where_the_prior_and_the_penalty_are_the_same(tmp_path: Path) -> None:
    run = run_of(tmp_path, World())
    fit(run, RegressionConfig(), lambda _: None)
    table = AttributionTable(run, "gradient_ridge")
    first, *others = (tmp_path / table.file(block) for block in run.margins("train").blocks)
    decided, content = table.decided((0, 4)), [path.read_bytes() for path in (first, *others)]
    assert len(decided["prior_mean"]) == 2
    assert decided["prior_variances"] == "from gradients"
    places = [path.stat().st_ino for path in others]
    first.unlink()
    fit(run, RegressionConfig(), lambda _: None)
    assert [path.stat().st_ino for path in others] == places
    table.write(
        (0, 4), table.settings((0, 4)), Attributions.of_weights(*table.read((0, 4))), decided | {"penalty": "1"}
    )
    fit(run, RegressionConfig(), lambda _: None)
    assert [path.read_bytes() for path in (first, *others)] == content


def test_shards_of_any_size_give_the_same_sums(tmp_path: Path) -> None:
    world = World()
    one = fitted(run_of(tmp_path / "a", world, cuts=(0, 20)))
    many = fitted(run_of(tmp_path / "b", world, cuts=(0, 5, 10, 15, 20)))
    a, b = (run.weights(method="gradient_ridge") for run in (one, many))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_missing_and_damaged_gradients_are_named(tmp_path: Path) -> None:
    run = run_of(tmp_path / "missing", World(), cuts=(0, 10))
    with pytest.raises(MissingWorkError, match=r"gradients/gradients/00000000-00000004 lacks 10 of 20 masks: 10\.\.19"):
        fit(run, RegressionConfig(), lambda _: None)
    run = run_of(tmp_path / "damaged", World())
    store = run.gradients("gradients")[1]
    path = tmp_path / "damaged" / store.file(10, 20)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"{path} is damaged: column.* run the ablate stage"):
        fit(run, RegressionConfig(), lambda _: None)


def test_margins_are_read_without_the_sums(tmp_path: Path) -> None:
    """A shard whose sums are damaged still gives its margins, so their bytes were not looked at."""
    run = run_of(tmp_path, World())
    sources = GateSources(tuple(run.gradients("gradients")), None)
    observations = Observations(run.margins("train"), sources.gradients)
    store, block = sources.gradients[1], run.margins("train").blocks[1]
    expected = list(observations.of_block(block, observations.packed_masks()).parts(0, observations.num_masks))
    np.testing.assert_array_equal(expected[0], World().margins(BALANCED.masks(0, 20))[:, slice(*block)])
    for start, stop in ((0, 10), (10, 20)):
        path = tmp_path / store.file(start, stop)
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    found = list(observations.of_block(block, observations.packed_masks()).parts(0, observations.num_masks))
    for margins, others in zip(found, expected, strict=True):
        np.testing.assert_array_equal(margins, others)
    with pytest.raises(DamagedFileError, match=r"column '(kept|ablated)'"):
        sources.read(block)


def test_a_shard_cannot_be_cut(tmp_path: Path) -> None:
    run = run_of(tmp_path, World())
    fewer = Balanced(COMPONENTS, 15, 0.2, 7)
    run.set_designs({"train": run.designs["train"], "gradients": RunDesign("gradients", fewer)})
    with pytest.raises(RunMismatchError, match=r"num_masks=15 ends within .* Use 10 or 20"):
        fit(run, RegressionConfig(), lambda _: None)


def test_a_factorisation_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"regression\.memory_gb=1e-06"):
        fitted(run_of(tmp_path, World()), memory_gb=1e-6, selection=None)
