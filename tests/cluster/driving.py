"""A small run for tests of the driver, whose actors get into trouble at chosen ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coar_dist.ablation.actor import AblationActor, AblationJob, Start
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.value import ZeroWeights
from coar_dist.ablation.work import ROWS_KEY, ExpectedMasks
from coar_dist.cluster.dispatch import run_ranges
from coar_dist.cluster.ranges import RangesToDo
from coar_dist.cluster.work import Counts, DriverCallbacks, Origin, SharedPlan, Work
from coar_dist.cluster.worker import LogLines
from coar_dist.components.discovery import discover
from coar_dist.config.schema import ClusterConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.store.locations import storage_at
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import small_task

PLAN = EnginePlan("weights", 7, compiled=False)
MASKS_PER_SHARD = 4


@dataclass(frozen=True)
class TroubledDesign(Bernoulli):
    """A design that does something in the actor when a range of masks begins: ``act(first mask)``."""

    act: Callable[[int], None] = lambda start: None

    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        self.act(start)
        return super().masks(start, stop)


@dataclass
class Driven:
    """A run that ended well."""

    store: MarginStore
    task: Task
    starts: list[Start]
    progress: list[tuple[int, int]]
    counts: list[Counts]


def drive(
    folder: Path,
    act: Callable[[int], None] = lambda start: None,
    plan: EnginePlan | None = PLAN,
    output: Callable[..., Tensor] | str = "margin",
    num_masks: int = 30,
    needs_unablated: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, actors: None,
    on_log: Callable[[LogLines, Origin], None] = lambda lines, origin: None,
    **cluster: object,
) -> Driven:
    task = replace(small_task(), output_function=output_function(output))
    components = discover(task.model, "conv_filters")
    design = TroubledDesign(components.num_components, num_masks, 0.2, seed=2, act=act)
    untroubled = Bernoulli(components.num_components, num_masks, 0.2, seed=2)
    identity = {"ablation.examples_per_block": 100, "ablation.margins_dtype": "float32"}
    (folder / "run").mkdir(exist_ok=True)
    run = RunDirectory.create(storage_at(folder / "run"), identity, components, len(task.examples))
    run.set_designs({"train": RunDesign("train", untroubled)})
    store = run.margins("train")
    pins = PlanPins(mode="weights", compiled=False)
    work = Work(
        run=run.storage.label,
        actor=AblationActor,
        task=task,
        job=AblationJob(ZeroWeights(components), {"train": (design, store)}, "float32", None, pins),
        ranges=RangesToDo({"train": store.missing()}, {"train": MASKS_PER_SHARD}, "masks"),
        plan=SharedPlan(plan, ExpectedMasks(store.num_masks, 0), must_start=needs_unablated),
        memory_key=ROWS_KEY,
        predict=lambda: 0.0,
    )
    driven = Driven(store, task, [], [], [])

    def note_progress(counts: Counts) -> None:
        driven.counts.append(counts)
        driven.progress.append((counts.num_units, counts.num_actors))
        on_progress(counts.num_units, counts.num_actors)

    callbacks = DriverCallbacks(note_progress, driven.starts.append, on_log, lambda: None, lambda cluster: None)
    run_ranges(ClusterConfig(**{"where": "ray", "max_actors": 2, **cluster}), work, callbacks)  # type: ignore[arg-type]
    return driven


def only_once(flag: Path) -> bool:
    """True for the first process that asks."""
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
