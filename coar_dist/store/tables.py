"""The results of a run: attributions/*.parquet (one file per method and example block) and evaluation/*.parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist.errors import DamagedFileError, MissingWorkError
from coar_dist.store.parquet import (
    matrix_column,
    matrix_of,
    read_metadata,
    read_table,
    set_aside,
    write_table,
)
from coar_dist.store.run_directory import RunDirectory, fingerprint_of


class AttributionTable:
    """The attributions of one method: per example one weight per component, an intercept and a penalty."""

    def __init__(self, run: RunDirectory, method: str) -> None:
        self._run = run
        self.method = method

    def path(self, block: tuple[int, int]) -> Path:
        """The file of one example block."""
        return self._run.root / "attributions" / f"{self.method}.{block[0]:08d}-{block[1]:08d}.parquet"

    def is_complete(self, settings: Mapping[str, Any], blocks: list[tuple[int, int]]) -> bool:
        """Whether all example blocks are there, made with ``settings``; damaged files are set aside."""
        return all(_made_with(self.path(block), self._belongs_to(settings)) for block in blocks)

    def _belongs_to(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"content": "attributions", "run": self._run.fingerprint, "settings": dict(settings)}

    def write(
        self,
        block: tuple[int, int],
        settings: Mapping[str, Any],
        weights: NDArray[np.float32],
        intercepts: NDArray[np.float64],
        regularisation: NDArray[np.float64],
    ) -> None:
        """Write the attributions of one example block.

        Args:
            block: (first example, end).
            settings: what the attributions depend on besides the run's identity.
            weights: (block length, num_components) float32.
            intercepts: (block length,) float64.
            regularisation: (block length,) float64 penalties; NaN where the method has none.
        """
        columns = {
            "example_id": pa.array(np.arange(*block)),
            "method": pa.array([self.method] * len(weights)),
            "intercept": pa.array(intercepts),
            "regularisation": pa.array(regularisation, from_pandas=True),  # NaN becomes null
            "weights": matrix_column(weights),
        }
        write_table(self.path(block), columns, self._belongs_to(settings))

    def read(self, block: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Weights (block length, num_components) and intercepts (block length,) of one example block.

        Raises:
            MissingWorkError: the file is not there.
            DamagedFileError: it is damaged or of another run; it has been set aside.
        """
        path = self.path(block)
        if not path.is_file():
            raise MissingWorkError(f"{path} is missing: run the fit stage.")
        try:
            table = read_table(path, {"content": "attributions", "run": self._run.fingerprint})
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{error} It was set aside as {set_aside(path).name}; the fit stage makes it anew."
            ) from error
        return matrix_of(table["weights"]), table["intercept"].to_numpy()

    def settings_fingerprint(self, blocks: list[tuple[int, int]]) -> str:
        """SHA-256 over the settings of all blocks: changes whenever the attributions are made anew in another way.

        Raises:
            MissingWorkError: a block is not there.
        """
        missing = [self.path(block).name for block in blocks if not self.path(block).is_file()]
        if missing:
            raise MissingWorkError(f"attributions of {self.method!r} lack {', '.join(missing)}: run the fit stage.")
        return fingerprint_of({"settings": [read_metadata(self.path(block))["settings"] for block in blocks]})


class EvaluationTable:
    """Per-example correlations of one method on one held-out design."""

    def __init__(self, run: RunDirectory, method: str, design_name: str) -> None:
        self._run = run
        self.method = method
        self.design_name = design_name
        self.path = run.root / "evaluation" / f"{method}.{design_name}.parquet"

    def _belongs_to(self) -> dict[str, Any]:
        """The attributions and the masks that the correlations are of, as they are now."""
        store = self._run.margins(self.design_name)
        settings = {
            "design": store.fingerprint,
            "num_masks": store.num_masks,
            "attributions": AttributionTable(self._run, self.method).settings_fingerprint(store.blocks),
        }
        return {"content": "evaluation", "run": self._run.fingerprint, "settings": settings}

    def is_complete(self) -> bool:
        """Whether the table is there and of the attributions as they are now; a damaged file is set aside."""
        return _made_with(self.path, self._belongs_to())

    def write(self, correlations: NDArray[np.float64]) -> None:
        """Write the table; a NaN correlation (undefined) is stored as null.

        Args:
            correlations: (num_examples,) float64.
        """
        fraction = self._run.design(self.design_name).ablation_fraction
        columns = {
            "example_id": pa.array(np.arange(len(correlations))),
            "method": pa.array([self.method] * len(correlations)),
            "design": pa.array([self.design_name] * len(correlations)),
            "ablation_fraction": pa.array(np.full(len(correlations), fraction)),
            "correlation": pa.array(correlations, from_pandas=True),
        }
        write_table(self.path, columns, self._belongs_to())

    def read(self) -> NDArray[np.float64]:
        """(num_examples,) correlations; NaN where undefined.

        Raises:
            MissingWorkError: the table is not there, or is of attributions that have been fitted anew since.
            DamagedFileError: it is damaged.
        """
        belongs_to = self._belongs_to()
        if not _made_with(self.path, belongs_to):
            raise MissingWorkError(f"{self.path} is missing or of earlier attributions: run the evaluate stage.")
        table = read_table(self.path, belongs_to)
        return np.asarray(table["correlation"].to_numpy())


def _made_with(path: Path, belongs_to: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    try:
        metadata = read_metadata(path)
    except DamagedFileError:
        set_aside(path)
        return False
    return all(metadata.get(key) == value for key, value in belongs_to.items())
