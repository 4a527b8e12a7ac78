"""What a run directory asks of the place where it lies: a few operations on whole files.

Every error of a disk or a network leaves a storage as a ``StorageError`` that names the file and the cause. A file that
is not there, and what a file holds, are for the callers to judge.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from coar_dist.errors import DamagedFileError

KEPT = "Correct that and run the same command again; what is finished is kept."


def checked_name(name: str) -> str:
    """A name within a storage, which every storage passes through here before it becomes a path or a key.

    Raises:
        DamagedFileError: it would lie outside, as names may that stand in somebody else's run.
    """
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise DamagedFileError(
            f"{name!r} is no name of a file within a run directory, and was neither read nor written. A file of the "
            f"run names it that is damaged, or not of this package: coar-dist inspect tells which are."
        )
    return name


class StoredFile(ABC):
    """One file, opened for reading; a context manager that closes it.

    Attributes:
        size: bytes when it was opened.
    """

    size: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start .. stop - 1``, fewer where the file ends before.

        Raises:
            StorageError: it cannot be read.
        """

    @abstractmethod
    def was_replaced(self) -> bool:
        """Whether the name stands for another file by now, or for none; True where that is not known."""

    def close(self) -> None:  # noqa: B027
        """Give back what keeping it open takes."""


class Storage(ABC):
    """A folder of files that appear whole or not at all. Names are relative, with ``/``.

    Attributes:
        location: path or URL, as the user wrote it.
        parallel_reads: reads that are worth having under way at a time.
        worth_reading: bytes that take hardly longer to read than one.
    """

    location: str
    parallel_reads: int
    worth_reading: int

    def __str__(self) -> str:
        return self.location

    @property
    def label(self) -> str:
        """Short, and unlike that of any other directory: the last part of its path, and a hash of the whole path."""
        place = self.location if "://" in self.location else os.path.abspath(self.location)
        return f"{place.rstrip('/').rpartition('/')[2]}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"

    def where(self, name: str) -> str:
        """The file's path or URL."""
        return f"{self.location.rstrip('/')}/{name}"

    @abstractmethod
    def files(self, folder: str = "") -> dict[str, int]:
        """Names (without the folder) and sizes in bytes of the files right in ``folder``; empty if it is not there."""

    @abstractmethod
    def folders(self, folder: str = "") -> list[str]:
        """Names (without the folder) of the folders right in ``folder``, sorted; empty if it is not there."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size in bytes; None where there is no such file."""

    @abstractmethod
    def open(self, name: str, size: int | None = None) -> StoredFile | None:
        """Open a file to read parts of it; None where there is no such file.

        Args:
            name: the file.
            size: as a listing has just told it, which may save a request.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All bytes of a file, of one writing.

        Raises:
            StorageError: it cannot be read, or is not there.
        """

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file atomically: after a crash it is there whole or not at all."""

    @abstractmethod
    def move(self, name: str, new_name: str) -> None:
        """Rename a file within its folder."""

    @abstractmethod
    def sweep(self, folder: str) -> None:
        """Remove what killed writers left half written in ``folder``."""
