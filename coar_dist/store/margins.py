"""Margin shards of one mask design: ``margins/<design>/<start>-<stop>.parquet``.

Columns: ``mask_id`` int64; ``mask`` fixed_size_binary (packed bits, 1 = kept); ``margins_<first example>``
fixed_size_list of float32 or float16, one column per example block. The files that lie there are the only
record of what is done.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import DamagedFileError, MissingWorkError, NonFiniteMarginError, RunMismatchError
from coar_dist.store.parquet import (
    masks_of,
    matrix_column,
    matrix_of,
    packed_column,
    read_metadata,
    read_table,
    set_aside,
    why_wrong,
    write_table,
)
from coar_dist.store.storage import Storage

_T = TypeVar("_T")
_MOST_FOOTERS = 20_000
Check = Literal["names", "footers", "everything"]
_NAME = re.compile(r"(\d{10})-(\d{10})\.parquet")


@dataclass(frozen=True)
class MarginStore:
    """Reader and writer of the shards of one design.

    Attributes:
        storage: of the run directory.
        folder: where the shards lie in it.
        fingerprint: of the run's identity and the design; every shard carries it.
        num_components: bits of a mask.
        num_masks: masks of the design; shards beyond it are left alone.
        num_examples: margins of a mask.
        examples_per_block: examples of one margin column.
        dtype: ``float32`` or ``float16``.
    """

    storage: Storage
    folder: str
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

    def file(self, start: int, stop: int) -> str:
        """The name of the shard of masks ``start .. stop - 1``."""
        return f"{self.folder}/{start:010d}-{stop:010d}.parquet"

    def has(self, start: int, stop: int) -> bool:
        """Whether the shard of masks ``start .. stop - 1`` is there."""
        return self.storage.size(self.file(start, stop)) is not None

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
        stop = start + len(masks)
        write_table(self.storage, self.file(start, stop), columns, {**made_by, **self._belongs_to(start, stop)})

    def _belongs_to(self, start: int, stop: int) -> dict[str, Any]:
        return {"content": "margins", "design": self.fingerprint, "start": start, "stop": stop}

    def ranges(self, without: Collection[tuple[int, int]] = ()) -> list[tuple[int, int]]:
        """The mask ranges of the shards that lie in the folder, by file name, in mask order, but those ``without``.

        Raises:
            DamagedFileError: two shards overlap.
        """
        found = sorted(masks for masks in self._listed() if masks not in without)
        for (start, stop), following in pairwise(found):
            if following[0] < stop:
                raise DamagedFileError(
                    f"shards {self.file(start, stop)} and {self.file(*following)} of {self.storage} overlap. "
                    f"The ablate stage sets one aside, and recomputes what is then missing."
                )
        return found

    def _listed(self) -> dict[tuple[int, int], int]:
        """Mask ranges and file sizes of what lies in the folder."""
        files = self.storage.files(self.folder)
        names = ((_NAME.fullmatch(name), size) for name, size in files.items())
        return {(int(name[1]), int(name[2])): size for name, size in names if name}

    def wrong_shards(self, check: Check) -> dict[tuple[int, int], str]:
        """The shards that must not be used, and why: damaged, of another run or range, or overlapping another one.

        Args:
            check: ``names`` finds overlapping ones alone; ``footers`` also what is truncated or foreign;
                ``everything`` reads every byte.
        """
        return self._wrong_of(self._listed(), check)

    def _wrong_of(self, listed: Mapping[tuple[int, int], int], check: Check) -> dict[tuple[int, int], str]:
        def why(masks: tuple[int, int]) -> str | None:
            name, belongs_to = self.file(*masks), self._belongs_to(*masks)
            return why_wrong(self.storage, name, listed[masks], belongs_to, check == "everything")

        wrong: dict[tuple[int, int], str] = {}
        if check != "names":
            reasons = self._at_once(why, listed)
            wrong = {masks: reason for masks, reason in zip(listed, reasons, strict=True) if reason is not None}
        covered = 0
        for start, stop in sorted(listed.keys() - wrong.keys()):
            if start < covered:
                wrong[start, stop] = f"{self._where(start, stop)} overlaps the shard before it."
            else:
                covered = stop
        return wrong

    def _where(self, start: int, stop: int) -> str:
        return self.storage.where(self.file(start, stop))

    def set_aside_wrong(self, is_new_run: bool) -> list[str]:
        """Rename the shards whose footer shows that they must not be used, and say why for each.

        Of very many shards only the names are looked at: opening each takes a while, and whoever reads one
        verifies it.

        Args:
            is_new_run: whether the identity has just been written, so that it may be the identity that is wrong.

        Raises:
            RunMismatchError: the identity is new, and there are more shards of another run than of this one.
        """
        self.storage.sweep(self.folder)
        listed = self._listed()
        wrong = self._wrong_of(listed, "footers" if is_new_run or len(listed) <= _MOST_FOOTERS else "names")
        foreign = sum("belongs to something else" in reason for reason in wrong.values())
        if is_new_run and foreign > len(listed) - len(wrong):
            raise RunMismatchError(
                f"{self.storage.where(self.folder)} holds {foreign} shards of another run, whose run.json is lost. "
                f"Undo what you changed since, or use another run.dir. Nothing was touched."
            )
        return [
            f"{reason} Set aside as {set_aside(self.storage, self.file(*masks))}" for masks, reason in wrong.items()
        ]

    def made_by(self) -> dict[str, Any]:
        """The metadata of the first shard: how it was made; empty if there is none."""
        for start, stop in self.ranges()[:1]:
            return read_metadata(self.storage, self.file(start, stop))
        return {}

    def missing(self, without: Collection[tuple[int, int]] = ()) -> list[tuple[int, int]]:
        """The ranges of masks that no shard covers, in order; the shards ``without`` do not count."""
        return self._missing_of(self.ranges(without))

    def _missing_of(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        gaps = []
        position = 0
        for start, stop in ranges:
            if start >= self.num_masks:
                break
            if start > position:
                gaps.append((position, start))
            position = stop
        if position < self.num_masks:
            gaps.append((position, self.num_masks))
        return gaps

    def require_complete(self) -> list[tuple[int, int]]:
        """Check that all masks are there.

        Returns:
            The ranges of the shards.

        Raises:
            MissingWorkError: listing the missing ranges.
        """
        ranges = self.ranges()
        gaps = self._missing_of(ranges)
        if gaps:
            listed = ", ".join(f"{start}..{stop - 1}" for start, stop in gaps[:10])
            raise MissingWorkError(
                f"{self.storage.where(self.folder)} lacks {sum(stop - start for start, stop in gaps)} of "
                f"{self.num_masks} masks: {listed}{', ...' if len(gaps) > 10 else ''}. Run the ablate stage again; it "
                f"computes what is missing."
            )
        return ranges

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
        ranges = self.require_complete()
        first, end = masks or (0, self.num_masks)
        wanted = [(start, stop) for start, stop in ranges if stop > first and start < end]
        waiting: list[tuple[NDArray[np.bool_], NDArray[np.float32]]] = []
        num_waiting = 0
        shards = self._at_once(lambda shard: self._read_shard(*shard, block), wanted)
        for (start, stop), (shard_masks, margins) in zip(wanted, shards, strict=True):
            rows = slice(max(first - start, 0), min(stop, end) - start)
            waiting.append((shard_masks[rows], margins[rows]))
            num_waiting += rows.stop - rows.start
            while num_waiting >= masks_per_batch:
                joined = _join(waiting)
                yield joined[0][:masks_per_batch], joined[1][:masks_per_batch]
                waiting = [(joined[0][masks_per_batch:], joined[1][masks_per_batch:])]
                num_waiting -= masks_per_batch
        if num_waiting:
            yield _join(waiting)

    def _at_once(self, read: Callable[[tuple[int, int]], _T], ranges: Iterable[tuple[int, int]]) -> Iterator[_T]:
        """``read`` of every shard, in order; where the storage is far away, the next ones are on their way."""
        if self.storage.parallel_reads == 1:
            yield from map(read, ranges)
            return
        coming = deque[Future[_T]]()
        with ThreadPoolExecutor(self.storage.parallel_reads) as pool:
            try:
                for masks in ranges:
                    coming.append(pool.submit(read, masks))
                    if len(coming) > self.storage.parallel_reads:
                        yield coming.popleft().result()
                while coming:
                    yield coming.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _read_shard(
        self, start: int, stop: int, block: tuple[int, int] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        name = self.file(start, stop)
        names = ["mask_id", "mask"] + ([] if block is None else [_column(block[0])])
        try:
            table = read_table(self.storage, name, self._belongs_to(start, stop), names)
            if not np.array_equal(table["mask_id"].to_numpy(), np.arange(start, stop)):
                raise DamagedFileError(
                    f"{self._where(start, stop)} is damaged: its mask ids are not {start}..{stop - 1} in order."
                )
        except DamagedFileError as error:
            new_name = set_aside(self.storage, name)
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
