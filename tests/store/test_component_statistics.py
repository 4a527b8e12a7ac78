"""The tables of statistics come back, belong to the attributions of now, and are refused when they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from coar_dist.errors import DamagedFileError, MissingWorkError
from coar_dist.evaluation.component_statistics import ComponentSums, layer_shares
from coar_dist.store.component_statistics import StatisticsTable
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.store.test_store import NUM_EXAMPLES, new_run, set_train

WEIGHTS = np.random.default_rng(3).normal(2.0, 1.0, (NUM_EXAMPLES, 11)).astype(np.float32)


def fitted(run: RunDirectory, settings: dict[str, Any]) -> None:
    for first, end in run.margins("train").blocks:
        attributions = Attributions.of_weights(WEIGHTS[first:end], np.ones(end - first))
        AttributionTable(run, "coar").write((first, end), settings, attributions)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = new_run(tmp_path / "run")
    set_train(made, 4)
    fitted(made, {"penalty": 1})
    sums, shares = ComponentSums.of(np.arange(NUM_EXAMPLES), WEIGHTS), layer_shares(WEIGHTS, made.components.offsets)
    StatisticsTable(made, "coar").write(sums.statistics(), shares)
    return made


def test_they_come_back(run: RunDirectory) -> None:
    table, sums = StatisticsTable(run, "coar"), ComponentSums.of(np.arange(NUM_EXAMPLES), WEIGHTS)
    for name, values in vars(sums.statistics()).items():
        np.testing.assert_array_equal(getattr(table.read(), name), values, strict=True)
    np.testing.assert_array_equal(table.read_shares(), layer_shares(WEIGHTS, run.components.offsets), strict=True)
    assert table.is_complete()


def test_of_earlier_attributions_they_are_missing(run: RunDirectory) -> None:
    fitted(run, {"penalty": 2})
    table = StatisticsTable(run, "coar")
    assert not table.is_complete()
    for read in (table.read, table.read_shares):
        with pytest.raises(MissingWorkError, match=r"of earlier attributions: run the evaluate stage"):
            read()


@pytest.mark.parametrize("number", [0, 1])
def test_damage_is_said_and_found(run: RunDirectory, number: int) -> None:
    table = StatisticsTable(run, "coar")
    file = table.files[number]
    content = run.storage.read(file)
    at = pq.read_metadata(f"{run.storage}/{file}").row_group(0).column(1).data_page_offset
    run.storage.write(file, content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(DamagedFileError, match=f"{file} is damaged"):
        (table.read, table.read_shares)[number]()
    assert not table.is_complete()
    table.set_aside_wrong()
    assert run.storage.size(f"{file}.damaged") is not None
