"""The fit stage: margins of the train design to one attribution per example, block by block, wherever they are run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from coar_dist.cluster.execution import Execute, in_this_process
from coar_dist.config.methods import GRADIENT_RIDGE, LEAVE_ONE_OUT, METHODS, Origin
from coar_dist.config.schema import RegressionConfig, penalty_range
from coar_dist.errors import ConfigError, warn
from coar_dist.regression.backends import (
    COEFFICIENTS,
    Backend,
    choose_backend,
    device,
    identity_of_backend,
    name_of_backend,
)
from coar_dist.regression.budget import Passes, spend
from coar_dist.regression.cross_validation import extended
from coar_dist.regression.gate_sources import GateSources
from coar_dist.regression.observations import Observations
from coar_dist.regression.planning import gradient_plan, lasso_plan, ridge_plan
from coar_dist.regression.plans import Plan
from coar_dist.regression.sizes import choose_solver, factor_bytes
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What was fitted.

    Attributes:
        method: name of the attributions.
        is_new: whether anything had to be computed.
        how: solver and backend, in words; empty where nothing was computed.
    """

    method: str
    is_new: bool
    how: str


def attribution_name(config: RegressionConfig) -> str:
    """The name of the attributions: ridge and lasso of one run stand side by side."""
    regression = "elastic_net" if config.method == "lasso" and config.l1_ratio < 1.0 else config.method
    return next(
        name for name, method in METHODS.items() if (method.origin, method.regression) == (Origin.TRAIN, regression)
    )


def fit(
    run: RunDirectory, config: RegressionConfig, on_progress: Callable[[int], None], execute: Execute = in_this_process
) -> list[FitResult]:
    """Fit the attributions of the example blocks that are not fitted yet: of the train design's margins alone, and, by
    ridge where the run has passes with gradients, of both together.

    Args:
        run: a run whose train design and passes with gradients are complete.
        config: method, backend and penalty.
        on_progress: called with the number of examples done, of every method in turn.
        execute: who runs the parts; the result has the same bits for any number of workers with equal devices and
            thread counts.

    Raises:
        MissingWorkError: margins or gradients are missing; the message lists the ranges.
        NonFiniteMarginError, DamagedFileError: margins cannot be used.
        ConfigError: the backend or an option cannot be used at this size; the message says what can.
        ConvergenceError: an iterative solver did not reach its tolerance.
    """
    results = []
    if run.design(TRAIN_DESIGN).num_masks:
        results.append(_fit_method(run, config, attribution_name(config), None, on_progress, execute))
    if GRADIENT_DESIGN in run.designs and config.method == "ridge":
        table = AttributionTable(run, LEAVE_ONE_OUT) if LEAVE_ONE_OUT in run.designs else None
        sources = GateSources(tuple(run.gradients(GRADIENT_DESIGN)), table)
        results.append(_fit_method(run, config, GRADIENT_RIDGE, sources, on_progress, execute))
    return results


def plan_passes(run: RunDirectory, config: RegressionConfig, cost: float, budget: float, execute: Execute) -> Passes:
    """The best use of a budget by the run's train design and passes with gradients as they are: the pilot.

    Args:
        run: a run whose train design and passes with gradients are complete.
        config: as for the fit.
        cost: of a pass with gradients, in passes without.
        budget: in passes without gradients, the pilot's among them.
        execute: who runs the parts.

    Raises:
        MissingWorkError, DamagedFileError, ConfigError: as ``fit``.
    """
    sources = GateSources(tuple(run.gradients(GRADIENT_DESIGN)), None)
    store, design = run.margins(TRAIN_DESIGN), run.design(GRADIENT_DESIGN)
    store.require_complete()
    observations = Observations(store, sources.gradients)
    solver, _ = solver_of(observations, config)
    backend, _ = choose_backend(config.backend, config.method, solver)
    fit = gradient_plan(observations, sources, config, solver, backend, execute)
    pilot = (observations.num_gradient_masks, store.num_masks)
    return spend(fit.decision, pilot, design.ablation_fraction, design.masks_per_round, cost, budget)


def _fit_method(
    run: RunDirectory,
    config: RegressionConfig,
    name: str,
    sources: GateSources | None,
    on_progress: Callable[[int], None],
    execute: Execute,
) -> FitResult:
    store = run.margins(TRAIN_DESIGN)
    store.require_complete()
    observations = Observations(store, () if sources is None else sources.gradients)
    blocks = store.blocks
    solver, sizes = solver_of(observations, config)
    backend, why = choose_backend(config.backend, config.method, solver)
    settings = _settings(store, config, solver, backend)
    if sources is not None:
        settings |= sources.settings(blocks)
    table = AttributionTable(run, name)
    unfitted = table.unfitted(settings, blocks)
    if not unfitted and _agree(table, blocks):
        return FitResult(name, False, "")
    table.set_aside_wrong(unfitted)
    by = name_of_backend(backend)
    how = f"lasso, {by}" if config.method == "lasso" else f"ridge, {solver}, {by}"
    _log.info("fit %s: %s (%s; %s)", name, how, sizes, why)
    plan = make_plan(observations, sources, config, solver, backend, execute)
    # A block that is there stays where its examples stand alone, or where all examples decide today as they did then.
    # The decision is made from all margins again: on another kind of device, rounding may tip a tie between penalties.
    unfitted = [block for block in blocks if block in unfitted or table.decided(block) != plan.decided]
    num_to_fit = sum(end - first for first, end in unfitted)
    num_done = blocks[-1][1] - num_to_fit
    num_constant = num_at_edge = 0
    largest_gap = 0.0
    for block, constant, at_edge, gap in execute(_fit_block, (run, name, settings, observations, plan), unfitted):
        num_done += block[1] - block[0]
        num_constant += constant
        num_at_edge += at_edge
        largest_gap = max(largest_gap, gap)
        on_progress(num_done)
    if largest_gap > 2 * config.tolerance:
        warn(
            f"{by} left a duality gap of {largest_gap:.1e}, regression.tolerance={config.tolerance:g} was asked "
            f"for. regression.backend=torch reaches it."
        )
    if num_constant:
        warn(f"examples with the same margin under every mask: {num_constant} of {num_to_fit}. Their weights are 0.")
    if (config.method == "ridge" or config.penalty_range is not None) and num_at_edge > num_to_fit / 10:
        warn(
            f"{num_at_edge} of {num_to_fit} examples chose a penalty at an end of regression.penalty_range="
            f"{list(penalty_range(config))}{extended(config)}: widen it."
        )
    return FitResult(name, True, how)


def solver_of(observations: Observations, config: RegressionConfig) -> tuple[str, str]:
    """How ridge systems of these masks are solved, and why.

    Raises:
        ConfigError: the lasso does not fit the memory.
    """
    num_masks, num_components = observations.num_masks, observations.store.num_components
    memory, lasso = config.memory_gb * 1e9, factor_bytes("lasso", num_masks, num_components)
    if config.method == "lasso" and lasso > memory:
        raise ConfigError(
            f"the lasso needs the Gram matrix of {num_components} components, {lasso / 1e9:.2g} GB with its copies, "
            f"and regression.memory_gb is {config.memory_gb:g}. Raise it, or use regression.method=ridge."
        )
    needs_vectors = config.backend not in ("auto", *COEFFICIENTS)
    return choose_solver(num_masks, num_components, memory, bool(observations.gradients), needs_vectors)


def _agree(table: AttributionTable, blocks: list[tuple[int, int]]) -> bool:
    """Whether all blocks were fitted by one joint decision; a fit that was interrupted may leave two."""
    first, *others = (table.decided(block) for block in blocks)
    return all(decided == first for decided in others)


def make_plan(
    observations: Observations,
    sources: GateSources | None,
    config: RegressionConfig,
    solver: str,
    backend: Backend,
    execute: Execute,
) -> Plan:
    """The plan by which every block's attributions are fitted; with ``sources``, ridge with a prior from gradients.

    Raises:
        MissingWorkError, NonFiniteMarginError, DamagedFileError, ConfigError: as ``fit``.
    """
    if config.method == "lasso":
        return lasso_plan(observations.store, config, backend, execute)
    if sources is None:
        return ridge_plan(observations, config, solver, backend, execute)
    return gradient_plan(observations, sources, config, solver, backend, execute).plan


def _settings(store: MarginStore, config: RegressionConfig, solver: str, backend: Backend) -> dict[str, Any]:
    """What the attributions depend on besides the run's identity."""
    settings: dict[str, Any] = {
        "design": store.fingerprint,
        "num_masks": store.num_masks,
        "backend": identity_of_backend(backend),
        "method": config.method,
        "regularisation": config.regularisation,
        "selection": config.selection,
        "num_penalties": config.num_penalties,
        "penalty_range": config.penalty_range,
    }
    if config.method == "lasso":
        settings |= {"l1_ratio": config.l1_ratio, "held_out_fraction": config.held_out_fraction}
    else:
        settings |= {
            "solver": solver,
            "shared_penalty": config.shared_penalty,
            "standard_errors": config.standard_errors,
        }
    if config.method == "lasso" or solver == "iterative":
        settings["tolerance"] = config.tolerance
    return settings


def _fit_block(
    shared: tuple[RunDirectory, str, dict[str, Any], Observations, Plan], block: tuple[int, int]
) -> tuple[tuple[int, int], int, int, float]:
    """Fit and write one block; how many examples are constant, how many chose an end of the grid, the largest gap."""
    run, name, settings, observations, plan = shared
    fitted = plan.fit(observations, block, device())
    AttributionTable(run, name).write(block, settings, fitted.attributions, plan.decided)
    gap = float(np.nanmax(fitted.attributions.duality_gap, initial=0.0))
    return block, int(np.isnan(fitted.attributions.r2).sum()), fitted.num_at_edge, gap
