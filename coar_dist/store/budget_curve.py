"""The budget curve of one method: ``evaluation/budget_curve/<method>.parquet``, correlations by number of masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.store.fingerprints import KnownFingerprints
from coar_dist.store.parquet import is_made_with, read_current, write_table
from coar_dist.store.record import fingerprint_of
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

FOLDER = "evaluation/budget_curve"


@dataclass(frozen=True)
class BudgetCurve:
    """Correlations of attributions fitted from the first masks of the train design.

    Attributes:
        example_ids: (n,) int64, the examples that were looked at, ascending.
        num_masks: (p,) int64, ascending; the last is the whole design.
        correlations: (n, p) float64, NaN where undefined.
    """

    example_ids: NDArray[np.int64]
    num_masks: NDArray[np.int64]
    correlations: NDArray[np.float64]


class BudgetCurveTable:
    """The table of one method, on the held-out design of the training masks' ablation fraction."""

    def __init__(
        self, run: RunDirectory, method: str, design_name: str, fingerprints: KnownFingerprints | None = None
    ) -> None:
        """``fingerprints``: of the attributions, for who reads many tables."""
        self._run, self._storage = run, run.storage
        self._fingerprints = fingerprints or KnownFingerprints()
        self.method, self.design_name = method, design_name
        self.file = f"{FOLDER}/{method}.parquet"

    def _current(self) -> dict[str, Any]:
        """The attributions, which know their masks and their regression, and the held-out masks, as they are now."""
        store, attributions = self._run.margins(self.design_name), AttributionTable(self._run, self.method)
        return {
            **self._run.belongs_to("budget_curve"),
            "design": store.fingerprint,
            "num_masks": store.num_masks,
            "num_train_masks": self._run.margins(TRAIN_DESIGN).num_masks,
            "attributions": self._fingerprints.of(self.method, lambda: attributions.settings_fingerprint(store.blocks)),
        }

    def is_complete(self, settings: Mapping[str, Any]) -> bool:
        """Whether the table is there, whole, of what the run holds now and made with ``settings``."""
        return is_made_with(self._storage, self.file, {**self._current(), "settings": fingerprint_of(settings)})

    def set_aside_wrong(self) -> None:
        """For the process that holds the run: set the file aside if it is damaged or of another run."""
        self._run.set_aside_wrong("budget_curve", self.file)

    def write(self, curve: BudgetCurve, settings: Mapping[str, Any]) -> None:
        """Write the table, one row per example and number of masks; NaN is stored as null."""
        num_examples, num_points = curve.correlations.shape
        num_rows = num_examples * num_points
        fraction = self._run.design(self.design_name).ablation_fraction
        columns = {
            "example_id": pa.array(np.repeat(curve.example_ids, num_points)),
            "method": pa.array([self.method] * num_rows),
            "design": pa.array([self.design_name] * num_rows),
            "ablation_fraction": pa.array(np.full(num_rows, fraction)),
            "num_masks": pa.array(np.tile(curve.num_masks, num_examples)),
            "correlation": pa.array(curve.correlations.reshape(-1), from_pandas=True),
        }
        belongs_to = {**self._current(), "settings": fingerprint_of(settings)}
        write_table(self._storage, self.file, columns, belongs_to)

    def read(self) -> BudgetCurve | None:
        """The curve; None where there is none of the run as it is now.

        Raises:
            DamagedFileError: it is damaged.
        """
        types = {"example_id": pa.int64(), "num_masks": pa.int64(), "correlation": pa.float64()}
        found = self._fingerprints.tried(
            lambda: read_current(self._storage, self.file, "evaluate", self._current, list(types), types=types)
        )
        if found is None:
            return None
        table = found.columns
        example_ids, num_masks = (np.unique(table[name].to_numpy()) for name in ("example_id", "num_masks"))
        correlations = table["correlation"].to_numpy().reshape(len(example_ids), len(num_masks))
        return BudgetCurve(example_ids, num_masks, correlations)
