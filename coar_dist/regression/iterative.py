"""Ridge regression where no Gram matrix fits the memory: products with the masks alone, for all examples of a block.

The penalty is chosen by generalised cross-validation, whose parts are quadratic forms in Xc'Xc: k steps of Lanczos
from ``c = Xc'y`` give ``c'f(Xc'Xc)c`` for every penalty at once (Gauss quadrature; Golub & Meurant 2010, chapter 6),
and from random signs the trace (Hutchinson 1990; Bai, Fahey & Golub 1996). The system is then solved by conjugate
gradients.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConvergenceError
from coar_dist.regression.factor import PackedMasks
from coar_dist.regression.ridge import SATURATED
from coar_dist.regression.statistics import DesignStatistics

_BYTES_PER_BATCH = 2**28
_NUM_PROBES = 32
_LANCZOS_STEPS = 48
_MAX_ITERATIONS = 2000
_log = logging.getLogger(__name__)


class NormalOperator:
    """v -> Xc'Xc v without the matrix Xc'Xc.

    Args:
        masks: all masks.
        design: their means.
        device: where the products are computed, in float64.
    """

    def __init__(self, masks: PackedMasks, design: DesignStatistics, device: str) -> None:
        self._masks = masks
        self._mean = torch.from_numpy(design.mean).to(device)
        self._device = device
        self._rows = max(_BYTES_PER_BATCH // (8 * masks.num_components), 16)
        self.num_masks = design.num_masks
        self.num_components = masks.num_components

    @property
    def mean_eigenvalue(self) -> float:
        """The trace over d: X is 0/1, so a column's centred sum of squares is m p (1 - p)."""
        return float((self.num_masks * self._mean * (1.0 - self._mean)).mean())

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """(d, k) float64 to (d, k) float64."""
        offset = self._mean @ vectors
        result, total = torch.zeros_like(vectors), torch.zeros_like(offset)
        for bits in self._masks.rows(self._rows):
            x = torch.from_numpy(bits).to(self._device).double()
            product = x @ vectors - offset
            result.addmm_(x.T, product)
            total += product.sum(dim=0)
        return result - torch.outer(self._mean, total)


@dataclass(frozen=True)
class Quadrature:
    """``v'f(Xc'Xc)v`` is about ``sum over nodes of weights * f(nodes)``, per vector v.

    Attributes:
        nodes: (n, k) float64.
        weights: (n, k) float64.
    """

    nodes: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, operator: NormalOperator, start: torch.Tensor) -> Quadrature:
        """By Lanczos from the columns of ``start`` (d, n) float64."""
        steps = min(_LANCZOS_STEPS, operator.num_components, operator.num_masks)
        squares = (start**2).sum(dim=0)
        current = start / squares.sqrt().clamp(min=1e-300)
        previous, beta = torch.zeros_like(current), torch.zeros_like(squares)
        tridiagonal = torch.zeros(start.shape[1], steps, steps, dtype=torch.float64, device=start.device)
        scale = operator.mean_eigenvalue
        for step in range(steps):
            following = operator(current) - beta * previous
            alpha = (following * current).sum(dim=0)
            following -= alpha * current
            beta = following.norm(dim=0)
            tridiagonal[:, step, step] = alpha
            beta = torch.where(beta > 1e-10 * scale, beta, torch.zeros_like(beta))  # the space is exhausted
            if step + 1 < steps:
                tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = beta
            previous, current = current, torch.where(beta > 0, following / beta.clamp(min=1e-300), 0.0)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        return cls(nodes.clamp(min=0.0), vectors[:, 0, :] ** 2 * squares.unsqueeze(1))

    def explained(self, penalties: torch.Tensor) -> torch.Tensor:
        """y'y - rss of ridge fits with start c = Xc'y: (n,) float64."""
        penalty = penalties.unsqueeze(-1)
        shifted = self.nodes + penalty
        nonzero = shifted > 1e-12 * self.nodes.amax(dim=1, keepdim=True)
        return (self.weights * torch.where(nonzero, (shifted + penalty) / shifted**2, 0.0)).sum(dim=1)


def trace_quadrature(operator: NormalOperator, device: str) -> Quadrature:
    """Quadrature whose weighted sums estimate traces of functions of Xc'Xc; the same for all blocks of examples."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (operator.num_components, _NUM_PROBES), generator=generator)
    probes = Quadrature.of(operator, (2.0 * signs.double() - 1.0).to(device))
    return Quadrature(probes.nodes.cpu(), probes.weights.cpu() / _NUM_PROBES)


class IterativeRidge:
    """The solver of one design.

    Args:
        operator: v -> Xc'Xc v.
        trace: of ``trace_quadrature``.
        tolerance: residual of the solved systems, relative to the right-hand side.
    """

    def __init__(self, operator: NormalOperator, trace: Quadrature, tolerance: float) -> None:
        self._operator = operator
        self._trace = trace
        self._tolerance = tolerance

    def degrees_of_freedom(self, penalties: torch.Tensor) -> torch.Tensor:
        """1 + trace of Xc'Xc (Xc'Xc + penalty)**-1, estimated: (num_penalties,) float64."""
        nodes, weights = (v.to(penalties.device).reshape(-1, 1) for v in (self._trace.nodes, self._trace.weights))
        kept = (nodes / (nodes + penalties)).nan_to_num(nan=0.0)  # 0 / 0 in the null space
        return 1.0 + (weights * kept).sum(dim=0)

    def gcv_scores(self, cross: torch.Tensor, squares: torch.Tensor, penalties: NDArray[np.float64]) -> torch.Tensor:
        """As ``ridge.gcv_scores``, estimated.

        Args:
            cross: c = Xc'y (d, n) float64.
            squares: centred y'y (n,) float64.
            penalties: (num_penalties,).
        """
        quadrature = Quadrature.of(self._operator, cross)
        num_masks = self._operator.num_masks
        grid = torch.from_numpy(penalties).to(cross.device)
        left = 1.0 - self.degrees_of_freedom(grid) / num_masks
        scores = []
        for row, penalty in enumerate(grid):
            residual = (squares - quadrature.explained(penalty.expand(len(squares)))).clamp(min=0.0)
            scores.append(torch.where(left[row] > SATURATED, residual / num_masks / left[row] ** 2, torch.inf))
        return torch.stack(scores)

    def solve(self, cross: torch.Tensor, penalties: NDArray[np.float64]) -> torch.Tensor:
        """Weights (d, n) float64 by conjugate gradients, one penalty per example; 0 gives the minimum-norm solution.

        Raises:
            ConvergenceError: the tolerance was not reached.
        """
        penalty = torch.from_numpy(penalties).to(cross.device)
        weights, residual, direction = torch.zeros_like(cross), cross.clone(), cross.clone()
        squares = (residual**2).sum(dim=0)
        wanted = (self._tolerance**2) * squares
        for iteration in range(_MAX_ITERATIONS):
            running = squares > wanted
            if not running.any():
                _log.info("conjugate gradients: %d iterations", iteration)
                return weights
            product = self._operator(direction) + penalty * direction
            curvature = (direction * product).sum(dim=0)
            step = torch.where(running, squares / curvature.clamp(min=1e-300), 0.0)
            weights += step * direction
            residual -= step * product
            new_squares = (residual**2).sum(dim=0)
            direction = residual + torch.where(running, new_squares / squares.clamp(min=1e-300), 0.0) * direction
            squares = torch.where(running, new_squares, squares)
        worst = float((squares / wanted.clamp(min=1e-300)).max() ** 0.5 * self._tolerance)
        raise ConvergenceError(
            f"conjugate gradients reached a relative residual of {worst:.1e} after {_MAX_ITERATIONS} iterations, "
            f"regression.tolerance={self._tolerance:g} was asked for. Raise it, or regression.regularisation."
        )
