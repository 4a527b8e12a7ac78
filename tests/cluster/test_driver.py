from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from coar_dist.cluster import driver
from coar_dist.cluster.schedule import Schedule
from coar_dist.components.discovery import discover
from coar_dist.errors import ClusterError, NonFiniteMarginError, RangeFailedError, StorageError, TaskError
from tests.cluster.driving import PLAN, drive, only_once
from tests.models import slow_margins

pytestmark = pytest.mark.usefixtures("ray_cluster")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_all_ranges_are_computed_and_the_plan_is_chosen_once(tmp_path: Path) -> None:
    driven = drive(tmp_path, plan=None, max_actors=2)
    assert len(driven.starts) == 1
    assert driven.starts[0].plan.mode == "weights"
    assert driven.starts[0].unablated.margins.shape == (7,)
    assert driven.progress[-1][0] == 30
    store = driven.store
    assert store.missing() == []
    assert store.made_by()["engine"] == driven.starts[0].plan.to_json()
    masks, margins = next(store.read((0, 7), 100))
    components = discover(driven.task.model, "conv_filters")
    np.testing.assert_allclose(margins, slow_margins(driven.task, components, masks), rtol=1e-4, atol=2e-5)


@pytest.mark.slow  # the duty is in test_plan_sharing.py, such a run in tests/runs/test_pipeline.py
def test_unablated_outputs_that_are_missing_are_computed_with_the_plan_of_the_run(tmp_path: Path) -> None:
    driven = drive(tmp_path, needs_unablated=True, max_actors=1)
    assert [start.plan for start in driven.starts] == [PLAN]
    assert driven.store.missing() == []


@pytest.mark.slow  # the same without Ray in test_simulated_driver.py
def test_an_actor_that_dies_while_it_starts_hands_the_duty_on(tmp_path: Path) -> None:
    flag = tmp_path / "killed"

    def die_in_start(outputs: Tensor, targets: Tensor) -> Tensor:
        if any(frame.function == "unablated" for frame in inspect.stack()) and only_once(flag):
            die()
        return outputs[:, 0]

    driven = drive(tmp_path, plan=None, output=die_in_start)
    assert flag.exists()
    assert len(driven.starts) == 1
    assert driven.store.missing() == []


@pytest.mark.slow
def test_actors_may_keep_dying_while_there_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "Schedule", partial(Schedule, max_losses=1))  # and 2 for the one actor
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def die_at_every_range_once(start: int) -> None:
        if only_once(deaths / str(start)):
            die()

    assert drive(tmp_path, die_at_every_range_once, num_masks=12, max_actors=1).store.missing() == []
    assert len(list(deaths.iterdir())) == 3


@pytest.mark.slow
def test_an_actor_that_is_asked_to_end_drops_what_it_computes(tmp_path: Path) -> None:
    """As where Ray is stopped on its node: it does not go on until it is killed."""

    def wait_for_the_end(start: int) -> None:
        if start == 8 and only_once(tmp_path / "asked"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)

    driven = drive(tmp_path, wait_for_the_end, num_masks=16, max_actors=1)
    assert driven.store.missing() == []
    assert (driven.counts[-1].num_lost, driven.counts[-1].num_failed) == (1, 0)


@pytest.mark.slow  # the same without Ray in test_schedule.py
def test_a_range_that_kills_every_actor_is_named_when_all_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Schedule", partial(Schedule, max_losses=2))

    def die_at_eight(start: int) -> None:
        if start == 8:
            die()

    host = re.escape(socket.gethostname())
    with pytest.raises(
        ClusterError,
        match=rf"(?s)^masks 8\.\.11 of 'train': every actor.*actor-\d+ on {host}: The actor is dead",
    ):
        drive(tmp_path, die_at_eight)
    starts = {int(path.name[:10]) for path in (tmp_path / "run" / "margins" / "train").glob("*.parquet")}
    assert starts == set(range(0, 30, 4)) - {8}


@pytest.mark.slow  # whole runs on such disks are in tests/runs/test_disk_faults.py
def test_a_disk_that_fails_for_a_moment_costs_nothing_and_one_that_fails_for_good_ends_the_run(tmp_path: Path) -> None:
    for name in ("once", "always"):
        (tmp_path / name).mkdir()

    def full_once(start: int) -> None:
        if start == 8 and only_once(tmp_path / "full"):
            raise StorageError("a.parquet cannot be written: No space left on device.")

    assert drive(tmp_path / "once", full_once, max_actors=1).store.missing() == []

    def full(start: int) -> None:
        raise StorageError("a.parquet cannot be written: No space left on device.")

    with pytest.raises(StorageError, match=r"masks \d+.* could not be written by actor-\d and others: .*No space left"):
        drive(tmp_path / "always", full, max_attempts=2)


@pytest.mark.slow  # which range, and on which actor, is in test_schedule.py
def test_a_slow_range_is_computed_elsewhere(tmp_path: Path) -> None:
    flag = tmp_path / "slow"

    def hang_once(start: int) -> None:
        if only_once(flag):
            time.sleep(600)

    assert drive(tmp_path, hang_once).store.missing() == []
    assert flag.exists()


@pytest.mark.slow  # another such fault is in test_metrics.py, and this without Ray in test_simulated_driver.py
def test_a_passing_fault_is_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "failed"

    def fail_once(start: int) -> None:
        if only_once(flag):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert drive(tmp_path, fail_once, max_actors=1).store.missing() == []


def test_a_lasting_fault_names_the_range_the_node_and_keeps_the_traceback(tmp_path: Path) -> None:
    def fail(start: int) -> None:
        raise RuntimeError("CUDA error: broken for good")

    where = rf"actor-\d+ \({re.escape(socket.gethostname())}\)"
    with pytest.raises(
        RangeFailedError, match=rf"(?s)masks .* failed 1 time, on {where}.*line \d+, in fail.*broken for good"
    ):
        drive(tmp_path, fail, max_actors=1, max_attempts=1)


@pytest.mark.slow  # the same without Ray in test_simulated_driver.py
def test_actors_that_cannot_be_set_up_stop_the_run(tmp_path: Path) -> None:
    test = os.getpid()

    def fail_in_actors(outputs: Tensor, targets: Tensor) -> Tensor:
        if os.getpid() != test:
            raise RuntimeError("no kernel for this device")
        return outputs[:, 0]

    with pytest.raises(RangeFailedError, match=r"(?s)2 actors could not be set up.*no kernel for this device"):
        drive(tmp_path, output=fail_in_actors, max_attempts=2)


@pytest.mark.slow  # the same without Ray in test_simulated_driver.py
def test_the_users_own_errors_fail_fast(tmp_path: Path) -> None:
    def fail(start: int) -> None:
        raise ValueError("this model needs 3 channels")

    with pytest.raises(TaskError, match=r"masks \d+.*ValueError: this model needs 3 channels"):
        drive(tmp_path, fail, max_actors=1)


def test_nan_margins_stop_the_run_by_name(tmp_path: Path) -> None:
    def nan_at_one_class(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(targets == 1, float("nan"), 1.0) * outputs[:, 0]

    with pytest.raises(NonFiniteMarginError, match=r"margin of example \d+ under mask \d+ is nan"):
        drive(tmp_path, output=nan_at_one_class, max_actors=1)


def test_resources_that_the_cluster_does_not_have_are_an_error_in_time(tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError,
        match=r"no actor started within .*=0.1 s, .*min_actors=1 .asked for: 1 actor with 64 CPU each.*has 4 CPU and 0",
    ):
        drive(tmp_path, max_actors=1, cpus_per_actor=64, start_timeout_s=0.1)


@pytest.mark.slow  # test_schedule.py and test_pool.py have its parts
def test_nodes_that_join_get_actors_and_a_node_that_is_killed_costs_nothing(tmp_path: Path, repository: Path) -> None:
    script = [sys.executable, "-m", "tests.cluster.elastic", str(tmp_path)]
    result = subprocess.run(script, cwd=repository, capture_output=True, text=True, timeout=170, check=False)
    assert result.stdout.strip().endswith("complete"), result.stdout[-2000:] + result.stderr[-2000:]
