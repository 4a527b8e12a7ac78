"""A whole run whose only attributions are the lasso's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig, Config, EvaluationConfig, RegressionConfig, RunConfig
from coar_dist.stages.pipeline import run_stages
from tests.models import small_task
from tests.small_run import without_ray


def test_a_run_of_the_lasso_alone_is_evaluated_and_reported(tmp_path: Path) -> None:
    task, output = small_task(), io.StringIO()
    with without_ray():
        run = coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=tmp_path,
            num_masks=150,
            ablation_fraction=0.2,
            ablation=AblationConfig(mode="rows", compile=False),
            regression=RegressionConfig(method="lasso"),
            evaluation=EvaluationConfig(num_masks=40, ablation_fractions=[0.2], seed=7, curve_shares=[0.5]),
            console=Console(file=output, width=120),
        )
    run_stages(
        Config(
            stages=["evaluate", "report"],
            run=RunConfig(str(tmp_path)),
            evaluation=EvaluationConfig(curve_shares=[0.5]),
        ),
        Console(file=output, width=120),
    )
    assert "COAR, lasso" in output.getvalue()
    assert "R2 of coar_lasso on new masks: not known, it takes" in output.getvalue()
    assert {path.name.split(".")[0] for path in (tmp_path / "attributions").iterdir()} == {"coar_lasso"}
    masks, margins = run.margins("evaluation_0.2")
    expected = [np.corrcoef(*pair)[0, 1] for pair in zip(run.predict(masks).T, margins.T, strict=True)]
    np.testing.assert_allclose(run.evaluation()["correlation"], expected, atol=1e-5)
    assert np.mean(expected) > 0.5
    assert run.evaluate().label.tolist() == ["COAR, lasso", "Ceiling, linear"]
    assert run.quality()["duality_gap"].max() < 1e-5
    assert len(run.top(0, num=3)) == 3
