"""What all examples together say of every component, and every example of the layers:
evaluation/components.<method>.parquet and evaluation/layers.<method>.parquet."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import MissingWorkError
from coar_dist.store.columns import matrix_column, matrix_of, matrix_type
from coar_dist.store.fingerprints import KnownFingerprints
from coar_dist.store.parquet import is_made_with, read_current, write_table
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable


@dataclass(frozen=True)
class ComponentStatistics:
    """The weights of every component over all examples of a run; all arrays are (num_components,).

    Attributes:
        mean: float64.
        mean_absolute: float64, by which components are ranked.
        spread: float64, standard deviations over examples; NaN of one example.
        lowest, highest: float32.
        lowest_example, highest_example: int64, the first examples that have them.
    """

    mean: NDArray[np.float64]
    mean_absolute: NDArray[np.float64]
    spread: NDArray[np.float64]
    lowest: NDArray[np.float32]
    lowest_example: NDArray[np.int64]
    highest: NDArray[np.float32]
    highest_example: NDArray[np.int64]

    def strongest(self, num: int) -> NDArray[np.int64]:
        """Ids of the ``num`` components with the largest mean absolute weights, falling; equal ones by their ids."""
        return np.argsort(-self.mean_absolute, kind="stable")[:num]


_DTYPES = {"lowest": "float32", "highest": "float32", "lowest_example": "int64", "highest_example": "int64"}
_TYPES = {
    field.name: pa.from_numpy_dtype(np.dtype(_DTYPES.get(field.name, "float64")))
    for field in fields(ComponentStatistics)
}


class StatisticsTable:
    """The statistics of one method's attributions.

    What is read is of the attributions that the run holds; after another fit it is missing until the evaluate stage has
    run.

    Args:
        run: with fitted attributions.
        method: whose.
        fingerprints: of the attributions, for who reads many tables.
    """

    def __init__(self, run: RunDirectory, method: str, fingerprints: KnownFingerprints | None = None) -> None:
        self._run, self._storage, self.method = run, run.storage, method
        self._fingerprints = fingerprints or KnownFingerprints()
        self.files = (f"evaluation/components.{method}.parquet", f"evaluation/layers.{method}.parquet")

    def _belongs_to(self) -> dict[str, Any]:
        attributions, blocks = AttributionTable(self._run, self.method), self._run.margins(TRAIN_DESIGN).blocks
        fingerprint = self._fingerprints.of(self.method, lambda: attributions.settings_fingerprint(blocks))
        return {**self._run.belongs_to("evaluation"), "settings": {"attributions": fingerprint}}

    def is_complete(self) -> bool:
        """Whether both files are there, whole, and of the attributions as they are now."""
        wanted = self._belongs_to()
        return all(is_made_with(self._storage, file, wanted) for file in self.files)

    def set_aside_wrong(self) -> None:
        """For the process that holds the run: set files aside that are damaged or of another run."""
        for file in self.files:
            self._run.set_aside_wrong("evaluation", file)

    def write(self, statistics: ComponentStatistics, shares: NDArray[np.float32]) -> None:
        """Write both files.

        Args:
            statistics: of all components; NaN is stored as null.
            shares: (num_examples, num_groups) float32, how ``sum |weight|`` of an example is shared among the groups of
                ``components``; NaN where it is 0.
        """
        of_components, of_layers = self.files
        columns = {name: pa.array(getattr(statistics, name), from_pandas=True) for name in _TYPES}
        ids = {"component_id": pa.array(np.arange(len(statistics.mean)))}
        write_table(self._storage, of_components, {**ids, **columns}, self._belongs_to())
        columns = {"example_id": pa.array(np.arange(len(shares))), "shares": matrix_column(shares)}
        write_table(self._storage, of_layers, columns, self._belongs_to())

    def read(self) -> ComponentStatistics:
        """The statistics of all components.

        Raises:
            MissingWorkError: they are not there, or of earlier attributions.
            DamagedFileError: the file is damaged.
        """
        table = self._read(self.files[0], _TYPES, self._run.components.num_components)
        return ComponentStatistics(**{name: table[name].to_numpy() for name in _TYPES})

    def read_shares(self) -> NDArray[np.float32]:
        """The shares of the layers as of ``write``.

        Raises:
            MissingWorkError, DamagedFileError: as of ``read``.
        """
        types = {"shares": matrix_type("float32", len(self._run.components.groups))}
        return matrix_of(self._read(self.files[1], types, self._run.num_examples)["shares"])

    def _read(self, file: str, types: dict[str, pa.DataType], num_rows: int) -> pa.Table:
        found = self._fingerprints.tried(
            lambda: read_current(
                self._storage, file, "evaluate", self._belongs_to, list(types), types=types, num_rows=num_rows
            )
        )
        if found is None:
            raise MissingWorkError(
                f"{self._storage.where(file)} is missing or of earlier attributions: run the evaluate stage, in Python "
                f"run.evaluate()."
            )
        return found.columns
