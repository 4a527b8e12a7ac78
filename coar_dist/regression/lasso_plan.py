"""Lasso and elastic net: what is prepared once for all examples, and how one block of examples is fitted with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.cluster.execution import Kept
from coar_dist.regression import lasso
from coar_dist.regression.backends import Backend, lasso_weights
from coar_dist.regression.cross_validation import r2_on_new_masks
from coar_dist.regression.fitted import Fitted, where
from coar_dist.regression.lasso_path import HeldOut, PathChoice, choose_on_path
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import HeldMargins, Observations
from coar_dist.regression.reduced import LassoTarget
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
        """Attributions of one block, whose files are read once.

        Raises:
            ConvergenceError: the backend's weights or their duality gap are not finite, or torch's is too large.
        """
        shared, margins = self.statistics.read(), observations.of_block(block, self.masks.read())
        design, num_train = shared.gram.design, shared.gram.num_masks - self.num_held_out
        held_margins: NDArray[np.floating[Any]] | None = None
        statistics = train = margin_statistics(margins.batches(0, num_train), device)
        if self.num_held_out:
            held_margins = np.concatenate(list(margins.parts(num_train, shared.gram.num_masks)))
            held = HeldMargins(margins.masks.part(num_train, shared.gram.num_masks), held_margins)
            statistics = train + margin_statistics(held.batches(), device, train.shift)
        units = lasso.units_of(statistics, design)
        choice: PathChoice | None = None
        if held_margins is not None:
            choice = self._choose(shared, lasso.standardised(train, units), held_margins / units, device)
        problem = lasso.problem_of(shared.gram, shared.extremes, lasso.standardised(statistics, units), device)
        if choice is None and self.ratios is not None:
            choice = choose_on_path(problem, self.ratios, self.l1_ratio, shared.gram.num_masks, None)
        if choice is None:
            alphas, start = torch.full_like(problem.squares, self.alpha), torch.zeros_like(problem.cross)
        else:
            alphas, start = choice.alphas, choice.weights
        factor = None if shared.factor is None else shared.factor.on(device).whole()
        weights, gaps = lasso_weights(
            self.backend, factor, LassoTarget(problem, alphas, self.l1_ratio, start, self.tolerance)
        )
        varies = problem.squares > 0
        r2 = 1.0 - lasso.mean_squares(problem, weights) / problem.squares.clamp(min=1e-300)
        dense = weights.cpu().numpy() * units
        r2_new, influences = np.full(len(r2), np.nan), None
        if choice is not None and choice.crossed is not None and held_margins is not None:
            deviations = torch.from_numpy((held_margins - statistics.mean(design)) / units).to(device).square_()
            unit = 1.0 - 1.0 / design.num_masks  # the variance's, that of margins in their own units being 1
            r2_new, influences = r2_on_new_masks(choice.crossed * unit, deviations * unit, varies, design.num_masks)
        attributions = Attributions(
            np.ascontiguousarray(dense.T, dtype=np.float32),
            statistics.intercepts(design, dense),
            alphas.cpu().numpy(),
            where(varies, r2),
            r2_new,
            gaps.cpu().numpy(),
            r2_new_influences=influences,
        )
        return Fitted(attributions, 0 if choice is None else int((choice.at_edge & varies).sum()))

    def _choose(
        self,
        shared: LassoStatistics,
        train_margins: MarginStatistics,
        held_margins: NDArray[np.floating[Any]],
        device: str,
    ) -> PathChoice:
        """The points that are best on the held-out masks, whose margins are (h, n), in the units of the others."""
        assert shared.held_out is not None
        assert shared.train_extremes is not None
        assert self.ratios is not None
        train, masks = shared.gram - shared.held_out, self.masks.read()
        design = train.design
        problem = lasso.problem_of(train, shared.train_extremes, train_margins, device)
        del train  # a matrix less
        about = torch.from_numpy(held_margins - train_margins.mean(design)).to(device)
        held = HeldOut(masks.part(design.num_masks, masks.num_masks), design.mean, about)
        return choose_on_path(problem, self.ratios, self.l1_ratio, design.num_masks, held)
