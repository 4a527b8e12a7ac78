"""The attributions of some examples by one method: arrays, tables, predictions and pictures."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex
from coar_dist.components.masks import Off, mask_without
from coar_dist.config.python_arguments import COUNT, EXAMPLE, NAME, takes
from coar_dist.errors import ConfigError, counted
from coar_dist.result.example_columns import ExampleColumns
from coar_dist.result.plots import Plots
from coar_dist.store.reader import RunReader

if TYPE_CHECKING:
    from pandas import DataFrame


class Result:
    """The attributions of some examples of a run by one method. A ``Run`` is the result of all of them.

    Arrays have one row per example, in the order of ``example_ids``. ``result[...]`` takes what selects rows of an
    array: a place, a slice, places, or a bool mask. What is called ``example`` is always an example's id in the run.

    Attributes:
        example_ids: (num_examples,) int64 ids in the run.

    Example:
        >>> some = run[run.examples()["label"] == 0]
        >>> some.values.shape == (len(some), 12), some.top(num=2).index.tolist()
        (True, [1, 2])
    """

    def __init__(self, reader: RunReader, example_ids: NDArray[np.int64], method: str | None) -> None:
        self._reader, self._method = reader, method
        self.example_ids = example_ids
        self._read: dict[str, tuple[NDArray[np.float32], NDArray[np.float64]]] = {}

    @property
    def method(self) -> str:
        """The method whose attributions these are, e.g. ``gradient_ridge``.

        Raises:
            MissingWorkError: the run has no attributions yet.
        """
        return self._method or self._reader.best_method

    @property
    def components(self) -> ComponentIndex:
        """The component index of the run."""
        return self._reader.components

    @property
    def names(self) -> list[str]:
        """The components' names, in the order of the columns of ``values``."""
        return self.components.names()

    @property
    def values(self) -> NDArray[np.float32]:
        """(num_examples, num_components) float32: how much the output is higher with the component kept.

        Read at the first use and then held; a slice of the run reads its own examples alone.

        Raises:
            MissingWorkError: there are no attributions yet.
        """
        return self._attributions_of_all()[0]

    @property
    def base_values(self) -> NDArray[np.float64]:
        """(num_examples,) float64: the predicted output with every component ablated.

        It is what SHAP calls so: ``base_values + values.sum(axis=1)`` is the prediction with nothing ablated.
        """
        return self._attributions_of_all()[1]

    @property
    def errors(self) -> NDArray[np.float32] | None:
        """Standard errors of ``values``, of the same shape; None where they were not asked for (by
        ``regression={"standard_errors": True}``)."""
        from coar_dist.report.notebook import has_standard_errors

        if not has_standard_errors(self._reader, self.example_ids, self.method):
            return None
        return self._reader.standard_errors(self.example_ids.tolist(), self.method)

    def examples(self) -> ExampleColumns:
        """What is known of the examples: a dict of ``label``, ``prediction``, ``margin`` and others, (num_examples,)
        each, which a notebook shows as a table."""
        return ExampleColumns(self._reader.examples(self.example_ids.tolist()), self._reader.class_names)

    @takes(method=NAME)
    def by_method(self, method: str) -> Result:
        """The same examples by another of ``run.methods``.

        Example:
            >>> run.methods, run.by_method("leave_one_out").values.shape
            (['coar', 'leave_one_out'], (7, 12))

        Raises:
            ConfigError: there is no such method.
            MissingWorkError: there are no attributions of it.
        """
        self._reader.check_method(method)
        return Result(self._reader, self.example_ids, method)

    @takes(num=COUNT)
    def top(self, example: int | Sequence[int] | NDArray[Any] | None = None, num: int = 10) -> DataFrame:
        """The components that matter most to one example, or to several in the mean.

        Args:
            example: an id, or several, whose mean weights are taken; None: all of this result.
            num: components, those with the largest absolute weights.

        Returns:
            A data frame by ``rank`` from 1 on: ``name``, ``module``, ``kind``, ``layer``, ``component_id`` and
            ``weight``: how much the output is higher with the component kept. For one example ``standard_error`` is
            the fit's, where it was asked for; for several it is that of their mean, by their spread.

        Raises:
            IndexError: an example id is out of range.
            ConfigError: there is no example, or ``num`` is below 1.

        Example:
            >>> run.top(example=3, num=5).columns.tolist()
            ['name', 'module', 'kind', 'layer', 'component_id', 'weight']
        """
        from coar_dist.report.notebook import component_frame

        ids = self.example_ids if example is None else example
        return component_frame(self._reader, ids, num, self.method)

    def by(self, *keys: str) -> DataFrame:
        """Sums of weights over components of one kind.

        Args:
            keys: some of ``layer``, ``kind``, ``module``, ``parameter``; none is ``layer`` and ``kind``. A component
                outside of numbered layers counts as of the layer that its module is.

        Returns:
            A data frame with a row per example, by ``example_id``, and a column per layer and kind.

        Raises:
            ConfigError: a key is none of these.

        Example:
            >>> sums = run.by("module")
            >>> sums.shape, sums.mean().index.tolist()
            ((7, 3), ['conv1', 'conv2', 'grouped'])
        """
        from coar_dist.report.notebook import group_frame

        return group_frame(self._reader, self.example_ids, self.method, keys or ("layer", "kind"))

    @takes(example=EXAMPLE, num=COUNT)
    def nearest(self, example: int, num: int = 10) -> DataFrame:
        """The examples of this result whose attributions are most like those of one example.

        Args:
            example: its id in the run; it is not in the table itself.
            num: so many.

        Returns:
            A data frame by ``example_id``: ``similarity``, the cosine of the two rows of ``values``, the largest first,
            NaN for attributions that are all 0, and the examples' ``label`` and ``prediction``, with the names of
            classes that have one.

        Raises:
            IndexError: the id is out of range.
            ConfigError: ``num`` is below 1.

        Example:
            >>> run.nearest(3, num=5).columns.tolist()
            ['similarity', 'label', 'prediction']
        """
        from coar_dist.report.notebook import neighbour_frame

        return neighbour_frame(self._reader, self.example_ids, self.method, index(example), num)

    def predict(self, *, off: Off) -> NDArray[np.float64]:
        """What the attributions predict with some components ablated.

        Args:
            off: the ablated components: ids, names, or shell patterns of names.

        Returns:
            (num_examples,) float64, in the unit of the output.

        Raises:
            ConfigError: there is no such component.

        Example:
            >>> run[:4].predict(off=["conv1[0]", "conv2*"]).shape
            (4,)
        """
        mask = mask_without(self.components, off)
        values, base_values = self._attributions_of_all()
        return np.asarray(values[:, mask].sum(axis=1, dtype=np.float64) + base_values)

    def to_pandas(self) -> DataFrame:
        """``values`` as a data frame: a row per example, by ``example_id``, and a column per component, by name."""
        from coar_dist.report.notebook import value_frame

        return value_frame(self.values, self.example_ids, self.names)

    def to_shap(self) -> Any:
        """A ``shap.Explanation`` of ``values``, ``base_values`` and ``names``, for the plots of that package.

        Raises:
            ConfigError: ``shap`` is not installed.

        Example:
            >>> shap.plots.waterfall(run.to_shap()[3])  # doctest: +SKIP
        """
        try:
            shap = importlib.import_module("shap")
        except ImportError as error:
            raise ConfigError(
                "to_shap needs the package shap: pip install shap. run.plot has pictures without it."
            ) from error
        return shap.Explanation(self.values, base_values=self.base_values, feature_names=self.names)

    @property
    def plot(self) -> Plots:
        """Pictures: ``plot.waterfall(3)``, ``plot.components()``, ``plot.heads()``, ``plot.predictions(3)`` and
        ``plot.correlation()``."""
        return Plots(self._reader, self.example_ids, self.method)

    def __len__(self) -> int:
        return len(self.example_ids)

    def __getitem__(self, key: Any) -> Result:
        places = key if isinstance(key, slice) else np.asarray(key)
        if isinstance(places, np.ndarray):
            if places.size and places.dtype.kind not in "iub":
                raise IndexError(f"examples are chosen by ids, a slice or a bool mask, not by {places.dtype}.")
            if places.dtype.kind == "b" and places.shape != (len(self),):
                raise IndexError(f"a mask of shape {places.shape} is not over {counted(len(self), 'example')}.")
            places = places if places.size else places.astype(np.int64)
            outside = places[(places < -len(self)) | (places >= len(self))] if places.dtype.kind in "iu" else places[:0]
            if outside.size:
                raise IndexError(f"examples are chosen by places 0 to {len(self) - 1}, not {outside[0]}.")
        return Result(self._reader, self.example_ids[places].reshape(-1), self._method)

    def __repr__(self) -> str:
        where, all_examples = str(self._reader.directory.storage), self._reader.directory.num_examples
        of = f"{len(self):,} of {counted(all_examples, 'example')}"
        return f"{type(self).__name__}({where!r}: {of}, {counted(len(self.components), 'component')}, {self.method})"

    def _attributions_of_all(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        method = self.method
        if method not in self._read:
            ids = self.example_ids.tolist()
            self._read[method] = self._reader.weights(ids, method), self._reader.intercepts(ids, method)
        return self._read[method]
