"""A run directory in an object store.

A failed request is repeated by the client library: botocore tries ``_ATTEMPTS`` times, for longer and longer (the
environment variables ``AWS_RETRY_MODE`` and ``AWS_MAX_ATTEMPTS`` say otherwise), gcsfs six times.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from coar_dist.config.secrets import without_secrets
from coar_dist.errors import CoarDistError, ConfigError, StorageError
from coar_dist.store.storage import KEPT, Storage, StoredFile, checked_name

PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}
"""By protocol: the package that speaks it, and the extra of this one that brings it."""
_ATTEMPTS = 8
_REFUSED = (FileNotFoundError, PermissionError)
_IDENTITY = ("ETag", "etag", "generation", "LastModified", "updated", "size")
"""What the stores' clients say of an object that changes when it is replaced."""


@dataclass(frozen=True)
class ObjectStorage(Storage):
    """A prefix of a bucket: ``s3://bucket/prefix`` or ``gs://bucket/prefix``, credentials from the environment.

    One PUT makes an object, so objects are whole by nature.
    """

    location: str
    parallel_reads = 16
    worth_reading = 65536

    @property
    def _client(self) -> Any:
        return _filesystem(self.location.partition("://")[0])

    def _key(self, name: str) -> str:
        return f"{self.location.partition('://')[2].strip('/')}/{checked_name(name)}".rstrip("/")

    @contextlib.contextmanager
    def _named(self, name: str, done: str) -> Iterator[None]:
        try:
            yield
        except CoarDistError:
            raise
        except Exception as error:  # each client library has its own families of errors
            text = without_secrets(f"{type(error).__name__}: {error}")
            hint = " Check the bucket's name and your credentials." if isinstance(error, _REFUSED) else ""
            raise StorageError(f"{self.where(name)} cannot be {done}: {text}.{hint} {KEPT}") from error

    @override
    def files(self, folder: str = "") -> dict[str, int]:
        with self._named(folder, "listed"):
            found = self._client.find(self._key(folder), maxdepth=1, detail=True)
        return {path.rpartition("/")[2]: int(entry["size"]) for path, entry in found.items()}

    @override
    def folders(self, folder: str = "") -> list[str]:
        key = self._key(folder)
        with self._named(folder, "listed"):
            found = self._client.find(key, maxdepth=1, withdirs=True, detail=True)
        paths = [path.rstrip("/") for path, entry in found.items() if entry["type"] == "directory"]
        return sorted(path.rpartition("/")[2] for path in paths if path != key.rstrip("/"))

    @override
    def size(self, name: str) -> int | None:
        found = self._info(name)
        return None if found is None else int(found["size"])

    @override
    def open(self, name: str, size: int | None = None) -> StoredFile | None:
        if size is not None:
            return _Object(self, name, size, None)
        found = self._info(name)
        return None if found is None else _Object(self, name, int(found["size"]), _identity_of(found))

    def _info(self, name: str) -> dict[str, Any] | None:
        """What the store says of an object; None where there is none."""
        with self._named(name, "read"):
            try:
                return dict(self._client.info(self._key(name)))
            except FileNotFoundError:
                return None

    @override
    def read(self, name: str) -> bytes:
        return self._range(name, None, None)

    def _range(self, name: str, start: int | None, stop: int | None) -> bytes:
        with self._named(name, "read"):
            return bytes(self._client.cat_file(self._key(name), start=start, end=stop))

    @override
    def write(self, name: str, content: bytes) -> None:
        with self._named(name, "written"):
            self._client.pipe_file(self._key(name), content)

    def write_new(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one (a conditional PUT); whether this call made it.

        After a broken connection a caller cannot know who made it, unless ``content`` is its own.
        """
        with self._named(name, "written"):
            try:
                self._client.pipe_file(self._key(name), content, mode="create")
            except FileExistsError:
                return self.read(name) == content
        return True

    @override
    def move(self, name: str, new_name: str) -> None:
        self.write(new_name, self.read(name))
        self.remove(name)

    def remove(self, name: str) -> None:
        """Delete a file; none is fine."""
        with self._named(name, "removed"), contextlib.suppress(FileNotFoundError):
            self._client.rm_file(self._key(name))

    @override
    def sweep(self, folder: str) -> None:
        """Nothing is ever half written."""


class _Object(StoredFile):
    """An object whose ranges are read by requests of their own, between which it may be replaced."""

    def __init__(self, storage: ObjectStorage, name: str, size: int, identity: Mapping[str, Any] | None) -> None:
        self._storage, self._name, self._identity = storage, name, identity
        self.size = size

    @override
    def read(self, start: int, stop: int) -> bytes:
        return b"" if stop <= start else self._storage._range(self._name, start or None, stop)

    @override
    def was_replaced(self) -> bool:
        found = self._storage._info(self._name)
        return self._identity is None or found is None or _identity_of(found) != self._identity


def _identity_of(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found.get(key) for key in _IDENTITY}


@functools.cache
def _filesystem(protocol: str) -> Any:
    package, extra = PACKAGES[protocol]
    options: dict[str, Any] = {}
    if protocol == "s3" and not {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys():
        options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS}}
    try:
        import fsspec

        # What another process has written must be seen.
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        raise ConfigError(f"{protocol}:// needs {package}: pip install 'coar-dist[{extra}]'.") from error
