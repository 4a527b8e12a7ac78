"""A disk that is full, read-only, gone or failing: a clear error, nothing lost, and the next run completes."""

from __future__ import annotations

import builtins
import datetime
import errno
import itertools
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coar_dist.errors import StorageError
from coar_dist.store import local_storage
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.lock import only_writer
from tests.small_run import files_of, run_small, without_ray


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 kB of its own."""
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], capture_output=True, check=False)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)], ids=errno.errorcode.get
)
def test_writes_that_fail_at_any_moment(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    for moment in random.Random(number).sample(range(100), 2):
        root = tmp_path / str(moment)
        calls = itertools.count()

        def failing(descriptor: int, moment: int = moment, calls: Iterator[int] = calls) -> None:
            if next(calls) >= moment:
                raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch, without_ray():
            patch.setattr("os.fsync", failing)
            with pytest.raises(StorageError, match=rf"cannot be written: .*{os.strerror(number)}.*finished is kept"):
                run_small(root)
        assert not list(root.rglob("*.tmp"))
        with without_ray():
            run_small(root)
        assert files_of(root) == whole


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
def test_reads_that_fail_condemn_no_file(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A file that cannot be read at the moment is not a damaged one."""
    root = tmp_path / "run"
    with without_ray():
        run_small(root)

    for moment in (0, 5, 60, 90):
        calls = itertools.count()

        def failing(path: Any, mode: str, moment: int = moment, calls: Iterator[int] = calls) -> Any:
            if next(calls) >= moment:
                raise OSError(number, os.strerror(number), str(path))
            return builtins.open(path, mode)

        with monkeypatch.context() as patch, without_ray():
            patch.setattr(local_storage, "open", failing, raising=False)
            with pytest.raises(StorageError, match=rf"cannot be read: .*{os.strerror(number)}"):
                run_small(root)
    assert not list(root.rglob("*.damaged"))
    assert files_of(root) == whole


def test_a_full_disk(whole: dict[str, bytes], tmpfs: Path) -> None:
    with without_ray():
        with pytest.raises(StorageError, match=r"cannot be written: .*No space left on device.*finished is kept"):
            run_small(tmpfs / "run")
        done = [name for name in files_of(tmpfs / "run") if name.startswith("margins/")]
        assert done
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmpfs)], check=True)
        run_small(tmpfs / "run")
    assert files_of(tmpfs / "run") == whole


def test_a_read_only_directory(whole: dict[str, bytes], tmpfs: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m,ro", str(tmpfs)], check=True)
    with without_ray():
        with pytest.raises(StorageError, match=r"run cannot be made: Read-only file system"):
            run_small(tmpfs / "run")
        subprocess.run(["mount", "-o", "remount,rw", str(tmpfs)], check=True)
        run_small(tmpfs / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(tmpfs)], check=True)
        with pytest.raises(StorageError, match=r"cannot be written: .*Read-only file system"):
            run_small(tmpfs / "run")
    assert files_of(tmpfs / "run") == whole


def test_a_mount_that_vanishes_is_noticed_and_not_filled_underneath(tmpfs: Path) -> None:
    storage = LocalStorage(str(tmpfs / "run"))
    with only_writer(storage) as hold:
        storage.write("margins/train/a", b"x")
        hold.check()
        subprocess.run(["umount", "-l", str(tmpfs)], check=True)
        with pytest.raises(StorageError, match=r"driver\.lock is gone: .*removed or unmounted"):
            hold.check()
        with pytest.raises(StorageError, match=r"the run directory .* is not there.*unmounted"):
            storage.write("margins/train/b", b"x")
    assert list(tmpfs.iterdir()) == []


class Jumping(datetime.datetime):
    """A wall clock that is set forwards and back at every look, as ``created`` and the log read it."""

    jumps = itertools.cycle([0, 10**9, -3600, 5 * 10**8])
    num_looks = 0

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Jumping:
        cls.num_looks += 1
        return cls.fromtimestamp(1.7e9 + next(cls.jumps), tz)


def test_clocks_that_jump_do_not_matter(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wall clocks, and with them the times that the file system gives to files."""
    jumps = itertools.cycle([0.0, 1e9, -3600.0, 5e8])
    monkeypatch.setattr("datetime.datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(jumps))
    with without_ray():
        run_small(tmp_path / "run")
        assert Jumping.num_looks > 0
        for path in (tmp_path / "run").rglob("*.parquet"):
            os.utime(path, (next(jumps), next(jumps)))
        run_small(tmp_path / "run")
    assert files_of(tmp_path / "run") == whole
