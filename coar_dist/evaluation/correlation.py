"""Predicted margins beside the true ones on held-out masks, and the tables of how well they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from coar_dist.store.agreement import METRICS, metrics_of
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import AttributionTable, EvaluationTable

_MASKS_PER_BATCH = 1024


def predict(
    masks: NDArray[np.bool_], weights: NDArray[np.float32], intercepts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Predicted margins: those of the whole model less the weights of what is ablated.

    Written so, float32 products are of the few ablated components, and a large common offset costs no digits.

    Args:
        masks: (num_masks, num_components) bool, True = kept.
        weights: (n, num_components) float32.
        intercepts: (n,) float64.

    Returns:
        (num_masks, n) float64.
    """
    whole = intercepts + weights.sum(axis=1, dtype=np.float64)
    return np.asarray(whole - (~masks).astype(np.float32) @ weights.T)


def predictions_and_truth(
    store: MarginStore, block: tuple[int, int], weights: NDArray[np.float32], intercepts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Predicted and true margins (num_masks, n) of one example block under all masks of a design.

    Raises:
        MissingWorkError, DamagedFileError: margins are missing or damaged.
    """
    predicted, true = [], []
    for masks, margins in store.read(block, _MASKS_PER_BATCH):
        predicted.append(predict(masks, weights, intercepts))
        true.append(margins)
    return np.concatenate(predicted), np.concatenate(true)


def evaluate(run: RunDirectory, methods: Iterable[str], on_progress: Callable[[int], None]) -> bool:
    """Write one evaluation table for every method and held-out design, where it is not there already.

    Args:
        run: a run with fitted attributions and complete evaluation designs.
        methods: names of attribution tables.
        on_progress: called after every example block with the number of (method, design) pairs done.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: attributions or margins are missing.
    """
    computed = False
    num_done = 0
    for method in methods:
        attributions = AttributionTable(run, method)
        for name in run.held_out:
            store = run.margins(name)
            table = EvaluationTable(run, method, name)
            if not table.is_complete():
                table.set_aside_wrong()
                parts = []
                for block in store.blocks:
                    parts.append(metrics_of(*predictions_and_truth(store, block, *attributions.read(block))))
                    on_progress(num_done)
                table.write({name: np.concatenate([part[name] for part in parts]) for name in METRICS})
                computed = True
            num_done += 1
            on_progress(num_done)
    return computed
