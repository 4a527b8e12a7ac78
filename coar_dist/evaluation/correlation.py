"""Per-example correlation of predicted and true margins on held-out masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import AttributionTable, EvaluationTable

_MASKS_PER_BATCH = 1024


def pearson(
    batches: Iterable[tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]],
) -> NDArray[np.float64]:
    """Pearson correlation of each column, in one pass over batches of rows.

    Args:
        batches: pairs of (num_rows, num_columns) arrays. Sums are taken in float64 around the first row, so that a
            large common offset costs no digits.

    Returns:
        (num_columns,) float64; NaN where a column of either array is constant, so that the correlation is undefined.
    """
    shift: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    sums: NDArray[np.float64] = np.zeros((5, 0))
    count = 0
    for first, second in batches:
        a, b = first.astype(np.float64), second.astype(np.float64)
        if shift is None:
            shift = (a[0].copy(), b[0].copy())
            sums = np.zeros((5, a.shape[1]))
        a, b = a - shift[0], b - shift[1]
        sums += np.stack([a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0), (a * b).sum(0)])
        count += len(a)
    sum_a, sum_b, sum_aa, sum_bb, sum_ab = (np.asarray(row) for row in sums)
    variance_a, variance_b = sum_aa - sum_a**2 / count, sum_bb - sum_b**2 / count
    # What is left of a constant column is rounding, far below its summed squares.
    defined = (variance_a > 1e-12 * sum_aa) & (variance_b > 1e-12 * sum_bb)
    correlation = np.full(len(sum_a), np.nan)
    covariance = sum_ab - sum_a * sum_b / count
    correlation[defined] = covariance[defined] / np.sqrt(variance_a[defined] * variance_b[defined])
    return np.asarray(np.clip(correlation, -1.0, 1.0))


def evaluate(run: RunDirectory, methods: Iterable[str], on_progress: Callable[[int], None]) -> bool:
    """Write one evaluation table for every method and held-out design, where it is not there already.

    Args:
        run: a run with fitted attributions and complete evaluation designs.
        methods: names of attribution tables.
        on_progress: called with the number of (method, design) pairs done.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: attributions or margins are missing.
    """
    computed = False
    num_done = 0
    for method in methods:
        attributions = AttributionTable(run, method)
        for name, entry in run.designs.items():
            if entry.role != "evaluation":
                continue
            store = run.margins(name)
            table = EvaluationTable(run, method, name)
            if not table.is_complete():
                correlations = []
                for block in store.blocks:
                    weights, intercepts = attributions.read(block)
                    batches = (
                        (masks.astype(np.float32) @ weights.T + intercepts, margins)
                        for masks, margins in store.read(block, _MASKS_PER_BATCH)
                    )
                    correlations.append(pearson(batches))
                table.write(np.concatenate(correlations))
                computed = True
            num_done += 1
            on_progress(num_done)
    return computed
