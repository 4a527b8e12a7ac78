"""The plan stage: what the ablate stage would take, by a short trial with an actor's resources; nothing is written."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from functools import partial

from coar_dist.cluster.place import is_here, may_be_here
from coar_dist.config.schema import PLAN, PROCESS
from coar_dist.stages.session import Session
from coar_dist.stages.stage import Stage
from coar_dist.store.record import RUN_FILE
from coar_dist.store.rehearsal import Rehearsal
from coar_dist.store.run_directory import RunDirectory

_NOTE = " (The ablate stage will do that; nothing is touched now.)"


def _check(session: Session) -> None:
    from coar_dist.stages.mask_designs import check_kinds

    check_kinds(session.config)


def _run(session: Session) -> None:
    """Print what is missing of a run, and what it takes on the cluster.

    What the run directory holds is subtracted. It need not be there, and is not changed.

    Raises:
        CoarDistError: what the ablate stage would raise before its first mask.
    """
    from torch import cuda  # which takes seconds to load

    from coar_dist.cluster.dispatch import connected
    from coar_dist.cluster.pace import cut_ranges
    from coar_dist.stages.baselines import MissingBaselines
    from coar_dist.stages.budget import expected_masks, with_recorded_passes
    from coar_dist.stages.circuit import known_ids
    from coar_dist.stages.collect import Missing
    from coar_dist.stages.estimate import Estimate
    from coar_dist.stages.inputs import components_of, identity_of, task_of, untrained_task
    from coar_dist.stages.later import print_later
    from coar_dist.stages.loads import baseline_loads, mask_loads, plain_loads
    from coar_dist.stages.mask_designs import ROLE_WORDS, designs_of
    from coar_dist.stages.prediction import seconds_of_masks
    from coar_dist.stages.print_estimate import print_estimate
    from coar_dist.stages.timing import timed_start
    from coar_dist.stages.values import identity_of_value

    config, terminal = session.config, session.terminal
    if _is_untrained(session):
        terminal.say("the model is not trained yet: timed with random weights, without the train stage's own time.")
        task = untrained_task(session)
    else:
        task = task_of(session)
    components = components_of(session, task.model)
    probe_margins = task.check()
    known_ids(config.circuit, components)
    with contextlib.ExitStack() as stack:
        cluster = None if may_be_here(config.cluster) else stack.enter_context(connected(config.cluster))
        identity = {
            **identity_of(session, task, components),
            **identity_of_value(session, task, components, find=False),
        }
        rehearsal = Rehearsal(session.storage)
        run = RunDirectory.create(rehearsal, identity, components, len(task.examples), probe_margins)
        config = with_recorded_passes(config, run)
        run.set_designs(designs_of(config, components.num_components))
        baselines = MissingBaselines.of(run, session)
        baselines.check(task, components, session)
        missing = Missing.of(run, session, _NOTE)
        ranges = missing.work.ranges
        if not ranges and not baselines.ranges and config.budget is None:
            terminal.say(f"nothing is missing in {session.storage}.")
            print_later(session, config, run, missing, [], task, (math.nan, math.nan))
            return
        masks = expected_masks(config, missing.work)
        if cluster is None and not is_here(config.cluster, partial(seconds_of_masks, config, task, masks)):
            cluster = stack.enter_context(connected(config.cluster))
        num_actors, num_gpus = 1, float(cuda.is_available())
        if cluster is not None:
            num_actors = cluster.num_wanted(cluster.capacity(), len(ranges) or len(baselines.ranges) or 1)
            num_gpus = cluster.num_gpus
        at_once = replace(config, cluster=replace(config.cluster, where=PROCESS)) if cluster is None else config
        trial, start_s = timed_start(session, at_once, run, missing.work, task, components, num_actors)
        parts = list(cut_ranges(ranges, trial.seconds_per_margin * len(task.examples)))
        if cluster is not None:  # slow actors get small ranges, which more of them can share
            num_actors = cluster.num_wanted(cluster.capacity(), len(parts) or len(baselines.ranges) or 1)
        cost = run.gradient_cost or trial.gradient_cost  # a pilot's own decides what its budget is spent on
        estimate = Estimate(
            loads=(
                *mask_loads(run, missing, parts, cost),
                *baseline_loads(config, run, baselines),
                *plain_loads(session, run, missing, task),
            ),
            num_examples=len(task.examples),
            seconds_per_pass=trial.seconds_per_margin,
            gradient_cost=cost,
            num_actors=num_actors,
            gpus_per_actor=num_gpus,
            start_s=start_s,
            price_per_hour=config.cluster.price_per_hour,
        )
    if config.budget is not None:
        estimate = estimate.with_budget(config.budget, [ROLE_WORDS["train"], ROLE_WORDS["gradients"]])
        if not ranges and not baselines.ranges and not estimate.budget_passes:
            terminal.say(f"nothing is missing in {session.storage}: the pilot has taken the budget.")
            print_later(session, config, run, missing, parts, task, (start_s, trial.seconds_per_margin))
            return
    print_estimate(estimate, config, trial.plan, terminal)
    print_later(session, config, run, missing, parts, task, (start_s, trial.seconds_per_margin))


def _is_untrained(session: Session) -> bool:
    """Whether the run is still to train its model; random weights are as fast."""
    from coar_dist.tasks.trained_checkpoint import CHECKPOINT

    files = (CHECKPOINT, RUN_FILE)
    return session.config.train is not None and all(session.storage.size(name) is None for name in files)


PLAN_STAGE = Stage(
    PLAN,
    reads=(
        "task",
        "train",
        "components",
        "design",
        "budget",
        "gradients",
        "baselines",
        "baseline_settings",
        "evaluation",
        "circuit",
        "ablation",
        "regression",
        "cluster",
        "edit",
        "run.previews",
        "run.responses_mb",
    ),
    run=_run,
    check=_check,
)
