"""How much two sides agree, example by example and component by component, read in blocks of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.report.comparison.sides import Matching, Side
from coar_dist.report.notebook import has_standard_errors
from coar_dist.store.agreement import average_ranks, correlation_of
from coar_dist.store.run_directory import TRAIN_DESIGN

NUM_STRONGEST = 10
"""Components of an example whose overlap is told."""
NUM_LARGEST = 100
"""Differences that are told one by one."""
BEYOND = 1.96
"""Of |z|: 5% of differences are beyond it where there are none but errors."""
_MOST_VALUES = 2**21
"""Weights of one side that are compared at a time; as float64 and ranks they take some hundred MB."""
Floats = NDArray[np.float64]
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """What was found; NaN where it is undefined.

    Attributes:
        of_examples: (n,) float64 each, over the common components: ``spearman`` and ``pearson`` correlation of weights,
            undefined where either side has a constant or a weight that is not finite; ``top_10``, how many of the ten
            strongest components are the same; ``size_one`` and ``size_other``, root mean squares of weights;
            ``difference``, that of their differences; and, with standard errors on both sides, ``beyond``, the share of
            components whose difference is more than 1.96 standard errors.
        of_components: (num_common,) float64 each, over the examples whose weights are finite: ``mean_one``,
            ``mean_other``, ``mean_difference`` (one less the other), the ``spread`` of the differences, their standard
            deviation over examples, and ``pearson``, the correlation over examples; and, with standard errors on both
            sides, a ``standard_error`` that is at least that of the mean difference: as if the errors of all examples,
            which come from the same masks, were one.
        largest: the largest differences of single weights, the largest first; where both sides have standard errors,
            those with the largest |z|. ``example_id`` and ``component`` (its place among the common ones) int64,
            ``one``, ``other``, ``difference``, ``z``.
        num_strongest: of ``top_10``; fewer than ten where there are no more components.
    """

    of_examples: dict[str, Floats]
    of_components: dict[str, Floats]
    largest: dict[str, NDArray[np.int64] | Floats]
    num_strongest: int


def measure(one: Side, other: Side, matching: Matching, on_progress: Callable[[int], None] | None = None) -> Measured:
    """Compare all weights that two sides have in common.

    Args:
        one, other: the sides.
        matching: of them.
        on_progress: called with the number of examples that are done.

    Raises:
        MissingWorkError, DamagedFileError: attributions are missing or damaged.
    """
    ids, sides = matching.example_ids, (one, other)
    with_errors = all(has_standard_errors(side.reader, ids, side.method) for side in sides)
    num_common = matching.components.shape[1]
    num_strongest = min(NUM_STRONGEST, num_common)
    columns = ["spearman", "pearson", "top_10", "size_one", "size_other", "difference"]
    of_examples = {name: np.full(len(ids), np.nan) for name in [*columns, *(["beyond"] if with_errors else [])]}
    moments, largest = _Moments(num_common), _Largest()
    for rows in _blocks(one, other, ids):
        chosen, pairs = ids[rows].tolist(), list(zip(sides, matching.components, strict=True))
        weights = [_columns(side.reader.weights(chosen, side.method), own) for side, own in pairs]
        errors = [_columns(side.reader.standard_errors(chosen, side.method), own) for side, own in pairs if with_errors]
        is_known = np.isfinite(weights[0]).all(axis=1) & np.isfinite(weights[1]).all(axis=1)
        places = np.flatnonzero(is_known)
        step = max(_MOST_VALUES // num_common, 1)
        for part in (places[start : start + step] for start in range(0, len(places), step)):
            of_part, (first, second) = rows[part], (each[part] for each in weights)
            found = _of_examples(first, second, num_strongest)
            exact = first.astype(np.float64), second.astype(np.float64)
            z = both = None
            if errors:
                both = np.hypot(*(each[part].astype(np.float64) for each in errors))
                z = _ratio(exact[0] - exact[1], both)
                found["beyond"] = (np.abs(z) > BEYOND).mean(axis=1)
            for name, values in found.items():
                of_examples[name][of_part] = values
            moments.add(*exact, both)
            largest.add(ids[of_part], *exact, z)
        if on_progress is not None:
            on_progress(int(rows[-1]) + 1)
    return Measured(of_examples, moments.columns(), largest.columns(), num_strongest)


def _columns(values: Weights, places: NDArray[np.int64]) -> Weights:
    """Some columns; all of them without a copy."""
    return values if np.array_equal(places, np.arange(values.shape[1])) else values[:, places]


def _of_examples(first: Weights, second: Weights, num_strongest: int) -> dict[str, Floats]:
    """As of ``Measured``, of weights that are finite, (n, num_common)."""
    exact: dict[str, NDArray[Any]] = {
        "size_one": first,
        "size_other": second,
        "difference": first.astype(np.float64) - second,
    }
    return {
        "spearman": _rank_correlation(first, second),
        "pearson": correlation_of(first.T, second.T),
        "top_10": _overlap(first, second, num_strongest),
        **{
            name: np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64) / values.shape[1])
            for name, values in exact.items()
        },
    }


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.asarray(np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0))


def _blocks(one: Side, other: Side, ids: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of ``ids`` whose attributions are in one file of the side with the longer files."""
    blocks = max((side.reader.directory.margins(TRAIN_DESIGN).blocks for side in (one, other)), key=_length)
    for first, end in blocks:
        rows = np.flatnonzero((ids >= first) & (ids < end))
        if len(rows):
            yield rows


def _length(blocks: list[tuple[int, int]]) -> int:
    return blocks[0][1] - blocks[0][0]


def _rank_correlation(first: Weights, second: Weights) -> Floats:
    """Spearman's correlation (n,) of rows; NaN where one is constant."""
    ranks = np.empty((2, *first.shape), dtype=np.float32)  # whole numbers below 2**24
    has_ties = np.zeros(len(first), dtype=np.bool_)
    for values, of_side in zip((first, second), ranks, strict=True):
        order = np.argsort(values, axis=1)
        ordered = np.take_along_axis(values, order, axis=1)
        has_ties |= (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        np.put_along_axis(of_side, order, np.arange(values.shape[1], dtype=np.float32)[None], axis=1)
    num = first.shape[1]
    apart = np.square(ranks[0] - ranks[1], dtype=np.float64).sum(axis=1)
    found = 1.0 - 6.0 * apart / max(num * (num**2 - 1.0), 1.0)
    tied = np.flatnonzero(has_ties | (num == 1))
    if len(tied):
        found[tied] = correlation_of(average_ranks(first[tied].T), average_ranks(second[tied].T))
    return np.asarray(found)


def _overlap(first: Weights, second: Weights, num: int) -> Floats:
    """How many of the strongest ``num`` of each row are the same; what is 0 is not strong."""
    is_strong = []
    for values in (first, second):
        sizes = np.abs(values)
        least = np.partition(sizes, -num, axis=1)[:, -num, None]
        strong = (sizes >= least) & (sizes > 0)
        for row in np.flatnonzero(strong.sum(axis=1) > num):  # several are as strong as the last of them
            strong[row] = False
            strong[row, np.argsort(-sizes[row], kind="stable")[:num]] = True
        is_strong.append(strong)
    return np.asarray((is_strong[0] & is_strong[1]).sum(axis=1), dtype=np.float64)


class _Moments:
    """Means and central products over examples, which cost no digits where weights have a large offset (Chan, Golub and
    LeVeque 1983)."""

    def __init__(self, num_components: int) -> None:
        self._num = 0
        self._means = np.zeros((3, num_components))  # of one, of the other, of the difference
        self._squares = np.zeros((3, num_components))
        self._products = np.zeros(num_components)
        self._errors: Floats | None = None
        self._least, self._most = np.full((2, num_components), np.inf), np.full((2, num_components), -np.inf)

    def add(self, first: Floats, second: Floats, errors: Floats | None) -> None:
        """Examples, (n, num_components) each; ``errors`` are those of the differences."""
        if errors is not None:
            self._errors = errors.sum(axis=0) + (0.0 if self._errors is None else self._errors)
        n, before = len(first), self._num
        self._num += n
        values = np.stack([first, second, first - second])
        means = values.mean(axis=1)
        centred = values - means[:, None]
        shift = means - self._means
        weight = before * n / self._num
        self._squares += (centred**2).sum(axis=1) + shift**2 * weight
        self._products += (centred[0] * centred[1]).sum(axis=0) + shift[0] * shift[1] * weight
        self._means += shift * n / self._num
        self._least = np.minimum(self._least, values[:2].min(axis=1))
        self._most = np.maximum(self._most, values[:2].max(axis=1))

    def columns(self) -> dict[str, Floats]:
        """As of ``Measured``."""
        nothing = np.full(self._products.shape, np.nan)
        if not self._num:
            return dict.fromkeys(("mean_one", "mean_other", "mean_difference", "spread", "pearson"), nothing)
        varies = (self._most > self._least).all(axis=0)
        lengths = np.sqrt(self._squares[0]) * np.sqrt(self._squares[1])
        pearson = np.divide(self._products, lengths, out=nothing.copy(), where=varies & (lengths > 0))
        variance = self._squares[2] / (self._num - 1) if self._num > 1 else nothing
        return {
            "mean_one": self._means[0],
            "mean_other": self._means[1],
            "mean_difference": self._means[2],
            "spread": np.sqrt(variance),
            "pearson": np.clip(pearson, -1.0, 1.0),
            **({} if self._errors is None else {"standard_error": self._errors / self._num}),
        }


class _Largest:
    """The largest differences so far."""

    def __init__(self) -> None:
        self._ids = np.empty((2, 0), dtype=np.int64)
        self._values = np.empty((4, 0))
        self._keys = np.empty(0)

    def add(self, ids: NDArray[np.int64], first: Floats, second: Floats, z: Floats | None) -> None:
        """Of examples (n,) the weights and, where there are standard errors, z (n, num_components)."""
        difference = first - second
        keys = np.abs(difference if z is None else z).reshape(-1)
        z = np.full_like(first, np.nan) if z is None else z
        keys = np.where(np.isfinite(keys), keys, -1.0)
        places = np.argpartition(-keys, min(NUM_LARGEST, keys.size - 1))[:NUM_LARGEST]
        rows, columns = np.unravel_index(places, first.shape)
        values = [each.reshape(-1)[places] for each in (first, second, difference, z)]
        self._ids = np.concatenate([self._ids, [ids[rows], columns]], axis=1)
        self._values = np.concatenate([self._values, values], axis=1)
        self._keys = np.concatenate([self._keys, keys[places]])
        best = np.argsort(-self._keys, kind="stable")[:NUM_LARGEST]
        best = best[self._keys[best] > 0]
        self._ids, self._values, self._keys = self._ids[:, best], self._values[:, best], self._keys[best]

    def columns(self) -> dict[str, NDArray[np.int64] | Floats]:
        """As of ``Measured``."""
        names = ("one", "other", "difference", "z")
        return {
            "example_id": self._ids[0],
            "component": self._ids[1],
            **dict(zip(names, self._values, strict=True)),
        }
