"""Ridge regression of every example on one shared design, from sufficient statistics alone.

Objective, per example: ``sum over masks of (y - intercept - x'w)**2 + penalty * ||w||**2``; the intercept is not
penalised. With the centred Gram matrix ``G = V diag(e) V'`` and the centred cross products ``c = X'y``:

    w(penalty)   = V q / (e + penalty),                     q = V'c
    rss(penalty) = y'y - sum q**2 (e + 2 penalty) / (e + penalty)**2
    df(penalty)  = 1 + sum e / (e + penalty)
    gcv(penalty) = (rss / m) / (1 - df / m)**2              (Golub, Heath & Wahba 1979, equation 1.4)

so a whole grid of penalties costs two matrix products for all examples.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import CoarWarning, ConfigError
from coar_dist.regression.statistics import DesignStatistics, MarginStatistics

_RANK_TOLERANCE = 1e-10
"""Eigenvalues below this share of the largest count as zero: G is exact, so they are rounding of eigh alone."""


@dataclass(frozen=True)
class Factor:
    """The eigendecomposition of the centred Gram matrix, computed once for all examples.

    Attributes:
        vectors: V (d, d) float64.
        values: e (d,) float64, ascending, at least 0; exactly 0 in the null space.
        num_masks: m.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    num_masks: int

    @property
    def rank(self) -> int:
        """Rank of the centred design."""
        return int((self.values > 0).sum())


def factorise(design: DesignStatistics, device: str) -> Factor:
    """Eigendecomposition of the centred Gram matrix on ``device``, in float64."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(design.centred_gram()).to(device))
    negligible = values <= _RANK_TOLERANCE * values[-1].clamp(min=1.0)
    return Factor(vectors, values.masked_fill(negligible, 0.0), design.num_masks)


def penalty_grid(factor: Factor, num_penalties: int, penalty_range: tuple[float, float]) -> NDArray[np.float64]:
    """Penalties spaced evenly in the logarithm, in units of the mean eigenvalue of G.

    Raises:
        ConfigError: the design is constant, so there is no such unit.
    """
    unit = float(factor.values.mean())
    if unit == 0.0:
        raise ConfigError(
            "all masks of the train design are equal: no component's effect can be estimated. Raise design.num_masks "
            "or design.ablation_fraction."
        )
    return np.asarray(np.geomspace(*penalty_range, num_penalties) * unit)


def choose_penalties(
    factor: Factor, design: DesignStatistics, margins: MarginStatistics, grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The penalty of ``grid`` with the smallest generalised cross-validation score, for every example.

    Returns:
        (n,) float64. Examples with constant margins get the largest penalty; their weights are 0 for any.
    """
    num_masks = factor.num_masks
    projected = _projected(factor, design, margins)
    squares = torch.from_numpy(margins.centred_squares(design)).to(projected.device)
    values = factor.values
    scores = torch.empty(len(grid), projected.shape[1], dtype=torch.float64, device=projected.device)
    energy = projected**2
    for row, penalty in enumerate(grid):
        explained = ((values + 2 * penalty) / (values + penalty) ** 2) @ energy
        residual = (squares - explained).clamp(min=0.0)
        degrees_of_freedom = 1.0 + float((values / (values + penalty)).sum())
        scores[row] = (residual / num_masks) / (1.0 - degrees_of_freedom / num_masks) ** 2
    # On a tie the larger penalty wins: the last minimum.
    best = len(grid) - 1 - scores.flip(0).argmin(dim=0)
    return np.asarray(grid[best.cpu().numpy()])


def solve(
    factor: Factor, design: DesignStatistics, margins: MarginStatistics, penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights (d, n) float64 for one penalty per example; a penalty of 0 gives the minimum-norm least-squares solution.

    Args:
        factor: of ``design``.
        design: statistics of the masks.
        margins: statistics of the examples.
        penalties: (n,) float64, at least 0.
    """
    projected = _projected(factor, design, margins)
    denominator = factor.values.unsqueeze(1) + torch.from_numpy(penalties).to(projected.device)
    coefficients = torch.where(factor.values.unsqueeze(1) > 0, projected / denominator, 0.0)
    return np.asarray((factor.vectors @ coefficients).cpu().numpy())


def intercepts(
    design: DesignStatistics, margins: MarginStatistics, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Intercepts (n,) that go with weights (d, n): mean margin minus the weights at the mean mask."""
    return np.asarray((margins.margin_sums - design.kept @ weights) / design.num_masks)


def warn_if_rank_deficient(factor: Factor) -> None:
    """Warn that least squares has no unique solution on this design."""
    num_components = len(factor.values)
    if factor.rank < num_components:
        warnings.warn(
            f"the centred design of {factor.num_masks} masks has rank {factor.rank} < {num_components} components: "
            f"regularisation=0 gives the minimum-norm least-squares solution. More masks, or a ridge penalty "
            f"(regression.regularisation=null), predict better.",
            CoarWarning,
            stacklevel=2,
        )


def _projected(factor: Factor, design: DesignStatistics, margins: MarginStatistics) -> torch.Tensor:
    cross = torch.from_numpy(margins.centred_cross(design)).to(factor.values.device)
    return factor.vectors.T @ cross
