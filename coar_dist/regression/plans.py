"""What is prepared once for all examples, and how one block of examples is fitted with it.

A plan is made in one process, by ``coar_dist.regression.planning``, and used in many: its parts travel as arrays.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression import lasso, ridge
from coar_dist.regression.backends import Backend, LassoTarget, lasso_weights, ridge_weights
from coar_dist.regression.factor import Factor, PackedMasks
from coar_dist.regression.gate_prior import GatePrior
from coar_dist.regression.iterative import CentredMasks, IterativeRidge, Quadrature
from coar_dist.regression.lasso import HeldOut, PathChoice
from coar_dist.regression.observations import BlockMargins
from coar_dist.regression.statistics import (
    DesignStatistics,
    Gram,
    MarginStatistics,
    margin_statistics,
)
from coar_dist.store.tables import Attributions


@dataclass(frozen=True)
class Fitted:
    """One block.

    Attributes:
        attributions: of its examples.
        num_at_edge: examples whose penalty is an end of the grid.
    """

    attributions: Attributions
    num_at_edge: int


@dataclass(frozen=True)
class SharedFactor:
    """A ``Factor`` as arrays."""

    vectors: NDArray[np.float64]
    values: NDArray[np.float64]
    num_masks: int
    scale: NDArray[np.float64] | None

    @classmethod
    def of(cls, factor: Factor) -> SharedFactor:
        """From the tensors."""
        scale = None if factor.scale is None else factor.scale.cpu().numpy()
        return cls(factor.vectors.cpu().numpy(), factor.values.cpu().numpy(), factor.num_masks, scale)

    def on(self, device: str) -> Factor:
        """As tensors on ``device``."""
        scale = None if self.scale is None else as_tensor(self.scale, device)
        return Factor(as_tensor(self.vectors, device), as_tensor(self.values, device), self.num_masks, scale)


def as_tensor(array: NDArray[np.float64], device: str) -> torch.Tensor:
    """A tensor on the array's own memory, or on the device; arrays from an object store are read-only, and stay so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


@dataclass(frozen=True)
class RidgePlan:
    """Ridge from a factorisation.

    Attributes:
        design: means of the masks.
        factor: of the centred design.
        backend: as in ``ridge_weights``.
        grid: (num_penalties,) ascending; one value is a fixed penalty.
        selection: ``gcv`` or ``leave_one_out``.
        standard_errors: whether they are computed.
        prior: of the weights, from gradients; None is mean 0 and the same variance for all.
    """

    design: DesignStatistics
    factor: SharedFactor
    backend: Backend
    grid: NDArray[np.float64]
    selection: str
    standard_errors: bool
    prior: GatePrior | None = None

    @property
    def decided(self) -> dict[str, Any]:
        """What the examples decide together; empty where each chooses its own penalty."""
        coefficients = None if self.prior is None else [_rounded(b) for b in self.prior.coefficients]
        if len(self.grid) > 1:
            return {}
        return {
            "penalty": _rounded(self.grid[0]),
            "prior_mean": coefficients,
            "prior_variances": "equal" if self.factor.scale is None else "from gradients",
        }

    def relative_scores(self, block: BlockMargins, device: str) -> NDArray[np.float64]:
        """Scores over the margins' variance, summed over the block's examples: (num_penalties,) float64."""
        residuals = self._residuals(block)
        factor, margins, projected = self._project(residuals, device)
        scores = self._scores(factor, margins, projected, residuals)
        return _relative_sums(scores, residuals.squares(margins, self.design))

    def fit(self, block: BlockMargins, device: str) -> Fitted:
        """Attributions of one block."""
        residuals = self._residuals(block)
        factor, margins, projected = self._project(residuals, device)
        scores = self._scores(factor, margins, projected, residuals)
        penalties = ridge.best_penalties(scores, self.grid)
        correction = ridge_weights(self.backend, factor, projected, penalties)
        if self.factor.scale is not None:
            correction = self.factor.scale[:, None] * correction
        residual = ridge.residual_squares(factor, projected, penalties)
        errors = None
        if self.standard_errors:
            of_penalties = ridge.standard_errors if self.prior is None else ridge.posterior_errors
            errors = np.ascontiguousarray(of_penalties(factor, projected, penalties).T, dtype=np.float32)
            if self.prior is None:
                errors[:, self.design.says_nothing] = np.nan
        best = scores.amin(dim=0)
        squares = residuals.squares(margins, self.design)
        attributions = _attributions(self.design, margins, correction, penalties, squares, residual, best, errors)
        if residuals.prior_mean is not None:
            attributions = replace(attributions, weights=attributions.weights + residuals.prior_mean)
        return Fitted(attributions, _at_edge(attributions, self.grid))

    def _residuals(self, block: BlockMargins) -> BlockMargins:
        return block if self.prior is None else block.without(self.prior.mean(block.block))

    def _project(self, block: BlockMargins, device: str) -> tuple[Factor, MarginStatistics, ridge.Projected]:
        factor = self.factor.on(device)
        margins = margin_statistics(block.read(0, self.design.num_masks), device)
        return factor, margins, ridge.project(factor, self.design, margins)

    def _scores(
        self, factor: Factor, margins: MarginStatistics, projected: ridge.Projected, block: BlockMargins
    ) -> torch.Tensor:
        if self.selection == "gcv":
            return ridge.gcv_scores(factor, projected, self.grid)
        batches = block.read(0, self.design.num_masks)
        return ridge.leave_one_out_scores(factor, self.design, margins, projected, self.grid, batches)


@dataclass(frozen=True)
class IterativePlan:
    """Ridge by conjugate gradients, with estimated generalised cross-validation.

    Attributes:
        design: means of the masks.
        masks: all of them, one bit each.
        trace: quadrature for traces, shared by all blocks.
        grid: (num_penalties,) ascending; one value is a fixed penalty.
        tolerance: of the solution.
    """

    design: DesignStatistics
    masks: PackedMasks
    trace: Quadrature
    grid: NDArray[np.float64]
    tolerance: float

    @property
    def decided(self) -> dict[str, Any]:
        """As ``RidgePlan.decided``."""
        return {"penalty": _rounded(self.grid[0])} if len(self.grid) == 1 else {}

    def relative_scores(self, block: BlockMargins, device: str) -> NDArray[np.float64]:
        """As ``RidgePlan.relative_scores``."""
        _, _, _, squares, scores = self._scored(block, device)
        return _relative_sums(scores, squares)

    def fit(self, block: BlockMargins, device: str) -> Fitted:
        """Attributions of one block."""
        margins, solver, cross, squares, scores = self._scored(block, device)
        penalties = ridge.best_penalties(scores, self.grid)
        weights = solver.solve(cross, penalties)
        # rss = y'y - 2 c'w + w'Xc'Xc w, and Xc'Xc w = c - penalty w
        penalty = torch.from_numpy(penalties).to(cross.device)
        residual = (squares - (cross * weights).sum(dim=0) - penalty * (weights**2).sum(dim=0)).clamp(min=0.0)
        best = scores.amin(dim=0)
        dense = weights.cpu().numpy()
        attributions = _attributions(self.design, margins, dense, penalties, squares, residual, best)
        return Fitted(attributions, _at_edge(attributions, self.grid))

    def _scored(
        self, block: BlockMargins, device: str
    ) -> tuple[MarginStatistics, IterativeRidge, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Statistics, solver, Xc'y (d, n), y'y (n,) and the scores (num_penalties, n) of one block."""
        margins = margin_statistics(block.read(0, self.design.num_masks), device)
        masks = CentredMasks(self.masks, self.design, device)
        solver = IterativeRidge(masks, self.trace, self.tolerance)
        cross = torch.from_numpy(margins.centred_cross(self.design)).to(device)
        squares = torch.from_numpy(margins.centred_squares(self.design)).to(device)
        centred = None
        if masks.fewer_masks:
            whole = np.concatenate([batch for _, batch in block.read(0, self.design.num_masks)])
            centred = torch.from_numpy(whole - margins.mean(self.design)).to(device)
        return margins, solver, cross, squares, solver.gcv_scores(cross, centred, squares, self.grid)


@dataclass(frozen=True)
class LassoPlan:
    """Lasso or elastic net.

    Attributes:
        gram: X'X of all masks.
        extremes: smallest and largest eigenvalue of Xc'Xc / m.
        held_out: X'X of the last masks, which choose the penalty; None where a criterion does, or it is fixed.
        train_extremes: as ``extremes``, of the masks that are not held out.
        factor: for backends that need the reduced problem.
        backend: as in ``lasso_weights``.
        ratios: (num_penalties,) descending, relative to the largest penalty; None where alpha is fixed.
        alpha: the fixed penalty.
        l1_ratio: in (0, 1].
        tolerance: duality gap of the solution.
    """

    gram: Gram
    extremes: tuple[float, float]
    held_out: Gram | None
    train_extremes: tuple[float, float] | None
    factor: SharedFactor | None
    backend: Backend
    ratios: NDArray[np.float64] | None
    alpha: float
    l1_ratio: float
    tolerance: float

    @property
    def decided(self) -> dict[str, Any]:
        """Nothing: every example chooses its own penalty."""
        return {}

    def fit(self, block: BlockMargins, device: str) -> Fitted:
        """Attributions of one block."""
        num_masks = self.gram.num_masks
        choice: PathChoice | None = None
        new_error: torch.Tensor | None = None
        if self.held_out is not None and self.ratios is not None:
            num_train = num_masks - self.held_out.num_masks
            train_margins = margin_statistics(block.read(0, num_train), device)
            held_margins = margin_statistics(block.read(num_train, num_masks), device, train_margins.shift)
            margins = train_margins + held_margins
            assert self.train_extremes is not None
            train = self.gram - self.held_out
            train_problem = lasso.problem_of(train, self.train_extremes, train_margins, device)
            mean = train_margins.mean(train.design)
            held = HeldOut.of(self.held_out, held_margins, train.design, mean, device)
            choice = lasso.choose_on_path(train_problem, self.ratios, self.l1_ratio, num_train, held)
            null = held.errors(torch.zeros_like(choice.weights))
            new_error = choice.scores / null.clamp(min=1e-300)
        else:
            margins = margin_statistics(block.read(0, num_masks), device)
        problem = lasso.problem_of(self.gram, self.extremes, margins, device)
        if choice is None and self.ratios is not None:
            choice = lasso.choose_on_path(problem, self.ratios, self.l1_ratio, num_masks, None)
        if choice is None:
            alphas, start = torch.full_like(problem.squares, self.alpha), torch.zeros_like(problem.cross)
        else:
            alphas, start = choice.alphas, choice.weights
        factor = None if self.factor is None else self.factor.on(device)
        target = LassoTarget(problem, alphas, self.l1_ratio, start, self.tolerance)
        weights = lasso_weights(self.backend, factor, target)
        varies = problem.squares > 0
        r2 = 1.0 - lasso.mean_squares(problem, weights) / problem.squares.clamp(min=1e-300)
        dense = weights.cpu().numpy()
        attributions = Attributions(
            np.ascontiguousarray(dense.T, dtype=np.float32),
            margins.intercepts(self.gram.design, dense),
            alphas.cpu().numpy(),
            _where(varies, r2),
            np.full(len(r2), np.nan) if new_error is None else _where(varies, 1.0 - new_error),
            lasso.exact_gaps(problem, weights, alphas, self.l1_ratio).cpu().numpy(),
        )
        return Fitted(attributions, 0 if choice is None else int((choice.at_edge & varies).sum()))


Plan = RidgePlan | IterativePlan | LassoPlan


def _attributions(
    design: DesignStatistics,
    margins: MarginStatistics,
    weights: NDArray[np.float64],
    penalties: NDArray[np.float64],
    squares: torch.Tensor,
    residual_squares: torch.Tensor,
    new_errors: torch.Tensor,
    errors: NDArray[np.float32] | None = None,
) -> Attributions:
    """Attributions of ridge; R2 on new masks is relative to the mean margin's own leave-one-out error.

    ``squares`` are the margins' centred y'y (n,), before any prior mean is taken off them.
    """
    squares = squares.to(residual_squares.device)
    varies, scale = squares > 0, squares.clamp(min=1e-300)
    null = scale / design.num_masks / (1.0 - 1.0 / design.num_masks) ** 2
    return Attributions(
        np.ascontiguousarray(weights.T, dtype=np.float32),
        margins.intercepts(design, weights),
        penalties,
        _where(varies, 1.0 - residual_squares / scale),
        _where(varies & torch.isfinite(new_errors), 1.0 - new_errors / null),
        np.full(len(penalties), np.nan),
        errors,
    )


def _relative_sums(scores: torch.Tensor, squares: torch.Tensor) -> NDArray[np.float64]:
    """Scores (num_penalties, n) over the margins' variance, summed over the examples: (num_penalties,) float64."""
    varies = squares > 0
    return np.asarray((scores[:, varies] / squares[varies]).sum(dim=1).cpu().numpy())


def _at_edge(attributions: Attributions, grid: NDArray[np.float64]) -> int:
    if len(grid) == 1:
        return 0
    return int(np.isin(attributions.regularisation[np.isfinite(attributions.r2)], grid[[0, -1]]).sum())


def _rounded(value: float) -> str:
    """Other devices and thread counts differ in the last bits, which is no other decision."""
    return f"{value:.9g}"


def _where(varies: torch.Tensor, values: torch.Tensor) -> NDArray[np.float64]:
    """``values``, NaN where the margins are constant."""
    return np.asarray(torch.where(varies, values, torch.nan).cpu().numpy())
