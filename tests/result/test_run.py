"""What a run does next with its model and its files, held to slow references."""

from __future__ import annotations

import copy
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

import coar_dist
from coar_dist.errors import ConfigError, MissingWorkError, RunMismatchError
from coar_dist.store.agreement import correlation_of
from tests.models import random_masks, slow_margins, small_task
from tests.small_run import without_ray

QUIET = Console(file=io.StringIO())
TASK = small_task()
INPUTS = TASK.model, TASK.examples.inputs, TASK.examples.targets


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> coar_dist.Run:
    """A run with masks and attributions, without held-out masks; tests may add to it."""
    with without_ray():
        return coar_dist.attribute(
            *INPUTS,
            run_dir=tmp_path_factory.mktemp("runs") / "made",
            num_masks=150,
            ablation_fraction=0.2,
            stages=["ablate", "fit"],
            console=QUIET,
        )


def test_true_outputs_of_the_model_in_memory_and_of_one_that_is_given(made: coar_dist.Run) -> None:
    mask = random_masks(1, 12, 0.4)[0]
    off = np.flatnonzero(~mask).tolist()
    truth = slow_margins(TASK, made.components, mask[None])[0]
    np.testing.assert_allclose(made.ablate(off=off), truth, atol=1e-5)
    before = copy.deepcopy(TASK.model.state_dict())
    np.testing.assert_allclose(made.ablate(TASK.model, off=[made.names[i] for i in off]), truth, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in TASK.model.state_dict().items())
    opened = coar_dist.open_run(made.path)
    np.testing.assert_allclose(opened.ablate(*INPUTS, off=off), truth, atol=1e-5)
    pairs = DataLoader(TensorDataset(*INPUTS[1:]), batch_size=3)  # type: ignore[arg-type]
    np.testing.assert_allclose(opened.ablate(TASK.model, pairs, off=off), truth, atol=1e-5)
    with pytest.raises(ConfigError, match="ablate: give model and inputs as well, or none of the three"):
        made.ablate(inputs=INPUTS[1], off=off)
    with pytest.raises(ConfigError, match="ablate: a run that was opened from its files has no model"):
        opened.ablate(TASK.model, off=off)
    with pytest.raises(RunMismatchError, match=r"model\.weights is"):
        made.ablate(small_task(seed=1).model, off=off)


def test_true_outputs_have_the_values_of_the_run(tmp_path: Path) -> None:
    sites = {f"{name}.output": torch.linspace(-1.0, 2.0, 4) for name in ("conv1", "conv2", "grouped")}
    with without_ray():
        run = coar_dist.attribute(
            *INPUTS,
            run_dir=tmp_path / "run",
            num_masks=10,
            ablation_value=sites,
            stages=["ablate"],
            console=QUIET,
        )
    model, value = copy.deepcopy(TASK.model), torch.linspace(-1.0, 2.0, 4)[:, None, None]
    kept = torch.tensor([True, True, False, True])[:, None, None]
    model.conv1.register_forward_hook(lambda module, given, output: value.expand_as(output))
    model.conv2.register_forward_hook(lambda module, given, output: torch.where(kept, output, value))
    with torch.no_grad():
        truth = TASK.output_function(model(INPUTS[1]), INPUTS[2]).numpy()
    np.testing.assert_allclose(run.ablate(off=["conv1*", 6]), truth, atol=1e-5)


def test_values_that_differ_by_example_are_refused(tmp_path: Path) -> None:
    with without_ray():
        run = coar_dist.attribute(
            *INPUTS,
            run_dir=tmp_path / "run",
            num_masks=10,
            ablation_value="resample",
            stages=["ablate"],
            console=QUIET,
        )
    with pytest.raises(ConfigError, match="ablate: the run ablates by activations of other examples, which differ"):
        run.ablate(off=3)


def test_refit_gives_the_method_that_was_fitted(made: coar_dist.Run, tmp_path: Path) -> None:
    shutil.copytree(made.path, tmp_path / "run")
    run = coar_dist.open_run(tmp_path / "run")
    assert run.values.any()
    lasso = run.refit({"method": "lasso", "regularisation": 0.3}, console=QUIET)
    masks, margins = run.margins()
    X = masks - masks.mean(axis=0)
    residuals = margins - margins.mean(axis=0) - X @ lasso.values.T
    gradient = np.abs(X.T @ residuals) / len(masks)  # at most the penalty, and the penalty where a weight is not 0
    assert lasso.method == "coar_lasso"
    assert gradient.max() <= 0.3 * (1 + 1e-2)
    np.testing.assert_allclose(gradient[lasso.values.T != 0], 0.3, rtol=2e-2)
    assert run.methods == ["coar", "coar_lasso"]
    plain = run.refit({"regularisation": 0.0}, console=QUIET)
    solution = np.linalg.lstsq(np.c_[masks, np.ones(len(masks))], margins, rcond=None)[0]
    np.testing.assert_allclose(plain.values, solution[:-1].T, atol=1e-3)
    np.testing.assert_allclose(run.values, plain.values)  # and not what was read before
    with pytest.raises(ConfigError, match="regression"):
        run.refit({"colour": 1})


def test_held_out_masks_are_collected_where_there_are_none(
    made: coar_dist.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = coar_dist.open_run(made.path)
    with pytest.raises(MissingWorkError, match=r"no model to collect them with\. Call attribute"):
        opened.evaluate(QUIET)
    with without_ray():
        report = made.evaluate(progress=False).set_index("method")
    masks, true = made.margins("evaluation_0.2")
    assert len(masks) == 100
    assert not (masks[:, None] == made.margins()[0][None, :100]).all(axis=2).any(axis=1).all()
    assert report.correlation["coar"] == pytest.approx(correlation_of(made.predict(masks), true).mean(), rel=1e-5)
    assert report.index.tolist() == ["coar", "ceiling"]
    lasso = made.refit("lasso", progress=False)
    assert capsys.readouterr().out == ""
    assert "COAR, lasso" in Path(made.write_report(QUIET)).read_text()  # which is evaluated first
    row = made.evaluate().set_index("method").loc[lasso.method]
    assert row.correlation == pytest.approx(
        correlation_of(made.predict(masks, method=lasso.method), true).mean(), rel=1e-5
    )
