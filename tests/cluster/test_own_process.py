"""The calling process as the one actor: the same work without Ray, and nothing of it stays behind."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coar_dist.ablation.actor import AblationActor
from coar_dist.cluster.own_process import as_an_actor
from coar_dist.cluster.work import Origin
from coar_dist.errors import RangeFailedError, StorageError, TaskError
from tests.cluster.driving import Driven, drive, only_once
from tests.small_run import files_of

SHARDS = [f"{start:010d}-{min(start + 4, 30):010d}.parquet" for start in range(0, 30, 4)]


def drive_here(folder: Path, act: Callable[[int], None] = lambda start: None, **options: Any) -> Driven:
    return drive(folder, act, where="process", max_actors=None, **options)


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "margins" / "train").glob("*.parquet"))


def state() -> dict[str, Any]:
    logger = logging.getLogger("coar_dist")
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "log": (list(logger.handlers), logger.level, logger.propagate),
    }


def test_the_same_bytes_in_whatever_state_the_process_is_and_it_stays_so(tmp_path: Path) -> None:
    for name in ("plain", "odd"):
        (tmp_path / name).mkdir()
    before = state()
    drive_here(tmp_path / "plain", num_masks=8)
    assert state() == before
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = True
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            odd = state()
            drive_here(tmp_path / "odd", num_masks=8)
            assert state() == odd != before
    finally:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False
    assert files_of(tmp_path / "odd" / "run") == files_of(tmp_path / "plain" / "run") != {}


def test_an_actor_is_as_a_new_process_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.random())

    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    expected = drawn()
    torch.random.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    set_to: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only=False: set_to.append((mode,)))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"), as_an_actor(3):
            assert torch.get_num_threads() == 3
            weight = torch.ones(2, requires_grad=True)
            (weight * weight).sum().backward()
            assert weight.grad is not None
            assert (weight.grad.dtype, weight.grad.device.type) == (torch.float32, "cpu")
            drawn()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn() == pytest.approx(expected)
    assert torch.get_num_threads() == 1
    assert set_to == [(False,), (True,)]


def test_the_model_is_the_user_s_own(tmp_path: Path) -> None:
    driven = drive_here(tmp_path, num_masks=4)
    again = drive_here(tmp_path, num_masks=4)
    for name, value in again.task.model.state_dict().items():
        torch.testing.assert_close(value, driven.task.model.state_dict()[name], rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in driven.task.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in driven.task.model.modules())


def test_a_passing_fault_is_tried_again_by_a_new_actor_on_a_new_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[AblationActor]] = []
    num_alive: list[int] = []

    class Watched(AblationActor):
        def __init__(self) -> None:
            gc.collect()
            num_alive.append(sum(other() is not None for other in made))
            made.append(weakref.ref(self))

    monkeypatch.setattr("tests.cluster.driving.AblationActor", Watched)

    def fail_once(start: int) -> None:
        if start == 8 and only_once(tmp_path / "failed"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    driven = drive_here(tmp_path, fail_once, plan=None)
    assert driven.store.missing() == []
    assert len(driven.starts) == 1
    assert num_alive == [0, 0], "the broken one must leave its memory"
    last = driven.counts[-1]
    assert (last.num_shards, last.num_failed, last.num_lost, last.num_actors) == (8, 1, 0, 1)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError("broken for good"),
            RangeFailedError,
            r"(?s)masks 8\.\.11 of 'train' failed 2 times, on actor-0 \(.*\), actor-1 .*line \d+, in fail.*broken for",
        ),
        (StorageError("No space left."), StorageError, r"masks 8\.\.11 .* could not be written by actor-1 and others"),
        (ValueError("needs 3 channels"), TaskError, r"masks 8\.\.11 of 'train': ValueError: needs 3 channels"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)  # fmt: skip
def test_what_was_finished_before_an_error_or_ctrl_c_is_kept(
    tmp_path: Path, error: BaseException, kind: type[BaseException], message: str | None
) -> None:
    before = state()

    def fail(start: int) -> None:
        if start == 8:
            raise error

    with pytest.raises(kind, match=message):
        drive_here(tmp_path, fail, max_attempts=2)
    assert set(SHARDS[:2]) <= set(shards(tmp_path)) <= {*SHARDS[:2], SHARDS[3]}
    assert state() == before
    assert drive_here(tmp_path).store.missing() == []
    assert shards(tmp_path) == SHARDS


def test_a_model_that_cannot_be_copied_is_named_with_the_reason(tmp_path: Path) -> None:
    class Uncopied:
        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs[:, 0]

        def __deepcopy__(self, _memo: object) -> None:
            raise TypeError("cannot pickle '_thread.lock' object")

    with pytest.raises(TaskError, match=r"the set-up: TypeError: cannot pickle '_thread\.lock' object"):
        drive_here(tmp_path, output=Uncopied())


def test_every_line_of_the_log_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coar_dist")
    _log = logging.getLogger("coar_dist.some.module")
    told: list[tuple[str, Origin]] = []

    def act(start: int) -> None:
        _log.info("at %d", start)

    drive_here(tmp_path, act, num_masks=8, on_log=lambda lines, origin: told.extend((t, origin) for _, t in lines))
    at = [(text, origin.shard) for text, origin in told if text.startswith("at ")]
    assert at == [("at 0", f"margins/train/{SHARDS[0]}"), ("at 4", f"margins/train/{SHARDS[1]}")]
    assert [record.message for record in caplog.records if record.name == _log.name] == []
    assert "actor-0 has started" in caplog.messages


_PROGRAM = """
import io, sys, torch, coar_dist
from coar_dist.config.schema import EvaluationConfig
from rich.console import Console
from tests.models import small_task
task, console = small_task(num_examples=16), Console(file=io.StringIO())
threads, seed = torch.get_num_threads(), torch.random.get_rng_state()
run = coar_dist.attribute(
    task.model, task.examples.inputs, task.examples.targets, run_dir=sys.argv[1], num_masks=10, ablation_fraction=0.2,
    num_gradient_masks=4, ablation_value="mean", stages=["ablate", "fit", "evaluate", "report"], console=console,
    evaluation=EvaluationConfig(num_masks=4),
)
run.edit([0], improve=["all"], max_components=3, console=console)
assert "ray" not in sys.modules
assert (torch.get_num_threads(), torch.equal(torch.random.get_rng_state(), seed)) == (threads, True)
"""


@pytest.mark.slow  # what imports what is in test_structure.py
def test_small_work_loads_no_ray(tmp_path: Path, repository: Path) -> None:
    program = [sys.executable, "-c", _PROGRAM, str(tmp_path / "run")]
    done = subprocess.run(program, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
