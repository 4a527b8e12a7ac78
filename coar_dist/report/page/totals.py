"""What is known of every component after one reading of the attributions: sums over examples, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex
from coar_dist.report.page.groupings import Grouping
from coar_dist.report.page.layers import LayerShares

_VALUES_AT_ONCE = 2**19
"""Weights whose absolute values are in memory beside the block: as many as a core's cache holds."""


def in_chunks(weights: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Some rows of a block at a time."""
    step = max(_VALUES_AT_ONCE // max(weights.shape[1], 1), 1)
    for start in range(0, len(weights), step):
        yield slice(start, start + step), weights[start : start + step]


class Totals:
    """Sums of the weights of every component over examples, their extremes, and the shares of the layers.

    Args:
        components: of the run.
        groupings: of its examples.

    Attributes:
        num_examples: added so far.
        sums, squares, absolutes: (num_components,) float64 of weights, their squares, their absolute values.
        lowest, highest: (num_components,) float32.
        lowest_at, highest_at: (num_components,) int64, the examples that have them.
    """

    def __init__(self, components: ComponentIndex, groupings: Sequence[Grouping]) -> None:
        d = components.num_components
        self._components, self._groupings = components, groupings
        self.num_examples = 0
        self.sums, self.squares, self.absolutes = np.zeros((3, d))
        self.lowest, self.highest = np.full(d, np.inf, np.float32), np.full(d, -np.inf, np.float32)
        self.lowest_at, self.highest_at = np.zeros((2, d), np.int64)
        num_layers = len(components.groups)
        self._shares, self._num_shares = np.zeros(num_layers), 0
        self._by_group = [np.zeros((len(grouping.values), num_layers)) for grouping in groupings]
        self._nums = [np.zeros(len(grouping.values)) for grouping in groupings]

    def add(self, example_ids: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        """Add (n, num_components) weights of some examples."""
        firsts = self._components.offsets[:-1]
        by_layer = np.empty((len(weights), len(firsts)))
        for rows, some in in_chunks(weights):
            self.sums += some.sum(axis=0)
            self.squares += np.einsum("ij,ij->j", some, some)
            absolute = np.abs(some)
            self.absolutes += absolute.sum(axis=0)
            by_layer[rows] = np.add.reduceat(absolute, firsts, axis=1)
            self._extend(example_ids[rows], some)
        self.num_examples += len(weights)
        totals = by_layer.sum(axis=1)
        counted = totals > 0
        shares = by_layer[counted] / totals[counted, None]
        self._shares += shares.sum(axis=0)
        self._num_shares += len(shares)
        for grouping, sums, nums in zip(self._groupings, self._by_group, self._nums, strict=True):
            groups, of_block = grouping.sums(example_ids[counted], shares)
            sums[groups] += of_block
            codes = grouping.codes[example_ids[counted]]
            nums += np.bincount(codes[codes >= 0], minlength=len(nums))

    def _extend(self, example_ids: NDArray[np.int64], some: NDArray[np.float32]) -> None:
        lowest, highest = some.min(axis=0), some.max(axis=0)
        for found, known, known_at, best in (
            (np.flatnonzero(lowest < self.lowest), self.lowest, self.lowest_at, np.argmin),
            (np.flatnonzero(highest > self.highest), self.highest, self.highest_at, np.argmax),
        ):
            if found.size:
                columns = some[:, found]
                at = best(columns, axis=0)
                known[found] = columns[at, np.arange(found.size)]
                known_at[found] = example_ids[at]

    @property
    def mean(self) -> NDArray[np.float64]:
        """(num_components,) mean weights."""
        return np.asarray(self.sums / max(self.num_examples, 1))

    @property
    def strength(self) -> NDArray[np.float64]:
        """(num_components,) mean absolute weights, by which components are ranked."""
        return np.asarray(self.absolutes / max(self.num_examples, 1))

    @property
    def spread(self) -> NDArray[np.float64]:
        """(num_components,) standard deviations over examples; NaN of one example."""
        if self.num_examples < 2:
            return np.full(len(self.sums), np.nan)
        variance = (self.squares - self.num_examples * self.mean**2) / (self.num_examples - 1)
        return np.sqrt(np.maximum(variance, 0.0))

    def strongest(self, num: int) -> NDArray[np.int64]:
        """Ids of the ``num`` components with the largest mean absolute weights, falling; equal ones by their ids."""
        return np.argsort(-self.absolutes, kind="stable")[:num]

    def layers(self) -> LayerShares:
        """The shares of the layers."""
        groups = self._components.groups
        with np.errstate(invalid="ignore"):
            shares = self._shares / self._num_shares if self._num_shares else self._shares * np.nan
            by_group = [sums / nums[:, None] for sums, nums in zip(self._by_group, self._nums, strict=True)]
        return LayerShares(
            [group.parameter for group in groups],
            np.array([group.num_components for group in groups]),
            shares,
            list(self._groupings),
            by_group,
        )
