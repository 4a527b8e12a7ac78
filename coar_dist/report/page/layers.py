"""How the attributions' weight is shared among layers, over all examples and by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex

_MAX_CLASSES = 20


@dataclass(frozen=True)
class LayerShares:
    """Shares of ``sum |weight|`` of an example, averaged over examples.

    Attributes:
        parameters: (num_layers,) names.
        num_components: (num_layers,) int64.
        shares: (num_layers,) float64, summing to 1; NaN where all weights of all examples are 0.
        classes: (num_classes,) labels; none where examples have no classes, or more than a figure can show.
        by_class: (num_layers, num_classes) float64, the shares over the examples of a class.
    """

    parameters: Sequence[str]
    num_components: NDArray[np.int64]
    shares: NDArray[np.float64]
    classes: NDArray[np.int64]
    by_class: NDArray[np.float64]

    @property
    def even_shares(self) -> NDArray[np.float64]:
        """(num_layers,): the share of a layer's components among all."""
        return np.asarray(self.num_components / self.num_components.sum())


class LayerSums:
    """Adds up shares block by block.

    Args:
        components: of the run.
        labels: (num_examples,), NaN where targets are not classes.
    """

    def __init__(self, components: ComponentIndex, labels: NDArray[Any]) -> None:
        self._components = components
        known = labels[np.isfinite(labels.astype(np.float64))].astype(np.int64)
        classes = np.unique(known)
        self._classes = classes if len(classes) <= _MAX_CLASSES else classes[:0]
        self._labels = labels
        num_layers = len(components.groups)
        self._sum, self._num = np.zeros(num_layers), 0
        self._sums = np.zeros((num_layers, len(self._classes)))
        self._nums = np.zeros(len(self._classes), dtype=np.int64)

    def add(self, example_ids: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        """Add (n, num_components) weights of some examples."""
        by_layer = np.add.reduceat(np.abs(weights), self._components.offsets[:-1], axis=1, dtype=np.float64)
        totals = by_layer.sum(axis=1)
        counted = totals > 0
        shares = by_layer[counted] / totals[counted, None]
        self._sum += shares.sum(axis=0)
        self._num += len(shares)
        labels = self._labels[example_ids][counted]
        for column, label in enumerate(self._classes):
            of_class = labels == label
            self._sums[:, column] += shares[of_class].sum(axis=0)
            self._nums[column] += of_class.sum()

    def result(self) -> LayerShares:
        """The shares of all that was added."""
        groups = self._components.groups
        with np.errstate(invalid="ignore"):
            shares, by_class = self._sum / self._num if self._num else self._sum * np.nan, self._sums / self._nums
        return LayerShares(
            [group.parameter for group in groups],
            np.array([group.num_components for group in groups]),
            shares,
            self._classes,
            by_class,
        )
