"""Parquet files of a run that somebody else has made: their checksums are right, and their columns may be any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import DamagedFileError
from coar_dist.store.agreement import METRICS
from coar_dist.store.columns import matrix_column, packed_column
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.gradients import GateGradients
from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import random_masks
from tests.store.test_store import NUM_EXAMPLES, margins_of, new_run, set_train

BLOCK, NUM_MASKS, NUM_COMPONENTS = (0, 3), 4, 11
WIDER = matrix_column(np.zeros((3, NUM_COMPONENTS + 1), np.float32))
NULLS = pa.array([None] * 3, pa.list_(pa.float32(), NUM_COMPONENTS))
ATTRIBUTIONS, MARGINS = "attributions/coar.00000000-00000003.parquet", "margins/train/0000000000-0000000004.parquet"
EVALUATION = "evaluation/coar.held_out.parquet"
GRADIENTS = "gradients/gradients/00000000-00000003/0000000000-0000000004.parquet"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = new_run(tmp_path / "run")
    design = Bernoulli(NUM_COMPONENTS, NUM_MASKS, 0.2, 1)
    entries = {"held_out": RunDesign("evaluation", design), GRADIENT_DESIGN: RunDesign("gradients", design)}
    set_train(made, NUM_MASKS, **entries)
    store = made.margins(TRAIN_DESIGN)
    store.write(0, random_masks(NUM_MASKS, NUM_COMPONENTS), margins_of(NUM_MASKS), {})
    sums = np.zeros((2, 3, NUM_COMPONENTS), np.float32)
    gradients = GateGradients(
        np.zeros((NUM_MASKS, 3), np.float32), *sums, *np.ones((2, NUM_COMPONENTS)), np.ones(NUM_COMPONENTS, np.bool_)
    )
    made.gradients(GRADIENT_DESIGN)[0].write(0, random_masks(NUM_MASKS, NUM_COMPONENTS, seed=8), gradients, {})
    for first, end in store.blocks:
        weights = np.ones((end - first, NUM_COMPONENTS), np.float32)
        AttributionTable(made, "coar").write(
            (first, end), SETTINGS, Attributions.of_weights(weights, np.ones(end - first))
        )
    EvaluationTable(made, "coar", "held_out").write({name: np.ones(NUM_EXAMPLES) for name in METRICS})
    return made


SETTINGS: dict[str, Any] = {"method": "ridge", "num_penalties": 25, "penalty_range": [0.001, 1000.0]}
READERS: dict[str, Callable[[RunDirectory], object]] = {
    ATTRIBUTIONS: lambda run: (
        AttributionTable(run, "coar").read(BLOCK),
        AttributionTable(run, "coar").read_quality(BLOCK),
    ),
    MARGINS: lambda run: (
        list(run.margins(TRAIN_DESIGN).read(BLOCK, 9)),
        list(run.margins(TRAIN_DESIGN).read_margins((3, 6), 9)),
    ),
    EVALUATION: lambda run: EvaluationTable(run, "coar", "held_out").read(),
    GRADIENTS: lambda run: list(run.gradients(GRADIENT_DESIGN)[0].read()),
}


def rewritten(run: RunDirectory, name: str, changed: dict[str, pa.Array | None], **metadata: object) -> None:
    found = read_content(run.storage, name, "", {})
    assert found is not None
    columns = {
        column: changed.get(column, found.columns[column].combine_chunks()) for column in found.columns.column_names
    }
    said = {key: value for key, value in found.metadata.items() if key not in ("footer_sha256", "sha256")}
    write_table(run.storage, name, columns, {**said, **metadata})


@pytest.mark.parametrize(
    ("name", "column", "values"),
    [
        (ATTRIBUTIONS, "weights", WIDER),
        (ATTRIBUTIONS, "weights", NULLS),
        (ATTRIBUTIONS, "weights", pa.array(["x"] * 3)),
        (ATTRIBUTIONS, "intercept", pa.array(["x"] * 3)),
        (ATTRIBUTIONS, "r2", pa.array([[1.0]] * 3)),
        (MARGINS, "mask_id", pa.array(["0"] * 4)),
        (MARGINS, "mask", packed_column(np.ones((4, 99), np.bool_))),
        (MARGINS, "margins_0", matrix_column(np.ones((4, 2), np.float32))),
        (MARGINS, "margins_3", matrix_column(np.ones((4, 3), np.float64))),
        (EVALUATION, "correlation", pa.array(["x"] * NUM_EXAMPLES)),
        (GRADIENTS, "kept", WIDER),
        (GRADIENTS, "margins", NULLS),
    ],
)
def test_columns_of_other_types_are_named(run: RunDirectory, name: str, column: str, values: pa.Array) -> None:
    READERS[name](run)
    rewritten(run, name, {column: values})
    with pytest.raises(DamagedFileError, match=rf"{name} is damaged: its column '{column}' .* Remove the file"):
        READERS[name](run)


def test_rows_that_lack_are_named(run: RunDirectory) -> None:
    table = AttributionTable(run, "coar")
    content = (Path(run.storage.location) / table.file((6, 8))).read_bytes()
    found = read_content(run.storage, table.file((6, 8)), "", {})
    assert found is not None
    (Path(run.storage.location) / table.file(BLOCK)).write_bytes(content)
    said = {key: value for key, value in found.metadata.items() if key not in ("footer_sha256", "sha256")}
    columns = {name: found.columns[name].combine_chunks() for name in found.columns.column_names}
    write_table(run.storage, table.file(BLOCK), columns, {**said, "examples": list(BLOCK)})
    with pytest.raises(DamagedFileError, match="it has 2 rows, not 3"):
        table.read(BLOCK)


@pytest.mark.parametrize(
    ("key", "value"), [("method", 7), ("num_penalties", "25"), ("penalty_range", [1.0]), ("tolerance", -1.0)]
)
def test_settings_of_other_types_are_named(run: RunDirectory, key: str, value: object) -> None:
    table = AttributionTable(run, "coar")
    assert table.settings(BLOCK) == SETTINGS
    rewritten(run, ATTRIBUTIONS, {}, settings={**SETTINGS, key: value})
    with pytest.raises(DamagedFileError, match=rf"in its metadata, settings\.{key}: "):
        table.settings(BLOCK)
