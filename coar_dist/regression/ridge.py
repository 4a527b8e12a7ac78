"""Ridge regression of every example on one shared design, from sufficient statistics alone.

Objective, per example: ``sum over masks of (y - intercept - x'w)**2 + penalty * ||w||**2``; the intercept is not
penalised. With the centred Gram matrix ``V diag(e) V'`` (r positive eigenvalues) and ``q = V'Xc'y``:

    w(penalty)   = V q / (e + penalty)
    rss(penalty) = y'y - sum q**2 / e + sum (q**2 / e) (penalty / (e + penalty))**2
    df(penalty)  = 1 + sum e / (e + penalty)
    gcv(penalty) = (rss / m) / (1 - df / m)**2              (Golub, Heath & Wahba 1979, equation 1.4)

so a whole grid of penalties costs two matrix products for all examples. The error on a mask left out follows from the
residual of the fit on all of them, r_i / (1 - h_i), but needs the masks once more:

    h_i(penalty) = 1 / m + sum (x_i'V)**2 / (e + penalty)   (Allen 1974; Golub et al., equation 1.3)

With fewer masks than components V is never formed (``coar_dist.regression.dual``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConfigError
from coar_dist.regression.dual import AnyFactor, DualFactor
from coar_dist.regression.factor import Factor
from coar_dist.regression.statistics import DesignStatistics, MarginBatches, MarginStatistics

SATURATED = 1e-9
"""A share of freedom left to the residuals below which there is none."""


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


def penalty_grid(mean_eigenvalue: float, num_penalties: int, penalty_range: tuple[float, float]) -> NDArray[np.float64]:
    """Penalties spaced evenly in the logarithm, in units of the mean eigenvalue of Xc'Xc: its trace over d.

    Raises:
        ConfigError: the design is constant, so there is no such unit.
    """
    if mean_eigenvalue <= 0.0:
        raise constant_design_error()
    with np.errstate(over="ignore"):
        grid = np.geomspace(*penalty_range, num_penalties) * mean_eigenvalue
    if not (np.isfinite(grid**2).all() and (grid > 0).all()):
        raise ConfigError(
            f"regression.penalty_range={list(penalty_range)} gives penalties that float64 cannot hold: {grid[0]:g} to "
            f"{grid[-1]:g}. Its unit is the mean eigenvalue of the centred X'X, {mean_eigenvalue:g}."
        )
    return np.asarray(grid)


def constant_design_error() -> ConfigError:
    """The error for a design of equal masks."""
    return ConfigError(
        "all masks of the train design are equal: no component's effect can be estimated. Raise design.num_masks "
        "or design.ablation_fraction."
    )


def gcv_scores(factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> torch.Tensor:
    """Estimated squared error on a new mask by generalised cross-validation.

    Args:
        factor: of the design.
        projected: the block.
        penalties: (num_penalties,), at least 0.

    Returns:
        (num_penalties, n) float64; infinite where the fit passes through every margin.
    """
    num_masks = factor.num_masks
    grid = torch.from_numpy(penalties).to(factor.values.device).unsqueeze(1)
    explained, outside = _explained_and_outside(factor, projected)
    residual = outside + (grid / (factor.values + grid)) ** 2 @ explained
    df = 1.0 + (factor.values / (factor.values + grid)).sum(dim=1, keepdim=True)
    left = 1.0 - df / num_masks
    return torch.where(left > SATURATED, residual / num_masks / left**2, torch.inf)


def residual_squares(factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> torch.Tensor:
    """Sum over the training masks of squared residuals, for one penalty per example: (n,) float64."""
    penalty = torch.from_numpy(penalties).to(factor.values.device)
    explained, outside = _explained_and_outside(factor, projected)
    return outside + (explained * (penalty / (factor.values.unsqueeze(1) + penalty)) ** 2).sum(dim=0)


def _explained_and_outside(factor: AnyFactor, projected: Projected) -> tuple[torch.Tensor, torch.Tensor]:
    """What least squares explains along each eigenvector (r, n), and what no weights explain (n,)."""
    explained = projected.cross**2 / factor.values.unsqueeze(1)
    return explained, (projected.squares - explained.sum(dim=0)).clamp(min=0.0)


def leave_one_out_scores(
    factor: Factor,
    design: DesignStatistics,
    margins: MarginStatistics,
    projected: Projected,
    penalties: NDArray[np.float64],
    batches: MarginBatches,
) -> torch.Tensor:
    """Mean squared error on masks that are left out one at a time, exact, with one pass over the margins.

    Args:
        factor: of the design.
        design: its means.
        margins: statistics of the block.
        projected: the block in the factor's coordinates.
        penalties: (num_penalties,).
        batches: the masks and the block's margins, again.

    Returns:
        (num_penalties, n) float64; infinite where a mask alone decides its own prediction.
    """
    device = factor.values.device
    shift, mean = torch.from_numpy(margins.mean(design)).to(device), torch.from_numpy(design.mean).to(device)
    errors = _LeftOutErrors(factor, projected, penalties)
    for masks, batch_margins in batches:
        x = torch.from_numpy(masks.view(np.uint8)).to(device).double() - mean
        errors.add(factor.scaled(x.T).T @ factor.vectors, torch.from_numpy(batch_margins).to(device).double() - shift)
    return errors.squares / factor.num_masks


def leave_one_out_scores_of_rows(
    factor: DualFactor, projected: Projected, penalties: NDArray[np.float64], centred: torch.Tensor
) -> torch.Tensor:
    """The same from all centred margins y (m, n) float64."""
    errors = _LeftOutErrors(factor, projected, penalties)
    errors.add(factor.left * factor.values.sqrt(), centred)
    return errors.squares / factor.num_masks


class _LeftOutErrors:
    """Squared errors on masks that are left out, summed: ``squares`` (num_penalties, n)."""

    def __init__(self, factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> None:
        grid = torch.from_numpy(penalties).to(factor.values.device)
        self._num_masks, self._cross = factor.num_masks, projected.cross
        self._inverses = 1.0 / (factor.values.unsqueeze(1) + grid)  # (r, num_penalties)
        self.squares = torch.zeros(len(grid), projected.cross.shape[1], dtype=torch.float64, device=grid.device)

    def add(self, coordinates: torch.Tensor, centred: torch.Tensor) -> None:
        """Masks by their x_i'S V (num_batch, r) and their centred margins (num_batch, n)."""
        left = 1.0 - 1.0 / self._num_masks - coordinates**2 @ self._inverses
        left = torch.where(left > SATURATED, left, 0.0)
        for row, inverse in enumerate(self._inverses.T):
            residual = centred - (coordinates * inverse) @ self._cross
            errors = torch.where(left[:, row : row + 1] > 0, residual / left[:, row : row + 1], torch.inf)
            self.squares[row] += (errors**2).sum(dim=0)


def best_penalties(scores: torch.Tensor, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The penalty with the smallest score, per example; on a tie the larger: (n,) float64.

    Args:
        scores: (num_penalties, n).
        grid: (num_penalties,) ascending.
    """
    best = len(grid) - 1 - scores.flip(0).argmin(dim=0)
    return np.asarray(grid[best.cpu().numpy()])


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


def posterior_errors(factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> NDArray[np.float32]:
    """Posterior standard deviations of the weights under the prior that the penalty stands for: (n, d) float32.

    The square root of the diagonal of s**2 (Xc'Xc + penalty S**-2)**-1 with s**2 = rss / (m - df) (Rasmussen & Williams
    2006, equation 2.8). Bias is in them, unlike in ``standard_errors``. Penalties must be positive.
    """

    def spread(squares: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        shrunk = squares @ (values / (values + penalty))
        return (1.0 - shrunk).clamp(min=0.0) / penalty

    values = factor.values.unsqueeze(1)
    return _errors(factor, projected, penalties, spread, factor.scale)


def standard_errors(factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64]) -> NDArray[np.float32]:
    """Standard errors of the weights over draws of noise: (n, d) float32.

    The square root of the diagonal of s**2 V diag(e / (e + penalty)**2) V' with s**2 = rss / (m - df): the spread of
    the ridge estimate, not its bias (Hoerl & Kennard 1970, equation 4.5). There must be more masks than df.
    """

    def spread(squares: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        return squares @ (values / (values + penalty) ** 2)

    values = factor.values.unsqueeze(1)
    return _errors(factor, projected, penalties, spread, None)


def _errors(
    factor: AnyFactor,
    projected: Projected,
    penalties: NDArray[np.float64],
    spread: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scale: torch.Tensor | None,
) -> NDArray[np.float32]:
    """Square roots of ``spread`` times s**2, times ``scale``, in blocks of components.

    ``spread`` takes the squares of some rows of V (block length, r) and penalties (k,), and gives (block length, k).
    """
    device, values = factor.values.device, factor.values.unsqueeze(1)
    penalty = torch.from_numpy(penalties).to(device)
    df = 1.0 + (values / (values + penalty)).sum(dim=0)
    variance = residual_squares(factor, projected, penalties) / (factor.num_masks - df)
    different, which = np.unique(penalties, return_inverse=True)  # few: they are of a grid
    grid, index = torch.from_numpy(different).to(device), torch.from_numpy(which).to(device)
    errors = np.empty((len(penalties), factor.num_components), dtype=np.float32)
    for part, rows in factor.vector_rows():
        squares = spread(rows**2, grid)[:, index] * variance
        roots = squares.sqrt() if scale is None else scale[part].unsqueeze(1) * squares.sqrt()
        errors[:, part] = roots.T.cpu().numpy()
    return errors
