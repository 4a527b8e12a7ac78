"""Predicted margins beside the true ones on held-out masks: the evaluation tables of each method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coar_dist.cluster.execution import Execute, in_this_process
from coar_dist.evaluation.component_statistics import ComponentSums, layer_shares
from coar_dist.store.agreement import METRICS, metrics_of
from coar_dist.store.component_statistics import StatisticsTable
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

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
    """Write the evaluation tables of every method, one for each held-out design, and the statistics of its components,
    where they are not there already. The attributions of a block are read once for all of them.

    Args:
        run: a run with fitted attributions and complete evaluation designs.
        methods: names of attribution tables.
        on_progress: called after every example block with the number of (method, block) pairs done.
        execute: who runs the parts, one per method and example block.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: attributions or margins are missing.
    """
    blocks, num_done = run.margins(TRAIN_DESIGN).blocks, 0
    tables: dict[str, _Tables] = {}
    for method in methods:
        found = _Tables(run, method, blocks)
        if found.are_complete:
            num_done += len(blocks)
        else:
            tables[method] = found
    on_progress(num_done)
    items = [(found.wanted, block) for found in tables.values() for block in blocks]
    for part in execute(_part, run, items):
        tables[part.method].add(part)
        num_done += 1
        on_progress(num_done)
    return bool(tables)


class _Wanted(NamedTuple):
    """What is not there yet of one method: the tables of some held-out designs, the statistics of its components."""

    method: str
    designs: tuple[str, ...]
    statistics: bool


class _Part(NamedTuple):
    """Of one example block; ``sums`` and ``shares`` where statistics are wanted."""

    method: str
    block: Block
    metrics: dict[str, Metrics]
    sums: ComponentSums | None
    shares: NDArray[np.float32] | None


def _part(run: RunDirectory, item: tuple[_Wanted, Block]) -> _Part:
    (method, designs, has_statistics), block = item
    weights, intercepts = AttributionTable(run, method).read(block)
    metrics = {
        name: metrics_of(*predictions_and_truth(run.margins(name), block, weights, intercepts)) for name in designs
    }
    sums = ComponentSums.of(np.arange(*block), weights) if has_statistics else None
    shares = layer_shares(weights, run.components.offsets) if has_statistics else None
    return _Part(method, block, metrics, sums, shares)


class _Tables:
    """The tables of one method while their parts come in, in any order; written once all are there.

    Args:
        run: evaluated.
        method: whose attributions.
        blocks: all example blocks.
    """

    def __init__(self, run: RunDirectory, method: str, blocks: list[Block]) -> None:
        self._evaluations = {name: EvaluationTable(run, method, name) for name in run.held_out}
        self._evaluations = {name: table for name, table in self._evaluations.items() if not table.is_complete()}
        self._statistics = StatisticsTable(run, method)
        self.wanted = _Wanted(method, tuple(self._evaluations), not self._statistics.is_complete())
        self._blocks, self._parts = blocks, dict[Block, _Part]()
        self._waiting = list(blocks)
        self._sums: ComponentSums | None = None
        for table in self._missing:
            table.set_aside_wrong()

    @property
    def _missing(self) -> list[EvaluationTable | StatisticsTable]:
        return [*self._evaluations.values(), *([self._statistics] if self.wanted.statistics else [])]

    @property
    def are_complete(self) -> bool:
        """Whether there is nothing to do."""
        return not self._missing

    def add(self, part: _Part) -> None:
        """Take a part; the last one writes the tables."""
        self._parts[part.block] = part
        # Sums are added in the order of the examples, so that they do not depend on which part came first.
        while self._waiting and self._waiting[0] in self._parts:
            block = self._waiting.pop(0)
            sums = self._parts[block].sums
            if self._sums is None:
                self._sums = sums
            elif sums is not None:
                self._sums.add(sums)
            self._parts[block] = self._parts[block]._replace(sums=None)
        if not self._waiting:
            self._write([self._parts[block] for block in self._blocks])

    def _write(self, parts: list[_Part]) -> None:
        for design, table in self._evaluations.items():
            table.write({name: np.concatenate([part.metrics[design][name] for part in parts]) for name in METRICS})
        shares = [part.shares for part in parts if part.shares is not None]
        if self._sums is not None:
            self._statistics.write(self._sums.statistics(), np.concatenate(shares))
        self._parts.clear()
