"""A run directory in a folder."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from coar_dist.errors import StorageError
from coar_dist.store.storage import KEPT, Storage, StoredFile, checked_name


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder of this machine, or one that a network file system shows on all machines."""

    location: str
    parallel_reads = 1
    worth_reading = 4096

    def __reduce__(self) -> tuple[type[LocalStorage], tuple[str]]:
        """Another process may have another working directory: what is sent to it has the whole path."""
        return LocalStorage, (os.path.abspath(self.location),)

    def path(self, name: str = "") -> Path:
        """The file as the operating system knows it."""
        return Path(self.location) / checked_name(name)

    def create(self) -> None:
        """Make the folder itself, once: a later writer that does not find it must not make another one."""
        with self._named("", "made"):
            self.path().mkdir(parents=True, exist_ok=True)

    @override
    def files(self, folder: str = "") -> dict[str, int]:
        with self._named(folder, "listed"):
            try:
                entries = list(os.scandir(self.path(folder)))
            except FileNotFoundError:
                return {}
            sizes = {}
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
                    if entry.is_file():
                        sizes[entry.name] = entry.stat().st_size
            return sizes

    @override
    def folders(self, folder: str = "") -> list[str]:
        with self._named(folder, "listed"):
            try:
                return sorted(entry.name for entry in os.scandir(self.path(folder)) if entry.is_dir())
            except FileNotFoundError:
                return []

    @override
    def size(self, name: str) -> int | None:
        with self._named(name, "read"):
            try:
                return self.path(name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    @override
    def open(self, name: str, size: int | None = None) -> StoredFile | None:
        with self._named(name, "read"):
            try:
                return _LocalFile(self, name, open(self.path(name), "rb"))
            except (FileNotFoundError, NotADirectoryError):
                return None

    @override
    def read(self, name: str) -> bytes:
        with self._named(name, "read"), open(self.path(name), "rb") as file:
            return file.read()

    @override
    def write(self, name: str, content: bytes) -> None:
        target = self.path(name)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self._named(name, "written"):
            self._make_folder(target.parent)
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            except BaseException:
                with contextlib.suppress(OSError):  # the error that counts is the first one
                    temporary.unlink(missing_ok=True)
                raise
            directory = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _make_folder(self, folder: Path) -> None:
        """Folders inside the run directory; never the run directory, which may be a mount that has gone."""
        root = self.path()
        if not root.is_dir():
            raise FileNotFoundError(
                f"the run directory {str(root)!r} is not there. Was it removed, unmounted, or is it not shared by all "
                f"machines? Actors on several machines need a network file system or an s3:// or gs:// run.dir"
            )
        for part in reversed([folder, *folder.parents]):
            if part.is_relative_to(root) and part != root:
                part.mkdir(exist_ok=True)

    @override
    def move(self, name: str, new_name: str) -> None:
        with self._named(name, "renamed"):
            self.path(name).replace(self.path(new_name))

    @override
    def sweep(self, folder: str) -> None:
        for name in self.files(folder):
            if name.startswith(".") and name.endswith(".tmp"):
                with self._named(f"{folder}/{name}", "removed"):
                    self.path(f"{folder}/{name}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path(name)} cannot be {done}: {error.strerror or error}. {KEPT}") from error


class _LocalFile(StoredFile):
    """An open descriptor: all reads are of the file that had the name when it was opened."""

    def __init__(self, storage: LocalStorage, name: str, file: BinaryIO) -> None:
        self._storage, self._name, self._file = storage, name, file
        self._opened = os.fstat(file.fileno())
        self.size = self._opened.st_size

    @override
    def read(self, start: int, stop: int) -> bytes:
        with self._storage._named(self._name, "read"):
            self._file.seek(start)
            return self._file.read(max(stop - start, 0))

    @override
    def was_replaced(self) -> bool:
        with self._storage._named(self._name, "read"):
            try:
                there = self._storage.path(self._name).stat()
            except FileNotFoundError:
                return True
        # An inode that is open has its number for itself. Size and time tell of a file that was overwritten in place.
        return any(
            getattr(there, name) != getattr(self._opened, name)
            for name in ("st_dev", "st_ino", "st_size", "st_mtime_ns")
        )

    @override
    def close(self) -> None:
        self._file.close()
