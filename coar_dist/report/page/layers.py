"""How the attributions' weight is shared among layers, over all examples and by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.index import ComponentIndex
from coar_dist.report.page.groupings import CLASS, Grouping


@dataclass(frozen=True)
class LayerShares:
    """Shares of ``sum |weight|`` of an example, averaged over examples.

    Attributes:
        parameters: (num_layers,) names.
        num_components: (num_layers,) int64.
        shares: (num_layers,) float64, summing to 1; NaN where all weights of all examples are 0.
        groupings: of the examples.
        by_group: for each of them (num_groups, num_layers) float64, the shares over the examples of a group.
    """

    parameters: Sequence[str]
    num_components: NDArray[np.int64]
    shares: NDArray[np.float64]
    groupings: Sequence[Grouping]
    by_group: Sequence[NDArray[np.float64]]

    @classmethod
    def of(cls, components: ComponentIndex, shares: NDArray[np.float32], groupings: Sequence[Grouping]) -> LayerShares:
        """Means of the shares of examples (num_examples, num_layers), those without any left out."""
        counted = np.flatnonzero(np.isfinite(shares).all(axis=1))
        by_group = []
        for grouping in groupings:
            groups, sums = grouping.sums(counted, shares[counted])
            means = np.full((len(grouping.values), shares.shape[1]), np.nan)
            codes = grouping.codes[counted]
            nums = np.bincount(codes[codes >= 0], minlength=len(means))
            with np.errstate(invalid="ignore"):
                means[groups] = sums / nums[groups, None]
            by_group.append(means)
        return cls(
            [group.parameter for group in components.groups],
            np.array([group.num_components for group in components.groups]),
            shares[counted].mean(axis=0, dtype=np.float64) if counted.size else np.full(shares.shape[1], np.nan),
            list(groupings),
            by_group,
        )

    @property
    def even_shares(self) -> NDArray[np.float64]:
        """(num_layers,): the share of a layer's components among all."""
        return np.asarray(self.num_components / self.num_components.sum())

    def of_classes(self, most: int) -> tuple[list[str], NDArray[np.float64]]:
        """Names of the classes and (num_layers, num_classes) shares; none where there are no classes, or more than
        ``most``."""
        for grouping, shares in zip(self.groupings, self.by_group, strict=True):
            if grouping.name == CLASS and len(grouping.values) <= most:
                return grouping.values, shares.T
        return [], np.empty((len(self.parameters), 0))
