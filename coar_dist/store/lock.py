"""One writer per run directory: the operating system holds the lock, and frees it when the process ends, however."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from coar_dist.errors import RunInUseError, StorageError


@contextlib.contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Hold the run directory for the ``with`` block.

    A process that died holds nothing: its lock is free, whatever the file says. Between machines this is as good as
    the file system's locks.

    Args:
        root: the run directory; it is made if it is not there.

    Raises:
        RunInUseError: another process holds it; the message names it.
        StorageError: the directory cannot be written.
    """
    path = root / "driver.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StorageError(f"run.dir={str(root)!r} cannot be written: {error}. Use another run.dir.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunInUseError(
                f"{root} is in use by {_holder(path)}. Wait until it ends, stop it, or use another run.dir."
            ) from error
        except OSError as error:
            raise StorageError(f"{path} cannot be locked: {error}. Use a run.dir on another file system.") from error
        file.truncate(0)
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": started}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text())
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
