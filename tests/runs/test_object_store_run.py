"""The command line with a run directory in an object store that fails now and then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs

import coar_dist
from tests.commands import run_forked
from tests.object_store import BUCKET, ObjectStore
from tests.small_run import files_of

URL = f"s3://{BUCKET}/runs/digits"
SMALL = [
    "train.epochs=4",
    "train.minimum_accuracy=0",
    "task.examples.arguments.num_examples=40",
    "task.model.arguments.width=4",
    "task.model.arguments.num_blocks=1",
    "design.num_masks=300",
    "gradients.num_masks=20",
    "evaluation.num_masks=40",
    "evaluation.ablation_fractions=[0.05]",
    "evaluation.curve_shares=[]",
    "ablation.masks_per_shard=16",
    "ablation.mode=weights",
    "ablation.rows_per_forward=40",
    "cluster.max_actors=2",
]


def start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "coar_dist", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow  # what a store does is in tests/store/test_storage.py
@pytest.mark.cluster
def test_digits_in_an_object_store_killed_failing_and_again(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is killed, requests fail with 500 and broken connections, and the files are a local run's."""
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    first = start(tmp_path, object_store.environment, f"run.dir={URL}", *SMALL)
    deadline = time.monotonic() + 120
    while len(files.find(f"{URL}/margins")) < 3:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    object_store.held_path = "/margins/"  # else the first run may be over before the second has begun
    object_store.lets_write.clear()
    second = start(tmp_path, object_store.environment, f"run.dir={URL}", *SMALL)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"{URL} is in use by process {first.pid} on " in errors
    first.send_signal(signal.SIGKILL)
    first.communicate()
    object_store.lets_write.set()

    object_store.fail_every, before = 17, object_store.num_failures
    try:
        third = start(tmp_path, object_store.environment, f"run.dir={URL}", *SMALL)
        printed, errors = third.communicate(timeout=200)
    finally:
        object_store.fail_every = 0
    assert third.returncode == 0, errors
    assert object_store.num_failures > before + 10
    assert f"Report: {URL}/report/index.html" in printed
    assert " 0 masks there already" not in printed

    local = run_forked(tmp_path, "run.dir=local", *SMALL)
    assert local.returncode == 0, local.stderr
    files.get(f"{URL}/", str(tmp_path / "copy"), recursive=True)
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "local")
    stored = b"".join(path.read_bytes() for path in (tmp_path / "copy").rglob("*") if path.is_file())
    assert object_store.environment["AWS_SECRET_ACCESS_KEY"].encode() not in stored

    run = coar_dist.open_run(URL)
    assert run.weights([0, 39]).shape == (2, run.components.num_components)
    assert pq.read_schema(tmp_path / "copy" / "examples.parquet").names[0] == "example_id"
    inspected = run_forked(tmp_path, "inspect", f"run.dir={URL}")
    assert inspected.returncode == 0, inspected.stderr
    assert "No process writes to it." in inspected.stdout
