"""One writer per run directory: who holds it, and that a dead holder holds nothing.

A local folder is held by a lock of the operating system, which is free when the process ends, however. An object
store has no such thing; there ``driver.lock.<n>`` is a lease: made by a conditional PUT, renewed every few seconds,
and taken over as ``driver.lock.<n + 1>`` by whoever has watched it unchanged for a while. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from coar_dist.errors import RunInUseError, StorageError
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.object_storage import ObjectStorage
from coar_dist.store.storage import Storage

_FILE = "driver.lock"
_LEASE = re.compile(r"driver\.lock\.(\d{8})")
_RENEW_EVERY_S = 5.0
_LEASE_S = 30.0
_WAY_OUT = "Wait until it ends, stop it, or use another run.dir."


class Hold(ABC):
    """The right to write to a run directory."""

    @abstractmethod
    def check(self) -> None:
        """Check that this process still has it.

        Raises:
            RunInUseError: another process has taken over.
            StorageError: the run directory is gone.
        """


@contextlib.contextmanager
def only_writer(storage: Storage) -> Iterator[Hold]:
    """Hold the run directory for the ``with`` block; a local one is made if it is not there.

    Raises:
        RunInUseError: another process holds it; the message names it.
        StorageError: it cannot be written.
    """
    if isinstance(storage, LocalStorage):
        with _local_lock(storage) as hold:
            yield hold
    else:
        assert isinstance(storage, ObjectStorage)
        with _lease(storage) as hold:
            yield hold


def holder_of(storage: Storage) -> str | None:
    """Who holds the run directory, in words, or None; a lease may be of a process that has died within its time."""
    if isinstance(storage, LocalStorage):
        path = storage.path(_FILE)
        try:
            with path.open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _in_words(_read_json(path.read_bytes()))
        except OSError:  # no such file, or not one of ours to read: nobody that could be asked
            return None
        return None
    assert isinstance(storage, ObjectStorage)
    name = _newest_lease(storage)
    found = {} if name is None else _read_json(_content(storage, name))
    return _in_words(found) if found.get("held") else None


class _LocalHold(Hold):
    def __init__(self, path: Path, file: TextIOWrapper) -> None:
        self._path, self._file = path, file

    def check(self) -> None:
        ours = os.fstat(self._file.fileno())
        try:
            there = self._path.stat()
        except OSError as error:
            raise StorageError(f"{self._path} is gone: {error}. Was the run directory removed or unmounted?") from error
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise StorageError(f"{self._path} is another file now. Was the run directory removed or unmounted?")


@contextlib.contextmanager
def _local_lock(storage: LocalStorage) -> Iterator[Hold]:
    storage.create()
    path = storage.path(_FILE)
    try:
        file = path.open("a+")
    except OSError as error:
        raise StorageError(f"run.dir={storage.location!r} cannot be written: {error}. Use another run.dir.") from error
    with file:
        try:
            is_ours = _try_to_lock(file)
        except OSError as error:
            raise StorageError(f"{path} cannot be locked: {error}. Use a run.dir on another file system.") from error
        if not is_ours:
            raise RunInUseError(f"{storage} is in use by {_in_words(_read_json(path.read_bytes()))}. {_WAY_OUT}")
        try:
            file.truncate(0)
            file.write(json.dumps(_this_process()))
            file.flush()
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}. Use another run.dir.") from error
        try:
            yield _LocalHold(path, file)
        finally:
            with contextlib.suppress(OSError):  # what it says counts for nothing once the lock is free
                file.truncate(0)


def _try_to_lock(file: TextIOWrapper) -> bool:
    """Whether the lock is ours now; ``holder_of`` may have it for a moment, to look."""
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


class _Lease(Hold):
    """The newest lease object, renewed by a thread; whoever sees a newer one has lost."""

    def __init__(self, storage: ObjectStorage, name: str, content: dict[str, Any]) -> None:
        self._storage, self._name, self._content = storage, name, content
        self._taken_by: str | None = None
        self._renewed_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        renewals = 0
        while not self._stop.wait(_RENEW_EVERY_S):
            renewals += 1
            try:
                newest = _newest_lease(self._storage)
                if newest != self._name:
                    self._taken_by = _in_words(_read_json(b"" if newest is None else _content(self._storage, newest)))
                    return
                began = time.monotonic()
                self._write(renewals=renewals)
                self._renewed_at = began
            except StorageError:
                continue  # the store does not answer now; ``check`` says so before another may take over

    def _write(self, **changes: Any) -> None:
        self._storage.write(self._name, json.dumps({**self._content, **changes}).encode())

    def check(self) -> None:
        if self._taken_by is not None:
            raise RunInUseError(
                f"{self._storage} has been taken over by {self._taken_by}: this process had not renewed its hold for "
                f"{_LEASE_S:g} s. What it finished is kept."
            )
        if time.monotonic() - self._renewed_at > _LEASE_S:
            raise StorageError(
                f"{self._storage} could not be reached for {_LEASE_S:g} s, so another process may take it over. Run "
                f"the same command again; what is finished is kept."
            )

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._taken_by is None:
            with contextlib.suppress(StorageError):  # then the next writer waits for the lease to run out
                self._write(held=False)


@contextlib.contextmanager
def _lease(storage: ObjectStorage) -> Iterator[Hold]:
    current = _newest_lease(storage)
    if current is not None:
        _wait_until_free(storage, current)
    number = 0 if current is None else _number(current) + 1
    name = f"{_FILE}.{number:08d}"
    content = {**_this_process(), "held": True, "id": uuid.uuid4().hex}
    written = json.dumps(content).encode()
    # Read again: some stores take no notice of the condition.
    if not storage.write_new(name, written) or storage.read(name) != written:
        raise RunInUseError(f"{storage} is in use by {_in_words(_read_json(_content(storage, name)))}. {_WAY_OUT}")
    lease = _Lease(storage, name, content)
    try:
        for old in _leases(storage):
            if _number(old) < number:
                storage.remove(old)
        yield lease
    finally:
        lease.release()


def _wait_until_free(storage: ObjectStorage, name: str) -> None:
    """Return once the lease is released, its process is known to be dead, or it has not changed for its time.

    Raises:
        RunInUseError: it is renewed.
    """
    first = _content(storage, name)
    found = _read_json(first)
    if not found.get("held") or _is_dead(found):
        return
    deadline = time.monotonic() + _LEASE_S
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = _content(storage, name)
        if now != first:
            if _read_json(now).get("held"):
                raise RunInUseError(f"{storage} is in use by {_in_words(found)}. {_WAY_OUT}")
            return


def _content(storage: ObjectStorage, name: str) -> bytes:
    """What a lease says; nothing if it has just been removed."""
    try:
        return storage.read(name)
    except StorageError:
        if storage.size(name) is None:
            return b""
        raise


def _leases(storage: ObjectStorage) -> list[str]:
    return sorted(name for name in storage.files() if _LEASE.fullmatch(name))


def _newest_lease(storage: ObjectStorage) -> str | None:
    return max(_leases(storage), default=None)


def _number(name: str) -> int:
    match = _LEASE.fullmatch(name)
    assert match is not None
    return int(match[1])


def _this_process() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "namespace": _process_namespace(),
    }


def _process_namespace() -> str:
    """Where process ids mean the same: this boot of this machine, and of its containers this one."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # equal to none


def _is_dead(found: dict[str, Any]) -> bool:
    if found.get("namespace") != _process_namespace():
        return False
    try:
        os.kill(int(found["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _read_json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _in_words(found: dict[str, Any]) -> str:
    if not {"process", "host", "since"} <= found.keys():
        return "another process"
    return f"process {found['process']} on {found['host']} since {found['since']}"
