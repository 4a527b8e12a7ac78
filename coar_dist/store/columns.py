"""Arrays as Arrow columns, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def matrix_column(matrix: NDArray[Any]) -> pa.Array:
    """(num_rows, width) floats as a fixed_size_list[width] column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])


def matrix_type(dtype: str, width: int) -> pa.DataType:
    """The type of ``matrix_column``."""
    return pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), width)


def matrix_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """The inverse of ``matrix_column``."""
    return _values(column).reshape(len(column), -1)


def has_nulls(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether a column of lists of fixed size has a list or a value that is null."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return any(chunk.null_count or chunk.flatten().null_count for chunk in chunks)


def packed_column(masks: NDArray[np.bool_]) -> pa.Array:
    """(num_masks, num_components) bool as fixed_size_binary: bit i, least significant first, is component i."""
    return bytes_column(np.packbits(masks, axis=1, bitorder="little"))


def packed_type(num_components: int) -> pa.DataType:
    """The type of ``packed_column``."""
    return pa.binary(-(-num_components // 8))


def masks_of(column: pa.ChunkedArray, num_components: int) -> NDArray[np.bool_]:
    """The inverse of ``packed_column``."""
    return np.unpackbits(bytes_of(column), axis=1, count=num_components, bitorder="little").view(np.bool_)


def bytes_column(rows: NDArray[np.uint8]) -> pa.Array:
    """(num_rows, width) uint8 as fixed_size_binary."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )


def bytes_of(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """The inverse of ``bytes_column``."""
    return _values(column).reshape(len(column), -1)


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    """The flat values of a column of fixed-size lists or fixed-size binaries."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        return np.frombuffer(array.buffers()[1], np.uint8, len(array) * width, array.offset * width)
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False))
