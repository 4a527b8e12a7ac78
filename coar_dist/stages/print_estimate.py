"""An estimate of a run in the terminal."""

from __future__ import annotations

from coar_dist.ablation.plan import EnginePlan
from coar_dist.config.methods import GRADIENT_BASELINES
from coar_dist.config.schema import Config
from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table
from coar_dist.errors import counted
from coar_dist.stages.estimate import Estimate

_MINUTE_S, _HOUR_S = 60.0, 3600.0


def print_estimate(estimate: Estimate, config: Config, plan: EnginePlan, terminal: Terminal) -> None:
    """Print what is missing, the speed that was measured, and what follows from both.

    Args:
        estimate: what to print.
        config: of the run.
        plan: the engine plan of the trial.
        terminal: where.
    """
    table = new_table("what is missing", "of", "missing", "forward passes", "actor hours", "bytes")
    for load in estimate.loads:
        hours = estimate.seconds_of(load) / _HOUR_S
        missing = counted(load.num_missing, load.unit.removesuffix("s"))
        table.add_row(
            load.name, f"{load.num_total:,.0f}", missing, _count(load.passes), _number(hours), as_bytes(load.num_bytes)
        )
    if estimate.budget_passes:
        hours = estimate.budget_passes * estimate.seconds_per_pass / _HOUR_S
        table.add_row("by the budget, after the pilot", "", "", _count(estimate.budget_passes), _number(hours), "-")
    terminal.print_table(table)
    cost = estimate.gradient_cost
    terminal.print(
        f"One actor: {_number(estimate.masks_per_second)} masks/s of {counted(estimate.num_examples, 'example')}"
        f"{'' if cost is None else f', a pass with gradients costs as much as {cost:.1f} without'} ({plan})."
    )
    gpus = f" and {estimate.gpus_per_actor:g} GPU" if estimate.gpus_per_actor else ""
    terminal.print(
        f"Cluster: {counted(estimate.num_actors, 'actor')} with {config.cluster.cpus_per_actor} CPU{gpus} each; "
        f"the first mask after {as_duration(estimate.start_s)}."
    )
    used = f"{_number(estimate.actor_hours)} actor hours"
    if estimate.gpus_per_actor:
        used += f", {_number(estimate.gpu_hours)} GPU hours"
    if estimate.price is not None:
        used += f", {estimate.price:,.2f} USD at {estimate.price_per_hour:g} an hour"
    duration, size = as_duration(estimate.wall_hours * _HOUR_S), as_bytes(estimate.num_bytes)
    terminal.print(f"About {duration}; {used}; {size} of shards.", "bold")
    if any(load.name in GRADIENT_BASELINES for load in estimate.loads):
        terminal.print("Gradient baselines are counted by what they cost on a ResNet-20, in forward passes.")


def as_duration(seconds: float) -> str:
    """Seconds in words: seconds, minutes or hours.

    Example:
        >>> as_duration(90), as_duration(600)
        ('90 s', '10 min')
    """
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < 2 * _HOUR_S else f"{_number(seconds / _HOUR_S)} h"


def _number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}" if value >= 0.001 else f"{value:.4f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def as_bytes(num_bytes: float) -> str:
    """A number of bytes in words.

    Example:
        >>> as_bytes(2_500_000)
        '2.50 MB'
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{_number(num_bytes / size)} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
