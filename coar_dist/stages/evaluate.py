"""The evaluate stage: predictions of every method against the truth on held-out masks, and by how many masks."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from coar_dist.config.methods import is_fitted
from coar_dist.config.schema import Config
from coar_dist.console.progress import stage_progress
from coar_dist.console.saying import say, say_table, while_held
from coar_dist.console.tables import new_table
from coar_dist.console.tracking import Tracking
from coar_dist.evaluation.correlation import evaluate
from coar_dist.evaluation.held_out import measure_ceilings
from coar_dist.report.summary import mean_correlations
from coar_dist.store.lock import Hold
from coar_dist.store.methods import methods_of
from coar_dist.store.run_directory import RunDirectory


def evaluate_stage(run: RunDirectory, config: Config, console: Console, hold: Hold, tracking: Tracking) -> None:
    """Compare what is not compared yet, and estimate what could be reached; the run must have been fitted."""
    methods = methods_of(run)
    num_designs = len(run.held_out)
    with stage_progress(console, "evaluate", (len(methods) + 1) * num_designs, "tables") as progress:
        on_progress = while_held(hold, progress)
        computed = evaluate(run, methods, on_progress)
        num_done = len(methods) * num_designs
        computed |= measure_ceilings(run, methods[0], lambda done: on_progress(num_done + done))
        seconds = progress.seconds
    what = f"{len(methods)} methods on {num_designs} held-out designs"
    say(console, "evaluate", f"{what} in {seconds:.1f} s." if computed else f"{what} are there already.")
    means = mean_correlations(run, methods)
    tracking.log(means, run.num_masks)
    if num_designs and "report" not in config.stages:  # whose table holds these means
        say_table(console, _means(run, methods, means))
    shares = config.evaluation.curve_shares
    if shares:
        _evaluate_budgets(run, list(filter(is_fitted, methods)), config, console, hold)


def _means(run: RunDirectory, methods: list[str], means: dict[str, float]) -> Table:
    fractions = [f"{design.ablation_fraction:g}" for design in run.held_out.values()]
    table = new_table("mean correlation", *(f"at {fraction}" for fraction in fractions))
    for method in methods:
        known = (means.get(f"correlation/{method}/{fraction}") for fraction in fractions)
        table.add_row(method, *("undefined" if mean is None else f"{mean:.3f}" for mean in known))
    return table


def _evaluate_budgets(run: RunDirectory, methods: list[str], config: Config, console: Console, hold: Hold) -> None:
    from coar_dist.evaluation.budget_curve import evaluate_budgets, has_curve  # torch takes seconds to load

    if not has_curve(run):
        say(console, "evaluate", "no budget curve: it takes held-out masks at design.ablation_fraction.")
        return
    shares = config.evaluation.curve_shares
    with stage_progress(console, "evaluate", len(methods) * len(shares), "fits") as progress:
        computed = evaluate_budgets(run, methods, shares, config.regression, while_held(hold, progress))
        seconds = progress.seconds
    what = f"budget curve of {', '.join(methods)}"
    say(console, "evaluate", f"{what} in {seconds:.1f} s." if computed else f"{what} is there already.")
