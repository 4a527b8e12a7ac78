"""The evaluate stage: predictions of every method against the truth on held-out masks."""

from __future__ import annotations

from rich.console import Console

from coar_dist.evaluation.correlation import evaluate
from coar_dist.evaluation.held_out import measure_ceilings
from coar_dist.report.progress import stage_progress
from coar_dist.report.terminal import methods_of
from coar_dist.stages.saying import say, while_held
from coar_dist.store.lock import Hold
from coar_dist.store.run_directory import RunDirectory


def evaluate_stage(run: RunDirectory, console: Console, hold: Hold) -> None:
    """Compare what is not compared yet, and estimate what could be reached; the run must have been fitted."""
    methods = methods_of(run)
    num_designs = sum(entry.role == "evaluation" for entry in run.designs.values())
    with stage_progress(console, "evaluate", (len(methods) + 1) * num_designs, "tables") as progress:
        on_progress = while_held(hold, progress)
        computed = evaluate(run, methods, on_progress)
        num_done = len(methods) * num_designs
        computed |= measure_ceilings(run, methods[0], lambda done: on_progress(num_done + done))
        seconds = progress.seconds
    what = f"{len(methods)} methods on {num_designs} held-out designs"
    say(console, "evaluate", f"{what} in {seconds:.1f} s." if computed else f"{what} are there already.")
