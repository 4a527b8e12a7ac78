"""Penalties by cross-validation: of every example in a block, and of examples that stand for all.

What all examples decide together, one penalty or a prior, is decided by some of them: whole blocks at even distances,
since a block's files are read whole, and in these blocks some examples at even distances. Few blocks have them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression import ridge, sizes
from coar_dist.regression.cross_validation import (
    ROUNDING_ERROR,
    Choice,
    Judges,
    JudgingMasks,
    choose,
    gcv_scores,
    left_out_scores,
)
from coar_dist.regression.dual import AnyFactor, DualFactor
from coar_dist.regression.gate_sources import SampledRows
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import Chosen, HeldMargins, Margins
from coar_dist.regression.statistics import DesignStatistics, margin_statistics, require_finite

_FEWEST_EXAMPLES = 64
_MOST_MARGINS = 2**26
"""Of the examples that decide; 256 MB."""


@dataclass(frozen=True)
class Sample:
    """The examples that decide for all.

    Attributes:
        blocks: (first example, end) of their blocks.
        per_block: how many of a block, or all.
    """

    blocks: list[tuple[int, int]]
    per_block: int

    @classmethod
    def of(cls, blocks: list[tuple[int, int]], num_masks: int) -> Sample:
        """1,024 examples in 8 blocks or more, or all where there are fewer; with very many masks fewer."""
        length = blocks[0][1] - blocks[0][0]
        num_blocks = sizes.num_deciding_blocks(len(blocks), length)
        most = max(min(sizes.MOST_EXAMPLES, _MOST_MARGINS // num_masks), _FEWEST_EXAMPLES)
        return cls([blocks[i] for i in _spread(len(blocks), num_blocks)], -(-most // num_blocks))

    def rows(self, num_examples: int) -> NDArray[np.int64]:
        """Places in a block of so many examples."""
        return _spread(num_examples, self.per_block)


def _spread(length: int, number: int) -> NDArray[np.int64]:
    """So many places of ``length`` at even distances, or all."""
    return np.unique(np.linspace(0, length - 1, min(number, length)).round().astype(np.int64))


@dataclass(frozen=True)
class Trial:
    """Some examples on which penalties are tried.

    Attributes:
        factor: of the design.
        projected: the examples in the factor's coordinates.
        mean: margins (n,) float64, over the masks.
        judges: masks that are left out in turn.
    """

    factor: AnyFactor
    projected: ridge.Projected
    mean: NDArray[np.float64]
    judges: Judges

    def scores(self, penalties: NDArray[np.float64], selection: str) -> torch.Tensor:
        """Estimated squared error on a new mask (num_penalties, n) float64, by ``gcv`` or ``leave_one_out``."""
        if selection == "gcv":
            return gcv_scores(self.factor, self.projected, penalties)
        return left_out_scores(self.factor, self.projected, penalties, self.judges)


def trial_of(factor: AnyFactor, design: DesignStatistics, margins: Margins, judging: JudgingMasks) -> Trial:
    """Read the margins, once.

    Args:
        factor: of the design.
        design: means of the masks.
        margins: of the examples.
        judging: masks that are left out in turn.
    """
    device, rows, coordinates = str(factor.values.device), judging.rows, judging.coordinates
    if isinstance(factor, DualFactor):
        whole = margins.whole()
        require_finite(whole, 0)
        centred = torch.from_numpy(whole).to(device, torch.float64, copy=True)
        first = centred[0].clone()
        centred -= first
        moved = centred.mean(dim=0)
        centred -= moved
        mean = (first + moved).cpu().numpy()
        of_judges = centred[torch.from_numpy(rows).to(device)]
        return Trial(factor, ridge.project_rows(factor, centred), mean, Judges(coordinates, of_judges))
    chosen = Chosen(margins, rows)
    statistics = margin_statistics(chosen.batches(), device)
    mean = statistics.mean(design)
    of_judges = torch.from_numpy(chosen.kept() - mean).to(device)
    return Trial(factor, ridge.project(factor, design, statistics), mean, Judges(coordinates, of_judges))


@dataclass(frozen=True)
class SharedTrial:
    """Sampled examples on which penalties are tried that all examples share.

    Attributes:
        trial: of the examples, less a prior mean.
        squares: (n,) the margins' own centred sums of squares.
        selection: ``gcv`` or ``leave_one_out``.
    """

    trial: Trial
    squares: NDArray[np.float64]
    selection: str

    def scores(self, penalties: NDArray[np.float64]) -> torch.Tensor:
        """Scores over the margins' variance, mean over the examples that vary: (num_penalties, 1) float64."""
        scores = self.trial.scores(penalties, self.selection)
        squares = torch.from_numpy(self.squares).to(scores.device)
        return relative_sums(scores, squares).unsqueeze(1) * self.trial.factor.num_masks / len(self.squares)

    def choose(self, grid: NDArray[np.float64], is_given: bool) -> Choice:
        """As ``cross_validation.choose``; no smaller penalty does better where errors are those of rounding."""
        choice = choose(self.scores, grid, is_given)
        return replace(choice, at_end=choice.at_end & (choice.scores >= ROUNDING_ERROR))


def shared_trial(
    factor: AnyFactor,
    design: DesignStatistics,
    masks: PackedMasks,
    samples: Sequence[SampledRows],
    coefficients: NDArray[np.float64],
    selection: str,
    judging: JudgingMasks,
) -> SharedTrial:
    """Try penalties on the samples of all blocks together.

    Args:
        factor, design, judging: as of ``trial_of``.
        masks: of the design.
        samples: of the blocks.
        coefficients: (k,) of the prior mean, which is taken off the margins.
        selection: ``gcv`` or ``leave_one_out``.
    """
    residuals = np.concatenate([sample.residuals(coefficients) for sample in samples], axis=1)
    trial = trial_of(factor, design, HeldMargins(masks, residuals), judging)
    return SharedTrial(trial, np.concatenate([sample.squares for sample in samples]), selection)


def relative_sums(scores: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Scores (num_penalties, n) over the margins' centred squares (n,), summed over the examples whose margins vary."""
    varies = squares > 0
    return (scores[:, varies] / squares[varies]).sum(dim=1)
