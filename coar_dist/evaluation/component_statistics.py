"""Statistics of every component's weights over examples, gathered block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coar_dist.store.component_statistics import ComponentStatistics

_VALUES_AT_ONCE = 2**19
"""Weights whose absolute values are in memory beside the block: as many as a core's cache holds."""
_ROWS_AT_ONCE = 64
"""Whose sums are float32: more rows would cost digits."""
Floats = NDArray[np.float64]
Weights = NDArray[np.float32]


@dataclass
class ComponentSums:
    """Sums over some examples; all arrays are (num_components,).

    Attributes:
        num: examples.
        sums, absolutes: float64, of weights and of their absolute values.
        squares: float64, of the weights' distances from their mean.
        lowest, highest: float32; ``lowest_example``, ``highest_example`` int64, the first examples that have them.
    """

    num: int
    sums: Floats
    absolutes: Floats
    squares: Floats
    lowest: Weights
    lowest_example: NDArray[np.int64]
    highest: Weights
    highest_example: NDArray[np.int64]

    @classmethod
    def of(cls, example_ids: NDArray[np.int64], weights: Weights) -> ComponentSums:
        """Of (n, num_components) weights of some examples with rising ids, n at least 1."""
        first, first_example = weights[0], np.full(weights.shape[1], example_ids[0])
        centre = weights[:_ROWS_AT_ONCE].mean(axis=0)
        sums, absolutes, squares = np.zeros((3, weights.shape[1]))
        lowest, highest = (first.copy(), first_example), (first.copy(), first_example.copy())
        found = cls(len(weights), sums, absolutes, squares, *lowest, *highest)
        for rows, some in _in_chunks(weights):
            distances = some - centre  # a common offset costs no digits of the spread
            found.sums += distances.sum(axis=0)
            found.squares += np.einsum("ij,ij->j", distances, distances)
            found.absolutes += np.abs(some).sum(axis=0)
            found._extend(example_ids[rows], some)
        found.squares -= found.sums**2 / found.num
        found.sums += found.num * centre.astype(np.float64)
        return found

    def _extend(self, example_ids: NDArray[np.int64], some: Weights) -> None:
        for best, is_better, known, known_at in (
            (np.argmin, some.min(axis=0) < self.lowest, self.lowest, self.lowest_example),
            (np.argmax, some.max(axis=0) > self.highest, self.highest, self.highest_example),
        ):
            columns = np.flatnonzero(is_better)
            if columns.size:
                at = best(some[:, columns], axis=0)
                known[columns], known_at[columns] = some[at, columns], example_ids[at]

    def add(self, later: ComponentSums) -> None:
        """Add those of examples with larger ids. Squares are added as in Chan, Golub, LeVeque, "Updating formulae and a
        pairwise algorithm for computing sample variances", 1979, equation 2.1."""
        between = later.sums / later.num - self.sums / self.num
        self.squares += later.squares + between**2 * (self.num * later.num / (self.num + later.num))
        self.num += later.num
        self.sums += later.sums
        self.absolutes += later.absolutes
        lower, higher = later.lowest < self.lowest, later.highest > self.highest
        self.lowest[lower], self.lowest_example[lower] = later.lowest[lower], later.lowest_example[lower]
        self.highest[higher], self.highest_example[higher] = later.highest[higher], later.highest_example[higher]

    def statistics(self) -> ComponentStatistics:
        """Of all examples that were added."""
        nothing = np.full(len(self.sums), np.nan)
        return ComponentStatistics(
            self.sums / self.num,
            self.absolutes / self.num,
            np.sqrt(np.maximum(self.squares, 0.0) / (self.num - 1)) if self.num > 1 else nothing,
            self.lowest,
            self.lowest_example,
            self.highest,
            self.highest_example,
        )


def layer_shares(weights: Weights, offsets: NDArray[np.int64]) -> Weights:
    """How ``sum |weight|`` of each example is shared among groups of components.

    Args:
        weights: (n, num_components).
        offsets: (num_groups + 1,) where each group begins, and the last ends.

    Returns:
        (n, num_groups) float32; NaN for an example whose weights are all 0.
    """
    sums = np.empty((len(weights), len(offsets) - 1))
    for rows, some in _in_chunks(weights):
        sums[rows] = np.add.reduceat(np.abs(some), offsets[:-1], axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / sums.sum(axis=1, keepdims=True), dtype=np.float32)


def _in_chunks(weights: Weights) -> Iterator[tuple[slice, Weights]]:
    step = min(max(_VALUES_AT_ONCE // max(weights.shape[1], 1), 1), _ROWS_AT_ONCE)
    for start in range(0, len(weights), step):
        yield slice(start, start + step), weights[start : start + step]
