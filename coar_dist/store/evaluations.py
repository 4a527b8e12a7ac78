"""How well attributions predict: evaluation/<method>.<design>.parquet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import MissingWorkError
from coar_dist.store.agreement import METRICS
from coar_dist.store.fingerprints import KnownFingerprints
from coar_dist.store.parquet import is_made_with, read_current, write_table
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import AttributionTable


class EvaluationTable:
    """How well one method predicts each example's margins on one held-out design.

    What is read is of the attributions and masks that the run holds; after another fit it is missing until the evaluate
    stage has run.
    """

    def __init__(
        self, run: RunDirectory, method: str, design_name: str, fingerprints: KnownFingerprints | None = None
    ) -> None:
        """``fingerprints``: of the attributions, for who reads many tables."""
        self._run, self._storage = run, run.storage
        self.method = method
        self.design_name = design_name
        self._fingerprints = fingerprints or KnownFingerprints()
        self.file = f"evaluation/{method}.{design_name}.parquet"

    def _belongs_to(self) -> dict[str, Any]:
        """The attributions and the masks that the metrics are to be of, as they are now."""
        store = self._run.margins(self.design_name)
        attributions = AttributionTable(self._run, self.method)
        settings = {
            "design": store.fingerprint,
            "num_masks": store.num_masks,
            "attributions": self._fingerprints.of(self.method, lambda: attributions.settings_fingerprint(store.blocks)),
            "metrics": list(METRICS),
        }
        return {**self._run.belongs_to("evaluation"), "settings": settings}

    def is_complete(self) -> bool:
        """Whether the table is there, whole, and of the attributions as they are now."""
        return is_made_with(self._storage, self.file, self._belongs_to())

    def set_aside_wrong(self) -> None:
        """For the process that holds the run: set the file aside if it is damaged or of another run."""
        self._run.set_aside_wrong("evaluation", self.file)

    def write(self, metrics: Mapping[str, NDArray[np.float64]]) -> None:
        """Write the table; NaN (undefined) is stored as null.

        Args:
            metrics: for each name of ``METRICS`` (num_examples,) float64.
        """
        num_examples = len(metrics["correlation"])
        fraction = self._run.design(self.design_name).ablation_fraction
        columns = {
            "example_id": pa.array(np.arange(num_examples)),
            "method": pa.array([self.method] * num_examples),
            "design": pa.array([self.design_name] * num_examples),
            "ablation_fraction": pa.array(np.full(num_examples, fraction)),
            **{name: pa.array(metrics[name], from_pandas=True) for name in METRICS},
        }
        write_table(self._storage, self.file, columns, self._belongs_to())

    def read(self) -> dict[str, NDArray[np.float64]]:
        """For each name of ``METRICS`` (num_examples,) float64; NaN where undefined.

        Raises:
            MissingWorkError: the table is not there, or is of earlier attributions.
            DamagedFileError: it is damaged.
        """
        types = dict.fromkeys(METRICS, pa.float64())
        found = self._fingerprints.tried(
            lambda: read_current(
                *(self._storage, self.file, "evaluate", self._belongs_to, METRICS),
                types=types,
                num_rows=self._run.num_examples,
            ),
        )
        if found is None:
            where = self._storage.where(self.file)
            raise MissingWorkError(
                f"{where} is missing or of earlier attributions: run the evaluate stage, in Python run.evaluate()."
            )
        return {name: np.asarray(found.columns[name].to_numpy()) for name in METRICS}
