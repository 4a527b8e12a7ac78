"""The command line, as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = [
    "task.examples.arguments.num_examples=20",
    "train.epochs=3",
    "train.minimum_accuracy=0",
    "task.model.arguments.width=4",
    "task.model.arguments.num_blocks=1",
    "design.num_masks=120",
    "evaluation.num_masks=20",
    "ablation.masks_per_shard=8",
    "ablation.mode=weights",
    "cluster.max_actors=1",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coar_dist", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=170, check=False)


def test_from_nothing_to_a_report_killed_half_way_and_again(tmp_path: Path) -> None:
    """Ctrl-C in the middle keeps what is finished; the same command goes on; the third finds all done."""
    slow = [*TINY, "design.num_masks=2000"]
    process = subprocess.Popen(
        command(*slow), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    shards = tmp_path / "runs" / "digits" / "margins" / "train"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(shards.glob("0*.parquet"))) < 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Interrupted. What is finished is kept" in errors
    done = {path.name: path.stat().st_mtime_ns for path in shards.glob("0*.parquet")}
    assert 4 <= len(done) < 250

    second = run(tmp_path, *slow)
    assert second.returncode == 0, second.stderr
    for text in ("is there already", "masks were there already", "COAR", "Leave-one-out", "runs/digits"):
        assert text in second.stdout, second.stdout
    assert all((shards / name).stat().st_mtime_ns == changed for name, changed in done.items())
    assert len(list(shards.glob("0*.parquet"))) == 250

    third = run(tmp_path, *slow)
    assert third.returncode == 0
    assert third.stdout.count("there already") == 4
    assert "COAR" in third.stdout
    assert any((tmp_path / "runs" / "digits" / "logs").iterdir())

    mismatch = run(tmp_path, *slow, "ablation.margins_dtype=float16")
    assert mismatch.returncode == 1
    assert "ablation.margins_dtype is 'float16', but the run was made with 'float32'" in mismatch.stderr
    retrained = run(tmp_path, *slow, "train.seed=1")
    assert retrained.returncode == 1
    assert "train.seed is 1, but" in retrained.stderr
    lasso = run(tmp_path, "stages=[fit,evaluate,report]", "regression=lasso")
    assert lasso.returncode == 0, lasso.stderr
    assert "coar_lasso of 20 examples (lasso, torch)" in lasso.stdout
    assert "COAR, lasso" in lasso.stdout
    no_effect = run(tmp_path, "stages=[fit,evaluate]", "design.num_masks=10")
    assert no_effect.returncode == 1
    assert "design.num_masks=10 has no effect" in no_effect.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["design.num_maks=5"], "num_maks"),
        (["+foo=1"], "foo: unknown key"),
        (["+design.foo=1"], "design.foo: unknown key"),
        (["design.num_masks=many"], "design.num_masks"),
        (
            ["regression=elastic_net", "regression.standard_errors=true"],
            "regression.standard_errors=True has no effect",
        ),
        (["design.num_masks=1"], "design.num_masks=1: must be at least 2"),
        (["experiment=digit"], "digits"),
        (["experiment=cifar10_resnet20"], "task.examples.arguments.path must be set"),
        (["experiment=cifar10_resnet20", "task.examples.arguments.path=x"], "task.model.checkpoint must be set"),
        (["stages=[fit]", "run.dir=nothing"], "nothing is not a run directory"),
        (["cluster.cpus_per_actor=999", *TINY], "need 999 CPU"),
        (["regression.backend=cuml"], "regression.backend='cuml' cannot run here"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_1(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == 1, result.stdout
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_groups_and_defaults_without_loading_torch(tmp_path: Path) -> None:
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    for text in (
        "experiment: cifar10_resnet20, digits",
        "cluster: existing, local",
        "num_masks: 3000",
        "tab completion",
    ):
        assert text in result.stdout
    assert "schema" not in result.stdout
    job = run(tmp_path, "--cfg", "job", "experiment=digits", "design.num_masks=7")
    assert "num_masks: 7" in job.stdout
    assert list(tmp_path.iterdir()) == []
    code = "import sys, coar_dist.app, coar_dist; assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
