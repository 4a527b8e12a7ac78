"""Lasso and elastic net for all examples of a block at once, on the shared Gram matrix.

Objective, per example, as in scikit-learn, with centred X and y and m masks:

    (1 / 2m) ||y - Xw||**2 + alpha * l1_ratio * ||w||_1 + (alpha / 2) (1 - l1_ratio) ||w||**2

The y of a fit are margins in units of their standard deviation (``standardised``): alpha has no unit, the elastic net
does not depend on that of the margins, and float32 holds all squares.

Solved by accelerated proximal gradient steps (FISTA, Beck & Teboulle 2009; constant momentum where the Gram matrix is
well conditioned, as random masks make it, Nesterov 2004, section 2.2; restarts elsewhere, O'Donoghue & Candes 2015):
one product (d, d) x (d, n) a step, float32 along the path, float64 at its chosen point. The end is a duality gap; one
that overflows ends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConvergenceError
from coar_dist.regression.factor import eigenvalues
from coar_dist.regression.statistics import DesignStatistics, Gram, MarginStatistics

_STEPS_BETWEEN_CHECKS = 3
_MAX_STEPS = 20_000
_WELL_CONDITIONED = 400.0


@dataclass(frozen=True)
class LassoProblem:
    """What the solver needs of the masks and of one block, divided by the number of masks.

    Attributes:
        gram: Xc'Xc / m (d, d) float64.
        extremes: smallest and largest eigenvalue of ``gram``.
        cross: Xc'y / m (d, n) float64.
        squares: y'y / m (n,) float64; exactly 0 where y is constant.
    """

    gram: torch.Tensor
    extremes: tuple[float, float]
    cross: torch.Tensor
    squares: torch.Tensor

    def to(self, dtype: torch.dtype) -> LassoProblem:
        """The matrices in another precision; the squares, which tell what is constant, stay."""
        return LassoProblem(self.gram.to(dtype), self.extremes, self.cross.to(dtype), self.squares)

    def of(self, columns: torch.Tensor) -> LassoProblem:
        """Some of the examples."""
        return LassoProblem(self.gram, self.extremes, self.cross[:, columns], self.squares[columns])


def units_of(margins: MarginStatistics, design: DesignStatistics) -> NDArray[np.float64]:
    """Standard deviations of the margins over the masks, 1 where they are constant: (n,) float64."""
    variances = margins.centred_squares(design) / design.num_masks
    return np.where(variances > 0, np.sqrt(variances), 1.0)


def standardised(margins: MarginStatistics, units: NDArray[np.float64]) -> MarginStatistics:
    """The same statistics of margins divided by ``units`` (n,)."""
    return MarginStatistics(
        margins.shift / units, margins.cross / units, margins.sums / units, margins.square_sums / units**2
    )


def extremes_of(gram: Gram, device: str) -> tuple[float, float]:
    """Smallest (at least 0) and largest eigenvalue of Xc'Xc / m."""
    values = eigenvalues(gram.centred(gram.design.mean, device).div_(gram.num_masks))
    return max(float(values[0]), 0.0), float(values[-1])


def problem_of(gram: Gram, extremes: tuple[float, float], margins: MarginStatistics, device: str) -> LassoProblem:
    """The problem of one block of examples, in float64 on ``device``.

    Args:
        gram: X'X of the masks that are fitted.
        extremes: of ``extremes_of``.
        margins: statistics under the same masks.
        device: where it is solved.
    """
    design = gram.design
    matrix = gram.centred(design.mean, device).div_(gram.num_masks)
    parts = (margins.centred_cross(design), margins.centred_squares(design))
    cross, squares = (torch.from_numpy(part / gram.num_masks).to(device) for part in parts)
    return LassoProblem(matrix, extremes, cross, squares)


@dataclass(frozen=True)
class Solution:
    """What the solver found.

    Attributes:
        weights: (d, n) float64.
        gaps: duality gap relative to y'y / m, (n,) float64; 0 where y is constant.
        num_steps: proximal steps of the slowest example.
    """

    weights: torch.Tensor
    gaps: torch.Tensor
    num_steps: int


def largest_alphas(problem: LassoProblem, l1_ratio: float) -> torch.Tensor:
    """The smallest alpha at which all weights are 0, per example: (n,) float64."""
    return problem.cross.abs().amax(dim=0).double() / l1_ratio


def solve(
    problem: LassoProblem, alphas: torch.Tensor, l1_ratio: float, start: torch.Tensor, tolerance: float
) -> Solution:
    """Solve all examples for one alpha each, in the precision of ``problem``.

    Args:
        problem: gram, cross and squares.
        alphas: (n,) penalties.
        l1_ratio: in (0, 1].
        start: (d, n) weights to begin with.
        tolerance: duality gap relative to y'y / m at which an example is done.

    Raises:
        ConvergenceError: the tolerance was not reached.
    """
    solution = iterate(problem, alphas, l1_ratio, start, tolerance, _MAX_STEPS)
    worst = float(solution.gaps.max()) if len(solution.gaps) else 0.0
    if worst > tolerance:
        raise ConvergenceError(
            f"the lasso reached a duality gap of {worst:.1e} after {_MAX_STEPS} steps, regression.tolerance="
            f"{tolerance:g} was asked for. Raise it, or the smallest penalty (regression.penalty_range)."
        )
    return solution


def iterate(
    problem: LassoProblem, alphas: torch.Tensor, l1_ratio: float, start: torch.Tensor, tolerance: float, max_steps: int
) -> Solution:
    """As ``solve``, but up to ``max_steps`` steps; the gaps tell which examples are done."""
    dtype = problem.cross.dtype
    weights, gaps = start.to(dtype).clone(), torch.zeros_like(problem.squares, dtype=torch.float64)
    running = torch.nonzero(problem.squares > 0).squeeze(1)
    weights[:, problem.squares <= 0] = 0.0
    alphas = alphas.to(dtype)
    low, high = (value + float(alphas.min()) * (1 - l1_ratio) for value in problem.extremes)
    step_size = 1.0 / (problem.extremes[1] * (1 + 1e-6))
    constant = (high / max(low, 1e-300)) ** 0.5
    momentum = (constant - 1) / (constant + 1) if high <= _WELL_CONDITIONED * low else None

    part, alpha = problem.of(running), alphas[running]
    current = weights[:, running]
    ahead, gradient = current.clone(), part.cross - part.gram @ current
    age = torch.ones_like(alpha)
    num_steps = next_check = 0
    while running.numel():
        if num_steps == next_check:
            next_check += max(_STEPS_BETWEEN_CHECKS, num_steps // 8)
            at_current = gradient if num_steps == 0 else part.cross - part.gram @ current
            gap = _relative_gaps(part, current, at_current, alpha, l1_ratio)
            weights[:, running], gaps[running] = current, gap
            left = gap > tolerance
            if not left.any() or num_steps >= max_steps:
                break
            if left.float().mean() < 0.7:
                running, alpha, age = running[left], alpha[left], age[left]
                part = problem.of(running)
                current, ahead, gradient = current[:, left], ahead[:, left], gradient[:, left]
        moved = torch.add(ahead, gradient, alpha=step_size)
        limit = (alpha * (l1_ratio * step_size)).expand_as(moved)
        following = (moved - moved.clamp(min=-limit, max=limit)) / (1 + alpha * ((1 - l1_ratio) * step_size))
        step = following - current
        if momentum is None:
            overshoots = ((ahead - following) * step).sum(dim=0) > 0
            age = torch.where(overshoots, torch.ones_like(age), age)
            following_age = (1 + (1 + 4 * age**2).sqrt()) / 2
            ahead = torch.addcmul(following, (age - 1) / following_age, step)
            age = following_age
        else:
            ahead = torch.add(following, step, alpha=momentum)
        current = following
        gradient = torch.addmm(part.cross, part.gram, ahead, alpha=-1.0)
        num_steps += 1
    return Solution(weights.double(), gaps, num_steps)


def _relative_gaps(
    problem: LassoProblem, weights: torch.Tensor, gradient: torch.Tensor, alphas: torch.Tensor, l1_ratio: float
) -> torch.Tensor:
    """Primal minus dual objective over y'y / m, per example, infinite where it overflows; ``gradient`` is
    X'(y - Xw) / m."""
    l1, l2 = alphas.double() * l1_ratio, alphas.double() * (1 - l1_ratio)
    squares = problem.squares
    with_cross = (problem.cross * weights).sum(dim=0, dtype=torch.float64)
    norm = (weights * weights).sum(dim=0, dtype=torch.float64)
    residual_squares = squares - with_cross - (weights * gradient).sum(dim=0, dtype=torch.float64)
    slope = (gradient - weights * l2.to(weights.dtype)).abs().amax(dim=0).double()
    scale = torch.minimum(l1 / slope.clamp(min=1e-300), torch.ones_like(l1))
    gap = 0.5 * (1 + scale**2) * residual_squares + l1 * weights.abs().sum(dim=0, dtype=torch.float64)
    gap += 0.5 * l2 * (1 + scale**2) * norm - scale * (squares - with_cross)
    relative = (gap / squares).abs()  # below 0 it is rounding, of that size
    return torch.where(torch.isfinite(relative), relative, torch.inf)


def exact_gaps(problem: LassoProblem, weights: torch.Tensor, alphas: torch.Tensor, l1_ratio: float) -> torch.Tensor:
    """Duality gaps (n,) relative to y'y / m in float64, whoever found the weights; 0 where y is constant."""
    gradient = problem.cross - problem.gram @ weights
    safe = LassoProblem(problem.gram, problem.extremes, problem.cross, problem.squares.clamp(min=1e-300))
    return torch.where(problem.squares > 0, _relative_gaps(safe, weights, gradient, alphas, l1_ratio), 0.0)


def mean_squares(problem: LassoProblem, weights: torch.Tensor) -> torch.Tensor:
    """Mean squared residual on the fitted masks: (n,) float64."""
    product = (problem.gram @ weights - 2 * problem.cross) * weights
    return (problem.squares + product.sum(dim=0)).clamp(min=0.0)
