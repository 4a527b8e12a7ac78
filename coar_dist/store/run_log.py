"""The log of one command, in the run directory: ``logs/<time>-<process>.log``."""

from __future__ import annotations

import datetime
import logging
import os
import sys
import time
from types import TracebackType

from coar_dist.errors import StorageError
from coar_dist.secrets import without_secrets
from coar_dist.store.storage import Storage

_LOGGER = logging.getLogger("coar_dist")
_WRITE_EVERY_S = 1.0


class RunLog(logging.Handler):
    """Keeps what the package logs during a ``with`` block, and why the block ended.

    An object store cannot append, so the file is written whole: with the first line, with a later one when a second has
    passed, at once with a warning, and at the end.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(logging.INFO)
        now = datetime.datetime.now(datetime.UTC)
        self._storage = storage
        self._name = f"logs/{now:%Y-%m-%dT%H-%M-%S}-{os.getpid()}.log"
        self._lines: list[str] = []
        self._written_at = float("-inf")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self._lines.append(without_secrets(self.format(record)) + "\n")
        if record.levelno >= logging.WARNING or time.monotonic() - self._written_at > _WRITE_EVERY_S:
            self._write()

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
            _LOGGER.error("ended by %s", type(error).__name__, exc_info=(type(error), error, traceback))
        _LOGGER.removeHandler(self)
        _LOGGER.setLevel(self._level)
        self._write()
