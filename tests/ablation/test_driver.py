from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation.actor import AblationJob, Start
from coar_dist.ablation.driver import DriverCallbacks, run_ranges
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.schedule import split_ranges
from coar_dist.components.discovery import discover
from coar_dist.config import ClusterConfig
from coar_dist.designs.design import MaskDesign
from coar_dist.errors import ClusterError, NonFiniteMarginError, RangeFailedError, TaskError
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import slow_margins, small_task

pytestmark = pytest.mark.usefixtures("ray_cluster")
PLAN = EnginePlan("weights", 7, compiled=False)


class Trouble(nn.Module):
    """A model whose forward pass does something, once the engine has been set up."""

    def __init__(self, inner: nn.Module, act: Callable[[], None]) -> None:
        super().__init__()
        self.inner = inner
        self.act = act
        self.num_calls, self.num_setup_calls = 0, 10**9

    def forward(self, images: Tensor) -> Tensor:
        self.num_calls += 1
        if self.num_calls > self.num_setup_calls:
            self.act()
        return self.inner(images)


def drive(
    folder: Path,
    act: Callable[[], None] = lambda: None,
    plan: EnginePlan | None = PLAN,
    output: Callable[..., Tensor] | str = "margin",
    **cluster: object,
) -> tuple[MarginStore, Task, list[Start], list[int]]:
    task = small_task()
    task = Task(Trouble(task.model, act), task.examples, output_function(output))
    components = discover(task.model, "conv_filters")
    trial = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    assert isinstance(task.model, Trouble)
    task.model.num_setup_calls = trial._model.num_calls
    design = MaskDesign("bernoulli", components.num_components, 30, 0.2, seed=2)
    identity = {"ablation.examples_per_block": 100, "ablation.margins_dtype": "float32"}
    run = RunDirectory.create(folder / "run", identity, components, len(task.examples))
    run.set_designs({"train": RunDesign("train", design)})
    store = run.margins("train")
    job = AblationJob(
        components, {"train": (design, store)}, "float32", None, 1, PlanPins(mode="weights", compiled=False)
    )
    starts: list[Start] = []
    progress: list[int] = []
    callbacks = DriverCallbacks(lambda done, actors: progress.append(done), starts.append, lambda lines: None)
    config = ClusterConfig(**{"num_actors": 2, **cluster})  # type: ignore[arg-type]
    run_ranges(config, task, job, split_ranges("train", store.missing(), 4), plan, callbacks)
    return store, task, starts, progress


def test_all_ranges_are_computed_and_the_plan_is_chosen_once(tmp_path: Path) -> None:
    store, task, starts, progress = drive(tmp_path, plan=None, num_actors=3)
    assert len(starts) == 1
    assert starts[0].plan.mode == "weights"
    assert starts[0].unablated.margins.shape == (7,)
    assert progress[-1] == 30
    assert store.missing() == []
    masks, margins = next(store.read((0, 7), 100))
    components = discover(task.model, "conv_filters")
    np.testing.assert_allclose(margins, slow_margins(task, components, masks), rtol=1e-4, atol=2e-5)


def test_a_killed_actor_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    flag = tmp_path / "killed"

    def die_once() -> None:
        try:
            flag.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    store = drive(tmp_path, die_once)[0]
    assert flag.exists()
    assert store.missing() == []


def test_a_passing_fault_is_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "failed"

    def fail_once() -> None:
        try:
            flag.touch(exist_ok=False)
        except FileExistsError:
            return
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert drive(tmp_path, fail_once)[0].missing() == []


def test_a_lasting_fault_names_the_range_and_keeps_the_traceback(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: broken for good")

    with pytest.raises(
        RangeFailedError, match=r"(?s)masks \d+\.\.\d+ of design 'train' failed 2 times.*broken for good"
    ):
        drive(tmp_path, fail, max_attempts=2)


def test_actors_that_cannot_be_set_up_stop_the_run(tmp_path: Path) -> None:
    driver = os.getpid()

    def fail_in_actors(outputs: Tensor, targets: Tensor) -> Tensor:
        if os.getpid() != driver:
            raise RuntimeError("no kernel for this device")
        return outputs[:, 0]

    with pytest.raises(RangeFailedError, match=r"(?s)2 actors could not be set up.*no kernel for this device"):
        drive(tmp_path, output=fail_in_actors, max_attempts=2)


def test_the_users_own_errors_fail_fast(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("this model needs 3 channels")

    with pytest.raises(TaskError, match=r"masks \d+.*ValueError: this model needs 3 channels"):
        drive(tmp_path, fail)


def test_nan_margins_stop_the_run_by_name(tmp_path: Path) -> None:
    def nan_at_two(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(torch.arange(len(targets)) == 2, float("nan"), 1.0) * outputs[:, 0]

    with pytest.raises(NonFiniteMarginError, match=r"margin of example 2 under mask \d+ is nan"):
        drive(tmp_path, output=nan_at_two)
    with pytest.raises(NonFiniteMarginError, match="unablated model's margins of 1 examples"):
        drive(tmp_path, output=nan_at_two, plan=None)


def test_resources_that_the_cluster_does_not_have_are_an_error_in_time(tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError, match=r"no actor started within .*=1 s: 1 actors with 64 CPU each.*has 4 CPU and 0"
    ):
        drive(tmp_path, num_actors=1, cpus_per_actor=64, start_timeout_s=1.0)
