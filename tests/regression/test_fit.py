from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Lasso, Ridge

from coar_dist.cluster.execution import InThisProcess
from coar_dist.cluster.ray_tasks import on_cluster
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.combinations import validate
from coar_dist.config.schema import ClusterConfig, Config, RegressionConfig, RunConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import CoarWarning, ConfigError, DamagedFileError, MissingWorkError
from coar_dist.regression.fit import fit
from coar_dist.regression.statistics import margin_statistics
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage
from tests.regression.problems import problem

EXAMPLES = 11


def run_of(root: Path, masks: Any, margins: Any, cuts: list[int] | None = None, per_block: int = 4) -> RunDirectory:
    """A run directory whose train design holds the given masks and margins, in shards with the given limits."""
    num_masks, num_components = masks.shape
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, num_components),))
    identity = {"ablation.examples_per_block": per_block, "ablation.margins_dtype": "float32"}
    run = RunDirectory.create(local_storage(root), identity, components, margins.shape[1])
    run.set_designs({"train": RunDesign("train", Bernoulli(num_components, num_masks, 0.2, 0))})
    store = run.margins("train")
    for start, stop in pairwise(cuts or [0, num_masks]):
        store.write(start, masks[start:stop], margins[start:stop], {})
    return run


def fitted(run: RunDirectory, **options: Any) -> RunReader:
    fit(run, RegressionConfig(**options), lambda _: None)
    return RunReader(run)


class Backwards(InThisProcess):
    """Three at once, the last first, and what is sent away and comes back is another object."""

    @property
    def width(self) -> int:
        return 3

    def __call__(self, function: Any, shared: Any, items: Any) -> Iterator[Any]:
        return (function(*pickle.loads(pickle.dumps((shared, item)))) for item in reversed(items))


@pytest.fixture
def data() -> tuple[Any, Any]:
    return problem(num_masks=200, num_components=30, num_examples=EXAMPLES)


@pytest.mark.parametrize("options", [{}, {"method": "lasso"}, {"shared_penalty": True}])
def test_the_same_bits_for_any_shards_and_any_order(
    data: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.regression.matrices._MASKS_PER_GRAM_PART", 70)
    masks, margins = data
    config = RegressionConfig(**options)
    fit(run_of(tmp_path / "a", masks, margins), config, lambda _: None)
    fit(run_of(tmp_path / "b", masks, margins, [0, 3, 70, 71, 200]), config, lambda _: None, Backwards())
    assert_same_attributions(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow  # test_gradient_ridge.py has the same, with gradients
def test_the_same_bits_on_a_cluster(data: Any, tmp_path: Path, ray_cluster: None) -> None:
    masks, margins = data
    configs = [RegressionConfig(), RegressionConfig(method="lasso")]
    here = run_of(tmp_path / "a", masks, margins)
    there = run_of(tmp_path / "b", masks, margins, [0, 128, 200])
    with on_cluster(ClusterConfig(max_actors=1, cpus_per_actor=2), way_out="") as execute:
        for config in configs:
            progress: list[int] = []
            fit(there, config, progress.append, execute)
            assert progress[-1] == EXAMPLES
            fit(here, config, lambda _: None)
    assert_same_attributions(tmp_path / "a", tmp_path / "b", num_methods=2)


def assert_same_attributions(one: Path, other: Path, num_methods: int = 1) -> None:
    files = sorted(path.name for path in (one / "attributions").iterdir())
    assert len(files) == 3 * num_methods
    for file in files:
        assert (one / "attributions" / file).read_bytes() == (other / "attributions" / file).read_bytes()


def test_sums_have_the_same_bits_for_any_shards(data: Any, tmp_path: Path) -> None:
    """Of margins of very different sizes: float64 holds sums of others without rounding."""
    masks, margins = data[0], data[1] * np.exp(9 * np.random.default_rng(0).normal(size=data[1].shape))
    margins = margins.astype(np.float32)
    found = {}
    for name, cuts in (("whole", [0, 200]), ("many", [0, 3, 70, 71, 200]), ("even", [*range(0, 201, 8)])):
        store = run_of(tmp_path / name, masks, margins, cuts).margins("train")
        found[name] = margin_statistics(store.read((4, 8), 64))
        if name == "many":  # what each shard by itself would give
            by_shard = zip(np.split(masks, cuts[1:-1]), np.split(margins[:, 4:8], cuts[1:-1]), strict=True)
            assert not np.array_equal(margin_statistics(by_shard).square_sums, found["whole"].square_sums)
    for name in ("many", "even"):
        for part in ("cross", "sums", "square_sums"):
            np.testing.assert_array_equal(getattr(found[name], part), getattr(found["whole"], part))


def test_errors_of_workers_are_the_user_s_own(data: Any, tmp_path: Path, ray_cluster: None) -> None:
    masks, margins = data
    run = run_of(tmp_path, masks, margins, [0, 100, 200])
    path = tmp_path / run.margins("train").file(100, 200)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with (
        on_cluster(ClusterConfig(max_actors=1), way_out="") as execute,
        pytest.raises(DamagedFileError, match=rf"{path} is damaged: column") as raised,
    ):
        fit(run, RegressionConfig(), lambda _: None, execute)
    assert raised.value.where == str(path)


def test_solvers_of_every_size_agree(data: Any, tmp_path: Path) -> None:
    masks, margins = data
    primal = fitted(run_of(tmp_path / "primal", masks, margins), regularisation=5.0)
    iterative = fitted(
        run_of(tmp_path / "iterative", masks, margins), regularisation=5.0, memory_gb=1e-6, tolerance=1e-9
    )
    np.testing.assert_allclose(primal.weights(), iterative.weights(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(primal.quality()["r2"], iterative.quality()["r2"], rtol=1e-5)
    assert np.isnan(iterative.quality()["r2_new"]).all()  # no mask is left out
    wide, wide_margins = problem(num_masks=40, num_components=100, num_examples=EXAMPLES)
    dual = fitted(run_of(tmp_path / "dual", wide, wide_margins), regularisation=5.0)
    reference = Ridge(alpha=5.0).fit(wide.astype(float), wide_margins.astype(float))
    np.testing.assert_allclose(dual.weights(), reference.coef_, rtol=1e-4, atol=1e-5)
    small = run_of(tmp_path / "small", wide, wide_margins)
    without = fitted(small, regularisation=5.0, memory_gb=1e-6, tolerance=1e-9)
    np.testing.assert_allclose(without.weights(), reference.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(without.quality()["r2"], dual.quality()["r2"], rtol=1e-5)
    for options in ({"selection": "leave_one_out"}, {"standard_errors": True}):
        with pytest.raises(ConfigError, match="needs a factorisation"):
            fitted(run_of(tmp_path / "iterative", masks, margins), memory_gb=1e-6, **options)
    with pytest.raises(ConfigError, match=r"the lasso needs the Gram matrix of 30 components"):
        fitted(run_of(tmp_path / "iterative", masks, margins), memory_gb=1e-6, method="lasso")


@pytest.mark.parametrize("selection", ["gcv", "leave_one_out"])
def test_estimated_r2_is_that_of_new_masks(selection: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    masks, _ = problem(num_masks=1400, num_components=60)
    truth = random.normal(size=(60, EXAMPLES)) * np.linspace(0.1, 2, EXAMPLES)
    margins = (masks @ truth + random.normal(size=(1400, EXAMPLES)) * 2 + 90).astype(np.float32)
    run = fitted(run_of(tmp_path, masks[:400], margins[:400]), selection=selection)
    quality = run.quality()
    predicted = run.predict(masks[400:])
    new = 1 - ((predicted - margins[400:]) ** 2).mean(axis=0) / margins[400:].var(axis=0)
    old = 1 - ((run.predict(masks[:400]) - margins[:400]) ** 2).mean(axis=0) / margins[:400].var(axis=0)
    np.testing.assert_allclose(quality["r2"], old, atol=1e-4)
    np.testing.assert_allclose(quality["r2_new"], new, atol=0.1)
    assert abs((quality["r2_new"] - new).mean()) < 0.04
    assert np.isnan(quality["duality_gap"]).all()
    assert len(np.unique(quality["regularisation"])) > 3


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({}, {"solver": "primal", "shared_penalty": None, "standard_errors": False}),
        (
            {"memory_gb": 1e-6, "shared_penalty": True},
            {"solver": "iterative", "shared_penalty": True, "standard_errors": False, "tolerance": 1e-6},
        ),
        ({"method": "lasso", "selection": "bic"}, {"l1_ratio": 1.0, "held_out_fraction": 0.1, "tolerance": 1e-6}),
    ],
    ids=["ridge", "iterative", "lasso"],
)
@pytest.mark.filterwarnings("ignore:.*chose a penalty at an end")
def test_attributions_say_what_they_were_fitted_with(
    data: Any, options: dict[str, Any], own: dict[str, Any], tmp_path: Path
) -> None:
    run = run_of(tmp_path, *data)
    config = RegressionConfig(num_penalties=7, penalty_range=[0.01, 100.0], **options)
    (result,) = fit(run, config, lambda _: None)
    assert AttributionTable(run, result.method).settings((0, 4)) == {
        "design": run.margins("train").fingerprint,
        "num_masks": 200,
        "backend": "torch",
        "method": config.method,
        "regularisation": None,
        "selection": options.get("selection"),
        "num_penalties": 7,
        "penalty_range": [0.01, 100.0],
        **own,
    }


def test_progress_counts_the_examples_of_every_block(data: Any, tmp_path: Path) -> None:
    progress: list[int] = []
    run = run_of(tmp_path, *data)
    fit(run, RegressionConfig(), progress.append)
    assert progress == [*range(4, EXAMPLES, 4), EXAMPLES]


def test_lasso_stands_beside_ridge(data: Any, tmp_path: Path) -> None:
    masks, margins = data
    run = run_of(tmp_path, masks, margins)
    ridge = fitted(run).weights().copy()
    fitted(run, method="lasso", regularisation=0.05, tolerance=1e-10)
    units = margins.astype(float).std(axis=0)
    reference = Lasso(alpha=0.05, tol=1e-12).fit(masks.astype(float), margins / units).coef_ * units[:, None]
    np.testing.assert_allclose(RunReader(run).weights(method="coar_lasso"), reference, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(RunReader(run).weights(), ridge)
    assert (RunReader(run).weights(method="coar_lasso") == 0).mean() > 0.05
    for fraction, is_known in ((0.155, False), (0.16, True)):  # 31 and 32 of 200
        fitted(run, method="lasso", l1_ratio=0.5, held_out_fraction=fraction)
        quality = RunReader(run).quality(method="coar_elastic_net")
        assert quality["duality_gap"].max() <= 1e-6
        assert np.isfinite(RunReader(run).r2_new_error("coar_elastic_net")) == is_known
        assert np.isnan(quality["r2_new"]).all()  # not known to .03
    fitted(run, method="lasso", selection="bic")
    assert np.isnan(RunReader(run).quality(method="coar_lasso")["r2_new"]).all()
    assert not fit(run, RegressionConfig(method="lasso", selection="bic"), lambda _: None)[0].is_new


def test_standard_errors_and_one_penalty_for_all(data: Any, tmp_path: Path) -> None:
    masks, margins = data
    run = run_of(tmp_path, masks, margins)
    with pytest.raises(MissingWorkError, match=r"regression\.standard_errors=true"):
        fitted(run).standard_errors()
    with_errors = fitted(run, standard_errors=True)
    errors = with_errors.standard_errors([3, 10, 0])
    assert errors.shape == (3, 30)
    np.testing.assert_array_equal(errors, with_errors.standard_errors()[[3, 10, 0]])
    noise = 1.0 / np.sqrt(200 * 0.2 * 0.8)  # of a weight, for noise of standard deviation 1 and few components
    assert 0.5 * noise < np.median(errors) < 1.5 * noise
    shared = fitted(run, shared_penalty=True).quality()
    assert len(np.unique(shared["regularisation"])) == 1


def test_what_says_nothing_is_named(data: Any, tmp_path: Path) -> None:
    masks, margins = data[0].copy(), data[1].copy()
    masks[:, 7], masks[:, 9] = True, False
    margins[:, 5] = 3.25
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fitted(run_of(tmp_path / "a", masks, margins))
    said = [str(warning.message) for warning in caught if warning.category is CoarWarning]
    assert any(f"examples with the same margin under every mask: 1 of {EXAMPLES}." in text for text in said)
    assert any("2 of 30, component ids 7, 9." in text for text in said)
    assert (run.weights()[:, [7, 9]] == 0).all()
    assert (run.weights([5]) == 0).all()
    assert run.intercepts([5])[0] == 3.25
    quality = run.quality()
    assert np.isnan(quality["r2"][5])
    assert np.isfinite(np.delete(quality["r2"], 5)).all()
    with pytest.raises(ConfigError, match="all masks of the train design are equal"):
        fitted(run_of(tmp_path / "b", np.ones_like(masks), margins))


def test_least_squares_through_every_margin_has_no_estimate_of_its_error(tmp_path: Path) -> None:
    masks, margins = problem(num_masks=30, num_components=60, num_examples=EXAMPLES)
    run = run_of(tmp_path, masks, margins)
    with pytest.warns(CoarWarning, match="minimum-norm"):
        saturated = fitted(run, regularisation=0.0)
    np.testing.assert_allclose(saturated.quality()["r2"], 1.0)
    assert np.isnan(saturated.quality()["r2_new"]).all()
    with pytest.warns(CoarWarning), pytest.raises(ConfigError, match=r"rank 29 leaves no residual"):
        fitted(run, regularisation=0.0, standard_errors=True)
    with pytest.warns(CoarWarning):
        fitted(run, regularisation=0.0, selection="leave_one_out")
    assert np.isnan(RunReader(run).quality()["r2_new"]).all()


def test_numbers_of_numpy_are_numbers(data: Any, tmp_path: Path) -> None:
    config = RegressionConfig(
        num_penalties=np.int64(5), memory_gb=np.float32(2), penalty_range=(np.float64(1e-4), 10000)
    )
    whole = Config(stages=["fit"], run=RunConfig("x"), regression=config)
    config = validate(whole).regression
    assert (config.num_penalties, type(config.num_penalties)) == (5, int)
    assert config.penalty_range == [1e-4, 10000.0]
    config.penalty_range = None
    fit(run_of(tmp_path, *data), config, lambda _: None)


def test_what_cannot_be_judged_is_refused_or_said(data: Any, tmp_path: Path) -> None:
    few, few_margins = problem(num_masks=40, num_components=60, num_examples=EXAMPLES)
    with pytest.raises(ConfigError, match=r"selection='bic' cannot judge 40 masks of 60 components"):
        fitted(run_of(tmp_path / "few", few, few_margins), method="lasso", selection="bic")
    with pytest.raises(ConfigError, match="penalties that float64 cannot hold"):
        fitted(run_of(tmp_path / "a", *data), penalty_range=[1e300, 1e307])
    for options in (
        {"penalty_range": [100.0, 200.0]},  # the smaller end
        {"penalty_range": [1e-5, 1e-4]},  # the larger end
        {"method": "lasso", "penalty_range": [0.7, 0.9]},
        {"method": "lasso", "penalty_range": [1e-5, 1e-4]},
    ):
        with pytest.warns(CoarWarning, match=r"examples chose a penalty at an end of regression\.penalty_range"):
            fitted(run_of(tmp_path / "a", *data), **options)
    masks, margins = data[0].copy(), data[1]
    masks[:, 7] = True
    with pytest.warns(CoarWarning, match="component ids 7"):
        errors = fitted(run_of(tmp_path / "b", masks, margins), standard_errors=True).standard_errors()
    assert np.isnan(errors[:, 7]).all()
    assert np.isfinite(np.delete(errors, 7, axis=1)).all()


def test_damaged_attributions_are_made_again(data: Any, tmp_path: Path) -> None:
    run = run_of(tmp_path, *data)
    weights = fitted(run).weights().copy()
    path = tmp_path / "attributions" / "coar.00000000-00000004.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(weights[2].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="Run the fit stage: it sets the file aside"):
        RunReader(run).weights()
    assert fit(run, RegressionConfig(), lambda _: None)[0].is_new
    np.testing.assert_array_equal(RunReader(run).weights(), weights)
    assert path.with_name(f"{path.name}.damaged").exists()
    with pytest.raises(ConfigError, match="method='coar_laso': must be one that the run has: coar"):
        RunReader(run).quality(method="coar_laso")


def files_of(run: RunDirectory) -> dict[str, tuple[bytes, int]]:
    """Content and inode of every attribution file: a file that is written again has another inode."""
    folder = Path(str(run.storage.location)) / "attributions"
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in folder.glob("*.parquet")}


def contents(files: dict[str, tuple[bytes, int]]) -> dict[str, bytes]:
    return {name: content for name, (content, _) in files.items()}


def written(before: dict[str, tuple[bytes, int]], after: dict[str, tuple[bytes, int]]) -> list[str]:
    return sorted(name for name, found in after.items() if name not in before or found[1] != before[name][1])


JOINT = [{"shared_penalty": True}, {"shared_penalty": True, "memory_gb": 1e-6}]


@pytest.mark.parametrize("options", [{}, {"regularisation": 5.0}, {"method": "lasso"}, *JOINT])
def test_blocks_that_are_there_stay(data: Any, options: dict[str, Any], tmp_path: Path) -> None:
    run, config = run_of(tmp_path, *data), RegressionConfig(**options)
    (result,) = fit(run, config, lambda _: None)
    files = [AttributionTable(run, result.method).file(block) for block in run.margins("train").blocks]
    whole = files_of(run)
    (tmp_path / files[1]).unlink()
    damaged = bytearray((tmp_path / files[2]).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / files[2]).write_bytes(damaged)
    before, progress = files_of(run), list[int]()
    assert fit(run, config, progress.append)[0].is_new
    assert progress == [8, EXAMPLES]
    after = files_of(run)
    assert written(before, after) == [Path(file).name for file in files[1:]]
    assert contents(after) == contents(whole)
    assert not fit(run, config, lambda _: None)[0].is_new
    assert files_of(run) == after
    fit(run, replace(config, num_penalties=9), lambda _: None)
    assert len(written(after, files_of(run))) == len(files)


@pytest.mark.parametrize("options", JOINT)
@pytest.mark.parametrize("is_lost", [True, False])
def test_blocks_of_another_joint_decision_are_fitted_again(
    data: Any, is_lost: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    """Also where all are there: a fit that was interrupted leaves blocks of two."""
    run, config = run_of(tmp_path, *data), RegressionConfig(**options)
    fit(run, config, lambda _: None)
    whole, table = files_of(run), AttributionTable(run, "coar")
    first, _, last = run.margins("train").blocks
    weights, fingerprint = table.read(first)[0], table.settings_fingerprint([first])
    other = Attributions.of_weights(weights + 1, np.zeros(len(weights)))
    table.write(first, table.settings(first), other, {**table.decided(first), "penalty": "1"})
    assert table.settings_fingerprint([first]) != fingerprint
    if is_lost:
        (tmp_path / table.file(last)).unlink()
    fit(run, config, lambda _: None)
    assert {n: content for n, (content, _) in files_of(run).items()} == {
        n: content for n, (content, _) in whole.items()
    }


@pytest.mark.filterwarnings("error::coar_dist.errors.CoarWarning")
@pytest.mark.parametrize("num_masks", [40, 200])  # one penalty for all, and one for each
def test_what_is_linear_is_found_to_rounding_without_a_word(num_masks: int, tmp_path: Path) -> None:
    """The default grid ends at a thousandth of the mean eigenvalue, where the error is a hundredth."""
    masks, _ = problem(num_masks=num_masks + 100, num_components=30)
    weights = np.random.default_rng(3).normal(size=(30, EXAMPLES))
    margins = (masks @ weights + 40).astype(np.float32)
    run = fitted(run_of(tmp_path, masks[:num_masks], margins[:num_masks]))
    np.testing.assert_allclose(run.weights(), weights.T, atol=2e-5)
    errors = run.predict(masks[num_masks:]) - margins[num_masks:]
    assert np.sqrt((errors**2).mean()) < 2e-5


@pytest.mark.parametrize(("num_masks", "is_shared", "selection"), [(47, True, "leave_one_out"), (48, False, "gcv")])
def test_below_four_masks_per_component_masks_left_out_choose_one_penalty_for_all(
    num_masks: int, is_shared: bool, selection: str, tmp_path: Path
) -> None:
    masks, margins = problem(num_masks=num_masks, num_examples=EXAMPLES)
    found = fitted(run_of(tmp_path / "a", masks, margins)).quality()["regularisation"]
    assert (len(np.unique(found)) == 1) == is_shared
    same = fitted(run_of(tmp_path / "b", masks, margins), shared_penalty=is_shared, selection=selection)
    np.testing.assert_array_equal(found, same.quality()["regularisation"])
    other = "gcv" if is_shared else "leave_one_out"
    different = fitted(run_of(tmp_path / "c", masks, margins), shared_penalty=is_shared, selection=other)
    assert (found != different.quality()["regularisation"]).any()
