"""The making of plans: what is decided and factorised once for all examples, on a worker; nothing large comes here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from coar_dist.cluster.execution import Execute, Kept
from coar_dist.config.schema import RegressionConfig, penalty_range
from coar_dist.errors import ConfigError, MissingWorkError
from coar_dist.regression.backends import Backend, device
from coar_dist.regression.dual import AnyFactor, factorise_dual
from coar_dist.regression.factor import factorise, warn_if_rank_deficient
from coar_dist.regression.gate_prior import (
    BlockSources,
    GatePrior,
    GateSources,
    SampledRows,
    SourceStatistics,
    fit_coefficients,
    prior_variances,
    source_statistics,
)
from coar_dist.regression.iterative import CentredMasks, Quadrature, trace_quadrature
from coar_dist.regression.lasso import extremes_of
from coar_dist.regression.lasso_plan import LassoPlan, LassoStatistics
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.matrices import Matrices, gram_part, keep_masks
from coar_dist.regression.observations import Observations
from coar_dist.regression.plans import Factored, IterativePlan, RidgePlan
from coar_dist.regression.ridge import penalty_grid
from coar_dist.regression.shared import SharedFactor, Spectrum
from coar_dist.regression.statistics import DesignStatistics, Gram
from coar_dist.regression.trials import Sample, best, relative_scores
from coar_dist.store.margins import MarginStore

_log = logging.getLogger(__name__)


def _factored(matrices: Matrices) -> Factored:
    if matrices.solver == "dual":
        return _as_arrays(factorise_dual(matrices.masks.read(), device()))
    return _as_arrays(factorise(matrices.gram(), device()))


def _as_arrays(factor: AnyFactor) -> Factored:
    return Factored(SharedFactor.of(factor), Spectrum.of(factor))


def _spectrum(factored: Kept[Factored]) -> Spectrum:
    return factored.read().spectrum


def _trace(shared: tuple[Kept[PackedMasks], DesignStatistics]) -> tuple[float, Quadrature]:
    masks, design = shared
    products = CentredMasks(masks.read(), design, device())
    return products.mean_eigenvalue, trace_quadrature(products, device())


def _sampled_part(shared: tuple[Observations, Kept[PackedMasks], Sample], block: tuple[int, int]) -> SampledRows:
    observations, masks, sample = shared
    margins = observations.of_block(block, masks.read()).whole()
    return SampledRows.of(margins[:, sample.rows(margins.shape[1])])


def _tried(shared: tuple[RidgePlan | IterativePlan, list[Kept[SampledRows]]]) -> NDArray[np.float64]:
    plan, samples = shared
    return plan.relative_scores([sample.read() for sample in samples], device())


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
    masks, design = keep_masks(observations, execute)
    if solver == "iterative":
        unit, trace = execute.ask(_trace, (masks, design))

        def make(grid: NDArray[np.float64]) -> RidgePlan | IterativePlan:
            return IterativePlan(design, masks, trace, grid, config.tolerance)
    else:
        factored = execute.keep_one(_factored, Matrices.of(solver, masks, design.num_masks, execute))
        spectrum = execute.ask(_spectrum, factored)
        if config.regularisation == 0.0:
            warn_if_rank_deficient(spectrum.rank, design.num_masks, len(design.kept))
            if config.standard_errors and spectrum.rank + 1 >= design.num_masks:
                raise ConfigError(
                    f"regression.standard_errors=True: least squares of {design.num_masks} masks on a design of rank "
                    f"{spectrum.rank} leaves no residual to estimate noise from. Use more masks, or a ridge penalty."
                )
        unit = spectrum.mean_eigenvalue

        def make(grid: NDArray[np.float64]) -> RidgePlan | IterativePlan:
            selection = config.selection or "gcv"
            return RidgePlan(design, masks, factored, backend, grid, selection, config.standard_errors)

    grid = fixed if fixed is not None else penalty_grid(unit, config.num_penalties, penalty_range(config))
    plan = make(grid)
    if config.shared_penalty and len(grid) > 1:
        sample = Sample.of(observations.store.blocks, design.num_masks)
        samples = execute.keep(_sampled_part, (observations, masks, sample), sample.blocks)
        plan = make(grid[[best(execute.ask(_tried, (plan, samples)))]])
    return plan


@dataclass(frozen=True)
class PriorDecision:
    """A prior from gate gradients, and what of it the data speak for.

    Attributes:
        statistics: of the sources.
        coefficients: (k,) of the prior mean.
        variances: (num_components,) of the prior, relative to their mean; ones where they are equal.
        penalty: residual variance over prior variance.
        error: squared error on a new mask by cross-validation, relative to the margins' variance.
        has_mean: whether the prior mean is from gradients, else 0.
        has_variances: whether the prior variances are.
    """

    statistics: SourceStatistics
    coefficients: NDArray[np.float64]
    variances: NDArray[np.float64]
    penalty: float
    error: float
    has_mean: bool
    has_variances: bool


@dataclass(frozen=True)
class PriorFit:
    """A decision, and the plan that follows from it."""

    decision: PriorDecision
    plan: RidgePlan


@dataclass(frozen=True)
class _FactoredPrior(Factored):
    decision: PriorDecision


def _decision(factored: Kept[_FactoredPrior]) -> PriorDecision:
    return factored.read().decision


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
    masks, design = keep_masks(observations, execute)
    sample = Sample.of(observations.store.blocks, design.num_masks)
    parts = execute.keep(_source_part, (observations, sources, masks, design, sample), sample.blocks)
    matrices = Matrices.of(solver, masks, design.num_masks, execute)
    factored = execute.keep_one(_decide, (matrices, design, parts, config))
    del parts, matrices
    decision = execute.ask(_decision, factored)
    _log.info(
        "prior mean of the weights: %s",
        " + ".join(f"{b:.3f} {name}" for b, name in zip(decision.coefficients, sources.names, strict=True)),
    )
    _log.info(
        "prior variances %s, prior mean %s: relative error %.4f at penalty %.4g",
        "from gradients" if decision.has_variances else "equal",
        "from gradients" if decision.has_mean else "0",
        decision.error,
        decision.penalty,
    )
    plan = RidgePlan(
        design,
        masks,
        factored,
        backend,
        np.array([decision.penalty]),
        config.selection or "gcv",
        config.standard_errors,
        GatePrior(sources, decision.coefficients) if decision.has_mean else None,
        decision.has_variances,
    )
    return PriorFit(decision, plan)


def _source_part(
    shared: tuple[Observations, GateSources, Kept[PackedMasks], DesignStatistics, Sample], block: tuple[int, int]
) -> tuple[SourceStatistics, SampledRows]:
    observations, sources, masks, design, sample = shared
    found: BlockSources = sources.read(block)
    margins = observations.of_block(block, masks.read(), found.margins)
    return source_statistics(margins, found, design, sample.rows(found.margins.shape[1]), device())


def _decide(
    shared: tuple[Matrices, DesignStatistics, list[Kept[tuple[SourceStatistics, SampledRows]]], RegressionConfig],
) -> _FactoredPrior:
    """Try the prior with and without its mean and its variances, each at all penalties, on the sampled examples."""
    matrices, design, parts, config = shared
    statistics = reduce(add, [part.read()[0] for part in parts])
    samples = [part.read()[1] for part in parts]
    masks = matrices.masks.read()
    coefficients = fit_coefficients(statistics)
    variances = prior_variances(statistics, coefficients)
    whole = matrices.gram() if matrices.solver == "primal" else None
    chosen: tuple[AnyFactor, PriorDecision] | None = None
    for scale in (np.sqrt(variances), None):
        factor = factorise_dual(masks, device(), scale) if whole is None else factorise(whole, device(), scale)
        if config.regularisation is None:
            grid = penalty_grid(Spectrum.of(factor).mean_eigenvalue, config.num_penalties, penalty_range(config))
        else:
            grid = np.array([config.regularisation])
        for mean in (coefficients, np.zeros_like(coefficients)):
            scores = relative_scores(factor, design, masks, samples, mean, grid, config.selection or "gcv")
            error = float(scores.min()) * design.num_masks
            if chosen is None or error < chosen[1].error:
                relative = variances if scale is not None else np.ones_like(variances)
                penalty = float(grid[best(scores)])
                decision = PriorDecision(
                    statistics, coefficients, relative, penalty, error, mean is coefficients, scale is not None
                )
                chosen = factor, decision
    assert chosen is not None
    return _FactoredPrior(SharedFactor.of(chosen[0]), Spectrum.of(chosen[0]), chosen[1])


def lasso_plan(store: MarginStore, config: RegressionConfig, backend: Backend, execute: Execute) -> LassoPlan:
    """Lasso or elastic net on the train design."""
    num_masks = store.num_masks
    if config.selection == "bic" and config.regularisation is None and num_masks <= store.num_components:
        raise ConfigError(
            f"regression.selection='bic' cannot judge {num_masks} masks of {store.num_components} components: with as "
            f"many weights as masks every margin is fitted. Use regression.selection=held_out, or more masks."
        )
    num_held = 0
    if config.regularisation is None and config.selection in (None, "held_out"):
        num_held = round(num_masks * config.held_out_fraction)
        if num_held < 2 or num_masks - num_held < 2:
            raise MissingWorkError(
                f"regression.held_out_fraction={config.held_out_fraction:g} of {num_masks} masks leaves fewer than 2 "
                f"on one side. Use more masks."
            )
    masks, _ = keep_masks(Observations(store), execute)
    ratios = None
    if config.regularisation is None:
        low, high = penalty_range(config)
        ratios = np.geomspace(high, low, config.num_penalties)
    matrices = Matrices.of("primal", masks, num_masks, execute)
    statistics = execute.keep_one(_lasso_statistics, (matrices, num_held, backend != "torch"))
    return LassoPlan(
        masks,
        statistics,
        num_held,
        backend,
        ratios,
        alpha=config.regularisation or 0.0,
        l1_ratio=config.l1_ratio,
        tolerance=config.tolerance,
    )


def _lasso_statistics(shared: tuple[Matrices, int, bool]) -> LassoStatistics:
    matrices, num_held, needs_factor = shared
    held: Gram | None = None
    train_extremes = None
    whole = matrices.gram()
    if num_held:
        held = gram_part(matrices.masks, (whole.num_masks - num_held, whole.num_masks))
        train_extremes = extremes_of(whole - held, device())
    factor = SharedFactor.of(factorise(whole, device())) if needs_factor else None
    return LassoStatistics(whole, extremes_of(whole, device()), held, train_extremes, factor)
