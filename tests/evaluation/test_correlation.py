from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from coar_dist.designs.independent import Bernoulli
from coar_dist.evaluation import correlation
from coar_dist.evaluation.correlation import evaluate, predict
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.run_directory import RunDesign
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import random_masks
from tests.regression.test_fit import run_of

NUM_COMPONENTS, NUM_EXAMPLES = 12, 11


def test_predictions_lose_no_digits_to_a_large_offset() -> None:
    random = np.random.default_rng(2)
    masks = random.random((300, 500)) >= 0.05
    weights = (random.normal(size=(6, 500)) * 1e-3 + 40).astype(np.float32)
    weights[3:] -= 40
    intercepts = np.full(6, -2e4)
    exact = masks.astype(np.float64) @ weights.astype(np.float64).T + intercepts
    predicted = predict(masks, weights, intercepts)
    assert predicted.dtype == np.float64
    spread = exact.std(axis=0)
    assert (np.abs(predicted - exact).max(axis=0) < 2e-5 * spread).all()


def test_tables_hold_what_scipy_says_of_every_method_design_and_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correlation, "_MASKS_PER_BATCH", 7)
    random = np.random.default_rng(4)
    masks = random_masks(20, NUM_COMPONENTS)
    run = run_of(tmp_path, masks, random.normal(size=(20, NUM_EXAMPLES)).astype(np.float32))
    held_out = {f"evaluation_{fraction}": Bernoulli(NUM_COMPONENTS, 30, fraction, 9) for fraction in (0.2, 0.1)}
    run.set_designs(
        {"train": run.designs["train"], **{name: RunDesign("evaluation", d) for name, d in held_out.items()}}
    )
    margins = {name: random.normal(60.0, 5.0, (30, NUM_EXAMPLES)).astype(np.float32) for name in held_out}
    for name, design in held_out.items():
        run.margins(name).write(0, design.masks(0, 30), margins[name], {})
    weights = {name: random.normal(1.0, 2.0, (NUM_EXAMPLES, NUM_COMPONENTS)) for name in ("coar", "leave_one_out")}
    intercepts = random.normal(30.0, 5.0, NUM_EXAMPLES)
    for method, values in weights.items():
        for first, end in run.margins("train").blocks:
            of_block = Attributions.of_weights(values[first:end].astype(np.float32), intercepts[first:end])
            AttributionTable(run, method).write((first, end), {}, of_block)
    done: list[int] = []
    assert evaluate(run, list(weights), done.append)
    assert done == [0, 1, 2, 3, 4, 5, 6]  # three blocks of two methods
    for method, name in ((method, name) for method in weights for name in held_out):
        found = EvaluationTable(run, method, name).read()
        predicted = held_out[name].masks(0, 30) @ weights[method].T + intercepts
        for example in range(NUM_EXAMPLES):
            p, y = predicted[:, example], margins[name][:, example].astype(np.float64)
            line = stats.linregress(p, y)
            expected = {
                "correlation": stats.pearsonr(p, y).statistic,
                "spearman": stats.spearmanr(p, y).statistic,
                "r2": 1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
                "slope": line.slope,
                "intercept": line.intercept,
            }
            assert list(found) == list(expected)
            for metric, value in expected.items():
                assert found[metric][example] == pytest.approx(value, rel=1e-4, abs=1e-5), metric
    done.clear()
    assert not evaluate(run, list(weights), done.append)
    assert done == [6]
