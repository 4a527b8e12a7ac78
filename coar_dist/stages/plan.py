"""The plan stage: what the ablate stage would take, by a short trial with an actor's resources; nothing is written."""

from __future__ import annotations

import time
from dataclasses import replace

from rich.console import Console
from torch import Tensor

from coar_dist.ablation.trial import Trial, TrialActor
from coar_dist.ablation.work import ROWS_KEY, MissingWork, Stores, missing_work, stores_of
from coar_dist.baselines.gradient_baselines import passes_per_example
from coar_dist.cluster import driver
from coar_dist.cluster.connection import connect
from coar_dist.cluster.ranges import RangesToDo, WorkRange
from coar_dist.cluster.work import DriverCallbacks, SharedPlan, Work
from coar_dist.components.discovery import check_components, discover
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import Config
from coar_dist.console.saying import say, say_log
from coar_dist.stages.ablate import (
    ROLE_WORDS,
    designs_of,
    expected_masks,
    identity_of,
    job_of,
    recorded_plan,
    trained_weights,
)
from coar_dist.stages.baselines import MissingBaselines
from coar_dist.stages.estimate import Estimate, Load
from coar_dist.stages.print_estimate import print_estimate
from coar_dist.store.gradients import GradientStore
from coar_dist.store.record import RUN_FILE
from coar_dist.store.rehearsal import Rehearsal
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory
from coar_dist.store.storage import Storage
from coar_dist.tasks.build import build_model, build_task
from coar_dist.tasks.task import Task
from coar_dist.tasks.training import CHECKPOINT

_STAGE = "plan"


def plan_stage(
    config: Config, storage: Storage, console: Console, task: Task | None, components: ComponentIndex | None
) -> None:
    """Print what is missing of a run, and what it takes on the cluster.

    Args:
        config: of the run.
        storage: the run directory; what is done there is subtracted. It need not be there, and is not changed.
        console: where the estimate is printed.
        task: what to explain; None builds it from ``config.task``, with random weights where it is not trained yet.
        components: the component index; None discovers it by ``config.components``.

    Raises:
        CoarDistError: what the ablate stage would raise before its first mask.
    """
    if task is None:
        task = build_task(config.task, _weights(config, storage, console))
    if components is None:
        chosen = config.components
        components = discover(task.model, chosen.selector, chosen.include, chosen.exclude, chosen.rules)
    check_components(task.model, components)
    probe_margins = task.check()
    num_examples = len(task.examples)
    with connect(config.cluster) as cluster:
        identity = identity_of(task, config, storage)
        run = RunDirectory.create(Rehearsal(storage), identity, components, num_examples, probe_margins)
        config = _with_recorded_passes(config, run)
        run.set_designs(designs_of(config, components.num_components))
        baselines = MissingBaselines.of(run, config, console)
        baselines.check(task, components, console)
        stores = stores_of(run)
        for _, store in stores.values():
            for reason in store.set_aside_wrong(run.is_new):
                text = f"[yellow]{reason}[/yellow] (The ablate stage will do that; nothing is touched now.)"
                say(console, _STAGE, text)
        work = missing_work(run, stores, config)
        if not work.ranges and not baselines.ranges and config.budget is None:
            say(console, _STAGE, f"nothing is missing in {storage}.")
            return
        num_actors = cluster.num_wanted(cluster.capacity(), len(work.ranges) or len(baselines.ranges) or 1)
        trial, start_s = _trial(config, run, work, task, components, num_actors, console)
        cost = run.gradient_cost or trial.gradient_cost  # a pilot's own decides what its budget is spent on
        loads = [*_mask_loads(run, stores, work, cost), *_baseline_loads(config, run, baselines)]
        estimate = Estimate(
            tuple(loads),
            num_examples,
            trial.seconds_per_margin,
            cost,
            num_actors,
            cluster.num_gpus,
            start_s,
            config.cluster.price_per_hour,
        )
    if config.budget is not None:
        estimate = estimate.with_budget(config.budget, [ROLE_WORDS["train"], ROLE_WORDS["gradients"]])
        if not work.ranges and not baselines.ranges and not estimate.budget_passes:
            say(console, _STAGE, f"nothing is missing in {storage}: the pilot has taken the budget.")
            return
    print_estimate(estimate, config, trial.plan, console)


def _trial(
    config: Config,
    run: RunDirectory,
    work: MissingWork,
    task: Task,
    components: ComponentIndex,
    num_actors: int,
    console: Console,
) -> tuple[Trial, float]:
    """What one of so many actors finds out, and after how many seconds it could have begun with its first mask."""
    share = expected_masks(config, work).shared_by(num_actors)
    whole = Work(
        run=f"plan of {run.storage.label}",
        actor=TrialActor,
        task=task,
        job=job_of(run, config, components, {}),
        ranges=RangesToDo({}, {}, "masks"),
        plan=SharedPlan(recorded_plan(run, config, work), share, must_start=True),
        memory_key=ROWS_KEY,
    )
    trials: list[Trial] = []
    callbacks = DriverCallbacks(
        on_progress=lambda *_: None,
        on_start=trials.append,
        on_log=lambda lines, origin: say_log(console, _STAGE, lines, origin),
        on_wait=lambda: None,
        on_join=lambda _: None,  # the estimate says it
    )
    started = time.monotonic()
    driver.run_ranges(config.cluster, whole, callbacks)
    return trials[0], time.monotonic() - started


def _mask_loads(run: RunDirectory, stores: Stores, work: MissingWork, cost: float | None) -> list[Load]:
    """One per role; masks with gradients, whose examples are apart, count by the share of the examples."""
    ranges: dict[str, list[WorkRange]] = {}
    for masks in work.ranges:
        ranges.setdefault(masks.store_name, []).append(masks)
    loads: dict[str, Load] = {}
    for name, (design, store) in stores.items():
        has_gradients = isinstance(store, GradientStore)
        role = "gradients" if has_gradients else run.designs[name].role
        share = (store.block[1] - store.block[0]) / run.num_examples if isinstance(store, GradientStore) else 1.0
        missing = ranges.get(name, [])
        load = Load(
            ROLE_WORDS[role],
            "masks",
            design.num_masks * share,
            sum(masks.num_units for masks in missing) * share,
            [masks.num_units * round(share * run.num_examples) for masks in missing],
            cost or 1.0 if has_gradients else 1.0,
            sum(store.bytes_of(masks.num_units) for masks in missing),
        )
        loads[role] = load if role not in loads else loads[role].with_more(load)
    return list(loads.values())


def _baseline_loads(config: Config, run: RunDirectory, baselines: MissingBaselines) -> list[Load]:
    loads = []
    for method in run.baselines:
        passes = passes_per_example(method, config.baseline_settings.num_steps)
        missing = [examples.num_units for examples in baselines.ranges if examples.store_name == method]
        num_bytes = sum(run.baseline(method).bytes_of(count) for count in missing)
        sizes = [count * passes for count in missing]
        loads.append(Load(method, "examples", run.num_examples, sum(missing), sizes, 1.0, num_bytes))
    return loads


def _with_recorded_passes(config: Config, run: RunDirectory) -> Config:
    """With the numbers of passes in which the run has spent its budget, where it has got so far."""
    if config.budget is None or TRAIN_DESIGN not in run.designs or GRADIENT_DESIGN not in run.designs:
        return config
    plain, with_gradients = (run.design(name).num_masks for name in (TRAIN_DESIGN, GRADIENT_DESIGN))
    if (plain, with_gradients) == (config.design.num_masks, config.gradients.num_masks):
        return config  # still the pilot
    gradients = replace(config.gradients, num_masks=with_gradients)
    return replace(config, budget=None, gradients=gradients, design=replace(config.design, num_masks=plain))


def _weights(config: Config, storage: Storage, console: Console) -> dict[str, Tensor] | None:
    """As of the ablate stage; random ones where the run is still to train them: they are as fast."""
    if config.train is None or storage.size(CHECKPOINT) is not None or storage.size(RUN_FILE) is not None:
        return trained_weights(config, storage)
    say(console, _STAGE, "the model is not trained yet: timed with random weights, without the train stage's own time.")
    return dict(build_model(config.task.model).state_dict())
