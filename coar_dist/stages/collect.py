"""Collecting what a run lacks: margins and gate gradients of all masks of its designs, on the cluster's actors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from coar_dist.ablation.actor import AblationActor, AblationJob, Start
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.work import ROWS_KEY, ExpectedMasks, MissingWork, Stores, missing_work, stores_of
from coar_dist.cluster import dispatch
from coar_dist.cluster.work import Counts, DriverCallbacks, SharedPlan, Work
from coar_dist.components.index import ComponentIndex
from coar_dist.config.documents import check_type
from coar_dist.config.schema import Config
from coar_dist.console.progress import StageProgress
from coar_dist.console.tracking import Tracking
from coar_dist.errors import counted
from coar_dist.stages.prediction import seconds_of_masks
from coar_dist.stages.session import Session
from coar_dist.stages.values import value_of_run
from coar_dist.store.examples import TARGET, ExampleTable
from coar_dist.store.record import damaged_record
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.example_set import FOR_THE_EYE
from coar_dist.tasks.task import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missing:
    """What a run lacks of what its designs ask for.

    Attributes:
        stores: of all designs.
        work: what is missing in them.
        has_examples: whether the run knows its examples and their unablated outputs.
    """

    stores: Stores
    work: MissingWork
    has_examples: bool

    @classmethod
    def of(cls, run: RunDirectory, session: Session, note: str = "") -> Missing:
        """Set aside what is wrong, with a warning for each shard that ends in ``note``, and look what is missing."""
        stores = stores_of(run)
        for _, store in stores.values():
            for reason in store.set_aside_wrong(run.is_new):
                session.terminal.warn(f"{reason}{note}")
        examples = ExampleTable(run)
        examples.set_aside_wrong()
        return cls(stores, missing_work(run, stores, session.config), examples.is_complete())

    def __bool__(self) -> bool:
        return bool(self.work.ranges) or not self.has_examples


def collect(
    session: Session,
    run: RunDirectory,
    task: Task,
    components: ComponentIndex,
    missing: Missing,
    expected_masks: ExpectedMasks,
    tracking: Tracking | None = None,
) -> None:
    """Compute what a run lacks.

    Args:
        session: how, on which cluster, and where progress is shown.
        run: in the session's run directory, or in a folder of it.
        task: model, examples and output function of the run.
        components: its component index.
        missing: what it lacks.
        expected_masks: masks to be run without and with gradients, later ones among them: the engine plan follows.
        tracking: where the figures go, too; None: nowhere.
    """
    terminal, hold = session.terminal, session.take()
    if not session.config.run.previews:
        shown = {name: values for name, values in task.examples.columns.items() if name not in FOR_THE_EYE}
        task = replace(task, examples=replace(task.examples, columns=shown))
    if missing.has_examples and ExampleTable(run).update(task.examples.columns):
        terminal.say("columns of examples.parquet are new or have changed: written.")
    work, stores = missing.work, missing.stores
    num_missing = work.ranges.num_units
    num_there = run.num_masks - num_missing
    if not missing:
        terminal.say(f"{counted(run.num_masks, 'mask')}: all there already.")
        return
    plan = recorded_plan(run, session.config, work)
    if plan is not None and run.is_new:  # the shards have told it
        run.set_engine_plan(plan.to_json())
    job = job_of(session, run, task, components, stores)
    with session.progress(num_missing, "masks") as progress:
        whole = Work(
            run=run.storage.label,
            actor=AblationActor,
            task=task,
            job=job,
            ranges=work.ranges,
            plan=SharedPlan(plan, expected_masks, must_start=not missing.has_examples),
            memory_key=ROWS_KEY,
            predict=partial(seconds_of_masks, session.config, task, expected_masks),
        )
        callbacks = DriverCallbacks(
            on_progress=_shown(progress, tracking or Tracking(), num_there),
            on_start=_recorder(run, task),
            on_log=terminal.relay,
            on_wait=hold.check,
            on_join=lambda cluster: terminal.say(f"on {cluster}."),
        )
        dispatch.run_ranges(session.config.cluster, whole, callbacks)
        if tracking is not None:
            tracking.flush()
        for _, store in stores.values():
            for reason in store.set_aside_overlapping():
                terminal.warn(reason)
        rate, seconds = progress.rate, progress.seconds
    with_gradients = f", {work.gradient_masks:,.0f} with gradients," if work.gradient_masks else ""
    terminal.say(
        f"{counted(num_missing, 'mask')}{with_gradients} x {counted(len(task.examples), 'example')} in {seconds:.1f} s "
        f"({rate:,.1f} masks/s); {counted(num_there, 'mask')} there already.",
    )


def recorded_plan(run: RunDirectory, config: Config, work: MissingWork) -> EnginePlan | None:
    """The run's engine plan; None where it has none that the configuration allows and the work can use."""
    recorded = run.engine_plan
    plan = None if recorded is None else _plan_of(run, recorded)
    if plan is not None and (not _pins(config).allow(plan) or (work.gradient_masks and plan.gradient_rows is None)):
        return None
    return plan


def _plan_of(run: RunDirectory, recorded: dict[str, Any]) -> EnginePlan:
    try:
        check_type(EnginePlan, recorded)
        return EnginePlan(**recorded)
    except (ValueError, TypeError) as error:
        raise damaged_record(run.storage, f"engine_plan cannot be: {error}") from error


def job_of(session: Session, run: RunDirectory, task: Task, components: ComponentIndex, stores: Stores) -> AblationJob:
    """What every actor is told."""
    config = session.config
    return AblationJob(
        value=value_of_run(session, run, task, components),
        stores=stores,
        precision=str(run.identity["ablation.precision"]),
        device_map=config.ablation.device_map,
        pins=_pins(config),
    )


def _pins(config: Config) -> PlanPins:
    ablation = config.ablation
    return PlanPins(ablation.mode, ablation.rows_per_forward, ablation.compile, ablation.cuda_graphs)


def _shown(progress: StageProgress, tracking: Tracking, num_before: int) -> Callable[[Counts], None]:
    """Shows counts in the terminal, and offers them to trackers; ``num_before`` masks were there already."""

    def show(counts: Counts) -> None:
        progress.update(counts.num_units, counted(counts.num_actors, "actor"))
        figures = {
            "masks_per_s": progress.rate,
            "shards_done": counts.num_shards,
            "shards_failed": counts.num_failed,
            "shards_retried": counts.num_retried,
            "actors_lost": counts.num_lost,
            "actors_alive": counts.num_actors,
        }
        step = num_before + counts.num_units
        tracking.offer({f"ablate/{name}": float(value) for name, value in figures.items()}, step)

    return show


def _recorder(run: RunDirectory, task: Task) -> Callable[[Start], None]:
    """Records what the first actor found out: the examples' unablated outputs, and the engine plan."""
    targets = task.examples.targets

    def record(start: Start) -> None:
        unablated = start.unablated
        are_classes = unablated.predictions is not None and not targets.is_floating_point()
        labels = targets.cpu().numpy().astype(np.int64) if are_classes else None
        predictions = unablated.predictions if are_classes else None
        columns = task.examples.columns
        if targets.is_floating_point() and targets.ndim == 1:
            columns = {TARGET: targets.cpu().float().numpy(), **columns}
        ExampleTable(run).write(labels, predictions, unablated.margins, columns)
        run.set_engine_plan(start.plan.to_json())
        if start.gradient_cost is not None:
            run.set_gradient_cost(start.gradient_cost)
        _log.info("engine plan: %s", start.plan)

    return record
