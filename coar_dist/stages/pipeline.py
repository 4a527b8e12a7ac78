"""The stages in their order. The command line and ``attribute`` both end here."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from rich.console import Console

from coar_dist.config.checks import validate
from coar_dist.config.schema import PLAN, Config
from coar_dist.console.run_log import RunLog
from coar_dist.console.tracking import Tracking, check_tracking
from coar_dist.store.lock import Hold, only_writer
from coar_dist.store.run_directory import FOLDERS, RunDirectory
from coar_dist.store.storage import storage_at

if TYPE_CHECKING:
    from coar_dist.components.index import ComponentIndex
    from coar_dist.tasks.task import ExampleSet, Task

_log = logging.getLogger(__name__)


def run_stages(
    config: Config,
    console: Console,
    task: Task | None = None,
    components: ComponentIndex | None = None,
    held_out: ExampleSet | None = None,
) -> None:
    """Run the stages that ``config.stages`` names, in the pipeline's order, whatever their order there.

    Args:
        config: the whole configuration; it is validated first.
        console: where progress and results are printed.
        task: what to explain; None builds it from ``config.task``.
        components: the component index; None discovers it by ``config.components``.
        held_out: examples on which an edit is chosen and measured, in the place of ``config.edit.examples``.

    Raises:
        CoarDistError: anything that a user can mend; the message says how. What is finished stays.
    """
    validate(config)
    if "fit" in config.stages and config.regression.backend not in ("auto", "torch", "sklearn"):
        from coar_dist.regression.backends import check_backend

        check_backend(config.regression.backend, config.regression.method)  # refused now, not after hours of ablation
    storage = storage_at(config.run.dir)
    check_tracking(config.tracking, storage)
    if config.stages == [PLAN]:
        from coar_dist.stages.plan import plan_stage

        plan_stage(config, storage, console, task, components)
        return
    log, tracking = RunLog(storage, config.stages[0]), Tracking(config.tracking)
    with contextlib.ExitStack() as stack:

        @cache
        def take() -> Hold:
            """Become the run directory's one writer, at the first call."""
            hold = stack.enter_context(only_writer(storage))
            for folder in FOLDERS:
                storage.sweep(folder)
            stack.enter_context(log)
            _log.info("configuration: %s", json.dumps(asdict(config), default=repr))
            stack.enter_context(tracking.opened(storage, asdict(config)))
            return hold

        if "train" in config.stages and config.train is not None:
            log.stage = "train"
            take()
            from coar_dist.stages.train import train_stage

            train_stage(config, config.train, storage, console)
        if "ablate" in config.stages:
            log.stage = "ablate"
            from coar_dist.stages.ablate import ablate_stage, with_passes

            ablate_stage(config, storage, console, task, components, take, tracking)
            if config.budget is not None:
                config = with_passes(config, config.budget, RunDirectory.open(storage), console)
                ablate_stage(config, storage, console, task, components, take, tracking)
        if {"fit", "evaluate"} & set(config.stages):
            run = RunDirectory.open(storage)
            hold = take()
            if "fit" in config.stages:
                log.stage = "fit"
                from coar_dist.stages.fit import fit_stage

                fit_stage(run, config, console, hold)
            if "evaluate" in config.stages:
                log.stage = "evaluate"
                from coar_dist.stages.evaluate import evaluate_stage

                evaluate_stage(run, config, console, hold, tracking)
        if "edit" in config.stages and config.edit is not None:
            log.stage = "edit"
            from coar_dist.stages.edit import edit_stage

            edit_stage(config, config.edit, RunDirectory.open(storage), console, task, held_out, take())
    if "report" in config.stages:
        from coar_dist.stages.report import report_stage

        report_stage(RunDirectory.open(storage), console)
