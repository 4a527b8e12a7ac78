"""What is known of a run's examples: ``examples.parquet``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import MissingWorkError
from coar_dist.store.parquet import is_made_with, read_content, write_table
from coar_dist.store.run_directory import RunDirectory

TARGET = "target"
"""The column with the targets of a regression, one number an example."""
EXCERPT, TOKENS = "excerpt", "tokens"
"""Columns with the beginning of an example's text, and with the texts of its tokens."""
TOKEN_END = "\x1f"
"""Between the texts of tokens in their column."""
_FILE = "examples.parquet"


class ExampleTable:
    """Per example: id, label, prediction and margin of the unablated model, and the example set's own columns."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._storage = run, run.storage

    def is_complete(self) -> bool:
        """Whether the file is there and whole."""
        return is_made_with(self._storage, _FILE, self._run.belongs_to("examples"))

    def set_aside_wrong(self) -> None:
        """For the process that holds the run: set the file aside if it is damaged or of another run."""
        self._run.set_aside_wrong("examples", _FILE)

    def write(
        self,
        labels: NDArray[np.int64] | None,
        predictions: NDArray[np.int64] | None,
        margins: NDArray[np.float32],
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Write the file.

        Args:
            labels: (num_examples,) class labels; None where targets are not classes.
            predictions: (num_examples,) classes predicted by the unablated model; None where targets are not classes.
            margins: (num_examples,) output function of the unablated model; NaN where it is not known.
            columns: the example set's further values by name, (num_examples,) each.
        """
        nothing = pa.nulls(len(margins), pa.int64())
        table = {
            "example_id": pa.array(np.arange(len(margins))),
            "label": nothing if labels is None else pa.array(labels),
            "prediction": nothing if predictions is None else pa.array(predictions),
            "margin": pa.array(margins, from_pandas=True),
            **{name: pa.array(values) for name, values in (columns or {}).items()},
        }
        write_table(self._storage, _FILE, table, self._run.belongs_to("examples"))

    def update(self, columns: Mapping[str, NDArray[Any]]) -> bool:
        """Add further columns, or give them new values: margins do not depend on them.

        Args:
            columns: (num_examples,) each; other columns of the file stay.

        Returns:
            Whether there was anything to change.

        Raises:
            MissingWorkError, DamagedFileError: as of ``read``.
        """
        old = self._read()
        new = {name: pa.array(values) for name, values in columns.items()}
        kept = {name: old[name].combine_chunks() for name in old.column_names}
        if all(name in kept and kept[name].equals(values) for name, values in new.items()):
            return False
        write_table(self._storage, _FILE, {**kept, **new}, self._run.belongs_to("examples"))
        return True

    def read(self) -> dict[str, NDArray[Any]]:
        """The columns, (num_examples,) each; NaN for labels, predictions and margins that are not known.

        Raises:
            MissingWorkError: the file is not there.
            DamagedFileError: it is damaged.
        """
        table = self._read()
        arrays = {name: table[name].to_numpy() for name in table.column_names}
        return {name: array.astype(np.str_) if array.dtype == object else array for name, array in arrays.items()}

    def _read(self) -> pa.Table:
        found = read_content(
            self._storage,
            _FILE,
            "ablate",
            self._run.belongs_to("examples"),
            types={"example_id": pa.int64()},
            num_rows=self._run.num_examples,
        )
        if found is None:
            raise MissingWorkError(f"{self._storage.where(_FILE)} is missing: run the ablate stage.")
        return found.columns
