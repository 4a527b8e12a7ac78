"""Sufficient statistics of all regressions on one design: after one pass the number of masks never appears again.

Shapes: m masks, d components, n examples of a block. X (m, d) is 0/1, Y (m, n) are margins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import MissingWorkError, NonFiniteMarginError

MASKS_PER_BATCH = 1024
"""Masks of one matrix product. A float32 product of 0/1 matrices is exact below 2**24 rows; the sums of X'Y are
taken batch by batch in mask order, so that they do not depend on how shards were cut."""


@dataclass(frozen=True)
class DesignStatistics:
    """What all examples share.

    Attributes:
        num_masks: m.
        gram: X'X (d, d) float64, exact integers.
        kept: X'1 (d,) float64, exact integers: how often each component was kept.
    """

    num_masks: int
    gram: NDArray[np.float64]
    kept: NDArray[np.float64]

    def centred_gram(self) -> NDArray[np.float64]:
        """X'X - X'1 1'X / m: (d, d) float64."""
        return self.gram - np.outer(self.kept, self.kept) / self.num_masks


@dataclass(frozen=True)
class MarginStatistics:
    """What belongs to the examples of one block.

    Attributes:
        cross: X'Y (d, n) float64.
        margin_sums: Y'1 (n,) float64.
        square_sums: sum over masks of y**2, (n,) float64.
    """

    cross: NDArray[np.float64]
    margin_sums: NDArray[np.float64]
    square_sums: NDArray[np.float64]

    def centred_cross(self, design: DesignStatistics) -> NDArray[np.float64]:
        """X'Y - X'1 1'Y / m: (d, n) float64."""
        return self.cross - np.outer(design.kept, self.margin_sums / design.num_masks)

    def centred_squares(self, design: DesignStatistics) -> NDArray[np.float64]:
        """Sum over masks of (y - mean)**2: (n,) float64, at least 0."""
        return np.maximum(self.square_sums - self.margin_sums**2 / design.num_masks, 0.0)


def design_statistics(batches: Iterable[NDArray[np.bool_]]) -> DesignStatistics:
    """One pass over the masks.

    Args:
        batches: (num_batch, d) bool, at most 2**24 rows each.

    Raises:
        MissingWorkError: there are fewer than two masks.
    """
    num_masks = 0
    gram = kept = None
    for masks in batches:
        x = torch.from_numpy(masks.astype(np.float32))
        product = (x.T @ x).double().numpy()
        sums = masks.sum(axis=0, dtype=np.float64)
        gram = product if gram is None else gram + product
        kept = sums if kept is None else kept + sums
        num_masks += len(masks)
    if gram is None or kept is None or num_masks < 2:
        raise MissingWorkError(f"a regression needs at least 2 masks, but there are {num_masks}.")
    return DesignStatistics(num_masks, gram, kept)


def margin_statistics(batches: Iterable[tuple[NDArray[np.bool_], NDArray[np.float32]]]) -> MarginStatistics:
    """One pass over the margins of one example block.

    Args:
        batches: masks (num_batch, d) bool and margins (num_batch, n) float32, in mask order.

    Raises:
        NonFiniteMarginError: a margin is NaN or infinite.
        MissingWorkError: there are no masks.
    """
    cross = sums = squares = None
    position = 0
    for masks, margins in batches:
        y = torch.from_numpy(margins).double()
        if not torch.isfinite(y).all():
            row, column = (int(i) for i in torch.nonzero(~torch.isfinite(y))[0])
            raise NonFiniteMarginError(
                f"the margin of mask {position + row} and example {column} of the block is {float(y[row, column])}."
            )
        product = (torch.from_numpy(masks).double().T @ y).numpy()
        batch_sums, batch_squares = y.sum(dim=0).numpy(), (y * y).sum(dim=0).numpy()
        cross = product if cross is None else cross + product
        sums = batch_sums if sums is None else sums + batch_sums
        squares = batch_squares if squares is None else squares + batch_squares
        position += len(masks)
    if cross is None or sums is None or squares is None:
        raise MissingWorkError("a regression needs at least 2 masks, but there are none.")
    return MarginStatistics(cross, sums, squares)
