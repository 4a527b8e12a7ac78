"""The bytes of the run directory's Parquet files: checksums that cover every one of them.

The file's metadata holds, under the key ``coar_dist``, what the file belongs to, one SHA-256 per column over its bytes
in the file (the first column's include the file's first four), and one over the footer. A reader of some columns
verifies just what it reads, before a byte of it is parsed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.config.documents import check_type
from coar_dist.errors import in_one_line
from coar_dist.store.columns import has_nulls, matrix_column
from coar_dist.store.storage import StoredFile

_METADATA_KEY = "coar_dist"
_MAGIC = b"PAR1"
_LENGTH_AND_MAGIC = 8
_READ_ACROSS = 2**18
"""Columns that lie so near to each other are read together."""
_READ_AT_ONCE = 2**23
"""Bytes of the rows that are decoded together."""
_FOOTER_CHECKSUM = re.compile(rb'\{"footer_sha256": "([0-9a-f]{64})"')
_UNKNOWN = "0" * 64


class WrongError(Exception):
    """What is wrong with a file: the end of a sentence that begins with its name."""


def encoded(columns: Mapping[str, pa.Array], belongs_to: Mapping[str, Any], compress: bool) -> bytes:
    """The content of a file of Arrow arrays of equal length, one row group."""
    table = pa.table(dict(columns))
    # The footer's checksum comes first, where ``_FOOTER_CHECKSUM`` finds it.
    metadata = {"footer_sha256": _UNKNOWN, **belongs_to, "sha256": dict.fromkeys(columns, _UNKNOWN)}
    sink = pa.BufferOutputStream()
    # Margins, weights and random bits do not compress, and have no statistics worth asking for.
    compression = "ZSTD" if compress else "NONE"
    with pq.ParquetWriter(
        sink, table.schema, compression=compression, use_dictionary=False, write_statistics=False
    ) as writer:
        writer.write_table(table, row_group_size=max(len(table), 1))
        writer.add_key_value_metadata({_METADATA_KEY: json.dumps(metadata)})
    content = bytearray(sink.getvalue())
    # The checksums are of bytes that are known only now; they take the place of as many zeros.
    ranges = _column_ranges(pq.read_metadata(pa.BufferReader(content)))
    checksums = {column: _sha256(content[slice(*ranges[column])]) for column in columns}
    start = len(content) - _LENGTH_AND_MAGIC - _footer_length(content)
    at = content.index(json.dumps(metadata).encode(), start)
    known = json.dumps({**metadata, "sha256": checksums}).encode()
    content[at : at + len(known)] = known
    found = _FOOTER_CHECKSUM.search(content, start)
    assert found is not None
    content[found.start(1) : found.end(1)] = _sha256(content[start:-_LENGTH_AND_MAGIC]).encode()
    return bytes(content)


def read_footer(file: StoredFile, worth_reading: int) -> tuple[bytes, dict[str, Any]]:
    """The end of the file, whose footer has been verified, and the metadata.

    Args:
        file: opened.
        worth_reading: bytes that take hardly longer to read than one.

    Raises:
        WrongError: the footer is not as it was written, or the file is not of this package.
    """
    size = file.size
    tail = file.read(max(size - worth_reading, 0), size)
    length = _footer_length(tail)
    if len(tail) < length + _LENGTH_AND_MAGIC <= size:
        tail = file.read(size - length - _LENGTH_AND_MAGIC, size)
    footer = tail[-_LENGTH_AND_MAGIC - length : -_LENGTH_AND_MAGIC]
    found = _FOOTER_CHECKSUM.search(footer)
    if found is None or length == 0 or not tail.endswith(_MAGIC):
        raise WrongError("is damaged, truncated, or not of this package")
    as_hashed = footer[: found.start(1)] + _UNKNOWN.encode() + footer[found.end(1) :]
    if _sha256(as_hashed).encode() != found[1]:
        raise WrongError("is damaged: its footer does not have the checksum it was written with")
    try:
        metadata, _ = json.JSONDecoder().raw_decode(footer[found.start() :].decode("latin-1"))
        check_type(dict[str, str], metadata.get("sha256"))
    except (ValueError, RecursionError) as error:
        raise WrongError(f"is damaged: its metadata cannot be read: {error}") from None
    return tail, dict(metadata)


@dataclass(frozen=True)
class Verified:
    """Columns of a file that are as they were written, not decoded yet.

    Attributes:
        columns: their names.
        num_rows: of the file.
    """

    columns: list[str]
    num_rows: int
    _parts: _Parts
    _footer: pq.FileMetaData

    def table(self) -> pa.Table:
        """All rows.

        Raises:
            WrongError: a file with right checksums that no writer here has made.
        """
        if self._footer.row_group(0).total_byte_size < _READ_AT_ONCE:
            with _no_parquet():
                return self._source().read(columns=self.columns, use_threads=False)
        return _joined(self.batches(_READ_AT_ONCE), self.num_rows)

    def batches(self, num_bytes: int) -> Iterator[pa.RecordBatch]:
        """Some rows after the other, of about so many bytes: what they are decoded from is in memory for all of them.

        Raises:
            WrongError: as ``table``.
        """
        rows = max(num_bytes * self.num_rows // max(self._footer.row_group(0).total_byte_size, 1), 1)
        with _no_parquet():
            yield from self._source().iter_batches(batch_size=rows, columns=self.columns, use_threads=False)

    def _source(self) -> pq.ParquetFile:
        return pq.ParquetFile(pa.PythonFile(self._parts, mode="r"), metadata=self._footer, pre_buffer=False)


def read_columns(file: StoredFile, tail: bytes, metadata: Mapping[str, Any], columns: Sequence[str] | None) -> Verified:
    """The named columns (None: all), verified, of a file whose ``tail`` and ``metadata`` are of ``read_footer``.

    Raises:
        WrongError: a column is damaged, or not there.
    """
    checksums = metadata["sha256"]
    wanted = list(checksums if columns is None else columns)
    lacking = [column for column in wanted if column not in checksums]
    if lacking:
        raise WrongError(f"is damaged: it has no column {lacking[0]!r}")
    with _no_parquet():
        footer = pq.read_metadata(pa.BufferReader(tail))
        ranges = _column_ranges(footer)
        parts = _read_parts(file, tail, [ranges[column] for column in wanted])
        for column in wanted:
            if _sha256(parts.between(*ranges[column])) != checksums[column]:
                raise WrongError(f"is damaged: column {column!r} does not have the checksum it was written with")
        return Verified(wanted, footer.num_rows, parts, footer)


@contextlib.contextmanager
def _no_parquet() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError) as error:  # of a file with right checksums that no writer here has made
        raise WrongError(f"is damaged: it is no Parquet file of these columns ({in_one_line(error)})") from error


def _joined(batches: Iterable[pa.RecordBatch], num_rows: int) -> pa.Table:
    """One table of batches; the values of lists of fixed size go at once to where all of them lie in one piece."""
    matrices: dict[str, NDArray[Any]] = {}
    columns: dict[str, list[pa.Array]] = {}
    first = 0
    for batch in batches:
        end = first + len(batch)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if not pa.types.is_fixed_size_list(column.type):
                columns.setdefault(name, []).append(column)
            elif has_nulls(column):
                raise WrongError(f"is damaged: its column {name!r} has nulls")
            else:
                rows = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
                if name not in matrices:
                    matrices[name] = np.empty((num_rows, rows.shape[1]), rows.dtype)
                    columns[name] = [matrix_column(matrices[name])]
                matrices[name][first:end] = rows
        first = end
    return pa.table({name: pa.chunked_array(chunks) for name, chunks in columns.items()})


class _Parts(io.RawIOBase):
    """A file for pyarrow of which only some parts are in memory, which are all that it asks for."""

    def __init__(self, size: int, parts: Mapping[int, bytes]) -> None:
        self._size, self._parts = size, parts
        self._position = 0

    def between(self, start: int, stop: int) -> memoryview:
        """Bytes ``start .. stop - 1``, without a copy; fewer where the file is shorter than its footer says."""
        for first, part in self._parts.items():
            if first <= start < first + len(part):
                return memoryview(part)[start - first : stop - first]
        return memoryview(b"")

    @override
    def read(self, size: int = -1) -> Any:
        content = self.between(self._position, self._size if size < 0 else self._position + size)
        self._position += len(content)
        return content  # pyarrow reads a memoryview without a copy

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        return self._position

    @override
    def tell(self) -> int:
        return self._position

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True


def _read_parts(file: StoredFile, tail: bytes, ranges: Iterable[tuple[int, int]]) -> _Parts:
    """Read these ranges of a file, near ones together, and none that the tail holds."""
    tail_start = file.size - len(tail)
    wanted: list[tuple[int, int]] = []
    for start, stop in sorted(set(ranges)):
        if start >= tail_start:
            break
        if wanted and start - wanted[-1][1] <= _READ_ACROSS:
            start = wanted.pop()[0]
        wanted.append((start, stop))
    return _Parts(file.size, {start: file.read(start, stop) for start, stop in wanted} | {tail_start: tail})


def _column_ranges(footer: pq.FileMetaData) -> dict[str, tuple[int, int]]:
    """Per column where its bytes lie: (first, end)."""
    ranges = {}
    group = footer.row_group(0)
    for i in range(footer.num_columns):
        chunk = group.column(i)
        start = chunk.data_page_offset
        first = 0 if i == 0 else start
        ranges[chunk.path_in_schema.partition(".")[0]] = (first, start + chunk.total_compressed_size)
    return ranges


def _sha256(content: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _footer_length(content: bytes | bytearray) -> int:
    if len(content) < _LENGTH_AND_MAGIC:
        return 0
    return int.from_bytes(content[-_LENGTH_AND_MAGIC : -len(_MAGIC)], "little")
