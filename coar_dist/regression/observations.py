"""What a regression sees: the masks, read once, and the margins of one example block, of all designs together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.statistics import MASKS_PER_BATCH, MarginBatches
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore

_MASK_BYTES_PER_BATCH = 2**27
_FEWEST_MASKS_PER_BATCH = 64


class Margins(ABC):
    """The margins of some examples under all masks.

    Attributes:
        masks: all of them.
    """

    masks: PackedMasks

    @abstractmethod
    def parts(self, start: int, stop: int) -> Iterator[NDArray[np.floating[Any]]]:
        """Margins (num_batch, n) under masks ``start .. stop - 1``, in mask order, in batches."""

    def batches(self, start: int = 0, stop: int | None = None) -> MarginBatches:
        """Masks ``start .. stop - 1``, all by default, and margins (num_batch, n), in mask order, in batches."""
        position = start
        for margins in self.parts(start, self.masks.num_masks if stop is None else stop):
            yield self.masks.part(position, position + len(margins)), margins
            position += len(margins)

    def whole(self) -> NDArray[np.floating[Any]]:
        """All margins (m, n)."""
        return np.concatenate(list(self.parts(0, self.masks.num_masks)))

    def held(self) -> HeldMargins:
        """The same in memory, to be read more than once."""
        return HeldMargins(self.masks, self.whole())


class HeldMargins(Margins):
    """Margins in memory.

    Args:
        masks: all of them.
        margins: (m, n).
    """

    def __init__(self, masks: PackedMasks, margins: NDArray[np.floating[Any]]) -> None:
        self.masks, self._margins = masks, margins

    @override
    def parts(self, start: int, stop: int) -> Iterator[NDArray[np.floating[Any]]]:
        step = masks_per_batch(self.masks.num_components)
        for first in range(start, stop, step):
            yield self._margins[first : min(first + step, stop)]

    @override
    def whole(self) -> NDArray[np.floating[Any]]:
        return self._margins


class BlockMargins(Margins):
    """The stored margins of one example block.

    Args:
        block: (first example, end).
        masks: of the passes with gradients, then of the train design.
        store: of the train design.
        of_gradients: (num_gradient_masks, n) float32 margins of the passes with gradients; None without.
    """

    def __init__(
        self,
        block: tuple[int, int],
        masks: PackedMasks,
        store: MarginStore,
        of_gradients: NDArray[np.float32] | None = None,
    ) -> None:
        self.block, self.masks = block, masks
        self._store, self._first = store, of_gradients

    @override
    def parts(self, start: int, stop: int) -> Iterator[NDArray[np.floating[Any]]]:
        num_first, step = 0, masks_per_batch(self.masks.num_components)
        if self._first is not None:
            num_first = len(self._first)
            yield from HeldMargins(self.masks, self._first).parts(start, min(stop, num_first))
        if stop > num_first:
            yield from self._store.read_margins(self.block, step, (max(start - num_first, 0), stop - num_first))


class Residuals(Margins):
    """What weights leave of margins: y - x'w.

    Args:
        margins: of n examples.
        weights: (n, num_components) float32.
        device: where the products are computed, in float64.
    """

    def __init__(self, margins: Margins, weights: NDArray[np.float32], device: str) -> None:
        self.masks = margins.masks
        self._margins, self._weights = margins, torch.from_numpy(weights).to(device).T
        self._squares: NDArray[np.float64] | None = None
        self._mean: NDArray[np.float64] | None = None

    @override
    def parts(self, start: int, stop: int) -> Iterator[NDArray[np.floating[Any]]]:
        shift: NDArray[np.float64] | None = None
        sums: NDArray[np.float64] = np.zeros((2, self._weights.shape[1]))
        position = start
        for margins in self._margins.parts(start, stop):
            shift = margins[0].astype(np.float64) if shift is None else shift
            moved = margins - shift
            sums += [moved.sum(axis=0), (moved * moved).sum(axis=0)]
            predicted = self.masks.part(position, position + len(margins)).times(self._weights)
            yield margins - predicted.cpu().numpy()
            position += len(margins)
        number = max(position - start, 1)
        self._squares = np.maximum(sums[1] - sums[0] ** 2 / number, 0.0)
        self._mean = sums[0] / number if shift is None else shift + sums[0] / number

    def squares(self) -> NDArray[np.float64]:
        """The margins' own centred sum of squares (n,), after all have been read."""
        assert self._squares is not None
        return self._squares

    def mean(self) -> NDArray[np.float64]:
        """The margins' own mean (n,), after all have been read."""
        assert self._mean is not None
        return self._mean


class Chosen(Margins):
    """Margins that keep those of some masks as they are read.

    Args:
        margins: of n examples.
        rows: (k,) ascending, the masks whose margins are kept.
    """

    def __init__(self, margins: Margins, rows: NDArray[np.int64]) -> None:
        self.masks = margins.masks
        self._margins, self._rows = margins, rows
        self._kept: list[NDArray[np.floating[Any]]] = []

    @override
    def parts(self, start: int, stop: int) -> Iterator[NDArray[np.floating[Any]]]:
        self._kept, position = [], start
        for margins in self._margins.parts(start, stop):
            first, end = np.searchsorted(self._rows, [position, position + len(margins)])
            self._kept.append(margins[self._rows[first:end] - position])
            yield margins
            position += len(margins)

    def kept(self) -> NDArray[np.floating[Any]]:
        """Margins (k, n) under the chosen masks, after all have been read."""
        return np.concatenate(self._kept)


def masks_per_batch(num_components: int) -> int:
    """Masks of one batch; fewer where they are long."""
    return max(min(MASKS_PER_BATCH, _MASK_BYTES_PER_BATCH // num_components), _FEWEST_MASKS_PER_BATCH)


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

    def packed_masks(self) -> PackedMasks:
        """All masks, one bit each; of the margins nothing is read."""
        bits = [np.packbits(masks, axis=1, bitorder="little") for masks in self._mask_batches()]
        empty = np.empty((0, -(-self.store.num_components // 8)), np.uint8)
        return PackedMasks(np.concatenate([empty, *bits]), self.store.num_components)

    def _mask_batches(self) -> Iterator[NDArray[np.bool_]]:
        if self.gradients:
            yield self.gradients[0].masks()
        for masks, _ in self.store.read(None, masks_per_batch(self.store.num_components)):
            yield masks

    def of_block(
        self, block: tuple[int, int], masks: PackedMasks, of_gradients: NDArray[np.float32] | None = None
    ) -> BlockMargins:
        """The margins of one of the store's example blocks.

        Args:
            block: (first example, end).
            masks: of ``packed_masks``.
            of_gradients: (num_gradient_masks, n) margins of the passes with gradients, where they have been read.
        """
        for gradients in self.gradients:
            if gradients.block == block and of_gradients is None:
                of_gradients = np.concatenate([margins for _, margins in gradients.read_margins()])
        return BlockMargins(block, masks, self.store, of_gradients)
