"""What the process that holds the run does with files that must not be used: it renames them to ``*.damaged``.

Nobody else renames a file: a reader may meet one that is just being replaced, or have no right to write.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from coar_dist.errors import DamagedFileError
from coar_dist.store.lock import Hold
from coar_dist.store.parquet import why_wrong
from coar_dist.store.storage import Storage

_log = logging.getLogger(__name__)


def set_aside(storage: Storage, name: str) -> str:
    """Rename a file to ``<name>.damaged`` (numbered if that is taken).

    Returns:
        The new name.
    """
    for attempt in range(1000):
        target = f"{name}{f'.{attempt}' if attempt else ''}.damaged"
        if storage.size(target) is None:
            storage.move(name, target)
            return target
    raise DamagedFileError(f"{storage.where(name)} was set aside 1000 times already: look at its disk.")


def set_aside_wrong(storage: Storage, name: str, belongs_to: Mapping[str, Any]) -> bool:
    """Set a Parquet file aside if it is damaged or of something else; whether it was. Every byte is read."""
    reason = why_wrong(storage, name, belongs_to)
    if reason is None:
        return False
    _log.warning("%s Set aside as %s", reason, set_aside(storage, name))
    return True


@contextlib.contextmanager
def damaged_set_aside(storage: Storage, hold: Hold) -> Iterator[None]:
    """While a process holds the run: set aside the damaged file that ends the ``with`` block.

    Raises:
        DamagedFileError: the one that ended the block, which says so.
    """
    try:
        yield
    except DamagedFileError as error:
        prefix = storage.where("")
        if not error.where.startswith(prefix):  # no single file, or not one of this run
            raise
        hold.check()
        raise error.set_aside(set_aside(storage, error.where.removeprefix(prefix))) from error
