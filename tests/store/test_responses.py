from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coar_dist.store import responses as module
from coar_dist.store.parquet import write_table
from coar_dist.store.responses import Response, Responses, ResponseTable
from coar_dist.store.run_directory import RunDirectory
from tests.store.test_store import new_run

GENERATOR = np.random.default_rng(0)
FOUND = {
    0: Responses(
        GENERATOR.normal(size=(3, 2, 2)).astype(np.float16),
        (
            Response(7, 2.5, GENERATOR.normal(size=(4, 5)).astype(np.float32)),
            Response(2, -0.5, np.full((4, 5), -0.5, np.float32)),
        ),
    ),
    3: Responses(None, (Response(1, 4.0, np.arange(6, dtype=np.float32) - 2, 3, np.eye(6, dtype=np.float32)),)),
    5: Responses(None, (Response(0, 1e-9, np.array(1e-9, np.float32)),)),
    6: Responses(np.ones((1, 1, 1), np.float16), ()),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr(module, "_COMPONENTS_PER_FILE", 4)
    run = new_run(tmp_path / "run")
    table = ResponseTable(run)
    for components in table.missing():
        table.write(components, FOUND)
    return run


def reopened(run: RunDirectory) -> ResponseTable:
    return ResponseTable(RunDirectory.open(run.storage))


def test_what_is_written_is_read_to_8_bits(run: RunDirectory) -> None:
    table = reopened(run)
    assert table.missing() == []
    found, damaged = table.read(range(run.components.num_components))
    assert damaged == []
    assert sorted(found) == sorted(FOUND)
    for i, expected in FOUND.items():
        if expected.kernel is None:
            assert found[i].kernel is None
        else:
            np.testing.assert_array_equal(found[i].kernel, expected.kernel)
        assert len(found[i].examples) == len(expected.examples)
        for each, other in zip(found[i].examples, expected.examples, strict=True):
            assert (each.example_id, each.first) == (other.example_id, other.first)
            assert each.strength == pytest.approx(other.strength)
            assert each.activation.dtype == np.float32
            assert each.activation.shape == other.activation.shape
            step = np.abs(other.activation).max() / 127
            assert np.abs(each.activation - other.activation).max() <= 0.51 * step
            if other.pattern is None:
                assert each.pattern is None
            else:
                np.testing.assert_allclose(each.pattern, other.pattern, atol=0.5 / 255)
    assert sorted(table.read([5, 3, 5, 4])[0]) == [3, 5]


def test_a_range_without_anything_is_there(run: RunDirectory, tmp_path: Path) -> None:
    table = reopened(run)
    last = table._ranges[-1]
    table.write(last, {})
    assert reopened(run).missing() == []
    assert reopened(run).read(range(*last)) == ({}, [])


def test_what_is_not_there_is_missing(run: RunDirectory, tmp_path: Path) -> None:
    table = reopened(run)
    (tmp_path / "run" / table.file((0, 4))).unlink()
    assert table.missing() == [(0, 4)]
    assert sorted(table.read([0, 3, 5])[0]) == [5]
    shutil.rmtree(tmp_path / "run" / "responses")
    assert table.missing() == table._ranges
    assert table.read([0, 5]) == ({}, [])


@pytest.mark.parametrize("is_foreign", [False, True])
def test_damaged_or_foreign_files_are_named_and_passed_over(
    run: RunDirectory, tmp_path: Path, is_foreign: bool
) -> None:
    table = reopened(run)
    path = tmp_path / "run" / table.file((0, 4))
    if is_foreign:
        ResponseTable(new_run(tmp_path / "other", output_function="loss")).write((0, 4), FOUND)
        shutil.copy(tmp_path / "other" / table.file((0, 4)), path)
    else:
        content = path.read_bytes()
        path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    found, (damaged,) = table.read([3, 5])
    assert list(found) == [5]
    assert re.search(rf"{path.name} (is damaged|belongs to).*Remove the file and run the ablate stage", damaged)
    table.set_aside_wrong()
    assert table.missing() == ([(0, 4)] if is_foreign else [])  # of others only the footers are looked at


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("shape", [2, 2], "an array of shape (2, 2) has 6 bytes"),
        ("shape", None, "NoneType"),
        ("pattern_shape", [-6, -6], "an array of shape (-6, -6) has 36 bytes"),
        ("example_id", 8, "it has an example 8 outside 0..7"),
        ("component_id", 4, "it has a component 4 outside 0..3"),
        ("activation", None, "NoneType"),
        ("strength", None, "NoneType"),
        ("scale", None, "NoneType"),
        ("pattern_scale", float("nan"), "a number is nan"),
    ],
)
def test_files_of_somebody_else_do_no_harm(
    run: RunDirectory, tmp_path: Path, column: str, value: object, what: str
) -> None:
    """With right checksums, and values that no writer here writes."""
    table = reopened(run)
    content = pq.read_table(tmp_path / "run" / table.file((0, 4)))
    values = content[column].to_pylist()
    values[-1] = value
    columns = {name: content[name].combine_chunks() for name in content.column_names}
    columns[column] = pa.array(values, content.schema.field(column).type)
    write_table(run.storage, table.file((0, 4)), columns, table.belongs_to((0, 4)))
    found, (damaged,) = table.read([0, 3])
    assert found == {}
    assert what in damaged
    assert "Remove the file and run the ablate stage" in damaged
