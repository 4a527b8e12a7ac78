"""The examples that the page shows: their strongest components, how well they are predicted, and which are alike.

A small run shows all its examples, a large one a sample: those that are predicted worst and best, wrong
predictions of the model, those that the strongest components matter most for, and others at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.evaluation.correlation import predict
from coar_dist.report.judged import Judged
from coar_dist.report.page.alone import MeasuredAlone, measured_alone
from coar_dist.report.page.components import MAX_COMPARED
from coar_dist.report.page.errors_by_size import ErrorsBySize
from coar_dist.store.component_statistics import ComponentStatistics
from coar_dist.store.run_directory import RunDirectory

MAX_SHOWN = 500
NUM_MASKS = 100
"""Held-out masks of a scatter plot, and of an error of prediction."""
NUM_NEAREST = 6
_WEIGHT_BYTES = 560_000
"""Of all weights on the page, before they become text: all of every example, or else its strongest ones."""
_COMPARED_VALUES, _FEWEST_COMPARED = 2**24, 32
"""Weights of all examples by which they are compared, and components where examples are very many."""
_VALUES_AT_ONCE = 2**22
"""Weights of shown examples that are ranked at once."""
_FEATURED = 40
"""Strongest components whose extreme examples are shown."""
_SEED = 0


@dataclass(frozen=True)
class ShownExamples:
    """Single examples; all arrays have a row for each, by rising id.

    Attributes:
        ids: (n,) int64.
        designs: the held-out designs, in the order of the last axes.
        column: the design of the scatter plots.
        components: (n, k) int64, ids of the components whose weights are shown, the strongest first; None: of all.
        weights: (n, k) float32, their weights; (n, num_components) of all.
        standard_errors: of these weights, of a fit with them; else None.
        intercepts: (n,) float64, predicted outputs with everything ablated.
        whole: (n,) float64, predicted outputs with everything kept.
        predicted, true: (n, num_masks) float64 outputs under the first held-out masks of the column's design.
        errors: (n, num_designs) float64, root mean square errors of prediction under the first masks of each design.
        by_size: the errors of these predictions by how much they ablate.
        alone: measured outputs with one component ablated, where the run has leave-one-out masks; else None.
        nearest: (n, 6) int64, ids of the examples of the run whose weights have the largest cosines, falling.
        cosines: (n, 6) float64.
        num_compared: how many components these cosines are of, the strongest of the run.
    """

    ids: NDArray[np.int64]
    designs: list[str]
    column: int
    components: NDArray[np.int64] | None
    weights: NDArray[np.float32]
    standard_errors: NDArray[np.float32] | None
    intercepts: NDArray[np.float64]
    whole: NDArray[np.float64]
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]
    errors: NDArray[np.float64]
    by_size: ErrorsBySize
    alone: MeasuredAlone | None
    nearest: NDArray[np.int64]
    cosines: NDArray[np.float64]
    num_compared: int

    def strongest(self, num: int) -> ShownExamples:
        """The same with the ``num`` strongest weights of every example, or with all where there are no more."""
        if num >= self.weights.shape[1]:
            return self
        order = _order(self.weights)[:, :num]
        errors = self.standard_errors
        return replace(
            self,
            components=order if self.components is None else np.take_along_axis(self.components, order, axis=1),
            weights=np.take_along_axis(self.weights, order, axis=1),
            standard_errors=None if errors is None else np.take_along_axis(errors, order, axis=1),
            alone=None if self.alone is None else self.alone.first(num),
        )


class ExampleDetails:
    """Gathers ``ShownExamples`` block by block.

    Args:
        run: evaluated.
        ids: of the examples to show, ascending.
        column: the held-out design of the scatter plots, by its place.
        num_strongest: components whose weights are given to ``add``, by which examples are compared; fewer of them
            where there are many examples.
    """

    def __init__(self, run: RunDirectory, ids: NDArray[np.int64], column: int, num_strongest: int) -> None:
        self.ids, self._column, self._run = ids, column, run
        self._designs = list(run.held_out)
        d, n = run.components.num_components, len(ids)
        num_kept = kept_weights(n, d)
        self._components = None if num_kept == d else np.zeros((n, num_kept), np.int64)
        self._weights = np.zeros((n, num_kept), np.float32)
        self._errors_of_weights = np.full((n, num_kept), np.nan, np.float32)
        self._intercepts, self._whole = np.zeros((2, n))
        num_compared = min(num_strongest, MAX_COMPARED, max(_COMPARED_VALUES // run.num_examples, _FEWEST_COMPARED))
        self._compared = np.zeros((run.num_examples, num_compared), np.float32)
        held_out = [_first_margins(run, name, ids) for name in self._designs]
        self._masks = [masks for masks, _ in held_out]
        self._true = [margins.T.astype(np.float64) for _, margins in held_out]
        self._predicted = [np.zeros(true.shape) for true in self._true]
        self._sizes = [np.zeros(true.shape) for true in self._true]

    def add(
        self,
        example_ids: NDArray[np.int64],
        weights: NDArray[np.float32],
        intercepts: NDArray[np.float64],
        of_shown_components: NDArray[np.float32],
    ) -> None:
        """Add some examples.

        Args:
            example_ids: (n,).
            weights: (n, num_components).
            intercepts: (n,).
            of_shown_components: (n, m) weights of the strongest components.
        """
        at, within = self._shown(example_ids)
        self._compared[example_ids] = of_shown_components[:, : self._compared.shape[1]]
        for start in range(0, len(at), step := max(_VALUES_AT_ONCE // weights.shape[1], 1)):
            few = slice(start, start + step)
            self._add(at[few], weights[within[few]], intercepts[within[few]])

    def _add(self, at: NDArray[np.int64], weights: NDArray[np.float32], intercepts: NDArray[np.float64]) -> None:
        self._intercepts[at] = intercepts
        self._whole[at] = intercepts + weights.sum(axis=1, dtype=np.float64)
        if self._components is None:
            self._weights[at] = weights
        else:
            k = self._components.shape[1]
            largest = np.argpartition(-np.abs(weights), k - 1, axis=1)[:, :k]
            values = np.take_along_axis(weights, largest, axis=1)
            order = _order(values, largest)
            self._components[at] = np.take_along_axis(largest, order, axis=1)
            self._weights[at] = np.take_along_axis(values, order, axis=1)
        for masks, predicted, sizes in zip(self._masks, self._predicted, self._sizes, strict=True):
            predicted[at] = predict(masks, weights, intercepts).T
            sizes[at] = predict(~masks, np.abs(weights), np.zeros(len(at))).T

    def add_errors(self, example_ids: NDArray[np.int64], errors: NDArray[np.float32]) -> None:
        """Add (n, num_components) standard errors of the weights of some examples, which have been added."""
        at, within = self._shown(example_ids)
        rows = within[:, None]
        self._errors_of_weights[at] = errors[within] if self._components is None else errors[rows, self._components[at]]

    def _shown(self, example_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows here and rows of some examples of those that are shown."""
        _, at, within = np.intersect1d(self.ids, example_ids, assume_unique=True, return_indices=True)
        return at, within

    def result(self, margins: NDArray[np.float64], has_alone: bool) -> ShownExamples:
        """What was gathered, once all blocks are added.

        Args:
            margins: (n,) outputs of the shown examples with everything kept.
            has_alone: whether the run has all leave-one-out masks.

        Raises:
            MissingWorkError, DamagedFileError: margins of these masks are missing or damaged.
        """
        errors = [predicted - true for predicted, true in zip(self._predicted, self._true, strict=True)]
        strongest = _order(self._weights) if self._components is None else self._components
        nearest, cosines = nearest_to(self.ids, self._compared)
        of_weights = self._errors_of_weights
        return ShownExamples(
            self.ids,
            self._designs,
            self._column,
            self._components,
            self._weights,
            None if np.isnan(of_weights).all() else of_weights,
            self._intercepts,
            self._whole,
            self._predicted[self._column],
            self._true[self._column],
            np.stack([np.sqrt(np.square(of_design).mean(axis=1)) for of_design in errors], axis=1),
            ErrorsBySize.of(self._sizes, errors, self._whole - margins),
            measured_alone(self._run, self.ids, strongest) if has_alone else None,
            nearest,
            cosines,
            self._compared.shape[1],
        )


def _order(weights: NDArray[np.float32], ids: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """(n, k) places by falling absolute weight in each row; equal ones by rising id, which is the place by default."""
    ids = np.broadcast_to(np.arange(weights.shape[1]), weights.shape) if ids is None else ids
    return np.asarray(np.lexsort((ids, -np.abs(weights)), axis=1))


def kept_weights(num_shown: int, num_components: int) -> int:
    """How many weights of each shown example the page has room for."""
    if num_shown * num_components * 2 <= _WEIGHT_BYTES:
        return num_components
    bytes_each = 2 + (2 if num_components < 2**16 else 4)
    return min(max(_WEIGHT_BYTES // (bytes_each * num_shown), 1), num_components)


def choose(
    examples: dict[str, NDArray[Any]], correlations: NDArray[np.float64], statistics: ComponentStatistics
) -> NDArray[np.int64]:
    """Ids of at most ``MAX_SHOWN`` examples, ascending: all, or of each kind some and the rest at random.

    Args:
        examples: the columns of ``examples.parquet``.
        correlations: (num_examples,) of predicted and true margins, NaN = undefined.
        statistics: of all components, whose strongest ones have extreme examples.
    """
    num_examples = len(correlations)
    if num_examples <= MAX_SHOWN:
        return np.arange(num_examples)
    random = np.random.Generator(np.random.Philox(key=[_SEED, 0]))
    share = MAX_SHOWN // 6
    defined = np.flatnonzero(np.isfinite(correlations))
    order = defined[np.argsort(correlations[defined], kind="stable")]
    wrong = random.permutation(np.flatnonzero(Judged.of(examples).is_wrong))
    undefined = np.flatnonzero(~np.isfinite(correlations))
    strongest = statistics.strongest(_FEATURED)
    extreme = np.concatenate([statistics.lowest_example[strongest], statistics.highest_example[strongest]])
    parts = [order[:share], order[len(order) - share :], wrong[:share], undefined[:share], extreme]
    chosen = np.unique(np.concatenate(parts))
    rest = random.permutation(np.setdiff1d(np.arange(num_examples), chosen))
    return np.sort(np.concatenate([chosen, rest[: MAX_SHOWN - len(chosen)]]))


def _first_margins(
    run: RunDirectory, design: str, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The first held-out masks (num_masks, num_components), and the chosen examples' margins (num_masks, n)."""
    store = run.margins(design)
    num_masks = min(store.num_masks, NUM_MASKS)
    margins = np.empty((num_masks, len(chosen)), dtype=np.float32)
    masks = np.empty((0, store.num_components), dtype=np.bool_)
    for first, end in store.blocks:
        at = np.flatnonzero((chosen >= first) & (chosen < end))
        if at.size:
            masks, of_block = next(store.read((first, end), num_masks, (0, num_masks)))
            margins[:, at] = of_block[:, chosen[at] - first]
    return masks, margins


def nearest_to(ids: NDArray[np.int64], weights: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The examples whose weights have the largest cosines with those of some examples.

    Args:
        ids: (n,) of these examples.
        weights: (num_examples, width); an example without any has the cosine 0 with all.

    Returns:
        (n, 6) int64 ids, none of them its own, and (n, 6) float64 cosines, falling; equal ones by rising id.
    """
    num = min(NUM_NEAREST, len(weights) - 1)
    if num < 1:
        return np.empty((len(ids), 0), np.int64), np.empty((len(ids), 0))

    def unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        exact = rows.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1, keepdims=True)
        return np.asarray(np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0))

    own = unit(weights[ids])
    nearest, cosines = np.zeros((len(ids), 0), np.int64), np.zeros((len(ids), 0))
    for start in range(0, len(weights), step := max(_VALUES_AT_ONCE // max(len(ids), weights.shape[1]), 1)):
        of_chunk = own @ unit(weights[start : start + step]).T
        here = (ids >= start) & (ids < start + step)
        of_chunk[here, ids[here] - start] = -np.inf
        best = np.argsort(-of_chunk, axis=1, kind="stable")[:, :num]
        nearest = np.concatenate([nearest, best + start], axis=1)
        cosines = np.concatenate([cosines, np.take_along_axis(of_chunk, best, axis=1)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :num]
        nearest, cosines = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(cosines, order, axis=1)
    return nearest, cosines
