"""Every Parquet file of a run directory: written whole or not at all, verified before a byte of it is parsed.

The file's metadata holds, under the key ``coar_dist``, what the file belongs to, one SHA-256 per column over its bytes
in the file (the first column's include the file's first four), and one over the footer. Together they cover every byte,
and a reader of some columns verifies just what it reads.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coar_dist.errors import DamagedFileError, StorageError
from coar_dist.store.storage import Storage

_METADATA_KEY = "coar_dist"
_MAGIC = b"PAR1"
_LENGTH_AND_MAGIC = 8
_READ_ACROSS = 2**18
"""Columns that lie so near to each other are read together."""
_FOOTER_CHECKSUM = re.compile(rb'\{"footer_sha256": "([0-9a-f]{64})"')
_UNKNOWN = "0" * 64


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
        belongs_to: JSON-serialisable identity of the content; ``read_table`` compares it.
        compress: whether the values have much to compress, as sparse weights do.
    """
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
    storage.write(name, bytes(content))


def read_metadata(storage: Storage, name: str, size: int | None = None) -> dict[str, Any]:
    """What the file says it belongs to, from its footer alone.

    Args:
        storage: where.
        name: the file.
        size: of the file, where a listing has told it.

    Raises:
        DamagedFileError: the footer is not as it was written, or the file is not of this package.
        StorageError: the file cannot be read.
    """
    return _read_footer(storage, name, size)[2]


def column_names(storage: Storage, name: str) -> list[str]:
    """The columns of a file.

    Raises:
        DamagedFileError, StorageError: as ``read_metadata``.
    """
    return list(read_metadata(storage, name)["sha256"])


def read_table(
    storage: Storage, name: str, belongs_to: Mapping[str, Any], columns: Sequence[str] | None = None
) -> pa.Table:
    """The named columns (None: all), verified.

    Raises:
        DamagedFileError: the file is damaged, truncated, lacks a column, or belongs to something else.
        StorageError: the file cannot be read.
    """
    tail, size, metadata = _read_footer(storage, name, None)
    for key in _differing(metadata, belongs_to):
        raise DamagedFileError(
            f"{storage.where(name)} does not belong here: its {key} is {metadata.get(key)!r}, but "
            f"{belongs_to[key]!r} is expected."
        )
    return _read_columns(storage, name, size, tail, metadata, columns)


def is_made_with(storage: Storage, name: str, belongs_to: Mapping[str, Any]) -> bool:
    """Whether a file is there, whole and of ``belongs_to``; a damaged one is set aside."""
    try:
        if storage.size(name) is None:
            return False
        tail, size, metadata = _read_footer(storage, name, None)
        if _differing(metadata, belongs_to):
            return False
        _read_columns(storage, name, size, tail, metadata, None)  # every checksum: what is called done can be read
    except DamagedFileError:
        set_aside(storage, name)
        return False
    return True


def _differing(metadata: Mapping[str, Any], belongs_to: Mapping[str, Any]) -> list[str]:
    return [key for key, value in belongs_to.items() if metadata.get(key) != value]


def _read_columns(
    storage: Storage, name: str, size: int, tail: bytes, metadata: Mapping[str, Any], columns: Sequence[str] | None
) -> pa.Table:
    """The named columns of a file whose footer has been verified, verified in their turn."""
    where = storage.where(name)
    checksums = metadata["sha256"]
    wanted = list(checksums if columns is None else columns)
    lacking = [column for column in wanted if column not in checksums]
    if lacking:
        raise DamagedFileError(f"{where} has no column {lacking[0]!r}.")
    footer = pq.read_metadata(pa.BufferReader(tail))
    ranges = _column_ranges(footer)
    parts = _read_parts(storage, name, size, tail, [ranges[column] for column in wanted])
    for column in wanted:
        if _sha256(parts.between(*ranges[column])) != checksums[column]:
            raise DamagedFileError(
                f"{where} is damaged: column {column!r} does not have the checksum it was written with."
            )
    file = pq.ParquetFile(pa.PythonFile(parts, mode="r"), metadata=footer, pre_buffer=False)
    return file.read(columns=wanted, use_threads=False)


def why_wrong(
    storage: Storage, name: str, size: int, belongs_to: Mapping[str, Any], read_everything: bool
) -> str | None:
    """Why a file must not be used; None if nothing is wrong with it.

    Args:
        storage: where.
        name: the file.
        size: as listed.
        belongs_to: what its metadata must say.
        read_everything: whether every column is verified, or the footer alone.
    """
    try:
        tail, size, metadata = _read_footer(storage, name, size)
        differing = _differing(metadata, belongs_to)
        if differing:
            return f"{storage.where(name)} belongs to something else: its {', '.join(differing)} differ."
        if read_everything:
            _read_columns(storage, name, size, tail, metadata, None)
    except DamagedFileError as error:
        return str(error)
    return None


def set_aside(storage: Storage, name: str) -> str:
    """Rename a damaged file to ``<name>.damaged`` (numbered if that is taken) and give the new name."""
    for attempt in range(1000):
        target = f"{name}{f'.{attempt}' if attempt else ''}.damaged"
        if storage.size(target) is None:
            storage.move(name, target)
            return target
    raise DamagedFileError(f"{storage.where(name)} was set aside 1000 times already: look at its disk.")


def set_aside_wrong(storage: Storage, name: str, belongs_to: Mapping[str, Any]) -> bool:
    """Whether a file is there and can be used; one that is damaged, or of something else, is set aside."""
    if storage.size(name) is None:
        return False
    try:
        read_table(storage, name, belongs_to)
    except DamagedFileError:
        set_aside(storage, name)
        return False
    return True


class _Parts(io.RawIOBase):
    """A file for pyarrow of which only some parts are in memory, which are all that it asks for."""

    def __init__(self, size: int, parts: Mapping[int, bytes]) -> None:
        self._size, self._parts = size, parts
        self._position = 0

    def between(self, start: int, stop: int) -> bytes:
        """Bytes ``start .. stop - 1``; fewer where the file is shorter than its footer says."""
        for first, part in self._parts.items():
            if first <= start < first + len(part):
                return part[start - first : stop - first]
        return b""

    def read(self, size: int = -1) -> bytes:
        content = self.between(self._position, self._size if size < 0 else self._position + size)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _read_parts(storage: Storage, name: str, size: int, tail: bytes, ranges: Iterable[tuple[int, int]]) -> _Parts:
    """Read these ranges of a file, near ones together, and none that the tail holds."""
    tail_start = size - len(tail)
    parts = {tail_start: tail}
    wanted: list[tuple[int, int]] = []
    for start, stop in sorted(set(ranges)):
        if start >= tail_start:
            break
        if wanted and start - wanted[-1][1] <= _READ_ACROSS:
            start = wanted.pop()[0]
        wanted.append((start, stop))
    return _Parts(size, {start: storage.read(name, start, stop) for start, stop in wanted} | parts)


def _read_footer(storage: Storage, name: str, size: int | None) -> tuple[bytes, int, dict[str, Any]]:
    """The end of the file, whose footer has been verified, the file's size, and the metadata."""
    where = storage.where(name)
    if size is None:
        size = storage.size(name)
        if size is None:
            raise StorageError(f"{where} is not there.")
    tail = storage.read(name, max(size - storage.worth_reading, 0), size)
    length = _footer_length(tail)
    if length + _LENGTH_AND_MAGIC > len(tail) and length + _LENGTH_AND_MAGIC <= size:
        tail = storage.read(name, size - length - _LENGTH_AND_MAGIC, size)
    footer = tail[-_LENGTH_AND_MAGIC - length : -_LENGTH_AND_MAGIC]
    found = _FOOTER_CHECKSUM.search(footer)
    if found is None or length == 0 or not tail.endswith(_MAGIC):
        raise DamagedFileError(f"{where} is damaged, truncated, or not of this package.")
    as_hashed = footer[: found.start(1)] + _UNKNOWN.encode() + footer[found.end(1) :]
    if _sha256(as_hashed).encode() != found[1]:
        raise DamagedFileError(f"{where} is damaged: its footer does not have the checksum it was written with.")
    metadata, _ = json.JSONDecoder().raw_decode(footer[found.start() :].decode("latin-1"))
    return tail, size, dict(metadata)


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


def _sha256(content: bytes | bytearray) -> str:
    return hashlib.sha256(content).hexdigest()


def _footer_length(content: bytes | bytearray) -> int:
    if len(content) < _LENGTH_AND_MAGIC:
        return 0
    return int.from_bytes(content[-_LENGTH_AND_MAGIC : -len(_MAGIC)], "little")


def matrix_column(matrix: NDArray[Any]) -> pa.Array:
    """(num_rows, width) floats as a fixed_size_list[width] column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def matrix_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """The inverse of ``matrix_column``."""
    return _values(column).reshape(len(column), -1)


def packed_column(masks: NDArray[np.bool_]) -> pa.Array:
    """(num_masks, num_components) bool as fixed_size_binary: bit i, least significant first, is component i."""
    packed = np.packbits(masks, axis=1, bitorder="little")
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(packed.shape[1]), len(packed), [None, pa.py_buffer(np.ascontiguousarray(packed))]
    )


def masks_of(column: pa.ChunkedArray, num_components: int) -> NDArray[np.bool_]:
    """The inverse of ``packed_column``."""
    packed = _values(column).reshape(len(column), -1)
    return np.unpackbits(packed, axis=1, count=num_components, bitorder="little").view(np.bool_)


def _values(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """The flat values of a column of numbers, booleans, fixed-size lists or fixed-size binaries; null becomes NaN."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        data = np.frombuffer(array.buffers()[1], dtype=np.uint8, count=(array.offset + len(array)) * width)
        return data[array.offset * width :]
    return np.asarray(array.to_numpy(zero_copy_only=False))
