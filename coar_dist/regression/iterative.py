"""Ridge regression where no Gram matrix fits the memory: products with the masks alone, for all examples of a block.

The penalty is chosen by generalised cross-validation, whose parts are quadratic forms ``v'f(A)v``: k steps of Lanczos
from v give them for every penalty at once (Gauss quadrature; Golub & Meurant 2010, chapter 6), and with random signs v
the trace (Hutchinson 1990; Bai, Fahey & Golub 1996). A is Xc'Xc, or with fewer masks than components Xc Xc', where what
is left of y and of the degrees of freedom, small there, is a sum and not a difference:

    rss    = y' penalty**2 (Xc Xc' + penalty)**-2 y
    m - df = trace over centred vectors of penalty (Xc Xc' + penalty)**-1

The system is then solved by conjugate gradients.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConvergenceError
from coar_dist.regression.cross_validation import SATURATED
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.sizes import ITERATIVE_VALUES, NUM_PROBES
from coar_dist.regression.statistics import DesignStatistics

_LANCZOS_STEPS = 48
_MAX_ITERATIONS = 2000
_log = logging.getLogger(__name__)


class CentredMasks:
    """Products with Xc that never hold it.

    Args:
        masks: all masks.
        design: their means.
        device: where the products are computed, in float64.
    """

    def __init__(self, masks: PackedMasks, design: DesignStatistics, device: str) -> None:
        self._masks = masks
        self._mean = torch.from_numpy(design.mean).to(device)
        self._device = device
        self._rows = max(ITERATIVE_VALUES // masks.num_components, 16)
        self.num_masks = design.num_masks
        self.num_components = masks.num_components

    @property
    def fewer_masks(self) -> bool:
        """Whether there are fewer masks than components."""
        return self.num_masks < self.num_components

    @property
    def mean_eigenvalue(self) -> float:
        """The trace of Xc'Xc over d: X is 0/1, so a column's centred sum of squares is m p (1 - p)."""
        return float((self.num_masks * self._mean * (1.0 - self._mean)).mean())

    def component_products(self, vectors: torch.Tensor) -> torch.Tensor:
        """Xc'Xc v: (d, k) float64 to (d, k) float64."""
        offset = self._mean @ vectors
        result, total = torch.zeros_like(vectors), torch.zeros_like(offset)
        for x in self._batches():
            product = x @ vectors - offset
            result.addmm_(x.T, product)
            total += product.sum(dim=0)
            del x  # before the next is made
        return result - torch.outer(self._mean, total)

    def mask_products(self, vectors: torch.Tensor) -> torch.Tensor:
        """Xc Xc' v: (m, k) float64 to (m, k) float64."""
        inner = torch.zeros(self.num_components, vectors.shape[1], dtype=torch.float64, device=self._device)
        position = 0
        for x in self._batches():
            inner.addmm_(x.T, vectors[position : position + len(x)])
            position += len(x)
            del x
        inner -= torch.outer(self._mean, vectors.sum(dim=0))
        offset = self._mean @ inner
        return torch.cat([x @ inner - offset for x in self._batches()])

    def _batches(self) -> Iterator[torch.Tensor]:
        for bits in self._masks.rows(self._rows):
            yield torch.from_numpy(bits).to(self._device).double()


@dataclass(frozen=True)
class Quadrature:
    """``v'f(A)v`` is about ``sum over nodes of weights * f(nodes)``, per vector v.

    Attributes:
        nodes: (n, k) float64, at least 0.
        weights: (n, k) float64.
    """

    nodes: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, masks: CentredMasks, start: torch.Tensor) -> Quadrature:
        """By Lanczos from the columns of ``start``: (m, n) where there are fewer masks than components, else (d, n)."""
        product = masks.mask_products if masks.fewer_masks else masks.component_products
        steps = min(_LANCZOS_STEPS, masks.num_components, masks.num_masks)
        squares = (start**2).sum(dim=0)
        current = start / squares.sqrt().clamp(min=1e-300)
        previous, beta = torch.zeros_like(current), torch.zeros_like(squares)
        tridiagonal = torch.zeros(start.shape[1], steps, steps, dtype=torch.float64, device=start.device)
        for step in range(steps):
            following = product(current) - beta * previous
            alpha = (following * current).sum(dim=0)
            following -= alpha * current
            beta = following.norm(dim=0)
            tridiagonal[:, step, step] = alpha
            beta = torch.where(beta > 1e-10 * masks.mean_eigenvalue, beta, 0.0)  # else the space is exhausted
            if step + 1 < steps:
                tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = beta
            previous, current = current, torch.where(beta > 0, following / beta.clamp(min=1e-300), 0.0)
        nodes, vectors = torch.linalg.eigh(tridiagonal)
        return cls(nodes.clamp(min=0.0), vectors[:, 0, :] ** 2 * squares.unsqueeze(1))

    def of_remainder(self, penalty: float, power: int) -> torch.Tensor:
        """``v'(penalty (A + penalty)**-1)**power v``: (n,) float64; 1 in the null space, whatever the penalty."""
        shifted = self.nodes + penalty
        remainder = torch.where(shifted > 1e-12 * self.nodes.amax(), penalty / shifted.clamp(min=1e-300), 1.0)
        return (self.weights * remainder**power).sum(dim=1)

    def of_ridge_fit(self, penalty: float) -> torch.Tensor:
        """y'y - rss from v = Xc'y: ``v'(A + 2 penalty)(A + penalty)**-2 v``, (n,) float64."""
        shifted = self.nodes + penalty
        nonzero = shifted > 1e-12 * self.nodes.amax()
        factors = torch.where(nonzero, (shifted + penalty) / shifted.clamp(min=1e-150) ** 2, 0.0)
        return (self.weights * factors).sum(dim=1)


def trace_quadrature(masks: CentredMasks, device: str) -> Quadrature:
    """Quadrature whose weighted sums estimate traces; the same for all blocks of examples."""
    generator = torch.Generator().manual_seed(0)
    size = masks.num_masks if masks.fewer_masks else masks.num_components
    signs = 2.0 * torch.randint(0, 2, (size, NUM_PROBES), generator=generator).double() - 1.0
    if masks.fewer_masks:
        signs -= signs.mean(dim=0)
    probes = Quadrature.of(masks, signs.to(device))
    return Quadrature(probes.nodes.cpu(), probes.weights.cpu() / NUM_PROBES)


class IterativeRidge:
    """The solver of one design.

    Args:
        masks: products with Xc.
        trace: of ``trace_quadrature``.
        tolerance: residual of the solved systems, relative to the right-hand side.
    """

    def __init__(self, masks: CentredMasks, trace: Quadrature, tolerance: float) -> None:
        self._masks = masks
        self._trace = trace
        self._tolerance = tolerance

    def freedom_left(self, penalty: float) -> float:
        """1 - df / m, estimated."""
        remainder = float(self._trace.of_remainder(penalty, 1).sum())
        num_masks, num_components = self._masks.num_masks, self._masks.num_components
        if self._masks.fewer_masks:
            return remainder / num_masks
        return (num_masks - 1 - num_components + remainder) / num_masks

    def gcv_scores(
        self, cross: torch.Tensor, margins: torch.Tensor | None, squares: torch.Tensor, penalties: NDArray[np.float64]
    ) -> torch.Tensor:
        """As ``cross_validation.gcv_scores``, estimated.

        Args:
            cross: c = Xc'y (d, n) float64.
            margins: centred y (m, n) float64, where there are fewer masks than components.
            squares: centred y'y (n,) float64.
            penalties: (num_penalties,).
        """
        assert (margins is not None) == self._masks.fewer_masks
        quadrature = Quadrature.of(self._masks, cross if margins is None else margins)
        num_masks, scores = self._masks.num_masks, []
        for penalty in penalties.tolist():
            if margins is None:
                residual = (squares - quadrature.of_ridge_fit(penalty)).clamp(min=0.0)
            else:
                residual = quadrature.of_remainder(penalty, 2)
            left = self.freedom_left(penalty)
            scores.append(residual / num_masks / left**2 if left > SATURATED else torch.full_like(squares, torch.inf))
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
            running = ~(squares <= wanted)  # also where they are not numbers
            if not running.any():
                _log.info("conjugate gradients: %d iterations", iteration)
                return weights
            product = self._masks.component_products(direction) + penalty * direction
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
