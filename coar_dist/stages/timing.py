"""A short trial with an actor's resources: how fast a forward pass is, and how long an actor takes to begin."""

from __future__ import annotations

import math
import time

from coar_dist.ablation.trial import Trial, TrialActor
from coar_dist.ablation.work import ROWS_KEY, MissingWork
from coar_dist.cluster import dispatch
from coar_dist.cluster.ranges import RangesToDo
from coar_dist.cluster.work import DriverCallbacks, SharedPlan, Work
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import Config
from coar_dist.stages.budget import expected_masks
from coar_dist.stages.collect import job_of, recorded_plan
from coar_dist.stages.session import Session
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.task import Task


def timed_start(
    session: Session,
    config: Config,
    run: RunDirectory,
    work: MissingWork,
    task: Task,
    components: ComponentIndex,
    num_actors: int,
) -> tuple[Trial, float]:
    """Let one actor choose the engine plan and time it.

    Args:
        session: where the actor's log is shown.
        config: with the numbers of passes that the run asks for, and the place where it runs.
        run: whose engine plan is taken over, if it has one.
        work: what the run lacks.
        task: what is explained.
        components: its component index.
        num_actors: how many actors will share the work.

    Returns:
        What the actor found out, and the seconds after which it could have begun with its first mask.
    """
    share = expected_masks(config, work).shared_by(num_actors)
    whole = Work(
        run=f"plan of {run.storage.label}",
        actor=TrialActor,
        task=task,
        job=job_of(session, run, task, components, {}),
        ranges=RangesToDo({}, {}, "masks"),
        plan=SharedPlan(recorded_plan(run, config, work), share, must_start=True),
        memory_key=ROWS_KEY,
        predict=lambda: math.inf,  # a run that may be here is asked to be
    )
    trials: list[Trial] = []
    callbacks = DriverCallbacks(
        on_progress=lambda *_: None,
        on_start=trials.append,
        on_log=session.terminal.relay,
        on_wait=lambda: None,
        on_join=lambda _: None,  # the estimate says it
    )
    started = time.monotonic()
    dispatch.run_ranges(config.cluster, whole, callbacks)
    return trials[0], time.monotonic() - started
