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
from coar_dist.errors import ConfigError, MissingWorkError, warn
from coar_dist.regression.backends import Backend, device
from coar_dist.regression.cross_validation import Choice, JudgingMasks, extended, penalty_grid
from coar_dist.regression.dual import AnyFactor, factorise_dual
from coar_dist.regression.factor import factorise, warn_if_rank_deficient
from coar_dist.regression.gate_prior import GatePrior, fit_coefficients, prior_variances
from coar_dist.regression.gate_sources import (
    BlockSources,
    GateSources,
    SampledRows,
    SourceStatistics,
    source_statistics,
)
from coar_dist.regression.iterative import CentredMasks, Quadrature, trace_quadrature
from coar_dist.regression.lasso import extremes_of
from coar_dist.regression.lasso_plan import LassoPlan, LassoStatistics
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.matrices import Matrices, gram_part, keep_masks
from coar_dist.regression.observations import Observations
from coar_dist.regression.plans import Factored, IterativePlan, Penalties, RidgePlan
from coar_dist.regression.shared import SharedFactor, Spectrum
from coar_dist.regression.sizes import FEWEST_JUDGES, are_few
from coar_dist.regression.statistics import DesignStatistics, Gram
from coar_dist.regression.trials import Sample, shared_trial
from coar_dist.store.margins import MarginStore

_log = logging.getLogger(__name__)


def _factored(shared: tuple[Matrices, DesignStatistics]) -> Factored:
    matrices, design = shared
    masks = matrices.masks.read()
    is_dual = matrices.solver == "dual"
    factor = factorise_dual(masks, device()) if is_dual else factorise(matrices.gram(), device())
    return Factored.of(factor, JudgingMasks.of(factor, design, masks))


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


def _tried(shared: tuple[RidgePlan | IterativePlan, list[Kept[SampledRows]]]) -> Choice:
    plan, samples = shared
    return plan.shared_choice([sample.read() for sample in samples], device())


def ridge_plan(
    observations: Observations, config: RegressionConfig, solver: str, backend: Backend, execute: Execute
) -> RidgePlan | IterativePlan:
    """Ridge on the margins alone."""
    make: Callable[[Penalties], RidgePlan | IterativePlan]
    if solver == "iterative":
        for key in ("selection", "standard_errors"):
            value = getattr(config, key)
            if value not in (None, "gcv", False):
                raise ConfigError(
                    f"regression.{key}={value!r} needs a factorisation, which does not fit regression.memory_gb="
                    f"{config.memory_gb:g}. Raise it, or leave the option out."
                )
    masks, design = keep_masks(observations, execute)
    is_few, is_given = are_few(design.num_masks, len(design.kept)), config.penalty_range is not None
    if solver == "iterative":
        unit, trace = execute.ask(_trace, (masks, design))
        penalties = Penalties(_grid(config, unit), is_given, "gcv")

        def make(penalties: Penalties) -> RidgePlan | IterativePlan:
            return IterativePlan(design, masks, trace, penalties, config.tolerance)
    else:
        factored = execute.keep_one(_factored, (Matrices.of(solver, masks, design.num_masks, execute), design))
        spectrum = execute.ask(_spectrum, factored)
        if config.regularisation == 0.0:
            warn_if_rank_deficient(spectrum.rank, design.num_masks, len(design.kept))
            if config.standard_errors and spectrum.rank + 1 >= design.num_masks:
                raise ConfigError(
                    f"regression.standard_errors=True: least squares of {design.num_masks} masks on a design of rank "
                    f"{spectrum.rank} leaves no residual to estimate noise from. Use more masks, or a ridge penalty."
                )
        penalties = Penalties(
            _grid(config, spectrum.mean_eigenvalue),
            is_given,
            config.selection or ("leave_one_out" if is_few else "gcv"),
        )

        def make(penalties: Penalties) -> RidgePlan | IterativePlan:
            return RidgePlan(design, masks, factored, backend, penalties, config.standard_errors)

    plan = make(penalties)
    is_shared = is_few if config.shared_penalty is None else config.shared_penalty
    if is_shared and len(penalties.grid) > 1:
        sample = Sample.of(observations.store.blocks, design.num_masks)
        samples = execute.keep(_sampled_part, (observations, masks, sample), sample.blocks)
        choice = execute.ask(_tried, (plan, samples))
        _warn_at_end(bool(choice.at_end), config)
        plan = make(penalties.only(float(choice.penalties[0])))
    return plan


def _warn_at_end(is_at_end: bool, config: RegressionConfig) -> None:
    if is_at_end:
        warn(
            f"the penalty that all examples share is at an end of regression.penalty_range="
            f"{list(penalty_range(config))}{extended(config)}: widen it."
        )


def _grid(config: RegressionConfig, unit: float) -> NDArray[np.float64]:
    """The penalties to choose from (num_penalties,), or the one that is given; ``unit`` is of ``penalty_grid``."""
    if config.regularisation is not None:
        return np.array([config.regularisation])
    return penalty_grid(unit, config.num_penalties, penalty_range(config))


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
        is_at_end: whether a penalty beyond the grid might be better.
    """

    statistics: SourceStatistics
    coefficients: NDArray[np.float64]
    variances: NDArray[np.float64]
    penalty: float
    error: float
    has_mean: bool
    has_variances: bool
    is_at_end: bool


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
    factored = execute.keep_one(_decide, (matrices, design, parts, config, observations.num_gradient_masks))
    del parts, matrices
    decision = execute.ask(_decision, factored)
    _warn_at_end(decision.is_at_end, config)
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
        Penalties(np.array([decision.penalty]), True, "gcv"),
        config.standard_errors,
        GatePrior.of(sources, decision.statistics, decision.coefficients, decision.error / design.num_masks)
        if decision.has_mean
        else None,
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
    shared: tuple[Matrices, DesignStatistics, list[Kept[tuple[SourceStatistics, SampledRows]]], RegressionConfig, int],
) -> _FactoredPrior:
    """Try the prior with and without its mean and its variances, each at all penalties, on the sampled examples: by
    leaving out masks without gradients, whose margins have not made the prior, or where these are few by generalised
    cross-validation of all masks."""
    matrices, design, parts, config, num_gradient_masks = shared
    statistics = reduce(add, [part.read()[0] for part in parts])
    samples = [part.read()[1] for part in parts]
    masks = matrices.masks.read()
    coefficients = fit_coefficients(statistics)
    variances = prior_variances(statistics, coefficients)
    whole = matrices.gram() if matrices.solver == "primal" else None
    can_judge = design.num_masks - num_gradient_masks >= FEWEST_JUDGES
    selection = config.selection or ("leave_one_out" if can_judge else "gcv")
    chosen: tuple[AnyFactor, JudgingMasks, PriorDecision] | None = None
    for scale in (np.sqrt(variances), None):
        factor = factorise_dual(masks, device(), scale) if whole is None else factorise(whole, device(), scale)
        grid = _grid(config, Spectrum.of(factor).mean_eigenvalue)
        judging = JudgingMasks.of(factor, design, masks, num_gradient_masks if can_judge else 0)
        for mean in (coefficients, np.zeros_like(coefficients)):
            trial = shared_trial(factor, design, masks, samples, mean, selection, judging)
            choice = trial.choose(grid, config.penalty_range is not None)
            error = float(trial.scores(choice.penalties))
            if chosen is None or error < chosen[-1].error:
                relative = variances if scale is not None else np.ones_like(variances)
                decision = PriorDecision(
                    statistics,
                    coefficients,
                    relative,
                    float(choice.penalties[0]),
                    error,
                    mean is coefficients,
                    scale is not None,
                    bool(choice.at_end),
                )
                chosen = factor, judging, decision
            del trial
    assert chosen is not None
    factor, judging, decision = chosen
    if not can_judge:  # to tell how well new masks are predicted, only masks that did not make the prior are left out
        judging = JudgingMasks.of(factor, design, masks, num_gradient_masks)
    return _FactoredPrior.of(factor, judging, decision=decision)


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
