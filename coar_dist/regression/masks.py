"""All masks of a design in memory, one bit each, and products with them that unpack a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.regression.statistics import DesignStatistics

_VALUES_AT_ONCE = 2**21
"""Unpacked, or of V squared, at a time; 16 MB in float64."""
_FEWEST_ROWS = 1024
"""Results have as many rows as there are examples in a block, however few masks there are, or small the rank."""


def components_at_once(num_rows: int) -> int:
    """Components of a block, of which each has so many values."""
    return max(_VALUES_AT_ONCE // max(num_rows, _FEWEST_ROWS), 1)


def unpacked(bits: torch.Tensor, num_components: int) -> torch.Tensor:
    """0/1 (m, d) uint8 of packed ones (m, ceil(d / 8)) uint8, least significant bit first, where these are."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return bits.unsqueeze(2).bitwise_right_shift(places).bitwise_and_(1).flatten(1)[:, :num_components]


@dataclass(frozen=True)
class PackedMasks:
    """All masks of a design, or some of them.

    Attributes:
        bits: (m, ceil(d / 8)) uint8, least significant bit first.
        num_components: d.
    """

    bits: NDArray[np.uint8]
    num_components: int

    @property
    def num_masks(self) -> int:
        """m."""
        return len(self.bits)

    def part(self, start: int, stop: int) -> PackedMasks:
        """Masks ``start .. stop - 1``, without a copy."""
        return PackedMasks(self.bits[start:stop], self.num_components)

    def columns(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Blocks of components: their slice, and 0/1 (m, block length) uint8."""
        step = max(components_at_once(len(self.bits)) // 8, 1) * 8
        for start in range(0, self.num_components, step):
            stop = min(start + step, self.num_components)
            packed = self.bits[:, start // 8 : -(-stop // 8)]
            yield slice(start, stop), np.unpackbits(packed, axis=1, count=stop - start, bitorder="little")

    def __len__(self) -> int:
        return len(self.bits)

    def on(self, device: str) -> torch.Tensor:
        """0/1 (m, d) uint8, unpacked on the device."""
        if torch.device(device).type == "cpu":
            return torch.from_numpy(np.unpackbits(self.bits, axis=1, count=self.num_components, bitorder="little"))
        return unpacked(torch.from_numpy(self.bits).to(device), self.num_components)

    def parts(self, num_rows: int) -> Iterator[PackedMasks]:
        """Batches of so many masks, without a copy."""
        for start in range(0, len(self.bits), num_rows):
            yield self.part(start, start + num_rows)

    def rows(self, num_rows: int) -> Iterator[NDArray[np.bool_]]:
        """Batches of masks (num_batch, d)."""
        for start in range(0, len(self.bits), num_rows):
            yield np.unpackbits(
                self.bits[start : start + num_rows], axis=1, count=self.num_components, bitorder="little"
            ).view(np.bool_)

    def times(self, values: torch.Tensor) -> torch.Tensor:
        """X times (d, k) values of any float type: (m, k) float64, on their device."""
        product = torch.zeros(len(self.bits), values.shape[1], dtype=torch.float64, device=values.device)
        for columns, bits in self.columns():
            product.addmm_(torch.from_numpy(bits).to(values.device).double(), values[columns].double())
        return product

    @property
    def design(self) -> DesignStatistics:
        """How often each component was kept."""
        kept = np.zeros(self.num_components)
        for batch in self.rows(max(_VALUES_AT_ONCE // self.num_components, 1)):
            kept += batch.sum(axis=0, dtype=np.float64)
        return DesignStatistics(len(self.bits), kept)
