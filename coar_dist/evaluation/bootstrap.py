"""Means over examples with bootstrap confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_NUM_RESAMPLES = 2000
_SEED = 0
_COUNTS_AT_ONCE = 2**21


@dataclass(frozen=True)
class Means:
    """Means of columns over the examples for which they are defined.

    Attributes:
        mean: (k,) float64; NaN where nothing is defined.
        low: (k,), lower end of the interval; NaN where fewer than 2 examples are defined.
        high: (k,), upper end.
        num_defined: (k,) examples.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    num_defined: NDArray[np.int64]

    def split(self, num_parts: int) -> list[Means]:
        """The means of as many equal parts of the columns, in order."""
        columns = np.split(np.arange(len(self.mean)), num_parts)
        return [Means(self.mean[at], self.low[at], self.high[at], self.num_defined[at]) for at in columns]


def means_of(values: NDArray[np.float64]) -> Means:
    """Mean of each column with its 95% percentile bootstrap interval over examples (Efron & Tibshirani 1993, ch. 13).

    What it covers: which examples were drawn. If the examples are a random sample of a population, the population's
    mean under these very masks lies in about 95% of such intervals; somewhat fewer for less than some 20 examples. What
    it does not: other training masks, other held-out masks (an example's own correlation varies by about
    (1 - r**2) / sqrt(num_masks), most of which averages out over examples, but not what the examples share), another
    training of the model, examples that resemble each other.

    Args:
        values: (num_examples, k) float64, NaN = undefined; all columns share the resamples.
    """
    num_defined = np.isfinite(values).sum(axis=0)
    low, high = interval(resampled_means(values))
    low, high = (np.where(num_defined >= 2, end, np.nan) for end in (low, high))
    return Means(_mean(values), low, high, num_defined)


def interval(resamples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends of the middle 95% of each column, (k,) each; NaN for a column without any value."""
    tail = (1.0 - LEVEL) / 2
    ends = np.full((2, resamples.shape[1]), np.nan)
    known = np.isfinite(resamples).any(axis=0)
    if known.any():
        ends[:, known] = np.nanquantile(resamples[:, known], [tail, 1.0 - tail], axis=0)
    return ends[0], ends[1]


def resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of (num_examples, k) columns over examples drawn with replacement: (num_resamples, k) float64.

    Resample i is a function of i and the number of examples alone. Memory is bounded by blocks of resamples.
    """
    num_examples = len(values)
    defined = np.isfinite(values)
    filled, weight = np.where(defined, values, 0.0), defined.astype(np.float64)
    at_once = max(_COUNTS_AT_ONCE // max(num_examples, 1), 1)
    means = np.full((_NUM_RESAMPLES, values.shape[1]), np.nan)
    for start in range(0, _NUM_RESAMPLES, at_once):
        rows = range(start, min(start + at_once, _NUM_RESAMPLES))
        counts = np.stack([_counts(i, num_examples) for i in rows])
        totals = counts @ weight
        np.divide(counts @ filled, totals, out=means[rows.start : rows.stop], where=totals > 0)
    return means


def _counts(resample: int, num_examples: int) -> NDArray[np.float64]:
    """How often each example is drawn."""
    random = np.random.Generator(np.random.Philox(key=[_SEED, resample]))
    drawn = random.integers(0, num_examples, num_examples)
    return np.asarray(np.bincount(drawn, minlength=num_examples), dtype=np.float64)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = np.isfinite(values)
    totals, counts = np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0)
    return np.asarray(np.divide(totals, counts, out=np.full(values.shape[1], np.nan), where=counts > 0))
