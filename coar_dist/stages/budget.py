"""How a budget becomes numbers of passes: chosen once by its pilot, and read again from the run."""

from __future__ import annotations

from dataclasses import replace

from coar_dist.ablation.work import ExpectedMasks, MissingWork
from coar_dist.config.schema import Config
from coar_dist.regression.fit import plan_passes
from coar_dist.stages.executing import executing_fits
from coar_dist.stages.session import Session
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory

ASSUMED_COST = 3.0
"""What a pass with gradients costs, in passes without, where it has not been measured."""


def expected_masks(config: Config, work: MissingWork) -> ExpectedMasks:
    """Masks that will be run without and with gradients, those that a budget will add among them."""
    if config.budget is None:
        return ExpectedMasks(work.plain_masks, work.gradient_masks)
    half = config.budget / 2
    return ExpectedMasks(max(work.plain_masks, half), max(work.gradient_masks, half / ASSUMED_COST))


def with_chosen_passes(session: Session, budget: float, run: RunDirectory) -> Config:
    """The configuration with the best use of its budget, by the pilot that the run holds."""
    config, cost = session.config, run.gradient_cost or ASSUMED_COST
    with executing_fits(config) as execute:
        passes = plan_passes(run, config.regression, cost, budget, execute)
    session.terminal.say(
        f"{budget:,.0f} passes: {passes.with_gradients:,} with gradients at {cost:.1f} each, {passes.without:,} "
        f"without; expected correlation {max(1.0 - passes.error, 0.0) ** 0.5:.2f}."
    )
    return _with_passes(config, passes.without, passes.with_gradients)


def with_recorded_passes(config: Config, run: RunDirectory) -> Config:
    """The configuration with the numbers of passes in which the run has spent its budget, where it has got so far."""
    if config.budget is None or TRAIN_DESIGN not in run.designs or GRADIENT_DESIGN not in run.designs:
        return config
    plain, with_gradients = (run.design(name).num_masks for name in (TRAIN_DESIGN, GRADIENT_DESIGN))
    if (plain, with_gradients) == (config.design.num_masks, config.gradients.num_masks):
        return config  # still the pilot
    return replace(_with_passes(config, plain, with_gradients), budget=None)


def _with_passes(config: Config, plain: int, with_gradients: int) -> Config:
    gradients = replace(config.gradients, num_masks=with_gradients)
    return replace(config, gradients=gradients, design=replace(config.design, num_masks=plain))
