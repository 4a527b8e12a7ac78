"""Margin shards of one mask design: ``margins/<design>/<start>-<stop>.parquet``.

Columns: ``mask_id`` int64; ``mask`` fixed_size_binary (packed bits, 1 = kept); ``margins_<first example>``
fixed_size_list of float32 or float16, one column per example block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.errors import DamagedFileError, NonFiniteMarginError
from coar_dist.store.columns import masks_of, matrix_column, matrix_of, matrix_type, packed_column, packed_type
from coar_dist.store.parquet import write_table
from coar_dist.store.shards import ShardFolder

_Rows = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class MarginStore(ShardFolder):
    """Reader and writer of the shards of one design.

    Attributes:
        num_examples: margins of a mask.
        examples_per_block: examples of one margin column.
        dtype: ``float32`` or ``float16``.
    """

    content: ClassVar[str] = "margins"
    num_examples: int
    examples_per_block: int
    dtype: str

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The example blocks: (first example, end)."""
        step = self.examples_per_block
        return [(start, min(start + step, self.num_examples)) for start in range(0, self.num_examples, step)]

    @override
    def bytes_of(self, num_masks: int) -> int:
        values = self.num_examples * np.dtype(self.dtype).itemsize
        return self._overhead(2 + len(self.blocks)) + num_masks * (8 + -(-self.num_components // 8) + values)

    def write(
        self, start: int, masks: NDArray[np.bool_], margins: NDArray[np.float32], made_by: Mapping[str, Any]
    ) -> None:
        """Write the shard of masks ``start .. start + len(masks) - 1``, atomically.

        Args:
            start: first mask id.
            masks: (num_masks, num_components) bool.
            margins: (num_masks, num_examples) float32.
            made_by: how the margins were computed; kept in the file's metadata.

        Raises:
            NonFiniteMarginError: a margin is NaN, infinite, or beyond the range of the stored dtype.
        """
        assert masks.shape == (len(margins), self.num_components)
        assert margins.shape == (len(masks), self.num_examples)
        with np.errstate(over="ignore"):
            stored = margins.astype(self.dtype)
        finite = np.isfinite(stored)
        if not finite.all():
            row, example = (int(index) for index in np.argwhere(~finite)[0])
            is_beyond = np.isfinite(margins[row, example])
            way_out = "Use ablation.margins_dtype=float32." if is_beyond else "Leave out the example."
            raise NonFiniteMarginError(
                f"the margin of example {example} under mask {start + row} is {margins[row, example]} and is stored as "
                f"{stored[row, example]} in {self.dtype} ({int((~finite).sum())} such values in masks "
                f"{start}..{start + len(masks) - 1}). {way_out}"
            )
        columns: dict[str, pa.Array] = {
            "mask_id": pa.array(np.arange(start, start + len(masks), dtype=np.int64)),
            "mask": packed_column(masks),
        }
        for first, end in self.blocks:
            columns[_column(first)] = matrix_column(stored[:, first:end])
        stop = start + len(masks)
        write_table(self.storage, self.file(start, stop), columns, {**made_by, **self._belongs_to(start, stop)})

    def read(
        self, block: tuple[int, int] | None, masks_per_batch: int, masks: tuple[int, int] | None = None
    ) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
        """Masks of the design in mask order, in batches whose limits do not depend on the shards.

        Args:
            block: one of ``blocks``, whose margins are read; None reads masks alone.
            masks_per_batch: masks per batch; the last batch may be shorter.
            masks: (first mask, end); None is the whole design.

        Yields:
            masks (num_batch, num_components) bool and margins (num_batch, block length) float32; with
            ``block=None`` the margins have no columns.

        Raises:
            MissingWorkError: masks are missing.
            DamagedFileError: a shard is damaged.
        """
        types = {"mask_id": pa.int64(), "mask": packed_type(self.num_components), **self._types(block)}

        def read_shard(start: int, stop: int) -> _Rows:
            table = self._read(start, stop, list(types), types, stop - start).columns
            if not np.array_equal(table["mask_id"].to_numpy(), np.arange(start, stop)):
                where = self._where(start, stop)
                reason = f"{where} is damaged: its mask ids are not {start}..{stop - 1} in order."
                raise DamagedFileError.of(where, reason, "ablate", is_found=False)
            shard_masks = masks_of(table["mask"], self.num_components)
            if block is None:
                return shard_masks, np.empty((len(shard_masks), 0), dtype=np.float32)
            return shard_masks, matrix_of(table[_column(block[0])]).astype(np.float32)

        return ((rows, margins) for rows, margins in self._batches(read_shard, masks_per_batch, masks))

    def read_margins(
        self, block: tuple[int, int], masks_per_batch: int, masks: tuple[int, int] | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The margins of ``read`` alone; of the masks nothing is read."""

        def read_shard(start: int, stop: int) -> _Rows:
            ((column, kind),) = self._types(block).items()
            table = self._read(start, stop, [column], {column: kind}, stop - start).columns
            return (matrix_of(table[column]).astype(np.float32),)

        return (margins for (margins,) in self._batches(read_shard, masks_per_batch, masks))

    def _types(self, block: tuple[int, int] | None) -> dict[str, pa.DataType]:
        """Name and type of the column of a block's margins; None has none."""
        return {} if block is None else {_column(block[0]): matrix_type(self.dtype, block[1] - block[0])}

    def _batches(
        self, read_shard: Callable[[int, int], _Rows], masks_per_batch: int, masks: tuple[int, int] | None
    ) -> Iterator[_Rows]:
        """Arrays with one row per mask, in mask order, cut into batches wherever the shards begin and end."""
        ranges = self.require_complete()
        first, end = masks or (0, self.num_masks)
        wanted = [(start, stop) for start, stop in ranges if stop > first and start < end]
        waiting: list[_Rows] = []
        num_waiting = 0
        shards = self._at_once(lambda shard: read_shard(*shard), wanted)
        for (start, stop), arrays in zip(wanted, shards, strict=True):
            rows = slice(max(first - start, 0), min(stop, end) - start)
            waiting.append(tuple(array[rows] for array in arrays))
            num_waiting += rows.stop - rows.start
            while num_waiting >= masks_per_batch:
                joined = _join(waiting)
                yield tuple(array[:masks_per_batch] for array in joined)
                waiting = [tuple(array[masks_per_batch:] for array in joined)]
                num_waiting -= masks_per_batch
        if num_waiting:
            yield _join(waiting)


def _column(first_example: int) -> str:
    return f"margins_{first_example}"


def _join(batches: list[_Rows]) -> _Rows:
    return batches[0] if len(batches) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
