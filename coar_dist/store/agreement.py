"""How well predicted margins agree with true ones: the numbers that an evaluation table holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = ("correlation", "spearman", "r2", "slope", "intercept")
"""What ``metrics_of`` computes, in the order of the table's columns."""
_EXAMPLES_AT_ONCE = 256
"""Columns whose float64 copies and ranks are in memory together."""
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Values that spread less than this share of the largest one are constant: margins are stored in float32."""


def metrics_of(predicted: NDArray[np.floating[Any]], true: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.float64]]:
    """Agreement of predicted and true margins over masks, one column per example, in float64.

    Args:
        predicted: (num_masks, n).
        true: (num_masks, n).

    Returns:
        For each name of ``METRICS`` (n,) float64, NaN where it is undefined: ``correlation`` (Pearson's) and
        ``spearman``, tied values having their mean rank, where either side is constant; ``r2``, 1 less the squared
        error of the predictions as they are over the true margins' variance, where the true margins are constant;
        ``slope`` and ``intercept`` of the true margins' least squares on the predicted ones (1 and 0 are perfectly
        calibrated), where the predictions are constant.
    """
    starts = range(0, predicted.shape[1], _EXAMPLES_AT_ONCE)
    parts = [_metrics_of(*(side[:, at : at + _EXAMPLES_AT_ONCE] for side in (predicted, true))) for at in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def correlation_of(predicted: NDArray[np.floating[Any]], true: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Pearson correlation (n,) float64 of the columns of (num_masks, n); NaN where either side is constant."""
    return _pearson(_Columns(predicted), _Columns(true))


class _Columns:
    """Columns around their means, which costs no digits where they have a large offset."""

    def __init__(self, values: NDArray[np.floating[Any]]) -> None:
        first = values[0].astype(np.float64)
        moved = values.astype(np.float64) - first
        self.is_constant = np.ptp(moved, axis=0) <= _ROUNDING * np.abs(values).max(axis=0)
        shift = moved.mean(axis=0)
        self.mean = first + shift
        self.centred = moved - shift
        self.squares = (self.centred**2).sum(axis=0)


def _metrics_of(
    predicted: NDArray[np.floating[Any]], true: NDArray[np.floating[Any]]
) -> dict[str, NDArray[np.float64]]:
    p, y = _Columns(predicted), _Columns(true)
    products = (p.centred * y.centred).sum(axis=0)
    slope = _ratio(products, p.squares, p.is_constant)
    errors = ((y.centred - p.centred) ** 2).sum(axis=0) + len(true) * (y.mean - p.mean) ** 2
    ranks = [_Columns(average_ranks(side)) for side in (predicted, true)]
    for of_ranks, of_values in zip(ranks, (p, y), strict=True):
        of_ranks.is_constant = of_values.is_constant
    return {
        "correlation": _pearson(p, y),
        "spearman": _pearson(*ranks),
        "r2": 1.0 - _ratio(errors, y.squares, y.is_constant),
        "slope": slope,
        "intercept": y.mean - slope * p.mean,
    }


def _pearson(first: _Columns, second: _Columns) -> NDArray[np.float64]:
    products = (first.centred * second.centred).sum(axis=0)
    undefined = first.is_constant | second.is_constant
    correlation = _ratio(products, np.sqrt(first.squares) * np.sqrt(second.squares), undefined)
    return np.asarray(np.clip(correlation, -1.0, 1.0))


def _ratio(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], undefined: NDArray[np.bool_]
) -> NDArray[np.float64]:
    return np.asarray(np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=~undefined))


def average_ranks(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Ranks of each column of (m, n) values, from 0; equal values share the mean of their ranks."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    changes = ordered[1:] != ordered[:-1]
    edge = np.ones((1, values.shape[1]), dtype=np.bool_)
    positions = np.arange(len(values))[:, None]
    first = np.maximum.accumulate(np.where(np.concatenate([edge, changes]), positions, 0))
    ends = np.where(np.concatenate([changes, edge]), positions, len(values))
    last = np.minimum.accumulate(ends[::-1])[::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=0)
    return ranks
