"""Ridge regression of every example on one shared design, from sufficient statistics alone.

Objective, per example: ``sum over masks of (y - intercept - x'w)**2 + penalty * ||w||**2``; the intercept is not
penalised. With the centred Gram matrix ``V diag(e) V'`` (r positive eigenvalues) and ``q = V'Xc'y``:

    w(penalty)   = V q / (e + penalty)
    rss(penalty) = y'y - sum q**2 / e + sum (q**2 / e) (penalty / (e + penalty))**2

so a whole grid of penalties costs two matrix products for all examples. With fewer masks than components V is never
formed (``coar_dist.regression.dual``). ``coar_dist.regression.cross_validation`` chooses the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression.dual import AnyFactor, DualFactor
from coar_dist.regression.factor import Factor
from coar_dist.regression.statistics import DesignStatistics, MarginStatistics

_ROUNDING = 1e-9
"""A share of a component's unit vector outside the eigenvectors, below which there is none."""


@dataclass(frozen=True)
class Projected:
    """One block of examples in the factor's coordinates.

    Attributes:
        cross: q = V'Xc'y (r, n) float64.
        squares: centred y'y (n,) float64.
    """

    cross: torch.Tensor
    squares: torch.Tensor


def project(factor: Factor, design: DesignStatistics, margins: MarginStatistics) -> Projected:
    """Bring the statistics of a block into the factor's coordinates, on its device."""
    device = factor.vectors.device
    cross = factor.vectors.T @ factor.scaled(torch.from_numpy(margins.centred_cross(design)).to(device))
    return Projected(cross, torch.from_numpy(margins.centred_squares(design)).to(device))


def project_rows(factor: DualFactor, centred: torch.Tensor) -> Projected:
    """The same from all centred margins y (m, n) float64."""
    cross = factor.values.sqrt().unsqueeze(1) * (factor.left.T @ centred)
    return Projected(cross, (centred * centred).sum(dim=0))


def residual_squares(factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> torch.Tensor:
    """Sum over the training masks of squared residuals, for one penalty per example: (n,) float64."""
    penalty = torch.from_numpy(penalties).to(factor.values.device)
    explained, outside = explained_and_outside(factor, projected)
    return outside + (explained * (penalty / (factor.values.unsqueeze(1) + penalty)) ** 2).sum(dim=0)


def explained_and_outside(factor: AnyFactor, projected: Projected) -> tuple[torch.Tensor, torch.Tensor]:
    """What least squares explains of y'y along each eigenvector (r, n), and what no weights explain (n,): float64."""
    explained = projected.cross**2 / factor.values.unsqueeze(1)
    return explained, (projected.squares - explained.sum(dim=0)).clamp(min=0.0)


def solve(factor: Factor, projected: Projected, penalties: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights S**-1 w (d, n) float64 for one penalty per example; 0 gives the minimum-norm least-squares solution.

    Args:
        factor: of the design.
        projected: the block.
        penalties: (n,) float64, at least 0.
    """
    return np.asarray((factor.vectors @ coefficients(factor, projected, penalties)).cpu().numpy())


def coefficients(factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> torch.Tensor:
    """Weights in the factor's coordinates, q / (e + penalty): (r, n) float64."""
    return projected.cross / (factor.values.unsqueeze(1) + torch.from_numpy(penalties).to(factor.values.device))


def posterior_errors(
    factor: AnyFactor,
    penalties: NDArray[np.float64],
    noise: NDArray[np.float64],
    of_prior_mean: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Posterior standard deviations of the weights under the prior that the penalty stands for: (n, d) float32.

    The square root of the diagonal of noise (Xc'Xc + penalty S**-2)**-1 (Rasmussen & Williams 2006, equation 2.8). The
    bias of the penalty is in them: over the components, intervals of 1.96 such errors cover the weights as often as
    they claim to (Nychka 1988, for smoothing splines). Without a penalty they are least squares' standard errors.

    Args:
        factor: of the design.
        penalties: (n,) at least 0.
        noise: (n,) residual variance of each example; NaN where it is not known.
        of_prior_mean: (n, d) variance of the prior mean itself, of which the masks leave the share
            1 - V**2 e / (e + penalty) of every deviation; None is 0.

    Returns:
        NaN where the noise is not known, and without a penalty for components that the masks do not determine.
    """
    device, values = factor.values.device, factor.values.unsqueeze(1)
    different, which = np.unique(penalties, return_inverse=True)  # few: they are of a grid
    grid, index = torch.from_numpy(different).to(device), torch.from_numpy(which).to(device)
    variance = torch.from_numpy(noise).to(device)
    errors = np.empty((len(penalties), factor.num_components), dtype=np.float32)
    for part, rows in factor.vector_rows():
        squares = rows**2
        undetermined = (1.0 - squares.sum(dim=1, keepdim=True)).clamp(min=0.0)
        beside = torch.where(undetermined > _ROUNDING, undetermined / grid, 0.0)
        spread = (squares @ (1.0 / (values + grid)) + beside)[:, index]
        total = spread * variance
        if factor.scale is not None:
            total *= factor.scale[part].unsqueeze(1) ** 2
        if of_prior_mean is not None:
            left = spread * grid[index]
            total += left**2 * torch.from_numpy(of_prior_mean[:, part]).to(device).T
        errors[:, part] = torch.where(total.isfinite(), total.sqrt(), torch.nan).T.cpu().numpy()
    return errors
