"""Margin shards of one mask design: ``margins/<design>/<start>-<stop>.parquet``.

Columns: ``mask_id`` int64; ``mask`` fixed_size_binary (packed bits, 1 = kept); ``margins_<first example>``
fixed_size_list of float32 or float16, one column per example block. The files that lie there are the only
record of what is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import DamagedFileError, MissingWorkError, NonFiniteMarginError
from coar_dist.store.parquet import (
    masks_of,
    matrix_column,
    matrix_of,
    packed_column,
    read_metadata,
    read_table,
    set_aside,
    write_table,
)

_NAME = re.compile(r"(\d{10})-(\d{10})\.parquet")


@dataclass(frozen=True)
class MarginStore:
    """Reader and writer of the shards of one design.

    Attributes:
        folder: where the shards lie.
        fingerprint: of the run's identity and the design; every shard carries it.
        num_components: bits of a mask.
        num_masks: masks of the design; shards beyond it are left alone.
        num_examples: margins of a mask.
        examples_per_block: examples of one margin column.
        dtype: ``float32`` or ``float16``.
    """

    folder: Path
    fingerprint: str
    num_components: int
    num_masks: int
    num_examples: int
    examples_per_block: int
    dtype: str

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The example blocks: (first example, end)."""
        step = self.examples_per_block
        return [(start, min(start + step, self.num_examples)) for start in range(0, self.num_examples, step)]

    def path(self, start: int, stop: int) -> Path:
        """The file of masks ``start .. stop - 1``."""
        return self.folder / f"{start:010d}-{stop:010d}.parquet"

    def write(
        self, start: int, masks: NDArray[np.bool_], margins: NDArray[np.float32], made_by: Mapping[str, str]
    ) -> Path:
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
            raise NonFiniteMarginError(
                f"the margin of example {example} under mask {start + row} is {margins[row, example]} and is stored as "
                f"{stored[row, example]} in {self.dtype} ({int((~finite).sum())} such values in masks "
                f"{start}..{start + len(masks) - 1}). Use float32 for ablation.precision and ablation.margins_dtype, "
                f"or leave out the example."
            )
        columns: dict[str, pa.Array] = {
            "mask_id": pa.array(np.arange(start, start + len(masks), dtype=np.int64)),
            "mask": packed_column(masks),
        }
        for first, end in self.blocks:
            columns[_column(first)] = matrix_column(stored[:, first:end])
        path = self.path(start, start + len(masks))
        write_table(path, columns, {**made_by, **self._belongs_to(start, start + len(masks))})
        return path

    def _belongs_to(self, start: int, stop: int) -> dict[str, Any]:
        return {"content": "margins", "design": self.fingerprint, "start": start, "stop": stop}

    def ranges(self) -> list[tuple[int, int]]:
        """The mask ranges of the shards that lie in the folder, by file name, in mask order.

        Raises:
            DamagedFileError: two shards overlap.
        """
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        found = sorted((int(name[1]), int(name[2])) for name in names if name)
        for (start, stop), following in pairwise(found):
            if following[0] < stop:
                raise DamagedFileError(
                    f"shards {self.path(start, stop).name} and {self.path(*following).name} of {self.folder} overlap. "
                    f"Move one of them away; the ablate stage recomputes what is then missing."
                )
        return found

    def set_aside_damaged(self) -> list[str]:
        """Check the footer of every shard; rename those that are damaged or foreign, and say why for each."""
        reasons = []
        for start, stop in self.ranges():
            path = self.path(start, stop)
            try:
                metadata = read_metadata(path)
                wrong = [key for key, value in self._belongs_to(start, stop).items() if metadata.get(key) != value]
                reason = f"{path} belongs to something else: its {', '.join(wrong)} differ" if wrong else None
            except DamagedFileError as error:
                reason = str(error)
            if reason is not None:
                reasons.append(f"{reason}; set aside as {set_aside(path).name}")
        return reasons

    def missing(self) -> list[tuple[int, int]]:
        """The ranges of masks that no shard covers, in order."""
        gaps = []
        position = 0
        for start, stop in self.ranges():
            if start >= self.num_masks:
                break
            if start > position:
                gaps.append((position, start))
            position = stop
        if position < self.num_masks:
            gaps.append((position, self.num_masks))
        return gaps

    def require_complete(self) -> None:
        """Check that all masks are there.

        Raises:
            MissingWorkError: listing the missing ranges.
        """
        gaps = self.missing()
        if gaps:
            listed = ", ".join(f"{start}..{stop - 1}" for start, stop in gaps[:10])
            raise MissingWorkError(
                f"{self.folder} lacks {sum(stop - start for start, stop in gaps)} of {self.num_masks} masks: {listed}"
                f"{', ...' if len(gaps) > 10 else ''}. Run the ablate stage again; it computes what is missing."
            )

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
            DamagedFileError: a shard is damaged; it has been set aside, and the ablate stage recomputes it.
        """
        self.require_complete()
        first, end = masks or (0, self.num_masks)
        waiting: list[tuple[NDArray[np.bool_], NDArray[np.float32]]] = []
        num_waiting = 0
        for start, stop in self.ranges():
            if stop <= first:
                continue
            if start >= end:
                break
            rows = slice(max(first - start, 0), min(stop, end) - start)
            shard_masks, margins = self._read_shard(start, stop, block)
            waiting.append((shard_masks[rows], margins[rows]))
            num_waiting += rows.stop - rows.start
            while num_waiting >= masks_per_batch:
                joined = _join(waiting)
                yield joined[0][:masks_per_batch], joined[1][:masks_per_batch]
                waiting = [(joined[0][masks_per_batch:], joined[1][masks_per_batch:])]
                num_waiting -= masks_per_batch
        if num_waiting:
            yield _join(waiting)

    def _read_shard(
        self, start: int, stop: int, block: tuple[int, int] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        path = self.path(start, stop)
        names = ["mask_id", "mask"] + ([] if block is None else [_column(block[0])])
        try:
            table = read_table(path, self._belongs_to(start, stop), names)
            if not np.array_equal(table["mask_id"].to_numpy(), np.arange(start, stop)):
                raise DamagedFileError(f"{path} is damaged: its mask ids are not {start}..{stop - 1} in order.")
        except DamagedFileError as error:
            new_name = set_aside(path).name
            raise DamagedFileError(
                f"{error} It was set aside as {new_name}; the ablate stage recomputes it."
            ) from error
        masks = masks_of(table["mask"], self.num_components)
        if block is None:
            return masks, np.empty((len(masks), 0), dtype=np.float32)
        return masks, matrix_of(table[_column(block[0])]).astype(np.float32)


def _column(first_example: int) -> str:
    return f"margins_{first_example}"


def _join(
    batches: list[tuple[NDArray[np.bool_], NDArray[np.float32]]],
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    if len(batches) == 1:
        return batches[0]
    return np.concatenate([masks for masks, _ in batches]), np.concatenate([margins for _, margins in batches])
