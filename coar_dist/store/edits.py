"""What an edit leaves in its folder ``edits/<name>``, which is a run directory of the held-out examples:

- ``edit.json``: what was ablated and why, and what that changed; with a checksum of its content;
- ``edited.safetensors``: the model's weights with those components zeroed;
- ``curve.parquet``: every selection and number of components by group of examples;
- ``each.parquet``: one row per target, where every target has an edit of its own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict

from coar_dist.config.documents import Finite, check_type, parsed, up_to
from coar_dist.config.schema.values import Count, Rule, one_of
from coar_dist.errors import DamagedFileError, MissingWorkError
from coar_dist.store.aside import set_aside
from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.record import fingerprint_of
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.storage import Storage

EDITS = "edits"
"""The folder of a run's edits."""
EDIT_FILE, WEIGHTS_FILE = "edit.json", "edited.safetensors"
_CURVE_FILE, _EACH_FILE = "curve.parquet", "each.parquet"
_CURVE_TYPES = {
    "selection": pa.string(),
    "num_components": pa.int64(),
    "group": pa.string(),
    "part": pa.string(),
    "num_examples": pa.int64(),
    "value": pa.float64(),
}
_EACH_TYPES = {"example_id": pa.int64(), "components": pa.list_(pa.int64())}
CHOICE, MEASURE = "choice", "measure"
"""The parts of the held-out examples: what the number of components is chosen on, and what the edit is measured on."""
_FORMAT = 1
_Id = Annotated[int, up_to(0, 2**31 - 1)]
_Number = Annotated[int, up_to(0, 2**31 - 1)]
_Metrics = dict[str, Finite | None]
"""NaN is null."""


class _Slice(TypedDict):
    parameter: str
    axis: _Number
    start: _Number
    size: Count


class _Ablated(TypedDict):
    component_id: _Id
    name: str
    score: Finite | None
    slices: list[_Slice]


class _Selected(TypedDict):
    num_components: _Number
    values: _Metrics


class _Measured(TypedDict):
    num_examples: _Number
    before: _Metrics
    after: _Metrics


class _Record(TypedDict):
    """What ``edit.json`` says."""

    settings: str
    name: str
    run: str
    model_weights: str
    selection: str
    direction: Annotated[str, one_of("raise", "lower")]
    targets: list[_Id]
    references: list[_Id]
    max_components: _Number
    metric: str
    criterion: str
    unablated: _Metrics
    selected: dict[str, _Selected]
    measured: dict[str, _Measured]
    paired_correlation: Annotated[list[Finite | None], Rule(lambda pair: len(pair) == 2, "null or two numbers")] | None
    each: _Metrics | None
    read: NotRequired[list[str]]
    components: list[_Ablated]


@dataclass(frozen=True)
class CurvePoint:
    """One row of ``curve.parquet``.

    Attributes:
        selection: what selected the components.
        num_components: how many are ablated.
        group: of examples.
        part: ``choice`` or ``measure``.
        num_examples: of the group in that part.
        value: of the edit's metric.
    """

    selection: str
    num_components: int
    group: str
    part: str
    num_examples: int
    value: float


def edit_names(storage: Storage) -> list[str]:
    """The finished edits of a run: names of their folders, sorted."""
    return [name for name in storage.folders(EDITS) if storage.size(f"{EDITS}/{name}/{EDIT_FILE}") is not None]


class EditStore:
    """Reads and writes the files of one edit; ``sweep`` is its run directory."""

    def __init__(self, sweep: RunDirectory) -> None:
        self.sweep, self._storage = sweep, sweep.storage

    def write(self, record: Mapping[str, Any], settings: str) -> None:
        """Write ``edit.json``: last of all files, it says that they are there; ``settings`` is a fingerprint of all
        that they depend on."""
        content = {"format": _FORMAT, "sweep": self.sweep.fingerprint, "settings": settings, **record}
        text = json.dumps({**content, "sha256": fingerprint_of(content)}, indent=2)
        self._storage.write(EDIT_FILE, text.encode())

    def read(self) -> tuple[dict[str, Any], str]:
        """The record and the settings that ``write`` was given.

        Raises:
            MissingWorkError: there is none.
            DamagedFileError: it is damaged, or of another run or version.
        """
        where = self._storage.where(EDIT_FILE)
        if self._storage.size(EDIT_FILE) is None:
            raise MissingWorkError(f"{where} is missing: run the edit stage.")
        try:
            content = parsed(self._storage.read(EDIT_FILE))
            checksum = content.pop("sha256", None)
            if checksum != fingerprint_of(content):
                raise ValueError("it does not have the checksum that it was written with")
            if (content.pop("format", None), content.pop("sweep", None)) != (_FORMAT, self.sweep.fingerprint):
                raise ValueError("it is of another run or version")
            check_type(_Record, content)
            _check_agrees(content, self.sweep.components.num_components)
        except ValueError as error:
            raise DamagedFileError.of(where, f"{where} is damaged: {error}.", "edit") from error
        settings = str(content.pop("settings"))
        return dict(content), settings

    def write_weights(self, content: bytes) -> None:
        """Write ``edited.safetensors``."""
        self._storage.write(WEIGHTS_FILE, content)

    def write_curve(self, points: Sequence[CurvePoint]) -> None:
        """Write ``curve.parquet``."""
        names = CurvePoint.__dataclass_fields__
        columns = {name: pa.array([getattr(point, name) for point in points], _CURVE_TYPES[name]) for name in names}
        write_table(self._storage, _CURVE_FILE, columns, self.sweep.belongs_to("curve"))

    def read_curve(self) -> list[CurvePoint]:
        """The rows of ``curve.parquet``.

        Raises:
            MissingWorkError, DamagedFileError: it is not there, or damaged.
        """
        rows = self._table(_CURVE_FILE, "curve", _CURVE_TYPES).select(list(_CURVE_TYPES)).to_pylist()
        return [CurvePoint(**row) for row in rows]

    def write_each(self, columns: Mapping[str, NDArray[Any]], components: Sequence[Sequence[int]]) -> None:
        """Write ``each.parquet``: columns of one value per target, and the ids of the components of each edit."""
        lists = pa.array([list(map(int, ids)) for ids in components], _EACH_TYPES["components"])
        table = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
        write_table(self._storage, _EACH_FILE, {**table, "components": lists}, self.sweep.belongs_to("each"))

    def read_each(self) -> dict[str, Any]:
        """The columns of ``each.parquet``, (num_targets,) each, ``components`` a list of lists; NaN for null.

        Raises:
            MissingWorkError, DamagedFileError: it is not there, or damaged.
        """
        table = self._table(_EACH_FILE, "each", _EACH_TYPES)
        arrays = {name: np.asarray(table[name].to_numpy()) for name in table.column_names if name != "components"}
        return {**arrays, "components": table["components"].to_pylist()}

    def _table(self, name: str, content: str, types: Mapping[str, pa.DataType]) -> pa.Table:
        found = read_content(self._storage, name, "edit", self.sweep.belongs_to(content), types=types)
        if found is None:
            raise MissingWorkError(f"{self._storage.where(name)} is missing: run the edit stage.")
        return found.columns

    def set_aside_damaged(self) -> list[str]:
        """For the process that holds the run: set aside the files of the edit that cannot be read.

        Returns:
            Why, for each, and its new name.
        """
        reasons = []
        for name, read in ((EDIT_FILE, self.read), (_CURVE_FILE, self.read_curve), (_EACH_FILE, self.read_each)):
            try:
                read()
            except MissingWorkError:
                pass
            except DamagedFileError as error:
                reasons.append(f"{error.reason} Set aside as {set_aside(self._storage, name)}")
        return reasons


def _check_agrees(record: Mapping[str, Any], num_components: int) -> None:
    """Check what types cannot say of a record: that its parts are of one edit.

    Raises:
        ValueError: they are not, a sentence without a full stop.
    """
    for ablated in record["components"]:
        if ablated["component_id"] >= num_components:
            raise ValueError(f"component_id is {ablated['component_id']}: there are {num_components} components")
    if record["selection"] not in record["selected"]:
        raise ValueError("selected lacks what selection names")
    if record["each"] is None:
        _check_keys("selected", record["unablated"], [found["values"] for found in record["selected"].values()])
        sides = [found[side] for found in record["measured"].values() for side in ("before", "after")]
        _check_keys("measured", next(iter(sides), {}), sides)


def _check_keys(key: str, expected: Collection[str], values: Collection[Collection[str]]) -> None:
    if not expected or any(set(found) != set(expected) for found in values):
        raise ValueError(f"{key} has not the same numbers for all")
