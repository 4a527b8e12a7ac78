"""The evaluate stage: predictions of every method against the truth on held-out masks, and by how many masks."""

from __future__ import annotations

import contextlib
import math

from rich.table import Table

from coar_dist.cluster.execution import Execute
from coar_dist.config.methods import is_fitted
from coar_dist.console.tables import new_table
from coar_dist.errors import DamagedFileError, MissingWorkError, RunNotFoundError, counted
from coar_dist.evaluation.correlation import evaluate
from coar_dist.evaluation.measure_ceilings import measure_ceilings
from coar_dist.report.numbers import number
from coar_dist.report.summary import mean_correlations
from coar_dist.stages.executing import executing_fits
from coar_dist.stages.session import Session
from coar_dist.stages.stage import Stage
from coar_dist.store.methods import methods_of
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory


def _check(session: Session) -> None:
    """The ablate stage collects held-out masks, or else the run has some."""
    if "ablate" in session.config.stages:
        return
    with contextlib.suppress(RunNotFoundError, DamagedFileError):  # the stage itself says so
        _require_held_out(session.open_run())


def _require_held_out(run: RunDirectory) -> None:
    if not run.held_out:
        raise MissingWorkError(
            f"{run.storage} has no held-out masks to evaluate on. Add the ablate stage, which collects them: "
            f"stages=[ablate,evaluate]."
        )


def _run(session: Session) -> None:
    """Compare what is not compared yet, and estimate what could be reached; the run must have been fitted."""
    run = session.open_run()
    _require_held_out(run)
    session.take()
    with executing_fits(session.config) as execute:
        _evaluate(session, run, methods_of(run), execute)


def _evaluate(session: Session, run: RunDirectory, methods: list[str], execute: Execute) -> None:
    terminal, num_designs = session.terminal, len(run.held_out)
    num_blocks = len(run.margins(TRAIN_DESIGN).blocks)
    num_done = len(methods) * num_blocks
    with session.progress(num_done + num_blocks, "parts") as progress:
        computed = evaluate(run, methods, progress.update, execute)
        computed |= measure_ceilings(run, methods[0], lambda done: progress.update(num_done + done), execute)
        seconds = progress.seconds
    what = f"{counted(len(methods), 'method')} on {counted(num_designs, 'held-out design')}"
    terminal.say(f"{what} in {seconds:.1f} s." if computed else f"{what}: there already.")
    means = mean_correlations(run, methods)
    session.tracking.log(means, run.num_masks)
    if "report" not in session.config.stages:  # whose table holds these means
        terminal.show_table(_means(run, methods, means))
    if session.config.evaluation.curve_shares:
        _evaluate_budgets(session, run, list(filter(is_fitted, methods)), execute)


def _means(run: RunDirectory, methods: list[str], means: dict[str, float]) -> Table:
    fractions = [f"{design.ablation_fraction:g}" for design in run.held_out.values()]
    table = new_table("mean correlation", *(f"at {fraction}" for fraction in fractions))
    for method in methods:
        known = (means.get(f"correlation/{method}/{fraction}", math.nan) for fraction in fractions)
        table.add_row(method, *map(number, known))
    return table


def _evaluate_budgets(session: Session, run: RunDirectory, methods: list[str], execute: Execute) -> None:
    from coar_dist.evaluation.budget_curve import evaluate_budgets, why_no_curve  # torch takes seconds to load

    reason = why_no_curve(run)
    if reason is not None:
        session.terminal.say(f"no budget curve: {reason}.")
        return
    config = session.config
    shares = config.evaluation.curve_shares
    with session.progress(len(methods) * len(shares), "fits") as progress:
        computed = evaluate_budgets(run, methods, shares, config.regression, progress.update, execute=execute)
        seconds = progress.seconds
    what = f"budget curve of {', '.join(methods)}"
    session.terminal.say(f"{what} in {seconds:.1f} s." if computed else f"{what} is there already.")


EVALUATE = Stage(
    "evaluate",
    reads=("evaluation.curve_shares", "regression.distributed", "cluster"),
    run=_run,
    check=_check,
    reads_with={
        "evaluation.curve_shares": ("regression.backend", "regression.memory_gb", "regression.tolerance"),
    },
)
