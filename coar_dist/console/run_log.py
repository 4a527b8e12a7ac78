"""The log of one command, in the run directory: ``logs/<time>-<process>.log``, one JSON object per line.

Fields: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ``run`` (the run directory's label, as in the
metrics), ``stage``; where known ``shard`` (its file), ``actor`` and ``node``; and ``traceback`` where an error ended
the command.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
import time
from types import TracebackType

from coar_dist.config.secrets import without_secrets
from coar_dist.errors import StorageError, in_one_line
from coar_dist.store.storage import Storage

_LOGGER = logging.getLogger("coar_dist")
_WRITE_EVERY_S = 1.0
_FIELDS = ("stage", "shard", "actor", "node")
"""What a caller adds to a line, by ``extra=``."""


class RunLog(logging.Handler):
    """Keeps what the package logs during a ``with`` block, and why the block ended.

    An object store cannot append, so the file is written whole: with the first line, with a later one when a second has
    passed, at once with a warning, and at the end.

    Args:
        storage: the run directory.

    Attributes:
        stage: the stage that the command is at, for lines that do not name one.
    """

    def __init__(self, storage: Storage, stage: str) -> None:
        super().__init__(logging.INFO)
        now = datetime.datetime.now(datetime.UTC)
        self.stage = stage
        self._storage = storage
        self._name = f"logs/{now:%Y-%m-%dT%H-%M-%S}-{os.getpid()}.log"
        self._lines: list[str] = []
        self._written_at = float("-inf")
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self._lines.append(json.dumps(self._entry(record)) + "\n")
        if record.levelno >= logging.WARNING or time.monotonic() - self._written_at > _WRITE_EVERY_S:
            self._write()

    def _entry(self, record: logging.LogRecord) -> dict[str, str]:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            "run": self._storage.label,
            "stage": self.stage,
        }
        entry |= {name: str(getattr(record, name)) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info and self.formatter is not None:
            entry["traceback"] = without_secrets(self.formatter.formatException(record.exc_info))
        return entry

    def _write(self) -> None:
        self._written_at = time.monotonic()
        try:
            self._storage.write(self._name, "".join(self._lines).encode())
        except StorageError as error:  # the work goes on as long as its own files can be written
            print(f"the log cannot be written: {error}", file=sys.stderr)

    def __enter__(self) -> RunLog:
        self._level = _LOGGER.level
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            _LOGGER.error("ended by %s", in_one_line(error), exc_info=(type(error), error, traceback))
        _LOGGER.removeHandler(self)
        _LOGGER.setLevel(self._level)
        self._write()
