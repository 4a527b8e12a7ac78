from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from coar_dist.cluster.execution import in_this_process
from coar_dist.config.schema import EvaluationConfig, RegressionConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.evaluation.budget_curve import _numbers_of_masks, evaluate_budgets, why_no_curve
from coar_dist.evaluation.correlation import evaluate
from coar_dist.evaluation.measure_ceilings import measure_ceilings
from coar_dist.evaluation.sample import SampledGradients, draw_sample
from coar_dist.regression.fit import fit
from coar_dist.store.budget_curve import BudgetCurve, BudgetCurveTable
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.models import random_masks
from tests.regression.test_fit import Backwards, run_of
from tests.runs.test_gradient_run import attribute_small

SHARES = [0.25, 0.5]
HELD_OUT = "evaluation_0.2"
NUM_COMPONENTS, NUM_EXAMPLES = 12, 11


def truth(masks: Any) -> Any:
    """Margins with an interaction and large offsets; the last example's is constant."""
    random = np.random.default_rng(5)
    weights = random.normal(size=(NUM_COMPONENTS, NUM_EXAMPLES))
    pairs = 1.5 * (masks[:, :1] * masks[:, 1:2]) * random.normal(size=NUM_EXAMPLES)
    margins = masks @ weights + pairs + np.linspace(-3000, 2000, NUM_EXAMPLES)
    margins[:, -1] = 7.0
    return margins.astype(np.float32)


def run_with(root: Path, num_masks: int, **options: Any) -> RunDirectory:
    """A run with the first ``num_masks`` masks of one and the same design, fitted and evaluated."""
    design = Bernoulli(NUM_COMPONENTS, num_masks, 0.2, 0)
    masks = design.masks(0, num_masks)
    run = run_of(root, masks, truth(masks), [0, 33, num_masks])
    held_out = Bernoulli(NUM_COMPONENTS, 50, 0.2, 9)
    run.set_designs({"train": RunDesign("train", design), HELD_OUT: RunDesign("evaluation", held_out)})
    masks = held_out.masks(0, 50)
    run.margins(HELD_OUT).write(0, masks, truth(masks), {})
    refit(run, **options)
    return run


def refit(run: RunDirectory, **options: Any) -> None:
    for result in fit(run, RegressionConfig(**options), lambda _: None):
        evaluate(run, [result.method], lambda _: None)


def curve_of(run: RunDirectory, method: str = "coar") -> BudgetCurve:
    curve = BudgetCurveTable(run, method, HELD_OUT).read()
    assert curve is not None
    return curve


@pytest.mark.filterwarnings("ignore::coar_dist.errors.CoarWarning")  # the constant example
@pytest.mark.parametrize(
    ("method", "options"), [("coar", {}), ("coar", {"regularisation": 0.0}), ("coar_lasso", {"method": "lasso"})]
)
def test_points_are_what_runs_with_fewer_masks_give(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    run = run_with(tmp_path / "whole", 160, **options)
    # What the attributions were fitted with counts, not what the evaluation happens to be called with.
    assert evaluate_budgets(run, [method], SHARES, RegressionConfig(), lambda _: None)
    curve = curve_of(run, method)
    np.testing.assert_array_equal(curve.example_ids, np.arange(NUM_EXAMPLES))
    np.testing.assert_array_equal(curve.num_masks, [40, 80, 160])
    assert np.isnan(curve.correlations[-1]).all()
    for column, number in enumerate((40, 80, 160)):
        fewer = run if number == 160 else run_with(tmp_path / str(number), number, **options)
        stored = RunReader(fewer).evaluation(method)["correlation"]
        np.testing.assert_allclose(curve.correlations[:, column], stored, rtol=1e-9)
    held_masks, held_margins = RunReader(run).margins(HELD_OUT)
    predicted = RunReader(run).predict(held_masks, method=method)
    literal = [np.corrcoef(predicted[:, i], held_margins[:, i])[0, 1] for i in range(NUM_EXAMPLES - 1)]
    np.testing.assert_allclose(curve.correlations[:-1, -1], literal, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [16, 40, 41, 100]),
        ({"selection": "bic"}, [41, 100]),  # a mask more than components
        ({"selection": "bic", "regularisation": 1.0}, [16, 40, 41, 100]),
        ({"method": "lasso", "held_out_fraction": 0.1}, [40, 41, 100]),  # four masks held out
        ({"method": "lasso", "held_out_fraction": 0.95}, [100]),  # four masks left
        ({"method": "lasso", "regularisation": 1.0}, [16, 40, 41, 100]),
    ],
)
def test_no_fewer_masks_are_fitted_than_can_be(options: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    masks = random_masks(200, 40)
    train = run_of(tmp_path, masks, masks[:, :2].astype(np.float32)).margins("train")
    shares = [number / 200 for number in (15, 16, 40, 41, 100, 200)]
    assert _numbers_of_masks(train, shares, RegressionConfig(**options)) == expected


def test_masks_that_are_all_equal_are_too_few(tmp_path: Path) -> None:
    masks = random_masks(200, 40)
    masks[:32] = masks[0]
    train = run_of(tmp_path, masks, masks[:, :2].astype(np.float32)).margins("train")
    assert _numbers_of_masks(train, [0.1, 0.16, 0.32, 0.5], RegressionConfig()) == [64, 100]


@pytest.mark.filterwarnings("ignore::coar_dist.errors.CoarWarning")
def test_a_curve_is_made_once_and_again_where_anything_changed(tmp_path: Path) -> None:
    run = run_with(tmp_path, 160)
    config, done = RegressionConfig(), list[int]()
    assert evaluate_budgets(run, ["coar"], SHARES, config, done.append)
    assert done == [1, 2, 2]
    before = curve_of(run)
    assert not evaluate_budgets(run, ["coar"], SHARES, RegressionConfig(method="lasso", num_penalties=7), done.append)
    assert evaluate_budgets(run, ["coar"], [0.5], config, done.append)
    np.testing.assert_array_equal(curve_of(run).num_masks, [80, 160])
    refit(run, regularisation=500.0)
    assert BudgetCurveTable(run, "coar", HELD_OUT).read() is None
    assert evaluate_budgets(run, ["coar"], SHARES, config, done.append)
    assert (curve_of(run).correlations[:-1] != before.correlations[:-1]).all()
    path = tmp_path / BudgetCurveTable(run, "coar", HELD_OUT).file
    content = path.read_bytes()
    path.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
    assert evaluate_budgets(run, ["coar"], SHARES, config, done.append)
    assert path.read_bytes() == content
    assert not evaluate_budgets(run, ["coar"], SHARES, config, done.append)


@pytest.mark.filterwarnings("ignore::coar_dist.errors.CoarWarning")
def test_a_sample_of_examples_gives_their_rows(tmp_path: Path) -> None:
    run = run_with(tmp_path, 160)
    evaluate_budgets(run, ["coar"], SHARES, RegressionConfig(), lambda _: None)
    whole = curve_of(run)
    evaluate_budgets(run, ["coar"], SHARES, RegressionConfig(), lambda _: None, most_examples=5)
    sampled = curve_of(run)
    assert 3 <= len(sampled.example_ids) <= 6
    np.testing.assert_allclose(sampled.correlations, whole.correlations[sampled.example_ids], rtol=1e-7)


@pytest.mark.filterwarnings("ignore::coar_dist.errors.CoarWarning")
def test_the_same_bytes_wherever_the_parts_run(tmp_path: Path) -> None:
    """In other processes, in another order."""
    contents = []
    for name, execute in (("here", in_this_process), ("there", Backwards())):
        run = run_with(tmp_path / name, 160)
        for path in (tmp_path / name / "evaluation").glob("*.parquet"):
            path.unlink()
        assert evaluate(run, ["coar"], lambda _: None, execute)
        assert measure_ceilings(run, "coar", lambda _: None, execute)
        assert evaluate_budgets(run, ["coar"], SHARES, RegressionConfig(), lambda _: None, execute=execute)
        files = sorted((tmp_path / name / "evaluation").rglob("*.parquet"))
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert [name for name, _ in contents[0]] == [
        "coar.parquet",
        "ceiling.evaluation_0.2.parquet",
        "coar.evaluation_0.2.parquet",
        "components.coar.parquet",
        "layers.coar.parquet",
    ]
    assert contents[0] == contents[1]


def test_samples_are_of_few_blocks_and_depend_on_the_seed_alone() -> None:
    blocks = [(start, min(start + 100, 2030)) for start in range(0, 2030, 100)]
    first, again, other = (draw_sample(blocks, 400, 8, seed) for seed in (0, 0, 1))
    assert len(first) == 8
    assert sum(len(rows) for rows in first.values()) == pytest.approx(400, abs=8)
    assert {block: rows.tolist() for block, rows in first.items()} == {b: rows.tolist() for b, rows in again.items()}
    assert list(first) != list(other)
    for (start, stop), rows in first.items():
        assert len(set(rows)) == len(rows)
        assert 0 <= rows.min() <= rows.max() < stop - start
    everything = draw_sample(blocks[:2], 400, 8, 0)
    assert [rows.tolist() for rows in everything.values()] == [list(range(100))] * 2


def test_a_run_with_gradients_has_a_curve_of_its_masks_without(tmp_path: Path) -> None:
    run = attribute_small(
        tmp_path,
        num_masks=80,
        stages=["ablate", "fit", "evaluate"],
        baselines=["leave_one_out"],
        evaluation=EvaluationConfig(num_masks=60, ablation_fractions=[0.2], seed=9, curve_shares=SHARES),
        console=Console(file=io.StringIO()),
    )
    curve = curve_of(run.directory, "gradient_ridge")
    np.testing.assert_array_equal(curve.num_masks, [20, 40, 80])
    np.testing.assert_array_equal(curve.correlations[:, -1], run.evaluation("gradient_ridge")["correlation"])
    fewer = attribute_small(
        tmp_path / "fewer",
        num_masks=40,
        stages=["ablate", "fit", "evaluate"],
        baselines=["leave_one_out"],
        evaluation=EvaluationConfig(num_masks=60, ablation_fractions=[0.2], seed=9, curve_shares=[]),
    )
    assert BudgetCurveTable(fewer.directory, "gradient_ridge", HELD_OUT).read() is None
    np.testing.assert_allclose(
        curve.correlations[:, 1], fewer.evaluation("gradient_ridge")["correlation"], rtol=1e-4, atol=1e-5
    )
    store = run.directory.gradients("gradients")[0]
    rows = np.array([1, 3])
    for (masks, whole), (again, sampled) in zip(
        store.read(), SampledGradients.of(store, {store.block: rows}).read(), strict=True
    ):
        np.testing.assert_array_equal(masks, again)
        np.testing.assert_array_equal(whole.margins[:, rows], sampled.margins)
        np.testing.assert_array_equal(whole.kept[rows], sampled.kept)
        np.testing.assert_array_equal(whole.ablated_squares / 2, sampled.ablated_squares)  # 2 of 4 examples
    evaluate_budgets(run.directory, ["gradient_ridge"], SHARES, RegressionConfig(), lambda _: None, most_examples=4)
    assert np.isfinite(curve_of(run.directory, "gradient_ridge").correlations).all()


def test_without_held_out_masks_at_the_training_fraction_there_is_no_curve(tmp_path: Path) -> None:
    printed = io.StringIO()
    run = attribute_small(
        tmp_path,
        num_gradient_masks=0,
        stages=["ablate", "fit", "evaluate", "report"],
        evaluation=EvaluationConfig(num_masks=10, ablation_fractions=[0.1], seed=9),
        console=Console(file=printed, width=200),
    )
    assert why_no_curve(run.directory) is not None
    assert "no budget curve: it takes held-out masks at ablation_fraction" in printed.getvalue()
    assert not (tmp_path / "evaluation" / "budget_curve").exists()
