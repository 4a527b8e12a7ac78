"""What a regression sees: the margins of one example block, of the train design and of passes with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression.factor import PackedMasks
from coar_dist.regression.statistics import MASKS_PER_BATCH, DesignStatistics, MarginBatches, MarginStatistics
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore


@dataclass(frozen=True)
class Observations:
    """The margins of several designs, one after the other: first those of passes with gradients, if there are any.

    Attributes:
        store: of the train design.
        gradients: one per example block; empty without gradients.
    """

    store: MarginStore
    gradients: tuple[GradientStore, ...] = ()

    @property
    def num_gradient_masks(self) -> int:
        """Masks of passes with gradients."""
        return self.gradients[0].num_masks if self.gradients else 0

    @property
    def num_masks(self) -> int:
        """All masks."""
        return self.num_gradient_masks + self.store.num_masks

    def mask_batches(self) -> Iterator[NDArray[np.bool_]]:
        """All masks, in order, in batches (num_batch, num_components)."""
        if self.gradients:
            yield self.gradients[0].masks()
        for masks, _ in self.store.read(None, MASKS_PER_BATCH):
            yield masks

    def packed_masks(self) -> PackedMasks:
        """All masks, one bit each."""
        bits = [np.packbits(masks, axis=1, bitorder="little") for masks in self.mask_batches()]
        return PackedMasks(np.concatenate(bits), self.store.num_components)

    def of_block(self, block: tuple[int, int]) -> BlockMargins:
        """The margins of one of the store's example blocks."""
        own = [gradients for gradients in self.gradients if gradients.block == block]
        return BlockMargins(block, self.store, own[0] if own else None)


class BlockMargins:
    """The margins of one example block, or what a prior mean of the weights leaves of them.

    Args:
        block: (first example, end).
        store: of the train design.
        gradients: of the block; None without gradients.
        prior_mean: (n, num_components) float32 weights whose predictions are subtracted; None subtracts nothing.
    """

    def __init__(
        self,
        block: tuple[int, int],
        store: MarginStore,
        gradients: GradientStore | None,
        prior_mean: NDArray[np.float32] | None = None,
    ) -> None:
        self.block = block
        self.prior_mean = prior_mean
        self._store, self._gradients = store, gradients
        self._squares: NDArray[np.float64] | None = None

    def without(self, prior_mean: NDArray[np.float32]) -> BlockMargins:
        """The same margins less what weights (n, num_components) predict."""
        return BlockMargins(self.block, self._store, self._gradients, prior_mean)

    def read(self, start: int, stop: int) -> MarginBatches:
        """Masks start .. stop - 1 and margins (num_batch, n) float32, in mask order, in batches.

        With gradients or a prior mean, ``start .. stop`` must be all masks.
        """
        if self._gradients is None and self.prior_mean is None:
            return self._store.read(self.block, MASKS_PER_BATCH, (start, stop))
        return self._residuals()

    def _all(self) -> MarginBatches:
        if self._gradients is not None:
            yield from self._gradients.read_margins()
        yield from self._store.read(self.block, MASKS_PER_BATCH)

    def _residuals(self) -> MarginBatches:
        if self.prior_mean is None:
            yield from self._all()
            return
        mean = torch.from_numpy(self.prior_mean).double().T
        shift: NDArray[np.float64] | None = None
        sums: NDArray[np.float64] = np.zeros((2, len(self.prior_mean)))
        count = 0
        for masks, margins in self._all():
            shift = margins[0].astype(np.float64) if shift is None else shift
            moved = margins - shift
            sums += [moved.sum(axis=0), (moved * moved).sum(axis=0)]
            count += len(masks)
            predicted = torch.from_numpy(masks.view(np.uint8)).double() @ mean
            yield masks, (margins - predicted.numpy()).astype(np.float32)
        self._squares = np.maximum(sums[1] - sums[0] ** 2 / count, 0.0)

    def squares(self, statistics: MarginStatistics, design: DesignStatistics) -> torch.Tensor:
        """The margins' own centred sum of squares (n,) float64, after a whole ``read`` has made ``statistics``."""
        if self._squares is None:
            return torch.from_numpy(statistics.centred_squares(design))
        return torch.from_numpy(self._squares)
