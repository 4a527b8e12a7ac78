"""The stages in their order. The command line and ``attribute`` both end here."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from coar_dist.config import (
    AblationConfig,
    ClusterConfig,
    ComponentsConfig,
    Config,
    DesignConfig,
    EvaluationConfig,
    GradientsConfig,
    RegressionConfig,
    RunConfig,
    TrainConfig,
    validate,
)
from coar_dist.designs.design import MaskDesign, leave_one_out_design
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError, RunMismatchError, RunNotFoundError
from coar_dist.report.progress import StageProgress, stage_progress
from coar_dist.report.terminal import methods_of, report
from coar_dist.store.lock import Hold, only_writer
from coar_dist.store.run import Run
from coar_dist.store.run_directory import FOLDERS, GRADIENT_DESIGN, TRAIN_DESIGN, RunDesign, RunDirectory
from coar_dist.store.run_log import RunLog
from coar_dist.store.storage import Storage, storage_at
from coar_dist.store.tables import LEAVE_ONE_OUT

if TYPE_CHECKING:  # stages import what they need when they run: the report needs neither torch nor Ray
    from torch import Tensor, nn

    from coar_dist.ablation.actor import LogLines
    from coar_dist.ablation.driver import DriverCallbacks
    from coar_dist.components.index import ComponentIndex
    from coar_dist.tasks.task import Inputs, Task


_ASSUMED_COST = 3.0
"""Of a pass with gradients, where run.json was lost with what had been measured."""
_log = logging.getLogger(__name__)


def run_stages(
    config: Config, console: Console, task: Task | None = None, components: ComponentIndex | None = None
) -> None:
    """Run the stages that ``config.stages`` names, in the pipeline's order, whatever their order there.

    Args:
        config: the whole configuration; it is validated first.
        console: where progress and results are printed.
        task: what to explain; None builds it from ``config.task``.
        components: the component index; None discovers it by ``config.components``.

    Raises:
        CoarDistError: anything that a user can mend; the message says how. What is finished stays.
    """
    validate(config)
    if "fit" in config.stages and config.regression.backend == "cuml":
        from coar_dist.regression.backends import check_backend

        check_backend(config.regression.backend)  # refused now, not after hours of ablation
    storage = storage_at(config.run.dir)
    with contextlib.ExitStack() as stack:

        @cache
        def take() -> Hold:
            """Become the run directory's one writer, at the first call."""
            hold = stack.enter_context(only_writer(storage))
            for folder in FOLDERS:
                storage.sweep(folder)
            stack.enter_context(RunLog(storage))
            _log.info("configuration: %s", json.dumps(asdict(config)))
            return hold

        if "train" in config.stages and config.train is not None:
            take()
            _train(config, config.train, storage, console)
        if "ablate" in config.stages:
            _ablate(config, storage, console, task, components, take)
            if config.budget is not None:
                config = _with_passes(config, config.budget, RunDirectory.open(storage), console)
                _ablate(config, storage, console, task, components, take)
        if {"fit", "evaluate"} & set(config.stages):
            run = RunDirectory.open(storage)
            hold = take()
            if "fit" in config.stages:
                _fit(run, config, console, hold)
            if "evaluate" in config.stages:
                _evaluate(run, console, hold)
    if "report" in config.stages:
        report(RunDirectory.open(storage), console)


def _say(console: Console, stage: str, text: str) -> None:
    console.print(f"[bold]{stage:>9}[/bold]  {text}", soft_wrap=True, highlight=False)
    _log.info("%s: %s", stage, text)


def _while_held(hold: Hold, progress: StageProgress) -> Callable[[int], None]:
    """Shows progress, and stops a process that is no longer the run directory's writer."""

    def on_progress(done: int) -> None:
        hold.check()
        progress.update(done)

    return on_progress


def _train(config: Config, train: TrainConfig, storage: Storage, console: Console) -> None:
    from coar_dist.tasks.build import build_examples, build_model
    from coar_dist.tasks.training import CHECKPOINT, read_checkpoint, train_classifier, write_checkpoint

    where = storage.where(CHECKPOINT)
    model_settings = {f"task.model.arguments.{name}": value for name, value in config.task.model.arguments.items()}
    settings = {"task.model.source": config.task.model.source, **model_settings}
    settings |= {f"train.{name}": value for name, value in asdict(train).items()}
    try:
        found = read_checkpoint(storage)
    except DamagedFileError as error:
        _say(console, "train", f"[yellow]{error}[/yellow]")
        found = None
    if found is not None:
        stored = found[1]
        for key in settings:
            if stored.get(key) != settings[key]:
                raise RunMismatchError(
                    f"{key} is {settings[key]!r}, but {where} was trained with {stored.get(key)!r}. "
                    f"Use another run.dir, or undo the change."
                )
        _say(console, "train", f"{where} is there already.")
        return
    train_examples = build_examples(train.examples, "train.examples")
    test_examples = build_examples(config.task.examples, "task.examples")
    with stage_progress(console, "train", train.epochs, "epochs") as progress:
        model, accuracy = train_classifier(
            lambda: build_model(config.task.model),
            train_examples,
            test_examples,
            train,
            lambda epoch, loss: progress.update(epoch, f"loss {loss:.3f}"),
        )
        seconds = progress.seconds
    write_checkpoint(storage, model, settings)
    _say(
        console,
        "train",
        f"accuracy {accuracy:.4f} after {train.epochs} epochs in {seconds:.1f} s; {where}",
    )


def _ablate(
    config: Config,
    storage: Storage,
    console: Console,
    task: Task | None,
    components: ComponentIndex | None,
    take: Callable[[], Hold],
) -> None:
    """Collect what is missing; ``take`` makes this process the run directory's writer, once all input is checked."""
    from coar_dist.ablation.actor import AblationJob
    from coar_dist.ablation.driver import AblationWork, run_ranges
    from coar_dist.ablation.plan import EnginePlan, PlanPins
    from coar_dist.ablation.work import missing_work, stores_of
    from coar_dist.components.discovery import check_components, discover

    if task is None:
        task = _build_task(config, storage)
    if components is None:
        chosen = config.components
        components = discover(task.model, chosen.selector, chosen.include, chosen.exclude, chosen.rules)
    check_components(task.model, components)
    designs = _designs(config, components.num_components)
    probe_margins = task.check()
    ablation = config.ablation
    identity = {
        **task.identity(),
        "ablation.precision": _precision(config, storage),
        "ablation.margins_dtype": ablation.margins_dtype,
        "ablation.examples_per_block": ablation.examples_per_block,
    }
    hold = take()
    run = RunDirectory.create(storage, identity, components, len(task.examples), probe_margins)
    run.set_designs(designs)
    stores = stores_of(run)
    for _, store in stores.values():
        for reason in store.set_aside_wrong(run.is_new):
            _say(console, "ablate", f"[yellow]{reason}[/yellow]")
    work = missing_work(run, stores, config)
    ranges, missing = work.ranges, work.ranges.num_masks
    total = sum(store.num_masks for _, store in stores.values())
    has_examples = run.has_examples()
    if not ranges and has_examples:
        _say(console, "ablate", f"all {total:,} masks are there already.")
        return
    pins = PlanPins(ablation.mode, ablation.rows_per_forward, ablation.compile)
    recorded = run.engine_plan
    plan = None if recorded is None else EnginePlan(**recorded)
    if plan is not None and (not pins.allow(plan) or (work.gradient_masks and plan.gradient_rows is None)):
        plan = None
    if plan is not None and run.is_new:  # the shards have told it
        run.set_engine_plan(plan.to_json())
    job = AblationJob(
        components=components,
        designs=stores,
        precision=str(identity["ablation.precision"]),
        device_map=ablation.device_map,
        num_threads=config.cluster.cpus_per_actor,
        pins=pins,
    )
    with stage_progress(console, "ablate", missing, "masks") as progress:
        expected = work.plain_masks, work.gradient_masks
        if config.budget is not None:
            expected = max(expected[0], config.budget / 2), max(expected[1], config.budget / 2 / _ASSUMED_COST)
        whole = AblationWork(task, job, ranges, plan, expected, needs_unablated=not has_examples)
        run_ranges(config.cluster, whole, _callbacks(run, task, console, progress, hold))
        for _, store in stores.values():  # of actors that were killed while they wrote
            storage.sweep(store.folder)
        rate, seconds = progress.rate, progress.seconds
    _say(
        console,
        "ablate",
        f"{missing:,} masks{f', {work.gradient_masks:,.0f} with gradients,' if work.gradient_masks else ''} x "
        f"{len(task.examples):,} examples in {seconds:.1f} s ({rate:,.1f} masks/s); "
        f"{total - missing:,} masks were there already.",
    )


def _with_passes(config: Config, budget: float, run: RunDirectory, console: Console) -> Config:
    """The configuration with the best use of its budget, by the pilot that the run holds."""
    from coar_dist.regression.fit import plan_passes
    from coar_dist.regression.planning import in_this_process

    cost = run.gradient_cost or _ASSUMED_COST
    passes = plan_passes(run, config.regression, cost, budget, in_this_process)
    _say(
        console,
        "plan",
        f"{budget:,.0f} passes: {passes.with_gradients:,} with gradients at {cost:.1f} each, {passes.without:,} "
        f"without; expected correlation {max(1.0 - passes.error, 0.0) ** 0.5:.2f}.",
    )
    gradients = replace(config.gradients, num_masks=passes.with_gradients)
    return replace(config, gradients=gradients, design=replace(config.design, num_masks=passes.without))


def _build_task(config: Config, storage: Storage) -> Task:
    from coar_dist.tasks.build import build_task
    from coar_dist.tasks.training import CHECKPOINT, read_checkpoint

    trained = read_checkpoint(storage) if config.train is not None else None
    if config.train is not None and trained is None:
        where = storage.where(CHECKPOINT)
        raise MissingWorkError(f"{where} is missing: run the train stage, or set task.model.checkpoint.")
    return build_task(config.task, None if trained is None else trained[0])


def _precision(config: Config, storage: Storage) -> str:
    """The engine's precision; ``auto`` is what the run has, or else what the actors' device computes natively."""
    from coar_dist.ablation.cluster import native_precision_of_actors

    if config.ablation.precision != "auto":
        return config.ablation.precision
    try:
        return str(RunDirectory.open(storage).identity["ablation.precision"])
    except (RunNotFoundError, DamagedFileError):
        return native_precision_of_actors(config.cluster)


def _callbacks(run: RunDirectory, task: Task, console: Console, progress: StageProgress, hold: Hold) -> DriverCallbacks:
    import numpy as np

    from coar_dist.ablation.actor import Start
    from coar_dist.ablation.driver import DriverCallbacks

    targets = task.examples.targets

    def on_start(start: Start) -> None:
        unablated = start.unablated
        are_classes = unablated.predictions is not None and not targets.is_floating_point()
        labels = targets.cpu().numpy().astype(np.int64) if are_classes else None
        run.write_examples(labels, unablated.predictions, unablated.margins)
        run.set_engine_plan(start.plan.to_json())
        if start.gradient_cost is not None:
            run.set_gradient_cost(start.gradient_cost)
        _log.info("engine plan: %s", start.plan)

    def on_log(lines: LogLines) -> None:
        for level, text in lines:
            _log.log(level, text)
            if level >= logging.WARNING:
                _say(console, "ablate", f"[yellow]{text}[/yellow]")

    return DriverCallbacks(
        on_progress=lambda done, actors: progress.update(done, f"{actors} actors"),
        on_start=on_start,
        on_log=on_log,
        on_wait=hold.check,
    )


def _designs(config: Config, num_components: int) -> dict[str, RunDesign]:
    design, evaluation = config.design, config.evaluation
    designs = {
        TRAIN_DESIGN: RunDesign(
            "train",
            MaskDesign(design.kind, num_components, design.num_masks, design.ablation_fraction, design.seed),
        )
    }
    if config.gradients.num_masks:
        settings = config.gradients
        masks = MaskDesign(settings.kind, num_components, settings.num_masks, design.ablation_fraction, settings.seed)
        designs[GRADIENT_DESIGN] = RunDesign("gradients", masks)
    if "leave_one_out" in config.baselines:
        designs["leave_one_out"] = RunDesign("baseline", leave_one_out_design(num_components))
    for fraction in evaluation.ablation_fractions:
        held_out = MaskDesign(evaluation.kind, num_components, evaluation.num_masks, fraction, evaluation.seed)
        designs[f"evaluation_{fraction!r}"] = RunDesign("evaluation", held_out)
    return designs


def _fit(run: RunDirectory, config: Config, console: Console, hold: Hold) -> None:
    import numpy as np

    from coar_dist.baselines.leave_one_out import fit_leave_one_out
    from coar_dist.regression.fit import fit
    from coar_dist.regression.planning import Execute, in_this_process

    distributed = config.regression.distributed
    if distributed is None:
        distributed = bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))
    with contextlib.ExitStack() as stack:
        execute: Execute = in_this_process
        if distributed:
            from coar_dist.ablation.cluster import on_cluster

            execute = stack.enter_context(on_cluster(config.cluster))
        progress = stack.enter_context(stage_progress(console, "fit", run.num_examples, "examples"))
        baseline = LEAVE_ONE_OUT in run.designs and fit_leave_one_out(run)
        results = fit(run, config.regression, _while_held(hold, progress), execute)
        seconds = progress.seconds
    for result in results:
        quality = Run(run).quality(method=result.method)
        known = {name: values[np.isfinite(values)] for name, values in quality.items()}
        numbers = [
            f"{text} {function(known[name]):{form}}"
            for name, text, function, form in (
                ("r2", "mean R2", np.mean, ".3f"),
                ("r2_new", "on new masks, estimated,", np.mean, ".3f"),
                ("duality_gap", "largest duality gap", np.max, ".1e"),
            )
            if known[name].size
        ]
        how = f" ({result.how})" if result.how else " is there already"
        _say(console, "fit", f"{result.method} of {run.num_examples:,} examples{how}; {', '.join(numbers)}.")
    done = f" {seconds:.1f} s in all." if baseline or any(result.is_new for result in results) else ""
    if LEAVE_ONE_OUT in run.designs:
        _say(console, "fit", f"{LEAVE_ONE_OUT}{'' if baseline else ' is there already'}.{done}")
    elif done:
        _say(console, "fit", done.strip())


def _evaluate(run: RunDirectory, console: Console, hold: Hold) -> None:
    from coar_dist.evaluation.correlation import evaluate

    methods = methods_of(run)
    num_designs = sum(entry.role == "evaluation" for entry in run.designs.values())
    with stage_progress(console, "evaluate", len(methods) * num_designs, "tables") as progress:
        computed = evaluate(run, methods, _while_held(hold, progress))
        seconds = progress.seconds
    what = f"{len(methods)} methods on {num_designs} held-out designs"
    _say(console, "evaluate", f"{what} in {seconds:.1f} s." if computed else f"{what} are there already.")


def attribute(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    run_dir: str | Path,
    components: str | ComponentIndex = "conv_filters",
    num_masks: int = 4000,
    num_gradient_masks: int = 0,
    ablation_fraction: float = 0.05,
    seed: int = 0,
    output_function: str | Callable[[Any, Tensor], Tensor] = "margin",
    stages: Sequence[str] = ("ablate", "fit"),
    baselines: Sequence[str] = (),
    evaluation: EvaluationConfig | None = None,
    ablation: AblationConfig | None = None,
    regression: RegressionConfig | None = None,
    cluster: ClusterConfig | None = None,
    console: Console | None = None,
) -> Run:
    """Attribute the outputs of any model to its components: the same pipeline as the command line.

    Calling it again with the same arguments continues an interrupted run, or finds all done.

    Args:
        model: any module; it is not changed.
        inputs: (num_examples, ...) tensor given to ``model`` as its first argument, or a dict of tensors given by
            keyword.
        targets: (num_examples, ...) what the output function compares with; int64 class labels for ``margin``.
        run_dir: the run directory, a path or an ``s3://`` or ``gs://`` URL; created if it is not there.
        components: a selector name (``coar_dist.components.discovery.SELECTORS``), or a ``ComponentIndex``.
        num_masks: ablation masks; a later call with more extends the run.
        num_gradient_masks: masks that are run with gradients, for the attributions ``gradient_ridge``: 100 of them and
            500 others are worth thousands. ``num_masks`` may then be 0.
        ablation_fraction: alpha, the share of components that a mask ablates.
        seed: of the masks.
        output_function: a registered name, ``module:function``, or ``(outputs, targets) -> (num_rows,)``.
        stages: add ``"evaluate"`` and ``"report"`` for correlations on held-out masks.
        baselines: e.g. ``["leave_one_out"]``.
        evaluation: held-out masks, ablated only where ``stages`` has ``"evaluate"``; None is the default at
            ``ablation_fraction``.
        ablation: forward passes; None is the default.
        regression: fit; None is the default.
        cluster: Ray; None starts it on this machine.
        console: where progress is printed; None is standard output.

    Returns:
        The run, opened for reading.

    Raises:
        CoarDistError: naming what is wrong and the way out.
    """
    from coar_dist.components.index import ComponentIndex
    from coar_dist.tasks.outputs import output_function as named_output_function
    from coar_dist.tasks.task import ExampleSet, Task

    for key, names in (("stages", stages), ("baselines", baselines)):
        if isinstance(names, str):
            raise ConfigError(f"{key}={names!r}: must be a list, e.g. [{names!r}].")
    if evaluation is None:
        fractions = [ablation_fraction] if "evaluate" in stages else []
        evaluation = EvaluationConfig(ablation_fractions=fractions, seed=index(seed) + 1)
    is_index = isinstance(components, ComponentIndex)
    config = Config(
        stages=list(stages),
        run=RunConfig(str(run_dir)),
        components=ComponentsConfig() if is_index else ComponentsConfig(str(components)),
        design=DesignConfig(num_masks=num_masks, ablation_fraction=ablation_fraction, seed=seed),
        gradients=GradientsConfig(num_masks=num_gradient_masks, seed=index(seed) + 2_000_000),
        baselines=list(baselines),
        evaluation=evaluation,
        ablation=ablation or AblationConfig(),
        regression=regression or RegressionConfig(),
        cluster=cluster or ClusterConfig(),
    )
    task = Task(model, ExampleSet.of(inputs, targets), named_output_function(output_function))
    run_stages(config, console or Console(), task, components if isinstance(components, ComponentIndex) else None)
    return Run(RunDirectory.open(storage_at(run_dir)))
