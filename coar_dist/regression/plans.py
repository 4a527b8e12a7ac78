"""What is prepared once for all examples, and how one block of examples is fitted with it.

A plan is made by ``coar_dist.regression.planning`` and used in many processes: what is large of it is kept where it was
made, and read where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.cluster.execution import Kept
from coar_dist.regression import ridge
from coar_dist.regression.backends import COEFFICIENTS, Backend, ridge_weights
from coar_dist.regression.cross_validation import (
    ROUNDING_ERROR,
    Choice,
    JudgingMasks,
    choose,
    left_out_errors,
    noise_of,
    r2_on_new_masks,
)
from coar_dist.regression.dual import AnyFactor, DualFactor
from coar_dist.regression.fitted import Fitted, where
from coar_dist.regression.gate_prior import GatePrior
from coar_dist.regression.gate_sources import SampledRows
from coar_dist.regression.iterative import CentredMasks, IterativeRidge, Quadrature
from coar_dist.regression.lasso_plan import LassoPlan
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import Chosen, HeldMargins, Margins, Observations, Residuals
from coar_dist.regression.shared import SharedFactor, Spectrum
from coar_dist.regression.statistics import DesignStatistics, MarginStatistics, as_tensor, margin_statistics
from coar_dist.regression.trials import relative_sums, shared_trial, trial_of
from coar_dist.store.tables import Attributions


@dataclass(frozen=True)
class Factored:
    """A factorisation, what of it is small, and what all examples need with it: made once.

    Attributes:
        factor: the factor.
        spectrum: what is small of it.
        rows, coordinates: the fields of ``JudgingMasks``, as arrays.
    """

    factor: SharedFactor
    spectrum: Spectrum
    rows: NDArray[np.int64]
    coordinates: NDArray[np.float64]

    @classmethod
    def of(cls, factor: AnyFactor, judging: JudgingMasks, **others: Any) -> Self:
        """From the tensors, and further fields of a subclass."""
        arrays = judging.rows, judging.coordinates.cpu().numpy()
        return cls(SharedFactor.of(factor), Spectrum.of(factor), *arrays, **others)

    def on(self, device: str) -> tuple[AnyFactor, JudgingMasks]:
        """As tensors on ``device``."""
        return self.factor.on(device), JudgingMasks(self.rows, as_tensor(self.coordinates, device))


@dataclass(frozen=True)
class Penalties:
    """Penalties to choose from.

    Attributes:
        grid: (num_penalties,) ascending; one value is fixed, by the configuration or by all examples together.
        is_given: whether the configuration gives the grid, which is not extended then.
        selection: ``gcv`` or ``leave_one_out``.
    """

    grid: NDArray[np.float64]
    is_given: bool
    selection: str

    @property
    def decided(self) -> dict[str, Any]:
        """What the examples decide together; empty where each chooses its own penalty."""
        return {"penalty": _rounded(self.grid[0])} if len(self.grid) == 1 else {}

    def only(self, penalty: float) -> Penalties:
        """The same with one penalty."""
        return replace(self, grid=np.array([penalty]))


@dataclass(frozen=True)
class RidgePlan:
    """Ridge from a factorisation.

    Attributes:
        design: means of the masks.
        masks: all of them.
        factored: the factor of the centred design.
        backend: as in ``ridge_weights``.
        penalties: to choose from.
        standard_errors: whether they are computed.
        prior: mean of the weights, from gradients; None is 0.
        has_variances: whether the factor is of prior variances from gradients.
    """

    design: DesignStatistics
    masks: Kept[PackedMasks]
    factored: Kept[Factored]
    backend: Backend
    penalties: Penalties
    standard_errors: bool
    prior: GatePrior | None = None
    has_variances: bool = False

    @property
    def decided(self) -> dict[str, Any]:
        """What the examples decide together; empty where each chooses its own penalty."""
        if not self.penalties.decided:
            return {}
        return {
            **self.penalties.decided,
            "prior_mean": None if self.prior is None else [_rounded(b) for b in self.prior.coefficients],
            "prior_variances": "from gradients" if self.has_variances else "equal",
        }

    def shared_choice(self, samples: list[SampledRows], device: str) -> Choice:
        """The penalty that does best for sampled examples together."""
        (factor, judging), masks, penalties = self.factored.read().on(device), self.masks.read(), self.penalties
        trial = shared_trial(factor, self.design, masks, samples, np.empty(0), penalties.selection, judging)
        return trial.choose(penalties.grid, penalties.is_given)

    def fit(self, observations: Observations, block: tuple[int, int], device: str) -> Fitted:
        """Attributions of one block, whose files are read once."""
        (factor, judging), masks = self.factored.read().on(device), self.masks.read()
        if self.prior is None:
            prior_mean, of_gradients, of_mean = None, None, None
        else:
            prior_mean, of_gradients, of_mean = self.prior.of_block(block, self.standard_errors)
        own = Chosen(observations.of_block(block, masks, of_gradients), judging.rows)
        residuals = None if prior_mean is None else Residuals(own, prior_mean, device)
        trial = trial_of(factor, self.design, residuals or own, judging)
        projected = trial.projected
        choice = choose(
            lambda grid: trial.scores(grid, self.penalties.selection), self.penalties.grid, self.penalties.is_given
        )
        weights, at_mean = self._weights(factor, projected, choice.penalties)
        residual = ridge.residual_squares(factor, projected, choice.penalties)
        squares = projected.squares if residuals is None else torch.from_numpy(residuals.squares()).to(residual.device)
        mean = trial.mean if residuals is None else residuals.mean()
        errors, left = left_out_errors(factor, projected, choice.penalties, trial.judges)
        variances = squares.clamp(min=1e-300) / (self.design.num_masks - 1)
        deviations = torch.from_numpy(own.kept() - mean).to(residual.device)
        r2_new = r2_on_new_masks(errors**2 / variances, deviations**2 / variances, squares > 0, self.design.num_masks)
        standard_errors = None
        if self.standard_errors:
            if of_mean is not None and self.prior is not None:
                of_mean += self.prior.sampling_of(squares.cpu().numpy() / self.design.num_masks)
            standard_errors = ridge.posterior_errors(factor, choice.penalties, noise_of(errors, left), of_mean)
            if self.prior is None:
                standard_errors[:, self.design.says_nothing] = np.nan
        if prior_mean is not None:
            weights += prior_mean
        attributions = _attributions(
            (weights, trial.mean - at_mean),
            choice.penalties,
            squares,
            residual,
            r2_new,
            standard_errors,
        )
        return Fitted(attributions, _at_edge(attributions, choice))

    def _weights(
        self, factor: AnyFactor, projected: ridge.Projected, penalties: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Weights (n, d), and what they give for the mean mask (n,)."""
        coefficients_of = COEFFICIENTS.get(self.backend) if isinstance(self.backend, str) else None
        if not isinstance(factor, DualFactor) or coefficients_of is None:
            found = ridge_weights(self.backend, factor.whole(), projected, penalties)
            if factor.scale is not None:
                found = factor.scale.cpu().numpy()[:, None] * found
            return np.ascontiguousarray(found.T, dtype=np.float32), self.design.mean @ found
        weights = np.empty((len(penalties), factor.num_components), dtype=np.float32)
        at_mean = np.zeros(len(penalties))
        for columns, rows in factor.weight_rows(coefficients_of(factor, projected, penalties)):
            some = rows.cpu().numpy()
            weights[:, columns] = some.T
            at_mean += self.design.mean[columns] @ some
        return weights, at_mean


@dataclass(frozen=True)
class IterativePlan:
    """Ridge by conjugate gradients, with estimated generalised cross-validation.

    Attributes:
        design: means of the masks.
        masks: all of them.
        trace: quadrature for traces, shared by all blocks.
        penalties: to choose from, by ``gcv``, without an extension.
        tolerance: of the solution.
    """

    design: DesignStatistics
    masks: Kept[PackedMasks]
    trace: Quadrature
    penalties: Penalties
    tolerance: float

    @property
    def decided(self) -> dict[str, Any]:
        """As ``RidgePlan.decided``."""
        return self.penalties.decided

    def shared_choice(self, samples: list[SampledRows], device: str) -> Choice:
        """As ``RidgePlan.shared_choice``."""
        margins = HeldMargins(self.masks.read(), np.concatenate([sample.margins for sample in samples], axis=1))
        _, _, _, squares, scores = self._scored(margins, device)
        return self._choice(relative_sums(scores, squares).unsqueeze(1))

    def fit(self, observations: Observations, block: tuple[int, int], device: str) -> Fitted:
        """Attributions of one block, whose files are read once."""
        margins, solver, cross, squares, scores = self._scored(observations.of_block(block, self.masks.read()), device)
        choice = self._choice(scores)
        weights = solver.solve(cross, choice.penalties)
        # rss = y'y - 2 c'w + w'Xc'Xc w, and Xc'Xc w = c - penalty w
        penalty = torch.from_numpy(choice.penalties).to(cross.device)
        residual = (squares - (cross * weights).sum(dim=0) - penalty * (weights**2).sum(dim=0)).clamp(min=0.0)
        dense = weights.cpu().numpy()
        fitted = np.ascontiguousarray(dense.T, dtype=np.float32), margins.intercepts(self.design, dense)
        unknown = np.full(len(squares), np.nan), None  # no mask is left out
        attributions = _attributions(fitted, choice.penalties, squares, residual, unknown)
        return Fitted(attributions, _at_edge(attributions, choice))

    def _choice(self, scores: torch.Tensor) -> Choice:
        """Of the grid as it is: conjugate gradients do not reach their tolerance at ever smaller penalties."""
        return Choice.of(scores, self.penalties.grid, self.penalties.is_given)

    def _scored(
        self, margins: Margins, device: str
    ) -> tuple[MarginStatistics, IterativeRidge, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Statistics, solver, Xc'y (d, n), y'y (n,) and the scores (num_penalties, n) of some examples."""
        masks = CentredMasks(margins.masks, self.design, device)
        if masks.fewer_masks:
            margins = margins.held()
        statistics = margin_statistics(margins.batches(), device)
        solver = IterativeRidge(masks, self.trace, self.tolerance)
        cross = torch.from_numpy(statistics.centred_cross(self.design)).to(device)
        squares = torch.from_numpy(statistics.centred_squares(self.design)).to(device)
        centred = None
        if masks.fewer_masks:
            centred = torch.from_numpy(margins.whole() - statistics.mean(self.design)).to(device)
        return statistics, solver, cross, squares, solver.gcv_scores(cross, centred, squares, self.penalties.grid)


Plan = RidgePlan | IterativePlan | LassoPlan


def _attributions(
    fitted: tuple[NDArray[np.float32], NDArray[np.float64]],
    penalties: NDArray[np.float64],
    squares: torch.Tensor,
    residual_squares: torch.Tensor,
    r2_new: tuple[NDArray[np.float64], NDArray[np.float64] | None],
    errors: NDArray[np.float32] | None = None,
) -> Attributions:
    """Attributions of ridge: ``fitted`` are weights (n, d) and intercepts (n,); ``squares`` are the margins' centred
    y'y (n,), before any prior mean is taken off them; ``r2_new`` is of ``r2_on_new_masks``."""
    squares = squares.to(residual_squares.device)
    return Attributions(
        *fitted,
        penalties,
        where(squares > 0, 1.0 - residual_squares / squares.clamp(min=1e-300)),
        r2_new[0],
        np.full(len(penalties), np.nan),
        errors,
        r2_new[1],
    )


def _at_edge(attributions: Attributions, choice: Choice) -> int:
    return int((choice.at_end & (attributions.r2 < 1.0 - ROUNDING_ERROR)).sum())


def _rounded(value: float) -> str:
    """Other devices and thread counts differ in the last bits, which is no other decision."""
    return f"{value:.9g}"
