"""The command line, as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

import coar_dist
from coar_dist.store.reader import RunReader
from tests.commands import run_forked

TINY = [
    "task.examples.arguments.num_examples=20",
    "train.epochs=3",
    "train.minimum_accuracy=0",
    "task.model.arguments.width=4",
    "task.model.arguments.num_blocks=1",
    "design.num_masks=120",
    "gradients.num_masks=20",
    "evaluation.num_masks=20",
    "ablation.masks_per_shard=8",
    "ablation.mode=weights",
    "cluster.max_actors=1",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coar_dist", *arguments]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, timeout=170, check=False)


def test_from_nothing_to_a_report_killed_half_way_and_again(ray_cluster: None, tmp_path: Path) -> None:
    """Ctrl-C in the middle keeps what is finished; the same command goes on; the third finds all done.

    The first starts a cluster of its own, the others join one.
    """
    slow = [*TINY, "design.num_masks=160"]
    process = subprocess.Popen(
        command(*slow, "cluster=ray"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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
    assert 4 <= len(done) < 20

    address = ray.get_runtime_context().gcs_address
    # Its nodes have folders of their own. Fits on a cluster have tests of their own.
    joined = ["regression.distributed=false", f"cluster.address={address}", f"run.dir={tmp_path}/runs/digits"]
    second = run_forked(tmp_path, *slow, *joined)
    assert second.returncode == 0, second.stderr
    for text in (
        "is there already",
        "on the Ray cluster at ",
        "masks there already",
        "COAR",
        "Leave-one-out",
        "runs/digits",
    ):
        assert text in second.stdout, second.stdout
    assert all((shards / name).stat().st_mtime_ns == changed for name, changed in done.items())
    assert len(list(shards.glob("0*.parquet"))) == 20

    third = run_forked(tmp_path, *slow)
    assert third.returncode == 0
    assert third.stdout.count("there already") == 7
    assert "COAR" in third.stdout
    assert any((tmp_path / "runs" / "digits" / "logs").iterdir())

    mismatch = run_forked(tmp_path, *slow, "ablation.margins_dtype=float16")
    assert mismatch.returncode == 1
    assert "ablation.margins_dtype is 'float16', but the run was made with 'float32'" in mismatch.stderr
    retrained = run_forked(tmp_path, *slow, "train.seed=1")
    assert retrained.returncode == 1
    assert "train.seed is 1, but" in retrained.stderr
    inspected = run_forked(tmp_path, "inspect", "run.dir=runs/digits")
    assert inspected.returncode == 0, inspected.stdout + inspected.stderr
    assert "No process writes to it." in inspected.stdout
    few = ["edit.target.sample=1", "edit.reference.sample=4", "edit.improve=[all]", "+edit.keep.all=1.0"]
    same = ["task.examples.arguments.num_examples=20", *TINY[3:5]]
    edited = run_forked(tmp_path, "stages=[edit]", *same, "edit=forget_class", *few)
    assert edited.returncode == 0, edited.stderr
    for text in ("Edit 'forget_class': lower the outputs of 1 target", "selected by", "greedy", "edits/forget_class"):
        assert text in edited.stdout
    inspected = run_forked(tmp_path, "inspect", "run.dir=runs/digits/edits/forget_class")
    assert inspected.returncode == 0, inspected.stdout + inspected.stderr
    no_effect = run_forked(tmp_path, "stages=[fit,evaluate]", "design.num_masks=10")
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
            ["regression=elastic_net", "regression.standard_errors=true", "estimator=coar"],
            "regression.standard_errors=True has no effect",
        ),
        (["design.num_masks=1"], "design.num_masks=1: must be 0 or at least 2"),
        (["design.num_masks=1", "estimator=coar"], "design.num_masks=1: must be 0 or at least 2"),
        (["regression=lasso"], "Use regression.method=ridge, or estimator=coar"),
        (["experiment=digit"], "digits"),
        (["experiment=cifar10_resnet20"], "task.examples.arguments.path must be set"),
        (["experiment=cifar10_resnet20", "task.examples.arguments.path=x"], "task.model.checkpoint must be set"),
        (["stages=[fit]", "run.dir=nothing"], "nothing is not a run directory"),
        (["regression.backend=cuml"], "regression.backend='cuml' cannot run here"),
        (["run.dir=az://bucket/x"], "object stores are s3://, gs://"),
        (["+task.model.arguments.hf_token=abc"], "task.model.arguments.hf_token looks like a credential"),
        (["+task.model.arguments._target_=os.system"], "objects cannot be made by _target_"),
        (["cluster.min_actors=3", "cluster.max_actors=2"], "cluster.max_actors=2 is below cluster.min_actors=3"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_1(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run_forked(tmp_path, *arguments)
    assert result.returncode == 1, result.stdout
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_groups_and_defaults_without_loading_torch(tmp_path: Path) -> None:
    brief = run_forked(tmp_path, "--help")
    assert brief.returncode == 0
    assert len(brief.stdout.splitlines()) < 50
    for text in ("  ablation.value=zero_weights ", "coar-dist --help=all", "tab completion"):
        assert text in brief.stdout
    result = run(tmp_path, "--help=all")
    assert result.returncode == 0
    for text in (
        "clip_typographic, clip_zero_shot, digits",
        "cluster: existing, local, process, ray",
        "estimator: budget, coar, gradient",
        "num_masks: 500",
        "tab completion",
    ):
        assert text in result.stdout
    assert "schema" not in result.stdout
    job = run_forked(tmp_path, "--cfg", "job", "experiment=digits", "design.num_masks=7")
    assert "num_masks: 7" in job.stdout
    assert list(tmp_path.iterdir()) == []
    code = "import sys, coar_dist.app, coar_dist; assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


FOREIGN = """
# @package _global_
task:
  model: {source: "evil:model"}
  examples: {source: digits}
"""


def test_code_from_a_configuration_file_runs_only_by_leave(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(FOREIGN)
    (tmp_path / "evil.py").write_text("print('the code has run')\ndef model(): raise ValueError('no model')\n")
    arguments = ["--config-dir", "conf", "experiment=mine", "run.dir=run"]
    refused = run_forked(tmp_path, *arguments)
    assert refused.returncode == 1
    assert "task.model.source='evil:model' runs code of the module 'evil'" in refused.stderr
    assert "add 'allow_code=[evil]' to the command line" in refused.stderr
    assert "the code has run" not in refused.stdout
    for leave in ("allow_code=[evil]", "task.model.source=evil:model"):
        allowed = run_forked(tmp_path, *arguments, leave)
        assert "the code has run" in allowed.stdout, allowed.stderr
        assert "model(**{}) raises ValueError: no model" in allowed.stderr
    predicate = '# @package _global_\nedit: {target: {predicate: "evil:model"}}\n'
    (tmp_path / "conf" / "experiment" / "predicate.yaml").write_text(predicate)
    refused = run_forked(tmp_path, "--config-dir", "conf", "experiment=predicate", "run.dir=run")
    assert "edit.target.predicate='evil:model' runs code of the module 'evil'" in refused.stderr
    assert "the code has run" not in refused.stdout
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(FOREIGN + "allow_code: [evil]\n")
    smuggled = run_forked(tmp_path, *arguments)
    assert "only the command line can allow code" in smuggled.stderr
    assert "the code has run" not in smuggled.stdout


def test_the_version_is_ours(tmp_path: Path) -> None:
    assert run_forked(tmp_path, "--version").stdout == f"coar-dist {coar_dist.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["inspect", "run.dir=run"]])
def test_a_reader_that_goes_away_is_no_error(small_run: RunReader, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "run").symlink_to(small_run.directory.storage.location)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(*arguments), cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode != 0


def test_every_job_of_a_sweep_has_a_run_directory_and_outlives_another_s_failure(tmp_path: Path) -> None:
    few = ["+train.examples.arguments.num_examples=20", "task.examples.arguments.num_examples=20", "train.epochs=1"]
    small = [*few, *TINY[2:5], "stages=[train]"]
    swept = run_forked(tmp_path, "-m", *small, "train.optimizer=sgd,unknown,adamw", "train.seed=3")
    assert swept.returncode == 1
    assert "train.optimizer='unknown': must be one of sgd, adamw" in swept.stderr
    assert swept.stderr.splitlines()[-1] == "1 job failed: job 1 (train.optimizer=unknown)"
    assert "Traceback" not in swept.stderr
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("model.safetensors")}
    assert made == {f"runs/digits/train.optimizer={name}/model.safetensors" for name in ("sgd", "adamw")}
    again = run_forked(tmp_path, "-m", *small, "train.optimizer=sgd,adamw", "train.seed=3")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is there already") == 2


SLEEPER = """
import ctypes, sys
from coar_dist import app, process
from coar_dist.stages import pipeline
process._STOP_WITHIN_S = 0.2
def stuck(*_):
    print("working", flush=True)
    ctypes.CDLL(None).sleep(60)  # in C, where Python's signal handlers do not run; SIGTERM ends only one sleep
    ctypes.CDLL(None).sleep(60)
pipeline.run_stages = stuck
sys.argv = ["coar-dist", "run.dir=run"]
app.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_deep_in_a_computation_ends_soon(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert errors.count("Interrupted. What is finished is kept") == 1


def test_inspect_names_what_is_damaged_and_changes_nothing(small_run: RunReader, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(small_run.directory.storage.location, root)
    names = sorted(path.relative_to(root) for path in (root / "margins").rglob("*.parquet"))
    flipped, truncated, foreign, gone = names[:4]
    content = bytearray((root / flipped).read_bytes())
    content[len(content) // 3] ^= 1
    (root / flipped).write_bytes(content)
    (root / truncated).write_bytes((root / truncated).read_bytes()[:-5])
    (root / foreign).write_bytes((root / gone).read_bytes())
    (root / gone).unlink()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    inspected = run_forked(tmp_path, "inspect", "run.dir=run")
    assert inspected.returncode == 1
    for text in (
        "3 files to be removed; the next run of their stage makes them again",
        str(flipped),
        str(truncated),
        str(foreign),
    ):
        assert text in inspected.stdout, inspected.stdout
    assert "checksum" in inspected.stdout
    assert "belongs to something else" in inspected.stdout
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert run_forked(tmp_path, "inspect").returncode == 2
    nothing = run_forked(tmp_path, "inspect", "run.dir=nothing")
    assert nothing.returncode == 1
    assert "nothing is not a run directory" in nothing.stderr
