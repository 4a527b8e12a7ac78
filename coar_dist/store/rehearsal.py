"""A run directory as it would be: what is written stays in memory, and nothing changes where it lies."""

from __future__ import annotations

from coar_dist.store.storage import Storage


class Rehearsal(Storage):
    """Reads through to another storage; what is written, moved or removed is so for readers of this object alone.

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

    def files(self, folder: str = "") -> dict[str, int]:
        """As in ``Storage``."""
        prefix = f"{folder}/" if folder else ""
        found = {
            name: size for name, size in self._storage.files(folder).items() if f"{prefix}{name}" not in self._gone
        }
        own = {name.removeprefix(prefix): len(text) for name, text in self._written.items() if name.startswith(prefix)}
        return found | {name: size for name, size in own.items() if "/" not in name}

    def folders(self, folder: str = "") -> list[str]:
        """As in ``Storage``."""
        prefix = f"{folder}/" if folder else ""
        parts = (name.removeprefix(prefix).split("/") for name in self._written if name.startswith(prefix))
        return sorted({*self._storage.folders(folder), *(first for first, *rest in parts if rest)})

    def size(self, name: str) -> int | None:
        """As in ``Storage``."""
        if name in self._written:
            return len(self._written[name])
        return None if name in self._gone else self._storage.size(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """As in ``Storage``."""
        return self._written[name][start:stop] if name in self._written else self._storage.read(name, start, stop)

    def write(self, name: str, content: bytes) -> None:
        """Keep the content in memory."""
        self._written[name] = content

    def move(self, name: str, new_name: str) -> None:
        """Keep the file's content under its new name in memory."""
        self._written[new_name] = self.read(name)
        self._written.pop(name, None)
        self._gone.add(name)

    def sweep(self, folder: str) -> None:
        """Leave everything as it is: what killed writers left half written is no file of a run."""
