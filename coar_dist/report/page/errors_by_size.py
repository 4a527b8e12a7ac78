"""How far off predictions of ablations are, by how much they ablate: from held-out masks of all shown examples.

A few strong components make errors as large as many weak ones, so that neither their number nor their share tells the
error; the sizes of their weights, summed, do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHARES = (*np.linspace(0.0, 0.95, 20).tolist(), 0.98, 0.995, 1.0)
"""Edges of the bins among the sizes, finer where they are largest, as errors grow fastest there."""
_FEWEST = 50
"""Values of a bin."""
_SHRINKAGE = 100
"""Values of the mean example that each example's scale is a mean with."""


@dataclass(frozen=True)
class ErrorsBySize:
    """Root mean square errors of predictions.

    Attributes:
        sizes: (num_points,) float64, rising: sums of the absolute weights of what is ablated; nothing larger was
            measured often enough.
        errors: (num_points,) float64, at these, of the mean example; linear between them.
        scales: (n,) float64, those of each example in these.
    """

    sizes: NDArray[np.float64]
    errors: NDArray[np.float64]
    scales: NDArray[np.float64]

    @classmethod
    def of(
        cls, sizes: Sequence[NDArray[np.float64]], errors: Sequence[NDArray[np.float64]], of_whole: NDArray[np.float64]
    ) -> ErrorsBySize:
        """Measure them.

        Args:
            sizes: of each design (n, num_masks) sums of the absolute weights of what the masks ablate.
            errors: of each design (n, num_masks), predicted less true outputs.
            of_whole: (n,) the same with nothing ablated; NaN where it is not known.

        Example:
            >>> sizes = np.linspace(0.0, 8.0, 400).reshape(4, 100)
            >>> found = ErrorsBySize.of([sizes], [0.5 * sizes], np.zeros(4))
            >>> round(float(np.interp(6.0, found.sizes, found.errors)), 1)
            3.0
        """
        of_size = np.maximum(np.concatenate(sizes, axis=1), 0.0)  # sums of nothing are rounded
        squares = np.square(np.concatenate(errors, axis=1))
        edges = _edges(of_size)
        bins = np.searchsorted(edges[1:-1], of_size, side="right")
        counts = np.bincount(bins.reshape(-1), minlength=len(edges) - 1)
        filled, num_values = np.flatnonzero(counts), max(of_size.shape[1], 1)

        def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(bins.reshape(-1), values.reshape(-1), len(edges) - 1)[filled] / counts[filled]

        places = np.searchsorted(filled, bins)
        expected = mean(squares)[places]
        ratios = np.divide(squares, expected, out=np.zeros_like(squares), where=expected > 0).mean(axis=1)
        scales = np.sqrt((num_values * ratios + _SHRINKAGE) / (num_values + _SHRINKAGE))
        points = [mean(of_size), np.sqrt(mean(squares / np.square(scales)[:, None]))]
        known = np.isfinite(of_whole)
        if points[0][0] > 0 and known.any():
            whole = np.sqrt(np.square(of_whole[known] / scales[known]).mean())
            points = [np.concatenate([[first], values]) for first, values in zip((0.0, whole), points, strict=True)]
        return cls(points[0], points[1], scales)


def _edges(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of as many bins as the sizes fill."""
    num = max(sizes.size // _FEWEST, 1)
    shares = _SHARES if num >= 200 else np.linspace(0.0, 1.0, min(num, 20) + 1)
    return np.unique(np.quantile(sizes, shares)) if np.ptp(sizes) > 0 else np.array([0.0, sizes.max(initial=0.0) + 1.0])
