"""Predicted margins beside the true ones on held-out masks, and the tables of how well they agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from coar_dist.cluster.execution import Execute, in_this_process
from coar_dist.store.agreement import METRICS, metrics_of
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import AttributionTable, EvaluationTable

_MASKS_PER_BATCH = 1024
Block = tuple[int, int]
Metrics = dict[str, NDArray[np.float64]]


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


def evaluate(
    run: RunDirectory,
    methods: Iterable[str],
    on_progress: Callable[[int], None],
    execute: Execute = in_this_process,
) -> bool:
    """Write one evaluation table for every method and held-out design, where it is not there already.

    Args:
        run: a run with fitted attributions and complete evaluation designs.
        methods: names of attribution tables.
        on_progress: called after every example block with the number of (method, design) pairs done.
        execute: who runs the parts, one per example block and pair.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: attributions or margins are missing.
    """
    pairs = list(itertools.product(methods, run.held_out))
    missing = [pair for pair in pairs if not EvaluationTable(run, *pair).is_complete()]
    num_done = len(pairs) - len(missing)
    on_progress(num_done)
    found: dict[tuple[str, str], dict[Block, Metrics]] = {pair: {} for pair in missing}
    for method, name in missing:
        EvaluationTable(run, method, name).set_aside_wrong()
    items = [(pair, block) for pair in missing for block in run.margins(pair[1]).blocks]
    for pair, block, metrics in execute(_metrics_of_block, run, items):
        parts = found[pair]
        parts[block] = metrics
        blocks = run.margins(pair[1]).blocks
        if len(parts) == len(blocks):
            columns = {name: np.concatenate([parts[block][name] for block in blocks]) for name in METRICS}
            EvaluationTable(run, *pair).write(columns)
            del found[pair]
            num_done += 1
        on_progress(num_done)
    return bool(missing)


def _metrics_of_block(run: RunDirectory, item: tuple[tuple[str, str], Block]) -> tuple[tuple[str, str], Block, Metrics]:
    (method, name), block = item
    attributions = AttributionTable(run, method).read(block)
    return (method, name), block, metrics_of(*predictions_and_truth(run.margins(name), block, *attributions))
