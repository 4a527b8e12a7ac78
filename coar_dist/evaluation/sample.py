"""A run's stores seen through a sample of its examples: readers that give the sampled examples' values alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.store.gradients import GateGradients, GradientStore
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import AttributionTable

Sample = Mapping[tuple[int, int], NDArray[np.int64]]
"""Per example block (first example, end) that has any: the sampled examples' places in it, ascending."""


def draw_sample(blocks: list[tuple[int, int]], num_examples: int, num_blocks: int, seed: int) -> Sample:
    """A random sample: whole blocks are drawn first, so that few are read, then examples in equal shares of each.

    Args:
        blocks: of the run.
        num_examples: drawn at most, all where there are no more.
        num_blocks: drawn at most, of equal length but for the last.
        seed: the sample is a function of it and of the blocks.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    chosen = sorted(random.permutation(len(blocks))[:num_blocks])
    lengths = np.array([blocks[i][1] - blocks[i][0] for i in chosen])
    share = min(num_examples / lengths.sum(), 1.0)
    return {
        blocks[i]: np.sort(random.permutation(length)[: max(round(length * share), 1)])
        for i, length in zip(chosen, lengths, strict=True)
    }


@dataclass(frozen=True)
class SampledMargins(MarginStore):
    """The columns of the sampled examples.

    Attributes:
        sample: which.
    """

    sample: Sample

    @classmethod
    def of(cls, store: MarginStore, sample: Sample) -> SampledMargins:
        """The same store through a sample."""
        return cls(**_fields(store), sample=sample)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The blocks that have any sampled example."""
        return list(self.sample)

    @override
    def read(
        self, block: tuple[int, int] | None, masks_per_batch: int, masks: tuple[int, int] | None = None
    ) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
        for batch, margins in super().read(block, masks_per_batch, masks):
            yield batch, margins if block is None else np.ascontiguousarray(margins[:, self.sample[block]])

    @override
    def read_margins(
        self, block: tuple[int, int], masks_per_batch: int, masks: tuple[int, int] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        for margins in super().read_margins(block, masks_per_batch, masks):
            yield np.ascontiguousarray(margins[:, self.sample[block]])


@dataclass(frozen=True)
class SampledGradients(GradientStore):
    """The rows of one block's sampled examples; sums of squares over all examples are scaled to the sample's share.

    Attributes:
        rows: the examples' places in the block.
    """

    rows: NDArray[np.int64]

    @classmethod
    def of(cls, store: GradientStore, sample: Sample) -> SampledGradients:
        """The same store through a sample."""
        return cls(**_fields(store), rows=sample[store.block])

    @override
    def read_margins(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
        for masks, margins in super().read_margins():
            yield masks, np.ascontiguousarray(margins[:, self.rows])

    @override
    def read(self) -> Iterator[tuple[NDArray[np.bool_], GateGradients]]:
        for masks, gradients in super().read():
            share = len(self.rows) / len(gradients.kept)
            yield (
                masks,
                GateGradients(
                    np.ascontiguousarray(gradients.margins[:, self.rows]),
                    gradients.kept[self.rows],
                    gradients.ablated[self.rows],
                    gradients.kept_squares * share,
                    gradients.ablated_squares * share,
                    gradients.known,
                ),
            )


class SampledAttributions(AttributionTable):
    """The rows of the sampled examples."""

    def __init__(self, run: RunDirectory, method: str, sample: Sample) -> None:
        super().__init__(run, method)
        self._sample = sample

    @override
    def read(self, block: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        weights, intercepts = super().read(block)
        return weights[self._sample[block]], intercepts[self._sample[block]]


def _fields(store: Any) -> dict[str, Any]:
    return {field.name: getattr(store, field.name) for field in fields(store)}
