"""The ablate stage: margins, and gate gradients, of everything that the run lacks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from coar_dist.ablation.actor import AblationActor, AblationJob, Start
from coar_dist.ablation.placement import native_precision
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.work import ROWS_KEY, ExpectedMasks, MissingWork, Stores, missing_work, stores_of
from coar_dist.cluster import driver
from coar_dist.cluster.execution import in_this_process
from coar_dist.cluster.ray_tasks import answer_of_an_actor
from coar_dist.cluster.work import Counts, DriverCallbacks, SharedPlan, Work
from coar_dist.components.discovery import check_components, discover
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import LEAVE_ONE_OUT
from coar_dist.config.schema import Config, DesignConfig, EvaluationConfig, GradientsConfig, held_out_fractions
from coar_dist.console.progress import StageProgress, stage_progress
from coar_dist.console.saying import say, say_log, say_table
from coar_dist.console.tables import new_table
from coar_dist.console.tracking import Tracking
from coar_dist.designs.design import MaskDesign, design_of, leave_one_out_design
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError, RunNotFoundError
from coar_dist.regression.fit import plan_passes
from coar_dist.stages.baselines import MissingBaselines, compute_baselines
from coar_dist.stages.previews import write_previews
from coar_dist.store.ceilings import partners_of
from coar_dist.store.examples import ExampleTable
from coar_dist.store.gradients import GradientStore
from coar_dist.store.lock import Hold
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDesign, RunDirectory
from coar_dist.store.storage import Storage
from coar_dist.tasks.build import build_task
from coar_dist.tasks.task import EXCERPT, Task
from coar_dist.tasks.training import CHECKPOINT, read_checkpoint

_ASSUMED_COST = 3.0
"""Of a pass with gradients, where run.json was lost with what had been measured."""
ROLE_WORDS = {
    "gradients": "with gradients",
    "train": "without gradients",
    "evaluation": "held out",
    "ceiling": "partners of held-out masks",
    "baseline": "leave-one-out",
}
"""What designs are for, by their roles."""
_log = logging.getLogger(__name__)


def ablate_stage(
    config: Config,
    storage: Storage,
    console: Console,
    task: Task | None,
    components: ComponentIndex | None,
    take: Callable[[], Hold],
    tracking: Tracking,
) -> None:
    """Collect what is missing; ``take`` makes this process the run directory's writer, once all input is checked."""
    if task is None:
        task = build_task(config.task, trained_weights(config, storage))
    if components is None:
        chosen = config.components
        components = discover(task.model, chosen.selector, chosen.include, chosen.exclude, chosen.rules)
    check_components(task.model, components)
    designs = designs_of(config, components.num_components)
    probe_margins = task.check()
    identity = identity_of(task, config, storage)
    hold = take()
    run = RunDirectory.create(storage, identity, components, len(task.examples), probe_margins)
    run.set_designs(designs)
    baselines = MissingBaselines.of(run, config, console)
    baselines.check(task, components, console)  # refused now, not after hours of ablation
    collect(config, run, console, task, components, hold, tracking=tracking)
    if config.run.previews:
        write_previews(run, task.examples, console, hold)
    compute_baselines(config, run, console, task, components, hold, baselines)


def identity_of(task: Task, config: Config, storage: Storage) -> dict[str, Any]:
    """Everything that the margins of a run directory depend on, but its components."""
    return {
        **task.identity(),
        "ablation.precision": _precision(config, storage),
        "ablation.margins_dtype": config.ablation.margins_dtype,
        "ablation.examples_per_block": config.ablation.examples_per_block,
    }


def collect(
    config: Config,
    run: RunDirectory,
    console: Console,
    task: Task,
    components: ComponentIndex,
    hold: Hold,
    stage: str = "ablate",
    tracking: Tracking | None = None,
) -> None:
    """Margins and gate gradients of all masks that the run's designs ask for and its stores lack.

    Args:
        config: how they are run, and on which cluster.
        run: its designs are set.
        console: where progress is printed.
        task: model, examples, output function of the run.
        components: the component index.
        hold: of the run directory, or of the one that it lies in.
        stage: in whose name things are said.
        tracking: where the figures go, too.
    """
    if not config.run.previews:
        shown = {name: values for name, values in task.examples.columns.items() if name != EXCERPT}
        task = replace(task, examples=replace(task.examples, columns=shown))
    stores = stores_of(run)
    for _, store in stores.values():
        for reason in store.set_aside_wrong(run.is_new):
            say(console, stage, f"[yellow]{reason}[/yellow]")
    work = missing_work(run, stores, config)
    ranges, missing = work.ranges, work.ranges.num_units
    total = run.num_masks
    has_examples = ExampleTable(run).is_complete()
    if has_examples and ExampleTable(run).update(task.examples.columns):
        say(console, stage, "columns of examples.parquet are new or have changed: written.")
    if not ranges and has_examples:
        say(console, stage, f"all {total:,} masks are there already.")
        return
    plan = recorded_plan(run, config, work)
    if plan is not None and run.is_new:  # the shards have told it
        run.set_engine_plan(plan.to_json())
    if stage == "ablate":  # an edit's sweeps are no designs of the user's
        say_table(console, _designs(run, stores, work))
    job = job_of(run, config, components, stores)
    with stage_progress(console, stage, missing, "masks") as progress:
        whole = Work(
            run=run.storage.label,
            actor=AblationActor,
            task=task,
            job=job,
            ranges=ranges,
            plan=SharedPlan(plan, expected_masks(config, work), must_start=not has_examples),
            memory_key=ROWS_KEY,
        )
        tracking = tracking or Tracking()
        show = _shown(progress, tracking, total - missing)
        driver.run_ranges(config.cluster, whole, _callbacks(run, task, console, show, hold, stage))
        tracking.flush()
        for _, store in stores.values():  # of actors that were killed while they wrote
            run.storage.sweep(store.folder)
        rate, seconds = progress.rate, progress.seconds
    say(
        console,
        stage,
        f"{missing:,} masks{f', {work.gradient_masks:,.0f} with gradients,' if work.gradient_masks else ''} x "
        f"{len(task.examples):,} examples in {seconds:.1f} s ({rate:,.1f} masks/s); "
        f"{total - missing:,} masks were there already.",
    )


def _designs(run: RunDirectory, stores: Stores, work: MissingWork) -> Table:
    """What the run is asked for and lacks; masks with gradients, whose examples are apart, count by the share of the
    examples."""
    missing = dict.fromkeys(run.designs, 0.0)
    for name, (_, store) in stores.items():
        num_missing = sum(stop - start for start, stop in work.ranges.gaps[name])
        if isinstance(store, GradientStore):
            missing[GRADIENT_DESIGN] += num_missing * (store.block[1] - store.block[0]) / run.num_examples
        else:
            missing[name] += num_missing
    table = new_table("design", "for", "masks", "ablated", "there", "new", num_text=2)
    for name, num_new in missing.items():
        role, design = run.designs[name].role, run.designs[name].design
        counts = (f"{count:,.0f}" for count in (design.num_masks - num_new, num_new))
        table.add_row(name, ROLE_WORDS[role], f"{design.num_masks:,}", f"{design.ablation_fraction:.3g}", *counts)
    return table


def recorded_plan(run: RunDirectory, config: Config, work: MissingWork) -> EnginePlan | None:
    """The run's engine plan; None where it has none that the configuration allows and the work can use."""
    recorded = run.engine_plan
    plan = None if recorded is None else EnginePlan(**recorded)
    if plan is not None and (not _pins(config).allow(plan) or (work.gradient_masks and plan.gradient_rows is None)):
        return None
    return plan


def job_of(run: RunDirectory, config: Config, components: ComponentIndex, stores: Stores) -> AblationJob:
    """What every actor is told."""
    return AblationJob(
        components=components,
        stores=stores,
        precision=str(run.identity["ablation.precision"]),
        device_map=config.ablation.device_map,
        pins=_pins(config),
    )


def _pins(config: Config) -> PlanPins:
    ablation = config.ablation
    return PlanPins(ablation.mode, ablation.rows_per_forward, ablation.compile, ablation.cuda_graphs)


def expected_masks(config: Config, work: MissingWork) -> ExpectedMasks:
    """Masks to be run without and with gradients, those that a budget will add among them."""
    if config.budget is None:
        return ExpectedMasks(work.plain_masks, work.gradient_masks)
    half = config.budget / 2
    return ExpectedMasks(max(work.plain_masks, half), max(work.gradient_masks, half / _ASSUMED_COST))


def with_passes(config: Config, budget: float, run: RunDirectory, console: Console) -> Config:
    """The configuration with the best use of its budget, by the pilot that the run holds."""

    cost = run.gradient_cost or _ASSUMED_COST
    passes = plan_passes(run, config.regression, cost, budget, in_this_process)
    say(
        console,
        "plan",
        f"{budget:,.0f} passes: {passes.with_gradients:,} with gradients at {cost:.1f} each, {passes.without:,} "
        f"without; expected correlation {max(1.0 - passes.error, 0.0) ** 0.5:.2f}.",
    )
    gradients = replace(config.gradients, num_masks=passes.with_gradients)
    return replace(config, gradients=gradients, design=replace(config.design, num_masks=passes.without))


def trained_weights(config: Config, storage: Storage) -> dict[str, Tensor] | None:
    """What the train stage left; None where there is none in this run.

    Raises:
        MissingWorkError: it is still to be run.
    """
    if config.train is None:
        return None
    trained = read_checkpoint(storage)
    if trained is None:
        where = storage.where(CHECKPOINT)
        raise MissingWorkError(f"{where} is missing: run the train stage, or set task.model.checkpoint.")
    return trained[0]


def _precision(config: Config, storage: Storage) -> str:
    """The engine's precision; ``auto`` is what the run has, or else what the actors' device computes natively."""

    if config.ablation.precision != "auto":
        return config.ablation.precision
    try:
        return str(RunDirectory.open(storage).identity["ablation.precision"])
    except (RunNotFoundError, DamagedFileError):
        return answer_of_an_actor(config.cluster, native_precision)


def _shown(progress: StageProgress, tracking: Tracking, num_before: int) -> Callable[[Counts], None]:
    """Shows counts in the terminal, and offers them to trackers; ``num_before`` masks were there already."""

    def show(counts: Counts) -> None:
        progress.update(counts.num_units, f"{counts.num_actors} actors")
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


def _callbacks(
    run: RunDirectory, task: Task, console: Console, show: Callable[[Counts], None], hold: Hold, stage: str
) -> DriverCallbacks:

    targets = task.examples.targets

    def on_start(start: Start) -> None:
        unablated = start.unablated
        are_classes = unablated.predictions is not None and not targets.is_floating_point()
        labels = targets.cpu().numpy().astype(np.int64) if are_classes else None
        ExampleTable(run).write(labels, unablated.predictions, unablated.margins, task.examples.columns)
        run.set_engine_plan(start.plan.to_json())
        if start.gradient_cost is not None:
            run.set_gradient_cost(start.gradient_cost)
        _log.info("engine plan: %s", start.plan)

    return DriverCallbacks(
        on_progress=show,
        on_start=on_start,
        on_log=lambda lines, origin: say_log(console, stage, lines, origin),
        on_wait=hold.check,
        on_join=lambda cluster: say(console, stage, f"on {cluster}."),
    )


def designs_of(config: Config, num_components: int) -> dict[str, RunDesign]:
    """The mask designs that a configuration asks for, by name."""
    design, evaluation = config.design, config.evaluation

    def masks_of(key: str, settings: DesignConfig | GradientsConfig | EvaluationConfig, fraction: float) -> MaskDesign:
        kind = settings.kind
        return design_of(f"{key}.kind", kind, num_components, settings.num_masks, fraction, settings.seed)

    designs = {TRAIN_DESIGN: RunDesign("train", masks_of("design", design, design.ablation_fraction))}
    if config.gradients.num_masks:
        masks = masks_of("gradients", config.gradients, design.ablation_fraction)
        designs[GRADIENT_DESIGN] = RunDesign("gradients", masks)
    if LEAVE_ONE_OUT in config.baselines:
        designs[LEAVE_ONE_OUT] = RunDesign("baseline", leave_one_out_design(num_components))
    for fraction in held_out_fractions(config):
        held_out = masks_of("evaluation", evaluation, fraction)
        designs[f"evaluation_{fraction!r}"] = RunDesign("evaluation", held_out)
        if evaluation.ceiling_pairs and fraction == design.ablation_fraction:
            partners = replace(
                held_out,
                kind="correlated",
                num_masks=evaluation.ceiling_pairs,
                correlation=evaluation.ceiling_correlation,
            )
            designs[partners_of(f"evaluation_{fraction!r}")] = RunDesign("ceiling", partners)
    _check_distinct(designs)
    return designs


def _check_distinct(designs: Mapping[str, RunDesign]) -> None:
    """A user's own rule that ignores the seed would give held-out masks that are not held out."""
    names: dict[str, str] = {}
    for name, entry in designs.items():
        other = names.setdefault(entry.design.fingerprint or name, name)
        if other != name:
            raise ConfigError(
                f"design {name!r} has the masks of {other!r}: the rule {entry.design.kind!r} must depend on "
                f"design.seed and on design.ablation_fraction. Draw from np.random.default_rng([design.seed, mask_id])."
            )
