"""Memory, bytes and seconds of this process and all that it started, while a stage runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_EVERY_S = 0.5
_KINDS = {"ray::IDLE": "idle workers", "gcs_server": "Ray's head", "raylet": "Ray's head", "dashboard": "Ray's head"}


@dataclass
class Usage:
    """What a stage took.

    Attributes:
        seconds: from its beginning to its end.
        peaks: by kind of process the most memory that one of them had: proportional set size, in bytes.
        together: the most that all had at a time.
        read: bytes that they read, from the disk or its cache.
        written: bytes that the run directory grew by.
        num_files: files of the run directory, at the end.
    """

    seconds: float = 0.0
    peaks: dict[str, int] = field(default_factory=dict)
    together: int = 0
    read: int = 0
    written: int = 0
    num_files: int = 0


class _Sampler:
    def __init__(self, usage: Usage) -> None:
        self._usage, self._me = usage, psutil.Process()
        self._read_before = {process.pid: _bytes_read(process) for process in self._processes()}
        self._read: dict[int, int] = {}

    def _processes(self) -> list[psutil.Process]:
        return [self._me, *self._me.children(recursive=True)]

    def sample(self) -> None:
        together = 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                size = process.memory_full_info().pss
                kind = "driver" if process.pid == self._me.pid else _kind_of(process)
                self._usage.peaks[kind] = max(self._usage.peaks.get(kind, 0), size)
                together += size
                self._read[process.pid] = _bytes_read(process) - self._read_before.get(process.pid, 0)
        self._usage.together = max(self._usage.together, together)
        self._usage.read = sum(self._read.values())


def _bytes_read(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.io_counters().read_chars)
    return 0


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
    started = time.perf_counter()
    thread.start()
    try:
        yield usage
    finally:
        usage.seconds = time.perf_counter() - started
        done.set()
        thread.join()
        sampler.sample()
        size, usage.num_files = _size_of(folder)
        usage.written = size - size_before


def _size_of(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)
