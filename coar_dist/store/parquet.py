"""Every Parquet file of a run directory: written whole or not at all, and read as one writing or not at all.

Nothing here changes a file but ``write_table``. Whoever meets a damaged file says so; the process that holds the run
sets it aside (``coar_dist.store.aside``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from coar_dist.config.documents import check_type
from coar_dist.errors import DamagedFileError, StorageError
from coar_dist.store.columns import has_nulls
from coar_dist.store.encoding import Verified, WrongError, encoded, read_columns, read_footer
from coar_dist.store.storage import Storage, StoredFile

_T = TypeVar("_T")
FOREIGN = "belongs to something else"
"""What ``why_wrong`` says of a whole file that is of another run, design or range."""
_TRIES = 20
"""Readings of a file that is replaced each time."""


def write_table(
    storage: Storage,
    name: str,
    columns: Mapping[str, pa.Array],
    belongs_to: Mapping[str, Any],
    compress: bool = False,
) -> None:
    """Write one Parquet file atomically.

    Args:
        storage: where.
        name: the file.
        columns: Arrow arrays of equal length.
        belongs_to: JSON-serialisable identity of the content; readers compare it.
        compress: whether the values have much to compress, as sparse weights do.
    """
    storage.write(name, encoded(columns, belongs_to, compress))


@dataclass(frozen=True)
class Content:
    """What was read of a file; all of it is of one writing.

    Attributes:
        metadata: what the file belongs to, and whatever else its writer added.
        columns: those that were asked for.
    """

    metadata: dict[str, Any]
    columns: pa.Table


def read_metadata(
    storage: Storage, name: str, stage: str, belongs_to: Mapping[str, Any], kind: Any = None
) -> dict[str, Any] | None:
    """What the file says of itself, from its footer alone; None where there is no such file.

    Args:
        storage: where.
        name: the file.
        stage: that makes the file, for the message.
        belongs_to: what its metadata must say.
        kind: TypedDict of what is read of them besides; None: nothing is.

    Raises:
        DamagedFileError: the footer is not as it was written, or the file belongs to something else.
        StorageError: the file cannot be read.
    """

    def read(file: StoredFile) -> dict[str, Any]:
        _, metadata = read_footer(file, storage.worth_reading)
        _check_belongs(metadata, belongs_to, kind)
        return metadata

    with _damage_named(storage, name, stage):
        return _read(storage, name, None, read)


def read_content(
    storage: Storage,
    name: str,
    stage: str,
    belongs_to: Mapping[str, Any],
    columns: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    is_found: bool = True,
    kind: Any = None,
    types: Mapping[str, pa.DataType] | None = None,
    num_rows: int | None = None,
) -> Content | None:
    """The named columns (None: all) with the file's metadata, verified; None where there is no such file.

    A file that is replaced meanwhile is read again from the start, so that one reader never sees two writings.

    Args:
        storage: where.
        name: the file.
        stage: that makes the file, for the message.
        belongs_to: what its metadata must say.
        columns: that it must have.
        optional: columns that are read where it has them.
        is_found: whether the stage finds by itself what is damaged, for the message.
        kind: as of ``read_metadata``.
        types: of columns, where they are among those that are read; lists hold no nulls.
        num_rows: that it must have; None: any.

    Raises:
        DamagedFileError: the file is damaged, truncated, lacks a column, has other types or rows, or belongs to
            something else. It stays as it is: only the process that holds the run sets files aside.
        StorageError: the file cannot be read.
    """

    def read(file: StoredFile) -> Content:
        tail, metadata = read_footer(file, storage.worth_reading)
        _check_belongs(metadata, belongs_to, kind)
        wanted = None if columns is None else [*columns, *(name for name in optional if name in metadata["sha256"])]
        table = read_columns(file, tail, metadata, wanted).table()
        _check_columns(table, types or {}, num_rows)
        return Content(metadata, table)

    with _damage_named(storage, name, stage, is_found):
        return _read(storage, name, None, read)


def read_in_parts(
    storage: Storage,
    name: str,
    stage: str,
    belongs_to: Mapping[str, Any],
    columns: Sequence[str],
    types: Mapping[str, pa.DataType],
    num_rows: int,
    num_bytes: int,
) -> Iterator[pa.Table] | None:
    """``read_content`` of a large file, which is read and verified now, and decoded as its rows are asked for.

    Args:
        storage, name, stage, belongs_to, columns, types, num_rows: as of ``read_content``.
        num_bytes: about so many of the rows that are decoded together.

    Raises:
        DamagedFileError, StorageError: as of ``read_content``, some only when rows are asked for.
    """

    def read(file: StoredFile) -> Verified:
        tail, metadata = read_footer(file, storage.worth_reading)
        _check_belongs(metadata, belongs_to)
        verified = read_columns(file, tail, metadata, columns)
        _check_rows(verified.num_rows, num_rows)
        return verified

    def decoded(verified: Verified) -> Iterator[pa.Table]:
        with _damage_named(storage, name, stage):
            for batch in verified.batches(num_bytes):
                table = pa.Table.from_batches([batch])
                _check_columns(table, types, None)
                yield table

    with _damage_named(storage, name, stage):
        verified = _read(storage, name, None, read)
    return None if verified is None else decoded(verified)


def read_current(
    storage: Storage,
    name: str,
    stage: str,
    belongs_to: Callable[[], Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    kind: Any = None,
    types: Mapping[str, pa.DataType] | None = None,
    num_rows: int | None = None,
) -> Content | None:
    """``read_content`` of a file that is made from others; None where it is not there, or not of them as they are now.

    Args:
        storage, name, stage, columns, kind, types, num_rows: as of ``read_content``.
        belongs_to: looks at the others and tells what the file's metadata must say.

    Raises:
        DamagedFileError, StorageError: as of ``read_content``; whatever ``belongs_to`` raises.
    """
    wanted = belongs_to()
    for _ in range(_TRIES):
        found = read_content(storage, name, stage, {}, columns, kind=kind, types=types, num_rows=num_rows)
        if found is not None and not differs(found.metadata, wanted):
            return found
        earlier, wanted = wanted, belongs_to()
        if wanted == earlier:
            break
    return None


def is_made_with(storage: Storage, name: str, belongs_to: Mapping[str, Any]) -> bool:
    """Whether a file is there, whole and of ``belongs_to``; every byte is read."""
    try:
        return _read(storage, name, None, _look(storage, belongs_to, read_everything=True)) is not None
    except WrongError:
        return False


def why_wrong(
    storage: Storage,
    name: str,
    belongs_to: Mapping[str, Any],
    read_everything: bool = True,
    size: int | None = None,
) -> str | None:
    """Why a file must not be used, a sentence; None if nothing is wrong with it, or it is not there.

    Args:
        storage: where.
        name: the file.
        belongs_to: what its metadata must say.
        read_everything: whether every column is verified, or the footer alone.
        size: as a listing has just told it.
    """
    try:
        _read(storage, name, size, _look(storage, belongs_to, read_everything))
    except WrongError as wrong:
        return f"{storage.where(name)} {wrong}."
    return None


def _look(storage: Storage, belongs_to: Mapping[str, Any], read_everything: bool) -> Callable[[StoredFile], bool]:
    def look(file: StoredFile) -> bool:
        tail, metadata = read_footer(file, storage.worth_reading)
        _check_belongs(metadata, belongs_to)
        if read_everything:
            read_columns(file, tail, metadata, None).table()
        return True

    return look


def differs(metadata: Mapping[str, Any], belongs_to: Mapping[str, Any]) -> bool:
    """Whether a file with these metadata belongs to something else."""
    return any(metadata.get(key) != value for key, value in belongs_to.items())


def _check_belongs(metadata: Mapping[str, Any], belongs_to: Mapping[str, Any], kind: Any = None) -> None:
    differing = [key for key, value in belongs_to.items() if metadata.get(key) != value]
    if differing:
        raise WrongError(f"{FOREIGN}: its {' and '.join(differing)} differ{'s' if len(differing) == 1 else ''}")
    if kind is not None:
        try:
            check_type(kind, metadata)
        except ValueError as error:
            raise WrongError(f"is damaged: in its metadata, {error}") from None


class _OtherColumnsError(WrongError):
    """A file with right checksums that no writer here has made: no stage looks for that."""


def _check_columns(table: pa.Table, types: Mapping[str, pa.DataType], num_rows: int | None) -> None:
    if num_rows is not None and table.column_names:
        _check_rows(table.num_rows, num_rows)
    for name in table.column_names:
        wanted, found = types.get(name), table.schema.field(name).type
        if wanted is not None and found != wanted:
            raise _OtherColumnsError(f"is damaged: its column {name!r} is of {found}, not of {wanted}")
        if wanted is not None and pa.types.is_fixed_size_list(found) and has_nulls(table[name]):
            raise _OtherColumnsError(f"is damaged: its column {name!r} has nulls")


def _check_rows(found: int, wanted: int) -> None:
    if found != wanted:
        raise _OtherColumnsError(f"is damaged: it has {found} rows, not {wanted}")


@contextlib.contextmanager
def _damage_named(storage: Storage, name: str, stage: str, is_found: bool = True) -> Iterator[None]:
    try:
        yield
    except WrongError as wrong:
        where = storage.where(name)
        is_found = is_found and not isinstance(wrong, _OtherColumnsError)
        raise DamagedFileError.of(where, f"{where} {wrong}.", stage, is_found) from None


def _read(storage: Storage, name: str, size: int | None, read: Callable[[StoredFile], _T]) -> _T | None:
    """What ``read`` gives of a file as it was at one moment; None where there is no such file.

    A file that is replaced between two requests, or taken away while it is read, looks damaged. So what looks damaged
    counts only if the file is still the one that was opened.

    Raises:
        WrongError: as ``read`` says.
        StorageError: the file cannot be read, or is replaced again and again.
    """
    for _ in range(_TRIES):
        file = storage.open(name, size)
        if file is None:
            return None
        with file:
            try:
                return read(file)
            except (WrongError, StorageError):
                if not file.was_replaced():
                    raise
        size = None
    raise StorageError(f"{storage.where(name)} was replaced {_TRIES} times while it was read. Read it again later.")
