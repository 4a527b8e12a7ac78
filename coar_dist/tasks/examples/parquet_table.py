"""Parquet files of a user's own, which no checksum covers: columns of them as arrays.

Only the row groups that hold chosen rows are read, one at a time; ``pyarrow.dataset`` reads all of them to take some.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from coar_dist.errors import TaskError


class ParquetTable:
    """One .parquet file, or all those of a folder in the order of their names.

    Attributes:
        path: the file or folder.
        num_rows: of all files.

    Raises:
        TaskError: there is none, or it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.parquet"))
        if not files:
            raise TaskError(f"path={path!r}: there is no such file, and no folder with .parquet files.")
        try:
            self._files = [pq.ParquetFile(file) for file in files]
        except (pa.ArrowException, OSError) as error:
            raise TaskError(f"{path} cannot be read as Parquet: {error}") from error
        self.num_rows = sum(file.metadata.num_rows for file in self._files)

    def read(self, columns: Sequence[str], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Columns of the chosen rows, one row group in memory at a time.

        Args:
            columns: their names.
            rows: (num_chosen,) int64, ascending, counted through all files.

        Returns:
            Per column (num_chosen,) numbers, booleans or strings, or (num_chosen, ...) where its rows are lists, nested
            ones too.

        Raises:
            TaskError: a column is missing, holds an empty value or another type, or its lists differ in length.
        """
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
        first = 0
        for file in self._files:
            names = file.schema_arrow.names
            absent = [name for name in columns if name not in names]
            if absent:
                raise TaskError(f"{self.path} has no column {absent[0]!r}; it has {', '.join(names)}.")
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                chosen = rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)] - first
                if chosen.size:
                    table = file.read_row_group(group, columns=list(columns)).take(pa.array(chosen))
                    for name in columns:
                        parts[name].append(self._array(table[name].combine_chunks(), name))
                first = end
        for name, arrays in parts.items():
            shapes = {array.shape[1:] for array in arrays}
            if len(shapes) > 1:
                raise TaskError(f"{self.path}: the lists in column {name!r} have different lengths: {sorted(shapes)}.")
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _array(self, values: pa.Array, name: str) -> NDArray[Any]:
        kind = values.type
        if values.null_count:
            raise TaskError(f"{self.path}: column {name!r} has {values.null_count} empty values among the chosen rows.")
        if pa.types.is_dictionary(kind):
            return self._array(values.dictionary_decode(), name)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
            if len(lengths) != 1:
                raise TaskError(f"{self.path}: the lists in column {name!r} have different lengths: {lengths[:10]}.")
            inner = self._array(values.flatten(), name)
            return inner.reshape(len(values), int(lengths[0]), *inner.shape[1:])
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return np.array(values.to_pylist(), dtype=np.str_)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return np.array(values.to_numpy(zero_copy_only=False))
        raise TaskError(f"{self.path}: column {name!r} holds {kind}, not numbers, booleans, strings or lists of them.")
