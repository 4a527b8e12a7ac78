"""Memory, bytes and seconds of this process and all that it started, while a stage runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil

from coar_dist.store.local_storage import LocalStorage, _LocalFile

_EVERY_S = 0.5
_KINDS = {"ray::IDLE": "idle workers", "gcs_server": "Ray's head", "raylet": "Ray's head", "dashboard": "Ray's head"}


@dataclass
class Usage:
    """What a stage took.

    Attributes:
        seconds: from its beginning to its end.
        cpu_seconds: of this process, all threads together: a busy machine takes longer, and no more of them.
        peaks: by kind of process the most memory that one of them had: proportional set size, in bytes.
        together: the most that all had at a time.
        read: bytes of the run directory that this process read.
        written: bytes that the run directory grew by.
        num_files: files of the run directory, at the end.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peaks: dict[str, int] = field(default_factory=dict)
    together: int = 0
    read: int = 0
    written: int = 0
    num_files: int = 0


class _Sampler:
    def __init__(self, usage: Usage) -> None:
        self._usage, self._me = usage, psutil.Process()

    def sample(self) -> None:
        together = 0
        for process in [self._me, *self._me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                size = process.memory_full_info().pss
                kind = "driver" if process.pid == self._me.pid else _kind_of(process)
                self._usage.peaks[kind] = max(self._usage.peaks.get(kind, 0), size)
                together += size
        self._usage.together = max(self._usage.together, together)


@contextlib.contextmanager
def _counted_reads(usage: Usage) -> Iterator[None]:
    """All that a process reads of a local run directory goes through these two."""
    whole, part = LocalStorage.read, _LocalFile.read

    def read_whole(self: LocalStorage, name: str) -> bytes:
        content = whole(self, name)
        usage.read += len(content)
        return content

    def read_part(self: _LocalFile, start: int, stop: int) -> bytes:
        content = part(self, start, stop)
        usage.read += len(content)
        return content

    with mock.patch.object(LocalStorage, "read", read_whole), mock.patch.object(_LocalFile, "read", read_part):
        yield


def _kind_of(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    for word, kind in _KINDS.items():
        if word in words:
            return kind
    return "actors and workers" if words.startswith("ray::") else "other"


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Usage]:
    """Watch for the ``with`` block; ``folder`` is the run directory."""
    usage, done = Usage(), threading.Event()
    size_before, _ = _size_of(folder)
    sampler = _Sampler(usage)

    def keep_sampling() -> None:
        while not done.wait(_EVERY_S):
            sampler.sample()

    thread = threading.Thread(target=keep_sampling, daemon=True)
    started, cpu_before = time.perf_counter(), time.process_time()
    thread.start()
    try:
        with _counted_reads(usage):
            yield usage
    finally:
        usage.seconds, usage.cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_before
        done.set()
        thread.join()
        sampler.sample()
        size, usage.num_files = _size_of(folder)
        usage.written = size - size_before


def _size_of(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)
