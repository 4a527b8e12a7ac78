"""The choice of penalties, and how well they predict masks that were not fitted, from the masks that were.

In the notation of ``coar_dist.regression.ridge``, with r_i the residual of mask i in the fit on all masks and
coordinates x_i'S V of its centred row, the error on mask i when it is left out is

    r_i / (1 - h_i),   h_i = 1 / m + sum (x_i'S V)**2 / (e + penalty)     (Allen 1974; Golub, Heath & Wahba 1979, (1.3))

Generalised cross-validation puts the mean of the h_i in their place (Golub et al., (1.4)) and needs no masks:

    gcv(penalty) = (rss / m) / (1 - df / m)**2,   df = 1 + sum e / (e + penalty)

It is enough to choose a penalty by where there are two masks for every component, but no measure of the error: masks
that ablate many components have both large h_i and, through interactions, large residuals. So the error that is told is
that of masks left out; and not of masks whose own gradients made the prior, which predicts them better than others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.config.schema import RegressionConfig
from coar_dist.errors import ConfigError
from coar_dist.regression.dual import AnyFactor, DualFactor
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.ridge import Projected, explained_and_outside
from coar_dist.regression.sizes import FEWEST_JUDGES, FEWEST_OF_NOISE, num_judges
from coar_dist.regression.statistics import DesignStatistics
from coar_dist.store.tables import NUM_GROUPS

SATURATED = 1e-9
"""A share of freedom left to the residuals below which there is none."""
_MANY = 128
"""Masks from which on their spread tells how well a mean over them is known. Of fewer, those that seem to tell it well
often happen to lack large errors."""
ROUNDING_ERROR = 1e-9
"""Squared error over the margins' variance that is due to their rounding to float32."""
_FLAT = 0.99
"""A grid ends where a ten times smaller penalty has not this share of the score."""
_ROWS_AT_ONCE = 256
"""Masks that are unpacked, or whose coordinates are squared, together: all would take the memory of a factorisation."""
_EXTENSIONS = 3
_EXTENDED_BY = 1e3
"""How often a grid is extended, and to how much smaller penalties each time."""


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
    explained, outside = explained_and_outside(factor, projected)
    residual = outside + (grid / (factor.values + grid)) ** 2 @ explained
    df = 1.0 + (factor.values / (factor.values + grid)).sum(dim=1, keepdim=True)
    left = 1.0 - df / num_masks
    return torch.where(left > SATURATED, residual / num_masks / left**2, torch.inf)


@dataclass(frozen=True)
class Judges:
    """Masks that are left out in turn, and what is known of them.

    Attributes:
        coordinates: x_i'S V (k, r) float64.
        centred: (k, n) float64, what is fitted, less its mean over all masks.
    """

    coordinates: torch.Tensor
    centred: torch.Tensor


def judging_masks(first: int, num_masks: int, rank: int) -> NDArray[np.int64]:
    """Which of the masks ``first .. num_masks - 1`` are left out in turn: 2,048 at even distances, or all.

    Args:
        first: the first that may; those before have made the prior.
        num_masks: m.
        rank: r; of very large factors fewer masks are left out.
    """
    number = num_judges(num_masks - first, rank)
    return np.linspace(first, num_masks - 1, number).round().astype(np.int64) if number else np.empty(0, np.int64)


def coordinates_of(
    factor: AnyFactor, design: DesignStatistics, masks: PackedMasks, rows: NDArray[np.int64]
) -> torch.Tensor:
    """x_i'S V (k, r) float64 of some masks."""
    if isinstance(factor, DualFactor):
        return factor.left[torch.from_numpy(rows).to(factor.left.device)].mul_(factor.values.sqrt())
    device = factor.vectors.device
    mean = torch.from_numpy(design.mean).to(device)
    coordinates = torch.zeros(len(rows), factor.rank, dtype=torch.float64, device=device)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        for columns, bits in PackedMasks(masks.bits[rows[part]], masks.num_components).columns():
            x = torch.from_numpy(bits).to(device).double().sub_(mean[columns])
            if factor.scale is not None:
                x *= factor.scale[columns]
            coordinates[part].addmm_(x, factor.vectors[columns])
    return coordinates


@dataclass(frozen=True)
class JudgingMasks:
    """Masks that are left out in turn, of a factor.

    Attributes:
        rows: (k,) ascending, which of all masks.
        coordinates: x_i'S V (k, r) float64.
    """

    rows: NDArray[np.int64]
    coordinates: torch.Tensor

    @classmethod
    def of(cls, factor: AnyFactor, design: DesignStatistics, masks: PackedMasks, first: int = 0) -> JudgingMasks:
        """As many as ``judging_masks`` says, of those from ``first`` on."""
        rows = judging_masks(first, factor.num_masks, factor.rank)
        return cls(rows, coordinates_of(factor, design, masks, rows))


def left_out_scores(
    factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64], judges: Judges
) -> torch.Tensor:
    """Mean squared error on masks that are left out in turn, exact.

    Args:
        factor: of the design.
        projected: the block.
        penalties: (num_penalties,), at least 0.
        judges: the masks.

    Returns:
        (num_penalties, n) float64; infinite where a mask alone decides its own prediction.
    """
    inverses, left = _inverses_and_left(factor, penalties, judges)
    scores = torch.empty(len(penalties), projected.cross.shape[1], dtype=torch.float64, device=factor.values.device)
    for row in range(len(penalties)):
        residuals = judges.centred - judges.coordinates @ (projected.cross * inverses[:, row : row + 1])
        scores[row] = (_over(residuals, left[:, row : row + 1]) ** 2).mean(dim=0)
    return scores


def left_out_errors(
    factor: AnyFactor, projected: Projected, penalties: NDArray[np.float64], judges: Judges
) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors on masks that are left out in turn, and 1 - h_i: (k, n) float64 both, for one penalty per example.

    Errors are infinite where a mask alone decides its own prediction.
    """
    different, which = np.unique(penalties, return_inverse=True)  # few: they are of a grid
    inverses, left = _inverses_and_left(factor, different, judges)
    index = torch.from_numpy(which).to(left.device)
    residuals = judges.centred - judges.coordinates @ (projected.cross * inverses[:, index])
    left = left[:, index]
    return _over(residuals, left), left


def _inverses_and_left(
    factor: AnyFactor, penalties: NDArray[np.float64], judges: Judges
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (e + penalty) (r, num_penalties), and 1 - h_i (k, num_penalties)."""
    inverses = 1.0 / (factor.values.unsqueeze(1) + torch.from_numpy(penalties).to(factor.values.device))
    leverages = [rows**2 @ inverses for rows in torch.split(judges.coordinates, _ROWS_AT_ONCE)]
    return inverses, 1.0 - 1.0 / factor.num_masks - torch.cat(leverages)


def _over(residuals: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    return torch.where(left > SATURATED, residuals / left, torch.inf)


def noise_of(errors: torch.Tensor, left: torch.Tensor) -> NDArray[np.float64]:
    """Residual variance (n,) float64 from errors on masks left out: e_i**2 has the expectation noise / (1 - h_i).

    NaN where there are too few masks, or one alone decides its own prediction.
    """
    if len(errors) < FEWEST_OF_NOISE:
        return np.full(errors.shape[1], np.nan)
    found = (errors**2 * left).mean(dim=0)
    return np.asarray(torch.where(found.isfinite(), found, torch.nan).cpu().numpy())


def r2_on_new_masks(
    errors: torch.Tensor, deviations: torch.Tensor, varies: torch.Tensor, num_masks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """R2 on new masks, 1 - mean squared error over the variance that margins have over masks, and how well it is known.

    Masks under which margins lie far from their mean have larger errors, and how far they lie is known of all masks: a
    regression estimator (Cochran 1977, chapter 7), with one slope for all examples.

    Args:
        errors: squared errors (k, n) on masks that had no say, over the variance of the margins over all masks, which
            is the sum of squares over m - 1, so that the mean margin has an R2 of about 0.
        deviations: squared deviations (k, n) of these masks' margins from their mean over all masks, in its units.
        varies: (n,) bool, examples whose margins are not constant.
        num_masks: m, of which these are some: over all of them the mean of the deviations is 1 - 1 / m.

    Returns:
        (n,) float64, NaN for constant margins, for examples of which a mask alone decides its own prediction, and for
        all where there are fewer than 32 masks; and the influences of ``Attributions`` (16,), None for those. Of fewer
        than 128 masks they are larger by 128 over the number of masks, as the spread of few is itself uncertain.
    """
    found = np.full(errors.shape[1], np.nan)
    known = varies & errors.isfinite().all(dim=0)
    if len(errors) < FEWEST_JUDGES or not known.any():
        return found, None
    errors, deviations = errors[:, known], deviations[:, known]
    about = deviations.mean(dim=1) - deviations.mean()
    slope = (about @ errors.mean(dim=1)) / (about @ about).clamp(min=1e-300)
    shares = errors.mean(dim=0) - slope * (deviations.mean(dim=0) - (1.0 - 1.0 / num_masks))
    found[known.cpu().numpy()] = (1.0 - shares).cpu().numpy()
    influence = (errors.sum(dim=1) - slope * about * errors.shape[1]) * max(1.0, _MANY / len(errors))
    return found, np.array([float(influence[group::NUM_GROUPS].mean()) for group in range(NUM_GROUPS)])


@dataclass(frozen=True)
class Choice:
    """Penalties of a grid that may have been extended.

    Attributes:
        penalties: (n,) float64.
        at_end: (n,) bool, whether a smaller one would be better still, or for a given grid might be, or a larger one.
        scores: (n,) float64 of these penalties.
    """

    penalties: NDArray[np.float64]
    at_end: NDArray[np.bool_]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, scores: torch.Tensor, grid: NDArray[np.float64], is_given: bool) -> Choice:
        """The penalty with the smallest score (num_penalties, n), per example; on a tie the larger."""
        best, smallest = best_penalties(scores, grid), scores.min(dim=0).values.cpu().numpy()
        if len(grid) == 1:
            return cls(best, np.zeros(len(best), np.bool_), smallest)
        if is_given:
            return cls(best, (best == grid[0]) | (best == grid[-1]), smallest)
        a_decade_on = int(np.searchsorted(grid, 10.0 * grid[0]))
        still_falls = scores[0] < _FLAT * scores[min(a_decade_on, len(grid) - 1)]
        return cls(best, (best == grid[0]) & still_falls.cpu().numpy(), smallest)


def choose(
    scores_of: Callable[[NDArray[np.float64]], torch.Tensor], grid: NDArray[np.float64], is_given: bool
) -> Choice:
    """The best penalties of a grid.

    For examples of which the smallest is the best, by 1% better than a ten times larger one, the grid is extended to
    smaller ones, three decades at a time and three times at most. Larger ones than the largest of the default grid take
    all weights to 0 anyhow. What an example gets does not depend on the others.

    Args:
        scores_of: gives the scores (num_penalties, n) of penalties.
        grid: (num_penalties,) ascending; one penalty is fixed.
        is_given: whether the grid must stay as it is.
    """
    scores = scores_of(grid)
    choice = Choice.of(scores, grid, is_given)
    for _ in range(_EXTENSIONS):
        if is_given or not choice.at_end.any():
            break
        step = grid[1] / grid[0]
        number = max(round(float(np.log(_EXTENDED_BY) / np.log(step))), 1)
        smaller = grid[0] * step ** np.arange(-number, 0.0)
        scores, grid = torch.cat([scores_of(smaller), scores]), np.concatenate([smaller, grid])
        further = Choice.of(scores, grid, is_given)
        penalties = np.where(choice.at_end, further.penalties, choice.penalties)
        smallest = np.where(choice.at_end, further.scores, choice.scores)
        choice = Choice(penalties, choice.at_end & further.at_end, smallest)
    return choice


def extended(config: RegressionConfig) -> str:
    """What a warning of an end of ``penalty_range`` adds where the grid goes beyond it."""
    goes_on = config.method == "ridge" and config.penalty_range is None
    return ", which is extended to smaller ones where they can be factorised" if goes_on else ""


def best_penalties(scores: torch.Tensor, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The penalty with the smallest score, per example; on a tie the larger: (n,) float64.

    Args:
        scores: (num_penalties, n).
        grid: (num_penalties,) ascending.
    """
    best = len(grid) - 1 - scores.flip(0).argmin(dim=0)
    return np.asarray(grid[best.cpu().numpy()])
