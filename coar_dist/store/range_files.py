"""Files for the eye alone that lie in a folder of a run, one per range of what they are of: pictures, responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from coar_dist.store.aside import set_aside
from coar_dist.store.parquet import why_wrong
from coar_dist.store.run_directory import RunDirectory

Range = tuple[int, int]
"""First and end."""


class RangeFiles:
    """``<folder>/<first>-<end>.parquet``, one file per range. No result depends on them, and a run without is whole.

    Args:
        run: whose they are.
        ranges: that have a file each.

    Attributes:
        folder: of the run directory.
        of: what the ranges count, a key of the files' metadata.
    """

    folder: ClassVar[str]
    of: ClassVar[str]

    def __init__(self, run: RunDirectory, ranges: Sequence[Range]) -> None:
        self._run, self._storage, self._ranges = run, run.storage, ranges

    def file(self, part: Range) -> str:
        """The name of the file of a range."""
        return f"{self.folder}/{part[0]:08d}-{part[1]:08d}.parquet"

    def belongs_to(self, part: Range) -> dict[str, Any]:
        """What the metadata of the file of a range say."""
        return {**self._run.belongs_to(self.folder), self.of: list(part)}

    def missing(self) -> list[Range]:
        """The ranges without a file; all of them where nothing was kept."""
        names = self._listed()
        return [part for part in self._ranges if self.file(part) not in names]

    def set_aside_wrong(self) -> None:
        """For the process that holds the run: set aside the files whose footer shows that they must not be used."""
        names = self._listed()
        for part in self._ranges:
            name = self.file(part)
            if name in names and why_wrong(self._storage, name, self.belongs_to(part), False, names[name]) is not None:
                set_aside(self._storage, name)

    def _listed(self) -> dict[str, int]:
        return {f"{self.folder}/{name}": size for name, size in self._storage.files(self.folder).items()}
