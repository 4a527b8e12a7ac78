"""Every Parquet file of a run directory: written whole or not at all, verified before it is used.

The schema metadata holds, under the key ``coar_dist``, what the file belongs to and one SHA-256 per column, so
that a reader of some columns verifies just what it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coar_dist.errors import DamagedFileError, StorageError

_METADATA_KEY = b"coar_dist"
_KEPT = "Mend that and run the same command again; what is finished is kept."


def write_bytes_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write beside, flush to disk, rename: after a crash the file is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent} cannot be made: {error}. {_KEPT}") from error
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the error that counts is the first one
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StorageError(f"{path} cannot be written: {error}. {_KEPT}") from error
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_table(
    path: Path, columns: Mapping[str, pa.Array], belongs_to: Mapping[str, Any], compress: bool = False
) -> None:
    """Write one Parquet file atomically.

    Args:
        path: the file.
        columns: Arrow arrays of equal length.
        belongs_to: JSON-serialisable identity of the content; ``read_table`` compares it.
        compress: whether the values have much to compress, as sparse weights do.
    """
    metadata = {**belongs_to, "sha256": {name: _checksum(column) for name, column in columns.items()}}
    table = pa.table(dict(columns)).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
    sink = pa.BufferOutputStream()
    # Margins, weights and random bits do not compress, and have no statistics worth asking for.
    compression = "ZSTD" if compress else "NONE"
    pq.write_table(table, sink, compression=compression, use_dictionary=False, write_statistics=False)
    write_bytes_atomically(path, memoryview(sink.getvalue()))


def read_metadata(path: Path) -> dict[str, Any]:
    """What the file says it belongs to, from its footer alone.

    Raises:
        DamagedFileError: the footer cannot be read, or the file was not written by this package.
    """
    try:
        metadata = json.loads(pq.read_schema(path).metadata[_METADATA_KEY])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged or not of this package: {_first_line(error)}") from error
    return dict(metadata)


def column_names(path: Path) -> list[str]:
    """The columns of a file.

    Raises:
        DamagedFileError: the footer cannot be read.
    """
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DamagedFileError(f"{path} is damaged or not of this package: {_first_line(error)}") from error


def read_table(path: Path, belongs_to: Mapping[str, Any], columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns (None: all), verified.

    Raises:
        DamagedFileError: the file is damaged, truncated, lacks a column, or belongs to something else.
    """
    metadata = read_metadata(path)
    for key, expected in belongs_to.items():
        if metadata.get(key) != expected:
            raise DamagedFileError(
                f"{path} does not belong here: its {key} is {metadata.get(key)!r}, but {expected!r} is expected."
            )
    checksums = metadata["sha256"]
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {_first_line(error)}") from error
    for name in table.column_names if columns is None else columns:
        if name not in table.column_names or _checksum(table[name]) != checksums.get(name):
            raise DamagedFileError(
                f"{path} is damaged: column {name!r} does not have the checksum it was written with."
            )
    return table


def set_aside(path: Path) -> Path:
    """Rename a damaged file to ``<name>.damaged`` (numbered if that is taken) and give the new path."""
    for attempt in range(1000):
        target = path.with_name(f"{path.name}{f'.{attempt}' if attempt else ''}.damaged")
        if not target.exists():
            path.replace(target)
            return target
    raise DamagedFileError(f"{path} was set aside 1000 times already: look at its disk.")


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


def _checksum(column: pa.ChunkedArray | pa.Array) -> str:
    if pa.types.is_string(column.type):
        content = json.dumps(column.to_pylist()).encode()
    else:
        content = np.ascontiguousarray(_values(column)).tobytes()
    return hashlib.sha256(content).hexdigest()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
