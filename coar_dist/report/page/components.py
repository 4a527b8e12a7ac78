"""What the page says of the strongest components: the examples they matter most for, the spread of their weights, their
means by group, and which are alike. From the attributions, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.report.numbers import Z95
from coar_dist.report.page.groupings import Grouping
from coar_dist.store.component_statistics import ComponentStatistics

MAX_COMPONENTS = 2400
"""Components with a row of the table and a page of their own."""
MAX_COMPARED = 1024
"""Components that are compared with each other."""
GALLERY = 5
"""Examples that a component raises most, and as many that it lowers most."""
NUM_SIMILAR = 6
NUM_BINS = 24
_MOST_MEANS = 2 * 10**7
"""Means by component and group that are in memory at once."""


@dataclass(frozen=True)
class ShownComponents:
    """The strongest components of a run; all arrays have a row for each, the strongest first.

    Attributes:
        ids: (n,) int64, component ids.
        mean: (n,) float64, mean weights over all examples.
        strength: (n,) mean absolute weights.
        spread: (n,) standard deviations over examples.
        standard_errors: (n,) root mean square standard errors of the weights, of a fit with them; else None.
        raised, lowered: (n, 5) int64, the examples with the largest weights, falling, and with the smallest, rising.
        raised_by, lowered_by: (n, 5) float32, their weights; 0 where there is no such example.
        edges: (n, 2) float64, the smallest and the largest weight.
        histogram: (n, 24) int64, examples by weight, in equal bins between the edges.
        by_group: for every grouping (n, num_groups) float64 mean weights, NaN of groups without examples; None where
            the groups are too many.
        halves: for every grouping (n, num_groups) float64, half of the 95% interval of these means, over the examples
            of the group; NaN of groups with fewer than two.
        similar: (m, 6) int64, the rows of the components with the largest absolute cosines, for the strongest m.
        cosines: (m, 6) float64, of their weights over all examples.
    """

    ids: NDArray[np.int64]
    mean: NDArray[np.float64]
    strength: NDArray[np.float64]
    spread: NDArray[np.float64]
    standard_errors: NDArray[np.float64] | None
    raised: NDArray[np.int64]
    raised_by: NDArray[np.float32]
    lowered: NDArray[np.int64]
    lowered_by: NDArray[np.float32]
    edges: NDArray[np.float64]
    histogram: NDArray[np.int64]
    by_group: list[NDArray[np.float64] | None]
    halves: list[NDArray[np.float64] | None]
    similar: NDArray[np.int64]
    cosines: NDArray[np.float64]

    def first(self, num: int) -> ShownComponents:
        """The strongest ``num``, all of those that are compared among them."""
        of_each = (
            "ids",
            "mean",
            "strength",
            "spread",
            "raised",
            "raised_by",
            "lowered",
            "lowered_by",
            "edges",
            "histogram",
        )
        return replace(
            self,
            **{name: getattr(self, name)[:num] for name in of_each},
            standard_errors=None if self.standard_errors is None else self.standard_errors[:num],
            by_group=[None if means is None else means[:num] for means in self.by_group],
            halves=[None if halves is None else halves[:num] for halves in self.halves],
        )


class ComponentDetails:
    """Gathers ``ShownComponents`` block by block.

    Args:
        statistics: of all components.
        groupings: of the examples.
    """

    def __init__(self, statistics: ComponentStatistics, groupings: Sequence[Grouping]) -> None:
        self._statistics = statistics
        self.ids = statistics.strongest(MAX_COMPONENTS)
        n = len(self.ids)
        self._low = statistics.lowest[self.ids].astype(np.float64)
        self._width = statistics.highest[self.ids] - self._low
        self._histogram = np.zeros((n, NUM_BINS), np.int64)
        self._raised, self._lowered = Extremes(n), Extremes(n)
        self._groupings = [grouping if len(grouping.values) * n <= _MOST_MEANS else None for grouping in groupings]
        self._sums = [
            None if grouping is None else np.zeros((2, len(grouping.values), n)) for grouping in self._groupings
        ]  # of the weights and of their squares
        self._compared = min(n, MAX_COMPARED)
        self._gram = np.zeros((self._compared, self._compared))
        self._error_squares, self._num_errors = np.zeros(n), 0

    def add(self, example_ids: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add (n, num_components) weights of some examples; returns those of the shown components."""
        shown = weights[:, self.ids]
        columns = np.ascontiguousarray(shown.T)
        self._raised.add(example_ids, columns)
        self._lowered.add(example_ids, -columns)
        scale = np.divide(NUM_BINS, self._width, out=np.zeros(len(self.ids)), where=self._width > 0)
        bins = ((columns - self._low[:, None]) * scale[:, None]).astype(np.int64).clip(0, NUM_BINS - 1)
        bins += NUM_BINS * np.arange(len(self.ids))[:, None]
        self._histogram += np.bincount(bins.reshape(-1), minlength=self._histogram.size).reshape(-1, NUM_BINS)
        compared = shown[:, : self._compared]
        self._gram += compared.T @ compared
        for grouping, sums in zip(self._groupings, self._sums, strict=True):
            if grouping is not None and sums is not None:
                for part, values in zip(sums, (shown, np.square(shown)), strict=True):
                    groups, of_block = grouping.sums(example_ids, values)
                    part[groups] += of_block
        return shown

    def add_errors(self, errors: NDArray[np.float32]) -> None:
        """Add (n, num_components) standard errors of the weights of some examples."""
        self._error_squares += np.square(errors[:, self.ids], dtype=np.float64).sum(axis=0)
        self._num_errors += len(errors)

    def result(self) -> ShownComponents:
        """What was gathered, once all examples are added."""
        by_group: list[NDArray[np.float64] | None] = []
        halves: list[NDArray[np.float64] | None] = []
        for grouping, sums in zip(self._groupings, self._sums, strict=True):
            if grouping is None or sums is None:
                by_group.append(None)
                halves.append(None)
            else:
                counts = grouping.counts[:, None].astype(np.float64)
                with np.errstate(invalid="ignore", divide="ignore"):
                    means, squares = sums / counts
                    of_mean = np.maximum(squares - np.square(means), 0.0) / np.where(counts > 1, counts - 1, np.nan)
                by_group.append(means.T)
                halves.append(Z95 * np.sqrt(of_mean).T)
        are_known = self._num_errors > 0 and bool(np.isfinite(self._error_squares).any())
        similar, cosines = _most_similar(self._gram)
        return ShownComponents(
            self.ids,
            self._statistics.mean[self.ids],
            self._statistics.mean_absolute[self.ids],
            self._statistics.spread[self.ids],
            np.sqrt(self._error_squares / self._num_errors) if are_known else None,
            *self._raised.result(1.0),
            *self._lowered.result(-1.0),
            np.stack([self._low, self._low + self._width], axis=1),
            self._histogram,
            by_group,
            halves,
            similar,
            cosines,
        )


class Extremes:
    """Per row the columns with the largest values above 0, over blocks of columns."""

    def __init__(self, num_rows: int) -> None:
        self._values = np.zeros((num_rows, GALLERY), np.float32)
        self._ids = np.zeros((num_rows, GALLERY), np.int64)

    def add(self, ids: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Add (num_rows, n) values of n columns with these ids, which rise from block to block."""
        rows = np.flatnonzero(values.max(axis=1) > self._values[:, -1])  # few after some blocks
        values, num = values[rows], min(GALLERY, values.shape[1])
        at = np.argpartition(-values, num - 1, axis=1)[:, :num]
        candidates = np.concatenate([self._values[rows], np.take_along_axis(values, at, axis=1)], axis=1)
        of_candidates = np.concatenate([self._ids[rows], ids[at]], axis=1)
        order = np.lexsort((of_candidates, -candidates), axis=1)[:, :GALLERY]
        self._values[rows] = np.take_along_axis(candidates, order, axis=1)
        self._ids[rows] = np.take_along_axis(of_candidates, order, axis=1)

    def result(self, sign: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and values times ``sign``, the largest first; a value of 0 is none."""
        values = np.maximum(self._values, 0.0)
        return self._ids, np.asarray(sign * values, dtype=np.float32)


def _most_similar(gram: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each row the others with the largest absolute cosines, falling, and these cosines."""
    num = min(NUM_SIMILAR, len(gram) - 1)
    if num < 1:
        return np.empty((len(gram), 0), np.int64), np.empty((len(gram), 0))
    lengths = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.nan_to_num(gram / lengths / lengths[:, None])
    np.fill_diagonal(cosines, 0.0)
    rank = np.abs(cosines)
    np.fill_diagonal(rank, -1.0)
    order = np.argsort(-rank, axis=1, kind="stable")[:, :num]
    return order, np.take_along_axis(cosines, order, axis=1)


def strongest_groups(means: NDArray[np.float64], num: int) -> NDArray[np.int64]:
    """(n, 2 num) int64: per component the groups with the largest mean weights, falling, then the smallest, rising."""
    order = np.argsort(-np.nan_to_num(means, nan=0.0), axis=1, kind="stable")
    return np.asarray(np.concatenate([order[:, :num], order[:, -num:][:, ::-1]], axis=1))


def clustered(values: NDArray[Any]) -> tuple[list[int], list[int]]:
    """An order of rows and one of columns that brings together what is alike: hierarchical clustering by the mean
    linkage, its leaves ordered so that neighbours are closest (Bar-Joseph, Gifford, Jaakkola, "Fast optimal leaf
    ordering for hierarchical clustering", Bioinformatics 2001).

    Args:
        values: (num_rows, num_columns) finite.

    Example:
        >>> clustered(np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.0]]))[0]
        [1, 0, 2]
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import pdist

    def order(rows: NDArray[Any]) -> list[int]:
        if len(rows) < 3:
            return list(range(len(rows)))
        distances = pdist(rows)
        leaves: list[int] = leaves_list(optimal_leaf_ordering(linkage(distances, "average"), distances)).tolist()
        return leaves

    return order(values), order(values.T)
