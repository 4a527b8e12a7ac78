"""How well a run's rankings find its circuit: ``circuit/circuit.parquet``, beside the margins that it is made from.

One row per method, ranking and size: ``method, ranking, size, num_components, output, faithfulness``. What is of all
sizes together, and the components that are known, stand in the file's metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict

from coar_dist.config.documents import Finite
from coar_dist.errors import DamagedFileError, MissingWorkError
from coar_dist.store.parquet import is_made_with, read_current, read_metadata, write_table
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

CIRCUIT_FOLDER = "circuit"
"""A folder of a run, itself a run directory: the margins of its circuits."""
SIGNED, MAGNITUDE = "signed", "magnitude"
RANKINGS = (SIGNED, MAGNITUDE)
"""By mean weight over examples, for CPR; by its absolute value, for CMD."""
SCORES = ("auroc", "average_precision", "auroc_per_example", "average_precision_per_example", "cpr", "cmd")
_TYPES = {"size": pa.float64(), "num_components": pa.int64(), "output": pa.float64(), "faithfulness": pa.float64()}


class _Settings(TypedDict):
    methods: list[str]
    attributions: dict[str, str]


class _Numbers(TypedDict):
    full: Finite
    none: Finite
    reason: str | None
    known: list[int] | None
    scores: dict[str, dict[str, Finite | None]]


class _Metadata(TypedDict):
    settings: _Settings
    circuit: _Numbers


@dataclass(frozen=True)
class CircuitScores:
    """What the circuits of a run came to.

    Attributes:
        sizes: (num_sizes,) float64 shares of the components that a circuit holds, ascending.
        num_components: (num_sizes,) int64, how many these are.
        full: mean output over examples of the whole model.
        none: the same with every component ablated.
        reason: why faithfulness, CPR and CMD are undefined; None where they are not.
        known: ids of the components that are known to do the work; None where none were named.
        scores: per method, a number for each of ``SCORES``, NaN where it is undefined.
        outputs: per method and ranking (num_sizes,) float64 mean outputs of circuits.
        faithfulness: the same of faithfulness, NaN where it is undefined.
    """

    sizes: NDArray[np.float64]
    num_components: NDArray[np.int64]
    full: float
    none: float
    reason: str | None
    known: tuple[int, ...] | None
    scores: Mapping[str, Mapping[str, float]]
    outputs: Mapping[tuple[str, str], NDArray[np.float64]]
    faithfulness: Mapping[tuple[str, str], NDArray[np.float64]]


class CircuitTable:
    """The scores of a run's circuits."""

    file = f"{CIRCUIT_FOLDER}/circuit.parquet"

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def is_complete(self, settings: Mapping[str, Any], methods: list[str]) -> bool:
        """Whether the table is there, whole, made with these settings and of the attributions as they are now."""
        return is_made_with(self._run.storage, self.file, self._belongs_to(settings, methods))

    def settings(self) -> dict[str, Any] | None:
        """With what the table that is there was made: the settings, ``methods`` and fingerprints of ``attributions``;
        None where there is none, or it is damaged."""
        try:
            belongs_to = self._run.belongs_to(CIRCUIT_FOLDER)
            there = read_metadata(self._run.storage, self.file, "circuit", belongs_to, _Metadata)
        except DamagedFileError:
            return None
        return None if there is None else dict(there["settings"])

    def _belongs_to(self, settings: Mapping[str, Any], methods: list[str]) -> dict[str, Any]:
        blocks = self._run.margins(TRAIN_DESIGN).blocks
        attributions = {name: AttributionTable(self._run, name).settings_fingerprint(blocks) for name in methods}
        made_of = {**settings, "methods": methods, "attributions": attributions}
        return {**self._run.belongs_to(CIRCUIT_FOLDER), "settings": made_of}

    def write(self, scores: CircuitScores, settings: Mapping[str, Any], methods: list[str]) -> None:
        """Write the table, in the place of a damaged one, or of one of other settings.

        Args:
            scores: what was found.
            settings: what they depend on besides attributions.
            methods: whose attributions they are.
        """
        self._run.set_aside_wrong(CIRCUIT_FOLDER, self.file)
        rows = list(scores.outputs)
        num = len(scores.sizes)
        columns = {
            "method": pa.array([method for method, _ in rows for _ in range(num)]),
            "ranking": pa.array([ranking for _, ranking in rows for _ in range(num)]),
            "size": pa.array(np.tile(scores.sizes, len(rows))),
            "num_components": pa.array(np.tile(scores.num_components, len(rows))),
            "output": pa.array(np.concatenate([scores.outputs[row] for row in rows])),
            "faithfulness": pa.array(np.concatenate([scores.faithfulness[row] for row in rows]), from_pandas=True),
        }
        numbers = {
            "full": scores.full,
            "none": scores.none,
            "reason": scores.reason,
            "known": None if scores.known is None else list(scores.known),
            "scores": {method: _nulled(values) for method, values in scores.scores.items()},
        }
        write_table(self._run.storage, self.file, columns, {**self._belongs_to(settings, methods), "circuit": numbers})

    def read(self) -> CircuitScores:
        """The scores.

        Raises:
            MissingWorkError: they are not there, or of attributions that have changed since.
            DamagedFileError: the file is damaged.
        """
        found = read_current(self._run.storage, self.file, "circuit", self._expected, kind=_Metadata, types=_TYPES)
        if found is None:
            raise MissingWorkError(
                f"{self._run.storage.where(self.file)} is missing or of earlier attributions: run the circuit stage."
            )
        table, numbers = found.columns.to_pydict(), found.metadata["circuit"]
        pairs = list(zip(table["method"], table["ranking"], strict=True))
        rows = {pair: [i for i, other in enumerate(pairs) if other == pair] for pair in dict.fromkeys(pairs)}
        first = next(iter(rows.values()))
        columns = {name: np.array(table[name], dtype=np.float64) for name in ("size", "output", "faithfulness")}
        return CircuitScores(
            sizes=columns["size"][first],
            num_components=np.array(table["num_components"], dtype=np.int64)[first],
            full=float(numbers["full"]),
            none=float(numbers["none"]),
            reason=numbers["reason"],
            known=None if numbers["known"] is None else tuple(numbers["known"]),
            scores={method: _with_nan(values) for method, values in numbers["scores"].items()},
            outputs={pair: columns["output"][at] for pair, at in rows.items()},
            faithfulness={pair: columns["faithfulness"][at] for pair, at in rows.items()},
        )

    def _expected(self) -> dict[str, Any]:
        """What the file must belong to, with the settings and methods that it names."""
        belongs_to = self._run.belongs_to(CIRCUIT_FOLDER)
        there = read_metadata(self._run.storage, self.file, "circuit", belongs_to, _Metadata)
        if there is None:
            return {**belongs_to, "settings": None}  # which no file has
        settings = there["settings"]
        return self._belongs_to(settings, settings["methods"])


def _nulled(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float("nan") if value is None else float(value) for name, value in values.items()}
