"""Penalties by cross-validation: of every example in a block, and of examples that stand for all.

What all examples decide together, one penalty or a prior, is decided by some of them: whole blocks at even distances,
since a block's files are read whole, and in these blocks some examples at even distances. Few blocks have them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression import ridge, sizes
from coar_dist.regression.dual import AnyFactor, DualFactor
from coar_dist.regression.gate_prior import SampledRows
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.observations import HeldMargins, Margins
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
class Scored:
    """Some examples and how well each penalty does.

    Attributes:
        projected: the examples in the factor's coordinates.
        mean: margins (n,) float64, over the masks.
        scores: (num_penalties, n) float64, estimated squared error on a new mask.
    """

    projected: ridge.Projected
    mean: NDArray[np.float64]
    scores: torch.Tensor


def scored(
    factor: AnyFactor, design: DesignStatistics, margins: Margins, grid: NDArray[np.float64], selection: str
) -> Scored:
    """Score all penalties for all examples; with ``leave_one_out`` and a primal factor the margins are read twice.

    Args:
        factor: of the design.
        design: means of the masks.
        margins: of the examples.
        grid: (num_penalties,) penalties.
        selection: ``gcv`` or ``leave_one_out``.
    """
    device = str(factor.values.device)
    if isinstance(factor, DualFactor):
        whole = margins.whole()
        require_finite(whole, 0)
        centred = torch.from_numpy(whole).to(device, torch.float64, copy=True)
        mean = centred[0].clone()
        centred -= mean
        moved = centred.mean(dim=0)
        centred -= moved
        projected = ridge.project_rows(factor, centred)
        if selection == "gcv":
            scores = ridge.gcv_scores(factor, projected, grid)
        else:
            scores = ridge.leave_one_out_scores_of_rows(factor, projected, grid, centred)
        return Scored(projected, (mean + moved).cpu().numpy(), scores)
    statistics = margin_statistics(margins.batches(), device)
    projected = ridge.project(factor, design, statistics)
    if selection == "gcv":
        scores = ridge.gcv_scores(factor, projected, grid)
    else:
        scores = ridge.leave_one_out_scores(factor, design, statistics, projected, grid, margins.batches())
    return Scored(projected, statistics.mean(design), scores)


def relative_scores(
    factor: AnyFactor,
    design: DesignStatistics,
    masks: PackedMasks,
    samples: Sequence[SampledRows],
    coefficients: NDArray[np.float64],
    grid: NDArray[np.float64],
    selection: str,
) -> NDArray[np.float64]:
    """Scores over the margins' variance, mean over sampled examples: (num_penalties,) float64.

    Args:
        factor, design, grid, selection: as of ``scored``.
        masks: of the design.
        samples: of the blocks.
        coefficients: (k,) of the prior mean, which is taken off the margins.
    """
    residuals = np.concatenate([sample.residuals(coefficients) for sample in samples], axis=1)
    found = scored(factor, design, HeldMargins(masks, residuals), grid, selection)
    squares = np.concatenate([sample.squares for sample in samples])
    return relative_sums(found.scores, torch.from_numpy(squares).to(found.scores.device)) / len(squares)


def relative_sums(scores: torch.Tensor, squares: torch.Tensor) -> NDArray[np.float64]:
    """Scores (num_penalties, n) over the margins' centred squares (n,), summed over the examples whose margins vary."""
    varies = squares > 0
    return np.asarray((scores[:, varies] / squares[varies]).sum(dim=1).cpu().numpy())


def best(scores: NDArray[np.float64]) -> int:
    """The place of the smallest score; on a tie the last, which is the larger penalty."""
    return int(len(scores) - 1 - np.argmin(scores[::-1]))
