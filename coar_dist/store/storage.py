"""Where a run directory lies: a local folder, or an object store by URL; the same few operations on both.

Every error of a disk or a network leaves here as a ``StorageError`` that names the file and the cause; a file that is
not there, and what a file holds, are for the callers to judge.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coar_dist.config.secrets import without_secrets
from coar_dist.errors import ConfigError, StorageError

_T = TypeVar("_T")
_KEPT = "Mend that and run the same command again; what is finished is kept."
_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}
_URL = re.compile(r"([a-z0-9+.-]+)://(.*)", re.IGNORECASE)
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)
_PAUSES_S = (1.0, 2.0, 4.0)
"""Between the attempts at an object store; each attempt is repeated by the client library, too."""


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
        """Short, and other than another directory's: the last part of its path, and a hash of the whole path."""
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
    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``start .. stop - 1``, fewer where the file ends before.

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


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder of this machine, or one that a network file system shows on all machines."""

    location: str
    parallel_reads = 1
    worth_reading = 4096

    def path(self, name: str = "") -> Path:
        """The file as the operating system knows it."""
        return Path(self.location) / name

    def create(self) -> None:
        """Make the folder itself, once: a later writer that does not find it must not make another one."""
        with self._named("", "made"):
            self.path().mkdir(parents=True, exist_ok=True)

    def files(self, folder: str = "") -> dict[str, int]:
        """As in ``Storage``."""
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

    def folders(self, folder: str = "") -> list[str]:
        """As in ``Storage``."""
        with self._named(folder, "listed"):
            try:
                return sorted(entry.name for entry in os.scandir(self.path(folder)) if entry.is_dir())
            except FileNotFoundError:
                return []

    def size(self, name: str) -> int | None:
        """As in ``Storage``."""
        with self._named(name, "read"):
            try:
                return self.path(name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """As in ``Storage``."""
        with self._named(name, "read"), open(os.path.join(self.location, name), "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(max(stop - start, 0))

    def write(self, name: str, content: bytes) -> None:
        """As in ``Storage``."""
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

    def move(self, name: str, new_name: str) -> None:
        """As in ``Storage``."""
        with self._named(name, "renamed"):
            self.path(name).replace(self.path(new_name))

    def sweep(self, folder: str) -> None:
        """As in ``Storage``."""
        for name in self.files(folder):
            if name.startswith(".") and name.endswith(".tmp"):
                with self._named(f"{folder}/{name}", "removed"):
                    self.path(f"{folder}/{name}").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path(name)} cannot be {done}: {error.strerror or error}. {_KEPT}") from error


@dataclass(frozen=True)
class ObjectStorage(Storage):
    """A prefix of a bucket: ``s3://bucket/prefix`` or ``gs://bucket/prefix``, credentials from the environment.

    One PUT makes an object, so objects are whole by nature.
    """

    location: str
    parallel_reads = 16
    worth_reading = 65536

    @property
    def _protocol(self) -> str:
        return self.location.partition("://")[0]

    def _key(self, name: str) -> str:
        return f"{self.location.partition('://')[2].strip('/')}/{name}".rstrip("/")

    def _call(self, name: str, done: str, call: Callable[[Any, str], _T]) -> _T:
        """``call(filesystem, key)``, again after a pause where the network or the store failed for a moment."""
        for pause in (*_PAUSES_S, None):
            try:
                return call(_filesystem(self._protocol), self._key(name))
            except (*_FINAL, ConfigError):
                raise
            except Exception as error:  # each client library has its own families of errors
                if pause is None or _is_final(error):
                    text = without_secrets(f"{type(error).__name__}: {error}")
                    raise StorageError(f"{self.where(name)} cannot be {done}: {text}. {_KEPT}") from error
                time.sleep(pause)
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _named(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except _FINAL as error:
            text = without_secrets(f"{type(error).__name__}: {error}")
            raise StorageError(
                f"{self.where(name)} cannot be {done}: {text}. Check the bucket's name and your credentials. {_KEPT}"
            ) from error

    def files(self, folder: str = "") -> dict[str, int]:
        """As in ``Storage``."""

        def find(filesystem: Any, key: str) -> dict[str, int]:
            found = filesystem.find(key, maxdepth=1, detail=True)
            return {path.rpartition("/")[2]: int(entry["size"]) for path, entry in found.items()}

        with self._named(folder, "listed"):
            return self._call(folder, "listed", find)

    def folders(self, folder: str = "") -> list[str]:
        """As in ``Storage``."""

        def find(filesystem: Any, key: str) -> list[str]:
            found = filesystem.find(key, maxdepth=1, withdirs=True, detail=True)
            paths = [path.rstrip("/") for path, entry in found.items() if entry["type"] == "directory"]
            return sorted(path.rpartition("/")[2] for path in paths if path != key.rstrip("/"))

        with self._named(folder, "listed"):
            return self._call(folder, "listed", find)

    def size(self, name: str) -> int | None:
        """As in ``Storage``."""
        with self._named(name, "read"):
            try:
                return int(self._call(name, "read", lambda filesystem, key: filesystem.info(key))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """As in ``Storage``."""
        if stop is not None and stop <= start:
            return b""
        with self._named(name, "read"):
            return bytes(
                self._call(
                    name, "read", lambda filesystem, key: filesystem.cat_file(key, start=start or None, end=stop)
                )
            )

    def write(self, name: str, content: bytes) -> None:
        """As in ``Storage``."""
        with self._named(name, "written"):
            self._call(name, "written", lambda filesystem, key: filesystem.pipe_file(key, content))

    def write_new(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one (a conditional PUT); whether this call made it.

        After a broken connection a caller cannot know who made it, unless ``content`` is its own.
        """
        with self._named(name, "written"):
            try:
                self._call(name, "written", lambda filesystem, key: filesystem.pipe_file(key, content, mode="create"))
            except FileExistsError:
                return self.read(name) == content
        return True

    def move(self, name: str, new_name: str) -> None:
        """As in ``Storage``."""
        self.write(new_name, self.read(name))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Delete a file; none is fine."""
        with self._named(name, "removed"), contextlib.suppress(FileNotFoundError):
            self._call(name, "removed", lambda filesystem, key: filesystem.rm_file(key))

    def sweep(self, folder: str) -> None:
        """Nothing is ever half written."""


def storage_at(location: str | os.PathLike[str]) -> Storage:
    """The storage of a path or URL.

    Raises:
        ConfigError: the URL is of an unknown kind, has no bucket, or holds credentials.
    """
    text = os.fspath(location)
    if not text:
        raise ConfigError("run.dir is empty: name a folder, or s3://bucket/prefix.")
    url = _URL.fullmatch(text)
    if url is None:
        if text.partition(":")[0] in _PACKAGES and ":/" in text:
            raise ConfigError(f"run.dir={text!r} has lost a slash of its ://, as in a pathlib.Path. Give a str.")
        return LocalStorage(text)
    protocol, rest = url[1], url[2]
    if protocol not in _PACKAGES:
        raise ConfigError(
            f"run.dir={without_secrets(text)!r}: object stores are {', '.join(f'{name}://' for name in _PACKAGES)}."
        )
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise ConfigError(
            f"run.dir={without_secrets(text)!r} holds credentials, and run.dir is shown in logs. Set them in the "
            f"environment, e.g. AWS_ACCESS_KEY_ID."
        )
    if not bucket or not prefix.strip("/"):
        raise ConfigError(f"run.dir={text!r}: must be {protocol}://bucket/prefix.")
    return ObjectStorage(text.rstrip("/"))


@functools.cache
def _filesystem(protocol: str) -> Any:
    package, extra = _PACKAGES[protocol]
    try:
        import fsspec

        # What another process has written must be seen.
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise ConfigError(f"{protocol}:// needs {package}: pip install 'coar-dist[{extra}]'.") from error


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help."""
    return any(word in type(error).__name__ for word in ("Credential", "ParamValidation", "NoRegion")) or (
        isinstance(error, OSError) and error.errno == 22
    )
