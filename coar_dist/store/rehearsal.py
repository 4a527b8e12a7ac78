"""A run directory as it would be: what is written stays in memory, and nothing changes where it lies."""

from __future__ import annotations

from typing_extensions import override

from coar_dist.store.storage import Storage, StoredFile


class Rehearsal(Storage):
    """Reads through to another storage; readers of this object alone see what is written or moved.

    Args:
        storage: the run directory, which need not be there.
    """

    def __init__(self, storage: Storage) -> None:
        self.location = storage.location
        self.parallel_reads = storage.parallel_reads
        self.worth_reading = storage.worth_reading
        self._storage = storage
        self._written: dict[str, bytes] = {}
        self._gone: set[str] = set()

    @override
    def files(self, folder: str = "") -> dict[str, int]:
        prefix = f"{folder}/" if folder else ""
        found = {
            name: size for name, size in self._storage.files(folder).items() if f"{prefix}{name}" not in self._gone
        }
        own = {name.removeprefix(prefix): len(text) for name, text in self._written.items() if name.startswith(prefix)}
        return found | {name: size for name, size in own.items() if "/" not in name}

    @override
    def folders(self, folder: str = "") -> list[str]:
        prefix = f"{folder}/" if folder else ""
        parts = (name.removeprefix(prefix).split("/") for name in self._written if name.startswith(prefix))
        return sorted({*self._storage.folders(folder), *(first for first, *rest in parts if rest)})

    @override
    def size(self, name: str) -> int | None:
        if name in self._written:
            return len(self._written[name])
        return None if name in self._gone else self._storage.size(name)

    @override
    def open(self, name: str, size: int | None = None) -> StoredFile | None:
        if name in self._written:
            return _Written(self._written[name])
        return None if name in self._gone else self._storage.open(name, size)

    @override
    def read(self, name: str) -> bytes:
        return self._written[name] if name in self._written else self._storage.read(name)

    @override
    def write(self, name: str, content: bytes) -> None:
        self._written[name] = content

    @override
    def move(self, name: str, new_name: str) -> None:
        self._written[new_name] = self.read(name)
        self._written.pop(name, None)
        self._gone.add(name)

    @override
    def sweep(self, folder: str) -> None:
        """Leave everything as it is: what killed writers left half written is no file of a run."""


class _Written(StoredFile):
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    @override
    def read(self, start: int, stop: int) -> bytes:
        return self._content[start:stop]

    @override
    def was_replaced(self) -> bool:
        return False
