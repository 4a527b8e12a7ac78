"""The lasso's path of penalties: which point is best for every example, and how good it is on masks that had no say."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression.lasso import LassoProblem, iterate, largest_alphas, mean_squares, solve
from coar_dist.regression.masks import PackedMasks

_TOLERANCE = 1e-4
"""Duality gap at which a point of the path is near enough to be compared."""
_FLOAT32_STEPS = 300
"""Steps after which float32, whose gap may have a floor, hands over to float64."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Masks that choose the penalty, about the means of the others.

    Attributes:
        masks: h of them.
        mean: of the other masks, (d,) float64.
        margins: minus their mean under the other masks, (h, n) float64.
    """

    masks: PackedMasks
    mean: NDArray[np.float64]
    margins: torch.Tensor

    def squared_errors(self, weights: torch.Tensor) -> torch.Tensor:
        """Of weights (d, n), on every mask: (h, n) float64."""
        exact = weights.double()
        at_mean = torch.from_numpy(self.mean).to(exact.device) @ exact
        return (self.margins - self.masks.times(exact) + at_mean).square_()


@dataclass(frozen=True)
class PathChoice:
    """The chosen point of every example's path.

    Attributes:
        alphas: (n,) float64.
        weights: (d, n) float64, near the solution there.
        scores: what was smallest there, (n,) float64.
        at_edge: (n,) bool, whether it is an end of the path.
        crossed: squared errors (h, n) of every second held-out mask at the point that is best on the others, and of
            these at the point that is best on the former; None without held-out masks.
    """

    alphas: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor
    at_edge: torch.Tensor
    crossed: torch.Tensor | None


class _Crossed:
    """Squared errors of each half of the held-out masks at the point that is best on the other half."""

    def __init__(self, like: torch.Tensor) -> None:
        self.errors = torch.empty_like(like)
        self._least = [torch.full_like(like[0], torch.inf) for _ in range(2)]

    def see(self, errors: torch.Tensor) -> None:
        """The errors (h, n) of another point."""
        for half in range(2):
            scores = errors[half::2].mean(dim=0)
            better = scores < self._least[half]
            self._least[half] = torch.where(better, scores, self._least[half])
            other = slice(1 - half, None, 2)
            self.errors[other] = torch.where(better, errors[other], self.errors[other])


def choose_on_path(
    problem: LassoProblem, ratios: NDArray[np.float64], l1_ratio: float, num_masks: int, held_out: HeldOut | None
) -> PathChoice:
    """Follow the path from the largest penalty down, each point from the last, and keep the best of every example.

    Args:
        problem: of the masks that are fitted.
        ratios: (num_penalties,) descending, penalties over ``largest_alphas``.
        l1_ratio: in (0, 1].
        num_masks: of the masks that are fitted.
        held_out: masks whose squared error decides; None is the Bayesian information criterion ``m log(rss / m) +
            log(m) k``, k the nonzero weights (Zou, Hastie & Tibshirani 2007).
    """
    largest = largest_alphas(problem, l1_ratio)
    rough = problem.to(torch.float32)
    weights = torch.zeros_like(rough.cross)
    choice = PathChoice(largest, weights.clone(), torch.full_like(largest, torch.inf), largest > 0, None)
    crossed = None if held_out is None else _Crossed(held_out.margins)
    steps = []
    for ratio in ratios:
        alphas = largest * float(ratio)
        solution = iterate(rough, alphas, l1_ratio, weights, _TOLERANCE, _FLOAT32_STEPS)
        weights = solution.weights.float()
        steps.append(solution.num_steps)
        slow = torch.nonzero(solution.gaps > _TOLERANCE).squeeze(1)
        if slow.numel():
            start = solution.weights[:, slow].nan_to_num(0.0, 0.0, 0.0)
            exact = solve(problem.of(slow), alphas[slow], l1_ratio, start, _TOLERANCE)
            weights[:, slow] = exact.weights.float()
            steps[-1] += exact.num_steps
        if held_out is None or crossed is None:
            scores = _information(problem, weights, num_masks)
        else:
            errors = held_out.squared_errors(weights)
            scores = errors.mean(dim=0)
            crossed.see(errors)
        better = scores < choice.scores
        choice = PathChoice(
            torch.where(better, alphas, choice.alphas),
            torch.where(better, weights, choice.weights),
            torch.where(better, scores, choice.scores),
            torch.where(better, torch.full_like(better, ratio in (ratios[0], ratios[-1])), choice.at_edge),
            None,
        )
    _log.info("lasso path of %d examples: steps per penalty %s", len(largest), steps)
    return replace(choice, weights=choice.weights.double(), crossed=None if crossed is None else crossed.errors)


def _information(problem: LassoProblem, weights: torch.Tensor, num_masks: int) -> torch.Tensor:
    residual = mean_squares(problem, weights.double()).clamp(min=1e-300)
    return num_masks * residual.log() + float(np.log(num_masks)) * (weights != 0).sum(dim=0)
