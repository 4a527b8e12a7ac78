"""A folder of shards: one Parquet file per range of masks, and the file names are the only record of what is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

import pyarrow as pa

from coar_dist.errors import DamagedFileError, MissingWorkError, RunMismatchError, counted, listed_ranges
from coar_dist.store.ahead import read_ahead
from coar_dist.store.aside import set_aside
from coar_dist.store.parquet import FOREIGN, Content, read_content, read_metadata, why_wrong
from coar_dist.store.storage import Storage

_T = TypeVar("_T")
_MOST_FOOTERS = 20_000
_FILE_BYTES, _COLUMN_BYTES = 600, 280
"""Schema, metadata and checksums, about; measured."""
Check = Literal["names", "footers", "everything"]
_NAME = re.compile(r"(\d{10})-(\d{10})\.parquet")


@dataclass(frozen=True)
class ShardFolder:
    """What all folders of shards have in common: which masks are there, which are missing, which files are wrong.

    Attributes:
        storage: of the run directory.
        folder: where the shards lie in it.
        fingerprint: of the run's identity and the design; every shard carries it.
        num_components: bits of a mask.
        num_masks: masks of the design; shards beyond it are left alone.
    """

    content: ClassVar[str]
    unit: ClassVar[str] = "masks"
    """What the ranges count."""
    storage: Storage
    folder: str
    fingerprint: str
    num_components: int
    num_masks: int

    def file(self, start: int, stop: int) -> str:
        """The name of the shard of masks ``start .. stop - 1``."""
        return f"{self.folder}/{start:010d}-{stop:010d}.parquet"

    def bytes_of(self, num_masks: int) -> int:
        """About the bytes of one shard of so many masks."""
        raise NotImplementedError

    @staticmethod
    def _overhead(num_columns: int) -> int:
        """About the bytes of a file beside its values."""
        return _FILE_BYTES + num_columns * _COLUMN_BYTES

    def has(self, start: int, stop: int) -> bool:
        """Whether the shard of masks ``start .. stop - 1`` is there."""
        return self.storage.size(self.file(start, stop)) is not None

    def _belongs_to(self, start: int, stop: int) -> dict[str, Any]:
        return {"content": self.content, "design": self.fingerprint, "start": start, "stop": stop}

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
            return why_wrong(self.storage, name, belongs_to, check == "everything", listed[masks])

        wrong: dict[tuple[int, int], str] = {}
        if check != "names":
            reasons = self._at_once(why, listed)
            wrong = {masks: reason for masks, reason in zip(listed, reasons, strict=True) if reason is not None}
        covered = 0
        # Of two that overlap, the larger one stays: where shards were cut by time, the other one lies within it.
        for start, stop in sorted(listed.keys() - wrong.keys(), key=lambda masks: (masks[0], -masks[1])):
            if start < covered:
                wrong[start, stop] = f"{self._where(start, stop)} overlaps the shard before it."
            else:
                covered = stop
        return wrong

    def _where(self, start: int, stop: int) -> str:
        return self.storage.where(self.file(start, stop))

    def set_aside_wrong(self, is_new_run: bool) -> list[str]:
        """For the process that holds the run: set aside the shards whose footer shows that they must not be used.

        Where there are very many, only their names are looked at: opening each takes a while, and whoever reads one
        verifies it.

        Args:
            is_new_run: whether the identity has just been written, so that it may be the identity that is wrong.

        Returns:
            Why, for each, and its new name.

        Raises:
            RunMismatchError: the identity is new, and there are more shards of another run than of this one.
        """
        self.storage.sweep(self.folder)
        listed = self._listed()
        wrong = self._wrong_of(listed, "footers" if is_new_run or len(listed) <= _MOST_FOOTERS else "names")
        foreign = sum(FOREIGN in reason for reason in wrong.values())
        if is_new_run and foreign > len(listed) - len(wrong):
            raise RunMismatchError(
                f"{self.storage.where(self.folder)} holds {counted(foreign, 'shard')} of another run, whose run.json "
                f"is lost. Undo what you changed since, or use another run.dir. Nothing was touched."
            )
        return self._set_aside(wrong)

    def set_aside_overlapping(self) -> list[str]:
        """For the process that holds the run, when its actors have ended: set aside what overlaps.

        An actor of a driver that was killed may have written a shard after this one looked what was missing.

        Returns:
            Why, for each, and its new name.
        """
        self.storage.sweep(self.folder)
        return self._set_aside(self.wrong_shards("names"))

    def _set_aside(self, wrong: Mapping[tuple[int, int], str]) -> list[str]:
        return [
            f"{reason} Set aside as {set_aside(self.storage, self.file(*masks))}" for masks, reason in wrong.items()
        ]

    def made_by(self) -> dict[str, Any]:
        """The metadata of the first shard: how it was made; empty if there is none.

        Raises:
            DamagedFileError: its footer is damaged, or it belongs to something else.
        """
        for start, stop in self.ranges()[:1]:
            return self._read_metadata(start, stop)
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
            raise MissingWorkError(
                f"{self.storage.where(self.folder)} lacks {sum(stop - start for start, stop in gaps)} of "
                f"{self.num_masks} {self.unit}: {listed_ranges(gaps)}. Run the ablate stage again; it computes what is "
                f"missing."
            )
        return ranges

    def _at_once(self, read: Callable[[tuple[int, int]], _T], ranges: Iterable[tuple[int, int]]) -> Iterator[_T]:
        """``read`` of every shard, in order; where the storage is far away, the next ones are on their way."""
        num = self.storage.parallel_reads
        return map(read, ranges) if num == 1 else read_ahead(read, ranges, num)

    def _read(
        self, start: int, stop: int, columns: Sequence[str] | None, types: Mapping[str, pa.DataType], num_rows: int
    ) -> Content:
        """The columns of one shard with its metadata, verified.

        Args: as of ``read_content``.

        Raises:
            DamagedFileError: it cannot be used.
            MissingWorkError: it has been set aside since it was listed.
        """
        name, belongs_to = self.file(start, stop), self._belongs_to(start, stop)
        # The ablate stage looks at footers alone, so it does not find every damage.
        found = read_content(
            self.storage, name, "ablate", belongs_to, columns, is_found=False, types=types, num_rows=num_rows
        )
        if found is None:
            raise self._gone(start, stop)
        return found

    def _damaged(self, start: int, stop: int, reason: object) -> DamagedFileError:
        """The error that says of a shard what only a look at its values shows: a sentence without a full stop."""
        where = self._where(start, stop)
        return DamagedFileError.of(where, f"{where} is damaged: {reason}.", "ablate", is_found=False)

    def _read_metadata(self, start: int, stop: int) -> dict[str, Any]:
        found = read_metadata(self.storage, self.file(start, stop), "ablate", self._belongs_to(start, stop))
        if found is None:
            raise self._gone(start, stop)
        return found

    def _gone(self, start: int, stop: int) -> MissingWorkError:
        return MissingWorkError(f"{self._where(start, stop)} is missing: run the ablate stage.")
