"""What a user reads from a finished run: weights, predictions and margins, without a model and without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex
from coar_dist.components.masks import check_masks
from coar_dist.config.python_arguments import NAME, check
from coar_dist.errors import MissingWorkError, counted
from coar_dist.store.ceilings import Ceiling, CeilingTable
from coar_dist.store.class_names import read_class_names
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.examples import ExampleTable
from coar_dist.store.methods import begun_methods, best_method
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

LARGEST_R2_NEW_ERROR = 0.015
"""Standard error of the mean of ``r2_new`` up to which it is told."""


class RunReader:
    """A run directory opened for reading, which changes nothing in it.

    Every file is read as it was at one moment, also while a stage replaces files. Blocks of examples lie in files of
    their own: while a fit is under way, or after it was interrupted, they may be of different fits.

    Attributes:
        directory: the run directory with its identity and designs.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        designs = {name: entry.design.num_masks for name, entry in self.directory.designs.items()}
        examples = counted(self.directory.num_examples, "example")
        components = counted(self.components.num_components, "component")
        return f"{type(self).__name__}({str(self.directory.storage)!r}: {examples}, {components}, masks {designs})"

    @property
    def components(self) -> ComponentIndex:
        """The component index."""
        return self.directory.components

    @property
    def class_names(self) -> dict[int, str]:
        """What classes are called, by label; empty where nobody said so (``class_names`` of ``attribute``).

        Example:
            >>> names = run.class_names
            >>> [names.get(label, str(label)) for label in run.examples()["label"][:3]]
            ['0', '1', '2']
        """
        return read_class_names(self.directory)

    @property
    def best_method(self) -> str:
        """The method that is read where none is named: the first of ``coar_dist.config.methods.METHODS`` that is
        fitted.

        Raises:
            MissingWorkError: none is.
        """
        return best_method(self.directory)

    def examples(self, example_ids: Sequence[int] | None = None) -> dict[str, NDArray[Any]]:
        """What is known of the examples: every column of ``examples.parquet``, (num_examples,) each.

        Args:
            example_ids: which examples, in this order; None for all.

        Returns:
            ``example_id``, ``label``, ``prediction`` (NaN where targets are not classes) and ``margin`` of the
            unablated model, and the example set's own columns, e.g. ``source_id`` and ``group``.

        Raises:
            IndexError: an example id is out of range.
            MissingWorkError: the ablate stage has not begun.

        Example:
            >>> run.weights(np.flatnonzero(run.examples()["group"] == 1))  # doctest: +SKIP
        """
        ids = self._example_ids(example_ids)
        return {name: values[ids] for name, values in ExampleTable(self.directory).read().items()}

    def weights(self, example_ids: Sequence[int] | None = None, method: str | None = None) -> NDArray[np.float32]:
        """Attribution weights.

        Args:
            example_ids: which examples, in this order; None for all.
            method: ``gradient_ridge``, ``coar``, ``coar_lasso``, a baseline (``leave_one_out``, ...); None is
                ``best_method``.

        Returns:
            (num_examples, num_components) float32: how much the margin is higher with the component kept.

        Raises:
            IndexError: an example id is out of range.
            MissingWorkError: there are no attributions of this method; the message names those that there are.
        """
        return self._attributions(example_ids, method)[0]

    def intercepts(self, example_ids: Sequence[int] | None = None, method: str | None = None) -> NDArray[np.float64]:
        """Intercepts (num_examples,) float64: the predicted margin with everything ablated."""
        return self._attributions(example_ids, method)[1]

    def attributions_by_block(
        self, example_ids: Sequence[int] | NDArray[np.int64] | None = None, method: str | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]]:
        """The same attributions, with one block of examples in memory at a time.

        Args:
            example_ids: which examples; None for all.
            method: as in ``weights``.

        Yields:
            Where a block's examples stand among ``example_ids`` (n,) int64, their weights (n, num_components) float32
            and their intercepts (n,) float64. Blocks without any are not read.

        Raises:
            IndexError, MissingWorkError: as ``weights``.
        """
        ids = self._example_ids(example_ids)
        table = self._table(method)
        for block, rows in self._rows_by_block(ids):
            weights, intercepts = table.read(block)
            of_block = ids[rows] - block[0]
            yield rows, weights[of_block], intercepts[of_block]

    def predict(
        self, masks: NDArray[np.bool_], example_ids: Sequence[int] | None = None, method: str | None = None
    ) -> NDArray[np.float64]:
        """The component model's counterfactual outputs (Shah et al. 2024, equation 2).

        Args:
            masks: (num_masks, num_components) bool, True = kept.
            example_ids: which examples; None for all.
            method: as in ``weights``.

        Returns:
            (num_masks, num_examples) float64.
        """
        check_masks(masks, self.components.num_components)
        weights, intercepts = self._attributions(example_ids, method)
        return np.asarray(masks.astype(np.float64) @ weights.T.astype(np.float64) + intercepts)

    def quality(
        self, example_ids: Sequence[int] | None = None, method: str | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """How good the attributions are, per example: (num_examples,) each, NaN where undefined.

        Returns:
            ``regularisation``, the penalty; ``r2``, in-sample; ``r2_new``, the estimate for new masks, NaN where
            ``r2_new_error`` is above .015: its mean is to be true within .03; ``duality_gap`` of the lasso.
        """
        ids = self._example_ids(example_ids)
        whole, _ = self.quality_and_error(method)
        return {name: values[ids] for name, values in whole.items()}

    def r2_new_error(self, method: str | None = None) -> float:
        """Standard error of the mean over all examples of ``quality()["r2_new"]``, over the masks by which it was
        estimated; larger by 128 over their number where they are fewer, and NaN of fewer than 32."""
        return self.quality_and_error(method)[1]

    def quality_and_error(self, method: str | None = None) -> tuple[dict[str, NDArray[np.float64]], float]:
        """``quality`` of all examples and ``r2_new_error``, read once."""
        table = self._table(method)
        blocks, influences = zip(
            *(table.read_quality(block) for block in self.directory.margins(TRAIN_DESIGN).blocks), strict=True
        )
        whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        number = int(np.isfinite(whole["r2_new"]).sum())
        known = [of_block for of_block in influences if of_block is not None]
        if len(known) < len(influences) or not number:
            whole["r2_new"][:] = np.nan
            return whole, float("nan")
        means = np.sum(known, axis=0) / number
        error = float(means.std(ddof=1) / np.sqrt(len(means)))
        if not error <= LARGEST_R2_NEW_ERROR:
            whole["r2_new"][:] = np.nan
        return whole, error

    def evaluation(
        self, method: str | None = None, design_name: str | None = None, example_ids: Sequence[int] | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """How well attributions predict each example's margins on held-out masks.

        Args:
            method: as in ``weights``.
            design_name: a key of ``directory.held_out``, e.g. ``evaluation_0.1``; None is the one at the training
                masks' ablation fraction.
            example_ids: which examples, in this order; None for all.

        Returns:
            ``correlation`` (Pearson's), ``spearman``, ``r2``, and ``slope`` and ``intercept`` of the true margins on
            the predicted ones: (num_examples,) each, NaN where undefined.

        Raises:
            MissingWorkError: there are no such held-out masks, or the evaluate stage has not been run.
        """
        there = ", ".join(self.directory.held_out) or "none"
        if design_name is None:
            design_name = self.directory.held_out_as_trained()
        else:
            check("design_name", design_name, NAME)
        if design_name not in self.directory.held_out:
            raise MissingWorkError(
                f"no held-out masks {design_name or 'at the training fraction'}, there are: {there}. Name one as "
                f"design_name, or run the ablate and evaluate stages with evaluation.ablation_fractions."
            )
        ids = self._example_ids(example_ids)
        table = EvaluationTable(self.directory, self._table(method).method, design_name)
        return {name: values[ids] for name, values in table.read().items()}

    def standard_errors(
        self, example_ids: Sequence[int] | None = None, method: str | None = None
    ) -> NDArray[np.float32]:
        """Standard errors of the weights (num_examples, num_components), of a fit with them.

        Raises:
            MissingWorkError: they were not asked for when the attributions were fitted.
        """
        ids = self._example_ids(example_ids)
        table = self._table(method)
        errors = np.empty((len(ids), self.components.num_components), dtype=np.float32)
        for block, rows in self._rows_by_block(ids):
            errors[rows] = table.read_standard_errors(block)[ids[rows] - block[0]]
        return errors

    def ceiling(self, design_name: str | None = None) -> Ceiling:
        """What the best linear component model would reach on held-out masks, estimated without fitting one.

        Args:
            design_name: a held-out design such as ``evaluation_0.05``; None is the one at the ablation fraction of the
                training masks.

        Raises:
            MissingWorkError: there is no such design, none is estimated on masks of its kind, or the evaluate stage has
                not been run.
        """
        name = f"evaluation_{self.directory.design(TRAIN_DESIGN).ablation_fraction!r}"
        if design_name is not None:
            check("design_name", design_name, NAME)
            name = design_name
        return CeilingTable(self.directory, name).read()

    def margins(self, design_name: str = TRAIN_DESIGN) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Masks (num_masks, num_components) bool and margins (num_masks, num_examples) float32 of a whole design.

        This reads everything into memory; ``directory.margins(name).read`` streams.
        """
        check("design_name", design_name, NAME)
        store = self.directory.margins(design_name)
        columns = []
        for first, end in store.blocks:
            nothing = np.empty((0, store.num_components), np.bool_), np.empty((0, end - first), np.float32)
            masks, margins = next(store.read((first, end), max(store.num_masks, 1)), nothing)
            columns.append(margins)
        return masks, np.concatenate(columns, axis=1)

    def _attributions(
        self, example_ids: Sequence[int] | None, method: str | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        ids = self._example_ids(example_ids)
        weights = np.empty((len(ids), self.components.num_components), dtype=np.float32)
        intercepts = np.empty(len(ids))
        for rows, block_weights, block_intercepts in self.attributions_by_block(ids, method):
            weights[rows] = block_weights
            intercepts[rows] = block_intercepts
        return weights, intercepts

    def _table(self, method: str | None) -> AttributionTable:
        if method is not None:
            check("method", method, NAME)
        return AttributionTable(self.directory, self.best_method if method is None else method)

    def check_method(self, method: str) -> None:
        """Check that there are attributions of a method, of any example.

        Raises:
            ConfigError: there is no such method.
            MissingWorkError: there are none of it.
        """
        if method not in begun_methods(self.directory):
            raise self._table(method).missing()

    def _example_ids(self, example_ids: Sequence[int] | NDArray[np.int64] | None) -> NDArray[np.int64]:
        num_examples = self.directory.num_examples
        ids = np.arange(num_examples) if example_ids is None else np.asarray(example_ids).reshape(-1)
        if ids.size and ids.dtype.kind not in "iu":
            found = f"the text {str(ids[0])!r}" if ids.dtype.kind == "U" else str(ids.dtype)
            raise IndexError(f"example ids must be integers, not {found}; for a mask use np.flatnonzero(mask)")
        ids = ids.astype(np.int64)
        outside = ids[(ids < 0) | (ids >= num_examples)]
        if outside.size:
            raise IndexError(f"example ids {outside[:10].tolist()} are outside 0..{num_examples - 1}")
        return ids

    def _rows_by_block(self, ids: NDArray[np.int64]) -> Iterator[tuple[tuple[int, int], NDArray[np.int64]]]:
        """Per example block that holds any of ``ids``: the block, and where its ids stand."""
        for block in self.directory.margins(TRAIN_DESIGN).blocks:
            rows = np.flatnonzero((ids >= block[0]) & (ids < block[1]))
            if rows.size:
                yield block, rows
