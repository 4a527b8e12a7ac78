"""The masks of a sweep over numbers of ablated components, and what groups of examples make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coar_dist.designs.given import Listed, packed
from coar_dist.editing.criterion import per_example
from coar_dist.store.margins import MarginStore

_MASKS_PER_BATCH = 256


@dataclass(frozen=True)
class Sweep:
    """Which masks there are: the first k components of every order, for every size k; equal masks are there once.

    Attributes:
        sizes: numbers of components, ascending from 0.
        design: the masks.
        masks: per order (num_sizes,) int64, the mask of every size.
    """

    sizes: tuple[int, ...]
    design: Listed
    masks: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, orders: Mapping[str, NDArray[np.int64]], sizes: Sequence[int], num_components: int) -> Sweep:
        """The sweep of orders of components, by name.

        Args:
            orders: (at least max(sizes),) int64 component ids each, none twice.
            sizes: as the attribute.
            num_components: of the model.
        """
        ids: dict[bytes, int] = {}
        masks = {}
        for name, order in orders.items():
            mask, rows = np.ones((1, num_components), dtype=np.bool_), []
            for start, stop in pairwise((0, *sizes)):
                mask[0, order[start:stop]] = False
                rows.append(ids.setdefault(packed(mask).tobytes(), len(ids)))
            masks[name] = np.array(rows, dtype=np.int64)
        together = np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(len(ids), -1)
        return cls(tuple(sizes), Listed.of(together, num_components), masks)

    @property
    def name(self) -> str:
        """The name of its design: other masks have another."""
        return f"sweep_{self.design.fingerprint.removeprefix('sha256:')[:12]}"


def group_means(
    store: MarginStore, metric: str, groups: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]]:
    """Means of a metric over groups of examples, for every mask, read block by block.

    Args:
        store: margins of a sweep.
        metric: ``accuracy`` or ``output``, see ``criterion.per_example``.
        groups: example ids, ascending, at least one each.

    Returns:
        (num_masks,) float64 per group.
    """
    sums = {name: np.zeros(store.num_masks) for name in groups}
    for first, end in store.blocks:
        rows = {name: ids[(ids >= first) & (ids < end)] - first for name, ids in groups.items()}
        if not any(of_block.size for of_block in rows.values()):
            continue
        start = 0
        for _, margins in store.read((first, end), _MASKS_PER_BATCH):
            values = per_example(margins, metric)
            for name, of_block in rows.items():
                sums[name][start : start + len(values)] += values[:, of_block].sum(axis=1)
            start += len(values)
    return {name: sums[name] / len(ids) for name, ids in groups.items()}


def margins_of(store: MarginStore, example_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Margins (num_masks, num_chosen) of some examples under every mask of a sweep."""
    chosen = np.empty((store.num_masks, len(example_ids)), dtype=np.float32)
    for first, end in store.blocks:
        columns = np.flatnonzero((example_ids >= first) & (example_ids < end))
        if columns.size:
            start = 0
            for _, margins in store.read((first, end), _MASKS_PER_BATCH):
                chosen[start : start + len(margins), columns] = margins[:, example_ids[columns] - first]
                start += len(margins)
    return chosen
