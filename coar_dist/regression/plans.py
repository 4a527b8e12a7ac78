"""What is prepared once for all examples, and how one block of examples is fitted with it.

A plan is made by ``coar_dist.regression.planning`` and used in many processes: what is large of it is kept where it was
made, and read where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.cluster.execution import Kept
from coar_dist.regression import ridge
from coar_dist.regression.backends import Backend, ridge_weights
from coar_dist.regression.dual import AnyFactor, DualFactor
from coar_dist.regression.fitted import Fitted, where
from coar_dist.regression.gate_prior import GatePrior, SampledRows
from coar_dist.regression.iterative import CentredMasks, IterativeRidge, Quadrature
from coar_dist.regression.lasso_plan import LassoPlan
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import HeldMargins, Margins, Observations, Residuals
from coar_dist.regression.shared import SharedFactor, Spectrum
from coar_dist.regression.statistics import DesignStatistics, MarginStatistics, margin_statistics
from coar_dist.regression.trials import relative_scores, relative_sums, scored
from coar_dist.store.tables import Attributions


@dataclass(frozen=True)
class Factored:
    """A factorisation, and what of it is small."""

    factor: SharedFactor
    spectrum: Spectrum


@dataclass(frozen=True)
class RidgePlan:
    """Ridge from a factorisation.

    Attributes:
        design: means of the masks.
        masks: all of them.
        factored: the factor of the centred design.
        backend: as in ``ridge_weights``.
        grid: (num_penalties,) ascending; one value is a fixed penalty.
        selection: ``gcv`` or ``leave_one_out``.
        standard_errors: whether they are computed.
        prior: mean of the weights, from gradients; None is 0.
        has_variances: whether the factor is of prior variances from gradients.
    """

    design: DesignStatistics
    masks: Kept[PackedMasks]
    factored: Kept[Factored]
    backend: Backend
    grid: NDArray[np.float64]
    selection: str
    standard_errors: bool
    prior: GatePrior | None = None
    has_variances: bool = False

    @property
    def decided(self) -> dict[str, Any]:
        """What the examples decide together; empty where each chooses its own penalty."""
        if len(self.grid) > 1:
            return {}
        return {
            "penalty": _rounded(self.grid[0]),
            "prior_mean": None if self.prior is None else [_rounded(b) for b in self.prior.coefficients],
            "prior_variances": "from gradients" if self.has_variances else "equal",
        }

    def relative_scores(self, samples: list[SampledRows], device: str) -> NDArray[np.float64]:
        """Scores over the margins' variance, mean over sampled examples: (num_penalties,) float64."""
        factor, masks = self.factored.read().factor.on(device), self.masks.read()
        return relative_scores(factor, self.design, masks, samples, np.empty(0), self.grid, self.selection)

    def fit(self, observations: Observations, block: tuple[int, int], device: str) -> Fitted:
        """Attributions of one block, whose files are read once."""
        factor, masks = self.factored.read().factor.on(device), self.masks.read()
        if self.prior is None:
            prior_mean, of_gradients = None, None
        else:
            prior_mean, of_gradients = self.prior.of_block(block)
        margins: Margins = observations.of_block(block, masks, of_gradients)
        residuals = None if prior_mean is None else Residuals(margins, prior_mean, device)
        margins = margins if residuals is None else residuals
        if self.selection == "leave_one_out":
            margins = margins.held()
        found = scored(factor, self.design, margins, self.grid, self.selection)
        projected, penalties = found.projected, ridge.best_penalties(found.scores, self.grid)
        weights, at_mean = self._weights(factor, projected, penalties)
        residual = ridge.residual_squares(factor, projected, penalties)
        errors = None
        if self.standard_errors:
            errors = (ridge.standard_errors if self.prior is None else ridge.posterior_errors)(
                factor, projected, penalties
            )
            if self.prior is None:
                errors[:, self.design.says_nothing] = np.nan
        squares = projected.squares if residuals is None else torch.from_numpy(residuals.squares())
        if prior_mean is not None:
            weights += prior_mean
        attributions = _attributions(
            self.design,
            (weights, found.mean - at_mean),
            penalties,
            squares,
            residual,
            found.scores.amin(dim=0),
            errors,
        )
        return Fitted(attributions, _at_edge(attributions, self.grid))

    def _weights(
        self, factor: AnyFactor, projected: ridge.Projected, penalties: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Weights (n, d), and what they give for the mean mask (n,)."""
        if not isinstance(factor, DualFactor) or self.backend != "torch":
            found = ridge_weights(self.backend, factor.whole(), projected, penalties)
            if factor.scale is not None:
                found = factor.scale.cpu().numpy()[:, None] * found
            return np.ascontiguousarray(found.T, dtype=np.float32), self.design.mean @ found
        weights = np.empty((len(penalties), factor.num_components), dtype=np.float32)
        at_mean = np.zeros(len(penalties))
        for columns, rows in factor.weight_rows(ridge.coefficients(factor, projected, penalties)):
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
        grid: (num_penalties,) ascending; one value is a fixed penalty.
        tolerance: of the solution.
    """

    design: DesignStatistics
    masks: Kept[PackedMasks]
    trace: Quadrature
    grid: NDArray[np.float64]
    tolerance: float

    @property
    def decided(self) -> dict[str, Any]:
        """As ``RidgePlan.decided``."""
        return {"penalty": _rounded(self.grid[0])} if len(self.grid) == 1 else {}

    def relative_scores(self, samples: list[SampledRows], device: str) -> NDArray[np.float64]:
        """As ``RidgePlan.relative_scores``."""
        margins = HeldMargins(self.masks.read(), np.concatenate([sample.margins for sample in samples], axis=1))
        _, _, _, squares, scores = self._scored(margins, device)
        return relative_sums(scores, squares) / len(squares)

    def fit(self, observations: Observations, block: tuple[int, int], device: str) -> Fitted:
        """Attributions of one block, whose files are read once."""
        margins, solver, cross, squares, scores = self._scored(observations.of_block(block, self.masks.read()), device)
        penalties = ridge.best_penalties(scores, self.grid)
        weights = solver.solve(cross, penalties)
        # rss = y'y - 2 c'w + w'Xc'Xc w, and Xc'Xc w = c - penalty w
        penalty = torch.from_numpy(penalties).to(cross.device)
        residual = (squares - (cross * weights).sum(dim=0) - penalty * (weights**2).sum(dim=0)).clamp(min=0.0)
        dense = weights.cpu().numpy()
        fitted = np.ascontiguousarray(dense.T, dtype=np.float32), margins.intercepts(self.design, dense)
        attributions = _attributions(self.design, fitted, penalties, squares, residual, scores.amin(dim=0))
        return Fitted(attributions, _at_edge(attributions, self.grid))

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
        return statistics, solver, cross, squares, solver.gcv_scores(cross, centred, squares, self.grid)


Plan = RidgePlan | IterativePlan | LassoPlan


def _attributions(
    design: DesignStatistics,
    fitted: tuple[NDArray[np.float32], NDArray[np.float64]],
    penalties: NDArray[np.float64],
    squares: torch.Tensor,
    residual_squares: torch.Tensor,
    new_errors: torch.Tensor,
    errors: NDArray[np.float32] | None = None,
) -> Attributions:
    """Attributions of ridge; R2 on new masks is relative to the mean margin's own leave-one-out error.

    ``fitted`` are weights (n, d) and intercepts (n,); ``squares`` are the margins' centred y'y (n,), before any prior
    mean is taken off them.
    """
    squares = squares.to(residual_squares.device)
    varies, scale = squares > 0, squares.clamp(min=1e-300)
    null = scale / design.num_masks / (1.0 - 1.0 / design.num_masks) ** 2
    return Attributions(
        *fitted,
        penalties,
        where(varies, 1.0 - residual_squares / scale),
        where(varies & torch.isfinite(new_errors), 1.0 - new_errors / null),
        np.full(len(penalties), np.nan),
        errors,
    )


def _at_edge(attributions: Attributions, grid: NDArray[np.float64]) -> int:
    if len(grid) == 1:
        return 0
    return int(np.isin(attributions.regularisation[np.isfinite(attributions.r2)], grid[[0, -1]]).sum())


def _rounded(value: float) -> str:
    """Other devices and thread counts differ in the last bits, which is no other decision."""
    return f"{value:.9g}"
