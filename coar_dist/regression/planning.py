"""The making of plans: what is decided and factorised once for all examples, from the masks and the configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from coar_dist.cluster.execution import Execute
from coar_dist.config.schema import RegressionConfig, penalty_range
from coar_dist.errors import ConfigError, MissingWorkError, listed, warn
from coar_dist.regression.backends import Backend, device
from coar_dist.regression.factor import Factor, factorise, factorise_dual, warn_if_rank_deficient
from coar_dist.regression.gate_prior import (
    GatePrior,
    GateSources,
    SourceStatistics,
    fit_coefficients,
    prior_variances,
    source_statistics,
)
from coar_dist.regression.iterative import CentredMasks, trace_quadrature
from coar_dist.regression.lasso import extremes_of
from coar_dist.regression.observations import Observations
from coar_dist.regression.plans import IterativePlan, LassoPlan, RidgePlan, SharedFactor
from coar_dist.regression.ridge import constant_design_error, penalty_grid
from coar_dist.regression.statistics import MASKS_PER_BATCH, DesignStatistics, Gram, gram
from coar_dist.store.margins import MarginStore

_MASKS_PER_GRAM_PART = 8192
_log = logging.getLogger(__name__)


def _gram_part(store: MarginStore, masks: tuple[int, int]) -> Gram:
    return gram((batch for batch, _ in store.read(None, MASKS_PER_BATCH, masks)), device())


def _gram(store: MarginStore, masks: tuple[int, int], execute: Execute) -> Gram:
    """X'X of a range of masks, in parts; it is exact, so their order does not matter."""
    first, end = masks
    parts = [(start, min(start + _MASKS_PER_GRAM_PART, end)) for start in range(first, end, _MASKS_PER_GRAM_PART)]
    total: Gram = reduce(add, execute(_gram_part, store, parts))
    return total


def _gram_of_all(observations: Observations, execute: Execute) -> Gram:
    """X'X of the train design and of the passes with gradients."""
    parts = []
    if observations.store.num_masks:
        parts.append(_gram(observations.store, (0, observations.store.num_masks), execute))
    if observations.gradients:
        parts.append(gram([observations.gradients[0].masks()], device()))
    return reduce(add, parts)


def _block_scores(
    shared: tuple[Observations, RidgePlan | IterativePlan], block: tuple[int, int]
) -> tuple[tuple[int, int], NDArray[np.float64]]:
    observations, plan = shared
    return block, plan.relative_scores(observations.of_block(block), device())


def _shared_scores(
    observations: Observations, plan: RidgePlan | IterativePlan, execute: Execute
) -> NDArray[np.float64]:
    """Scores of the plan's grid, summed over all examples, block after block."""
    parts = dict(execute(_block_scores, (observations, plan), observations.store.blocks))
    return np.asarray(sum(parts[block] for block in observations.store.blocks))


def _best(scores: NDArray[np.float64]) -> int:
    """The smallest score; on a tie the last, which is the larger penalty."""
    return int(len(scores) - 1 - np.argmin(scores[::-1]))


def ridge_plan(
    observations: Observations, config: RegressionConfig, solver: str, backend: Backend, execute: Execute
) -> RidgePlan | IterativePlan:
    """Ridge on the margins alone."""
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
        masks = observations.packed_masks()
        design = masks.design
        _check_design(design)
        products = CentredMasks(masks, design, device())
        unit = products.mean_eigenvalue
        trace = trace_quadrature(products, device())

        def make(grid: NDArray[np.float64]) -> RidgePlan | IterativePlan:
            return IterativePlan(design, masks, trace, grid, config.tolerance)
    else:
        design, factorise_with = _factoriser(observations, solver, execute)
        _check_design(design)
        factor = factorise_with(None)
        if config.regularisation == 0.0:
            warn_if_rank_deficient(factor)
            if config.standard_errors and factor.rank + 1 >= design.num_masks:
                raise ConfigError(
                    f"regression.standard_errors=True: least squares of {design.num_masks} masks on a design of rank "
                    f"{factor.rank} leaves no residual to estimate noise from. Use more masks, or a ridge penalty."
                )
        unit = float(factor.values.sum()) / factor.num_components
        shared = SharedFactor.of(factor)

        def make(grid: NDArray[np.float64]) -> RidgePlan | IterativePlan:
            return RidgePlan(design, shared, backend, grid, config.selection or "gcv", config.standard_errors)

    grid = fixed if fixed is not None else penalty_grid(unit, config.num_penalties, penalty_range(config))
    plan = make(grid)
    if config.shared_penalty:
        plan = make(grid[[_best(_shared_scores(observations, plan, execute))]])
    return plan


def _factoriser(
    observations: Observations, solver: str, execute: Execute
) -> tuple[DesignStatistics, Callable[[NDArray[np.float64] | None], Factor]]:
    """The design, and how it is factorised with prior standard deviations (d,) of the weights."""
    if solver == "dual":
        masks = observations.packed_masks()
        return masks.design, lambda scale: factorise_dual(masks, device(), scale)
    whole = _gram_of_all(observations, execute)
    return whole.design, lambda scale: factorise(whole, device(), scale)


def _source_part(
    shared: tuple[Observations, GateSources, DesignStatistics], block: tuple[int, int]
) -> tuple[tuple[int, int], SourceStatistics]:
    observations, sources, design = shared
    return block, source_statistics(observations, sources, design, block, device())


@dataclass(frozen=True)
class PriorFit:
    """A prior from gate gradients, and the plan that the data speak for.

    Attributes:
        statistics: of the sources.
        coefficients: (k,) of the prior mean.
        variances: (num_components,) of the prior, relative to their mean.
        plan: ridge with the prior's mean and variances, or without either.
        error: its squared error on a new mask by cross-validation, relative to the margins' variance.
    """

    statistics: SourceStatistics
    coefficients: NDArray[np.float64]
    variances: NDArray[np.float64]
    plan: RidgePlan
    error: float

    @property
    def penalty(self) -> float:
        """The plan's penalty: residual variance over prior variance."""
        return float(self.plan.grid[0])


def gradient_plan(
    observations: Observations,
    sources: GateSources,
    config: RegressionConfig,
    solver: str,
    backend: Backend,
    execute: Execute,
) -> PriorFit:
    """Ridge with a prior from gate gradients, or without its mean or its variances where the data speak against them.

    Raises:
        ConfigError: no factorisation fits the memory.
    """
    if solver == "iterative":
        raise ConfigError(
            f"{observations.num_masks} masks of {observations.store.num_components} components: the regression with "
            f"gradients needs a factorisation, which does not fit regression.memory_gb={config.memory_gb:g}. Raise it, "
            f"or use fewer masks: below the number of components the masks are factorised."
        )
    design, factorise_with = _factoriser(observations, solver, execute)
    _check_design(design)
    parts = dict(execute(_source_part, (observations, sources, design), observations.store.blocks))
    statistics = reduce(add, [parts[block] for block in observations.store.blocks])
    coefficients = fit_coefficients(statistics)
    variances = prior_variances(statistics, coefficients)
    _log.info(
        "prior mean of the weights: %s",
        " + ".join(f"{b:.3f} {name}" for b, name in zip(coefficients, sources.names, strict=True)),
    )
    prior = GatePrior(sources, coefficients)
    fits = []
    for scale, name in ((np.sqrt(variances), "from gradients"), (None, "equal")):
        factor = factorise_with(scale)
        unit = float(factor.values.sum()) / factor.num_components
        if config.regularisation is None:
            grid = penalty_grid(unit, config.num_penalties, penalty_range(config))
        else:
            grid = np.array([config.regularisation])
        shared = SharedFactor.of(factor)
        for mean in (prior, None):
            plan = RidgePlan(design, shared, backend, grid, config.selection or "gcv", config.standard_errors, mean)
            scores = _shared_scores(observations, plan, execute)
            penalty = grid[[_best(scores)]]
            error = float(scores.min()) / statistics.num_examples * design.num_masks
            _log.info(
                "prior variances %s, prior mean %s: relative error %.4f at penalty %.4g",
                name,
                "0" if mean is None else "from gradients",
                error,
                penalty[0],
            )
            relative = variances if scale is not None else np.ones_like(variances)
            fits.append(PriorFit(statistics, coefficients, relative, replace(plan, grid=penalty), error))
    return min(fits, key=lambda fit: fit.error)


def lasso_plan(store: MarginStore, config: RegressionConfig, backend: Backend, execute: Execute) -> LassoPlan:
    """Lasso or elastic net on the train design."""
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
        whole, train_extremes = train + held, extremes_of(train, device())
    else:
        whole = _gram(store, (0, num_masks), execute)
    _check_design(whole.design)
    ratios = None
    if config.regularisation is None:
        low, high = penalty_range(config)
        ratios = np.geomspace(high, low, config.num_penalties)
    factor: Factor | None = None if backend == "torch" else factorise(whole, device())
    return LassoPlan(
        gram=whole,
        extremes=extremes_of(whole, device()),
        held_out=held,
        train_extremes=train_extremes,
        factor=None if factor is None else SharedFactor.of(factor),
        backend=backend,
        ratios=ratios,
        alpha=config.regularisation or 0.0,
        l1_ratio=config.l1_ratio,
        tolerance=config.tolerance,
    )


def _check_design(design: DesignStatistics) -> None:
    """Refuse a design that says nothing, and name the components about which it says nothing."""
    if design.num_masks < 2:
        raise MissingWorkError(f"a regression needs at least 2 masks, but there are {design.num_masks}.")
    never = np.flatnonzero(design.says_nothing)
    if len(never) == len(design.kept):
        raise constant_design_error()
    if never.size:
        warn(
            f"nothing can be said about components that none or all of the {design.num_masks} masks ablate: "
            f"{never.size} of {len(design.kept)}, component ids {listed(never.tolist())}. Their weights are 0, "
            f"or what gradients alone say. Raise design.num_masks."
        )
