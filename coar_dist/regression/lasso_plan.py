"""Lasso and elastic net: what is prepared once for all examples, and how one block of examples is fitted with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.cluster.execution import Kept
from coar_dist.regression import lasso
from coar_dist.regression.backends import Backend, LassoTarget, lasso_weights
from coar_dist.regression.fitted import Fitted, where
from coar_dist.regression.lasso import HeldOut, PathChoice
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import Margins, Observations
from coar_dist.regression.shared import SharedFactor
from coar_dist.regression.statistics import Gram, MarginStatistics, margin_statistics
from coar_dist.store.tables import Attributions


@dataclass(frozen=True)
class LassoStatistics:
    """What the blocks share.

    Attributes:
        gram: X'X of all masks.
        extremes: smallest and largest eigenvalue of Xc'Xc / m.
        held_out: X'X of the last masks, which choose the penalty; None where a criterion does, or it is fixed.
        train_extremes: as ``extremes``, of the masks that are not held out.
        factor: for backends that need the reduced problem.
    """

    gram: Gram
    extremes: tuple[float, float]
    held_out: Gram | None
    train_extremes: tuple[float, float] | None
    factor: SharedFactor | None


@dataclass(frozen=True)
class LassoPlan:
    """Lasso or elastic net.

    Attributes:
        masks: all of them.
        statistics: of the masks.
        num_held_out: the last masks, which choose the penalty; 0 where a criterion does, or it is fixed.
        backend: as in ``lasso_weights``.
        ratios: (num_penalties,) descending, relative to the largest penalty; None where alpha is fixed.
        alpha: the fixed penalty.
        l1_ratio: in (0, 1].
        tolerance: duality gap of the solution.
    """

    masks: Kept[PackedMasks]
    statistics: Kept[LassoStatistics]
    num_held_out: int
    backend: Backend
    ratios: NDArray[np.float64] | None
    alpha: float
    l1_ratio: float
    tolerance: float

    @property
    def decided(self) -> dict[str, Any]:
        """Nothing: every example chooses its own penalty."""
        return {}

    def fit(self, observations: Observations, block: tuple[int, int], device: str) -> Fitted:
        """Attributions of one block, whose files are read once."""
        shared, margins = self.statistics.read(), observations.of_block(block, self.masks.read())
        choice: PathChoice | None = None
        new_error: torch.Tensor | None = None
        if self.num_held_out:
            statistics, choice, new_error = self._choose(shared, margins, device)
        else:
            statistics = margin_statistics(margins.batches(), device)
        num_masks = shared.gram.num_masks
        problem = lasso.problem_of(shared.gram, shared.extremes, statistics, device)
        if choice is None and self.ratios is not None:
            choice = lasso.choose_on_path(problem, self.ratios, self.l1_ratio, num_masks, None)
        if choice is None:
            alphas, start = torch.full_like(problem.squares, self.alpha), torch.zeros_like(problem.cross)
        else:
            alphas, start = choice.alphas, choice.weights
        factor = None if shared.factor is None else shared.factor.on(device).whole()
        target = LassoTarget(problem, alphas, self.l1_ratio, start, self.tolerance)
        weights = lasso_weights(self.backend, factor, target)
        varies = problem.squares > 0
        r2 = 1.0 - lasso.mean_squares(problem, weights) / problem.squares.clamp(min=1e-300)
        dense = weights.cpu().numpy()
        attributions = Attributions(
            np.ascontiguousarray(dense.T, dtype=np.float32),
            statistics.intercepts(shared.gram.design, dense),
            alphas.cpu().numpy(),
            where(varies, r2),
            np.full(len(r2), np.nan) if new_error is None else where(varies, 1.0 - new_error),
            lasso.exact_gaps(problem, weights, alphas, self.l1_ratio).cpu().numpy(),
        )
        return Fitted(attributions, 0 if choice is None else int((choice.at_edge & varies).sum()))

    def _choose(
        self, shared: LassoStatistics, margins: Margins, device: str
    ) -> tuple[MarginStatistics, PathChoice, torch.Tensor]:
        """Statistics under all masks, the points that are best on the held-out ones, and their squared errors there
        over those of no weights."""
        assert shared.held_out is not None
        assert shared.train_extremes is not None
        assert self.ratios is not None
        num_masks, num_train = shared.gram.num_masks, shared.gram.num_masks - self.num_held_out
        train_margins = margin_statistics(margins.batches(0, num_train), device)
        held_margins = margin_statistics(margins.batches(num_train, num_masks), device, train_margins.shift)
        train = shared.gram - shared.held_out
        design = train.design
        problem = lasso.problem_of(train, shared.train_extremes, train_margins, device)
        del train  # a matrix less
        held = HeldOut.of(shared.held_out, held_margins, design, train_margins.mean(design), device)
        choice = lasso.choose_on_path(problem, self.ratios, self.l1_ratio, num_train, held)
        null = held.errors(torch.zeros_like(choice.weights))
        return train_margins + held_margins, choice, choice.scores / null.clamp(min=1e-300)
