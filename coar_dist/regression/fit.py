"""The fit stage: margins of the train design to one attribution per example, block by block, wherever they are run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.config import SELECTIONS, RegressionConfig, penalty_range
from coar_dist.errors import CoarWarning, ConfigError, MissingWorkError
from coar_dist.regression.backends import choose_backend
from coar_dist.regression.factor import (
    Factor,
    PackedMasks,
    choose_solver,
    factorise,
    factorise_dual,
    warn_if_rank_deficient,
)
from coar_dist.regression.iterative import CentredMasks, trace_quadrature
from coar_dist.regression.lasso import extremes_of
from coar_dist.regression.plans import IterativePlan, LassoPlan, Plan, RidgePlan, SharedFactor
from coar_dist.regression.ridge import constant_design_error, penalty_grid
from coar_dist.regression.statistics import MASKS_PER_BATCH, DesignStatistics, Gram, gram
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

_MASKS_PER_GRAM_PART = 8192
_log = logging.getLogger(__name__)

Execute = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[Any]]
"""``execute(function, shared, items)`` yields ``function(shared, item)`` for every item, in any order."""


def in_this_process(function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
    """One after the other, here."""
    return (function(shared, item) for item in items)


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
    if config.method == "ridge":
        return "coar"
    return "coar_lasso" if config.l1_ratio == 1.0 else "coar_elastic_net"


def fit(
    run: RunDirectory, config: RegressionConfig, on_progress: Callable[[int], None], execute: Execute = in_this_process
) -> FitResult:
    """Fit the attributions of every example, if they are not there already.

    Args:
        run: a run whose train design is complete.
        config: method, backend and penalty.
        on_progress: called with the number of examples done.
        execute: who runs the parts; the result has the same bits for any number of workers with equal devices and
            thread counts.

    Raises:
        MissingWorkError: margins are missing; the message lists the ranges.
        NonFiniteMarginError, DamagedFileError: margins cannot be used.
        ConfigError: the backend or an option cannot be used at this size; the message says what can.
        ConvergenceError: an iterative solver did not reach its tolerance.
    """
    store = run.margins(TRAIN_DESIGN)
    store.require_complete()
    num_masks, num_components = store.num_masks, store.num_components
    solver, sizes = choose_solver(num_masks, num_components, config.memory_gb * 1e9)
    backend, why = choose_backend(config.backend, config.method, solver, num_components)
    settings = _settings(store, config, solver, backend)
    name = attribution_name(config)
    table = AttributionTable(run, name)
    blocks = store.blocks
    if table.is_complete(settings, blocks):
        return FitResult(name, False, "")
    how = f"lasso, {backend}" if config.method == "lasso" else f"ridge, {solver}, {backend}"
    _log.info("fit %s: %s (%s; %s)", name, how, sizes, why)
    if config.method == "lasso":
        plan: Plan = _lasso_plan(store, config, backend, execute)
    else:
        plan = _ridge_plan(store, config, solver, backend, execute)
    num_done = num_constant = num_at_edge = 0
    largest_gap = 0.0
    for block, constant, at_edge, gap in execute(_fit_block, (run, name, settings, plan), blocks):
        num_done += block[1] - block[0]
        num_constant += constant
        num_at_edge += at_edge
        largest_gap = max(largest_gap, gap)
        on_progress(num_done)
    if largest_gap > 2 * config.tolerance:
        _warn(
            f"{backend} left a duality gap of {largest_gap:.1e}, regression.tolerance={config.tolerance:g} was asked "
            f"for. regression.backend=torch reaches it."
        )
    if num_constant:
        _warn(f"examples with the same margin under every mask: {num_constant} of {num_done}. Their weights are 0.")
    if config.penalty_range is not None and num_at_edge > num_done / 10:
        _warn(
            f"{num_at_edge} of {num_done} examples chose a penalty at an end of regression.penalty_range="
            f"{list(penalty_range(config))}: widen it."
        )
    return FitResult(name, True, how)


def _settings(store: MarginStore, config: RegressionConfig, solver: str, backend: str) -> dict[str, Any]:
    """What the attributions depend on besides the run's identity."""
    settings: dict[str, Any] = {
        "design": store.fingerprint,
        "num_masks": store.num_masks,
        "backend": backend,
        "method": config.method,
        "regularisation": config.regularisation,
        "selection": config.selection or SELECTIONS[config.method][0],
        "num_penalties": config.num_penalties,
        "penalty_range": list(penalty_range(config)),
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


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _gram_part(store: MarginStore, masks: tuple[int, int]) -> Gram:
    return gram((batch for batch, _ in store.read(None, MASKS_PER_BATCH, masks)), _device())


def _gram(store: MarginStore, masks: tuple[int, int], execute: Execute) -> Gram:
    """X'X of a range of masks, in parts; it is exact, so their order does not matter."""
    first, end = masks
    parts = [(start, min(start + _MASKS_PER_GRAM_PART, end)) for start in range(first, end, _MASKS_PER_GRAM_PART)]
    total: Gram = reduce(add, execute(_gram_part, store, parts))
    return total


def _fit_block(
    shared: tuple[RunDirectory, str, dict[str, Any], Plan], block: tuple[int, int]
) -> tuple[tuple[int, int], int, int, float]:
    """Fit and write one block; how many examples are constant, how many chose an end of the grid, the largest gap."""
    run, name, settings, plan = shared
    store = run.margins(TRAIN_DESIGN)
    fitted = plan.fit(_reader(store, block), _device())
    AttributionTable(run, name).write(block, settings, fitted.attributions)
    gap = float(np.nanmax(fitted.attributions.duality_gap, initial=0.0))
    return block, int(np.isnan(fitted.attributions.r2).sum()), fitted.num_at_edge, gap


def _block_scores(shared: tuple[MarginStore, RidgePlan | IterativePlan], block: tuple[int, int]) -> NDArray[np.float64]:
    store, plan = shared
    return plan.relative_scores(_reader(store, block), _device())


def _reader(store: MarginStore, block: tuple[int, int]) -> Callable[[int, int], Iterator[Any]]:
    return lambda start, stop: store.read(block, MASKS_PER_BATCH, (start, stop))


def _ridge_plan(
    store: MarginStore, config: RegressionConfig, solver: str, backend: str, execute: Execute
) -> RidgePlan | IterativePlan:
    fixed = None if config.regularisation is None else np.array([config.regularisation])
    make: Callable[[NDArray[np.float64]], RidgePlan | IterativePlan]
    if solver == "iterative":
        for key in ("selection", "standard_errors"):
            value = getattr(config, key)
            if value not in (None, "gcv", False):
                raise ConfigError(
                    f"regression.{key}={value!r} needs a factorisation, which does not fit regression.memory_gb="
                    f"{config.memory_gb:g}. Raise it, or leave the option out."
                )
        masks = _packed_masks(store)
        design = masks.design
        _check_design(design)
        products = CentredMasks(masks, design, _device())
        unit = products.mean_eigenvalue
        trace = trace_quadrature(products, _device())

        def make(grid: NDArray[np.float64]) -> RidgePlan | IterativePlan:
            return IterativePlan(design, masks, trace, grid, config.tolerance)
    else:
        if solver == "dual":
            masks = _packed_masks(store)
            design, factor = masks.design, factorise_dual(masks, _device())
        else:
            whole = _gram(store, (0, store.num_masks), execute)
            design, factor = whole.design, factorise(whole, _device())
        _check_design(design)
        if config.regularisation == 0.0:
            warn_if_rank_deficient(factor)
            if config.standard_errors and factor.rank + 1 >= store.num_masks:
                raise ConfigError(
                    f"regression.standard_errors=True: least squares of {store.num_masks} masks on a design of rank "
                    f"{factor.rank} leaves no residual to estimate noise from. Use more masks, or a ridge penalty."
                )
        unit = float(factor.values.sum()) / factor.num_components
        shared = SharedFactor.of(factor)

        def make(grid: NDArray[np.float64]) -> RidgePlan | IterativePlan:
            return RidgePlan(design, shared, backend, grid, config.selection or "gcv", config.standard_errors)

    grid = fixed if fixed is not None else penalty_grid(unit, config.num_penalties, penalty_range(config))
    plan = make(grid)
    if config.shared_penalty:
        scores: NDArray[np.float64] = sum(execute(_block_scores, (store, plan), store.blocks), np.zeros(len(grid)))
        plan = make(grid[[int(len(grid) - 1 - np.argmin(scores[::-1]))]])
    return plan


def _lasso_plan(store: MarginStore, config: RegressionConfig, backend: str, execute: Execute) -> LassoPlan:
    needed = 32.0 * store.num_components**2
    if needed > config.memory_gb * 1e9:
        raise ConfigError(
            f"the lasso needs the Gram matrix of {store.num_components} components, {needed / 1e9:.2g} GB with its "
            f"copies, and regression.memory_gb is {config.memory_gb:g}. Raise it, or use regression.method=ridge."
        )
    num_masks = store.num_masks
    if config.selection == "bic" and config.regularisation is None and num_masks <= store.num_components:
        raise ConfigError(
            f"regression.selection='bic' cannot judge {num_masks} masks of {store.num_components} components: with as "
            f"many weights as masks every margin is fitted. Use regression.selection=held_out, or more masks."
        )
    held: Gram | None = None
    train_extremes = None
    if config.regularisation is None and config.selection in (None, "held_out"):
        num_held = round(num_masks * config.held_out_fraction)
        if num_held < 2 or num_masks - num_held < 2:
            raise MissingWorkError(
                f"regression.held_out_fraction={config.held_out_fraction:g} of {num_masks} masks leaves fewer than 2 "
                f"on one side. Use more masks."
            )
        held = _gram(store, (num_masks - num_held, num_masks), execute)
        train = _gram(store, (0, num_masks - num_held), execute)
        whole, train_extremes = train + held, extremes_of(train, _device())
    else:
        whole = _gram(store, (0, num_masks), execute)
    _check_design(whole.design)
    ratios = None
    if config.regularisation is None:
        low, high = penalty_range(config)
        ratios = np.geomspace(high, low, config.num_penalties)
    factor: Factor | None = None if backend == "torch" else factorise(whole, _device())
    return LassoPlan(
        gram=whole,
        extremes=extremes_of(whole, _device()),
        held_out=held,
        train_extremes=train_extremes,
        factor=None if factor is None else SharedFactor.of(factor),
        backend=backend,
        ratios=ratios,
        alpha=config.regularisation or 0.0,
        l1_ratio=config.l1_ratio,
        tolerance=config.tolerance,
    )


def _packed_masks(store: MarginStore) -> PackedMasks:
    batches: Iterable[NDArray[np.bool_]] = (masks for masks, _ in store.read(None, MASKS_PER_BATCH))
    bits = np.concatenate([np.packbits(masks, axis=1, bitorder="little") for masks in batches])
    return PackedMasks(bits, store.num_components)


def _check_design(design: DesignStatistics) -> None:
    """Refuse a design that says nothing, and name the components about which it says nothing."""
    if design.num_masks < 2:
        raise MissingWorkError(f"a regression needs at least 2 masks, but there are {design.num_masks}.")
    never = np.flatnonzero(design.says_nothing)
    if len(never) == len(design.kept):
        raise constant_design_error()
    if never.size:
        _warn(
            f"nothing can be said about components that none or all of the {design.num_masks} masks ablate: "
            f"{never.size} of {len(design.kept)}, component ids {', '.join(str(i) for i in never[:10])}"
            f"{', ...' if never.size > 10 else ''}. Their weights are 0. Raise design.num_masks."
        )


def _warn(text: str) -> None:
    warnings.warn(text, CoarWarning, stacklevel=3)
