"""The fit stage: attributions of every example, by every method that the run has the masks for."""

from __future__ import annotations

import contextlib
import os

import numpy as np
from rich.console import Console

from coar_dist.baselines.leave_one_out import fit_leave_one_out
from coar_dist.baselines.tables import fit_gradient_baseline
from coar_dist.config import Config
from coar_dist.regression.fit import fit
from coar_dist.regression.planning import Execute, in_this_process
from coar_dist.report.progress import stage_progress
from coar_dist.stages.saying import say, while_held
from coar_dist.store.lock import Hold
from coar_dist.store.run import Run
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import LEAVE_ONE_OUT


def fit_stage(run: RunDirectory, config: Config, console: Console, hold: Hold) -> None:
    """Fit what is not fitted yet; the run must have all margins."""
    distributed = config.regression.distributed
    if distributed is None:
        distributed = bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))
    with contextlib.ExitStack() as stack:
        execute: Execute = in_this_process
        if distributed:
            from coar_dist.ablation.cluster import on_cluster  # Ray takes seconds to load

            execute = stack.enter_context(on_cluster(config.cluster))
        progress = stack.enter_context(stage_progress(console, "fit", run.num_examples, "examples"))
        baselines = {LEAVE_ONE_OUT: fit_leave_one_out(run)} if LEAVE_ONE_OUT in run.designs else {}
        baselines |= {method: fit_gradient_baseline(run, method) for method in run.baselines}
        results = fit(run, config.regression, while_held(hold, progress), execute)
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
        say(console, "fit", f"{result.method} of {run.num_examples:,} examples{how}; {', '.join(numbers)}.")
    is_new = any(baselines.values()) or any(result.is_new for result in results)
    done = f"{seconds:.1f} s in all." if is_new else ""
    names = ", ".join(f"{name}{'' if new else ' is there already'}" for name, new in baselines.items())
    line = " ".join(filter(None, [names and f"{names}.", done]))
    if line:
        say(console, "fit", line)
