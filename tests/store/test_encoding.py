"""Every byte of a file is covered by a checksum, whatever it holds and however long its footer is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from coar_dist.errors import DamagedFileError
from coar_dist.store.columns import matrix_column, matrix_of, matrix_type
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.parquet import read_content, read_in_parts, read_metadata, why_wrong, write_table
from coar_dist.store.rehearsal import Rehearsal

BELONGS = {"content": "numbers", "run": "a"}


def columns_of(num_columns: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(num_columns)
    return {f"margins_{i}": random.normal(size=(3, 2)).astype(np.float32) for i in range(num_columns)}


def footer_length(content: bytes) -> int:
    return int.from_bytes(content[-8:-4], "little")


@pytest.mark.parametrize("num_columns", [1, 20, 60])
def test_columns_come_back_whatever_the_length_of_the_footer(num_columns: int, tmp_path: Path) -> None:
    storage, columns = LocalStorage(str(tmp_path)), columns_of(num_columns)
    write_table(storage, "file", {name: matrix_column(values) for name, values in columns.items()}, BELONGS)
    assert (footer_length(storage.read("file")) > storage.worth_reading) == (num_columns > 1)
    metadata = read_metadata(storage, "file", "fit", BELONGS)
    assert metadata is not None
    assert BELONGS.items() <= metadata.items()
    for wanted in (None, list(columns)[:1], list(columns)[-1:]):
        found = read_content(storage, "file", "fit", BELONGS, wanted)
        assert found is not None
        assert found.columns.column_names == (wanted or list(columns))
        for name in found.columns.column_names:
            np.testing.assert_array_equal(matrix_of(found.columns[name]), columns[name])


@pytest.mark.parametrize("compress", [False, True])
def test_large_columns_are_decoded_some_rows_at_a_time(
    compress: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.store.encoding._READ_AT_ONCE", 400)
    storage, values = LocalStorage(str(tmp_path)), np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    texts = pa.array([f"text {i}" if i % 3 else None for i in range(100)])
    write_table(storage, "file", {"values": matrix_column(values), "text": texts}, BELONGS, compress)
    found = read_content(storage, "file", "fit", BELONGS)
    assert found is not None
    assert found.columns["values"].num_chunks == 1
    assert found.columns["text"].num_chunks > 5
    np.testing.assert_array_equal(matrix_of(found.columns["values"]), values)
    assert found.columns["text"].to_pylist() == texts.to_pylist()


@pytest.mark.parametrize("read_at_once", [400, 2**23])
@pytest.mark.parametrize("lacking", [None, [None, 1.0]], ids=["a row", "a value"])
def test_matrices_with_nulls_are_refused(
    lacking: list[float | None] | None, read_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.store.encoding._READ_AT_ONCE", read_at_once)
    storage, kind = LocalStorage(str(tmp_path)), matrix_type("float32", 2)
    values = pa.array([[0.0, float(i)] if i != 70 else lacking for i in range(100)], kind)
    write_table(storage, "file", {"values": values}, BELONGS)
    with pytest.raises(DamagedFileError, match="file is damaged: its column 'values' has nulls"):
        read_content(storage, "file", "fit", BELONGS, types={"values": kind})


def test_each_byte_that_changes_and_each_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    storage = Rehearsal(LocalStorage(str(tmp_path)))
    write_table(storage, "file", {"id": pa.array([1, 2]), "value": pa.array([0.5, -1.0])}, BELONGS)
    content = storage.read("file")
    assert why_wrong(storage, "file", BELONGS) is None
    for at in range(len(content)):
        for damaged in (content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :], content[:at]):
            storage.write("file", damaged)
            assert why_wrong(storage, "file", BELONGS) is not None, (at, len(damaged))
    storage.write("file", content)
    assert why_wrong(storage, "file", BELONGS) is None


def test_a_reader_of_the_first_column_verifies_the_first_bytes(tmp_path: Path) -> None:
    storage, columns = LocalStorage(str(tmp_path)), columns_of(2)
    write_table(storage, "file", {name: matrix_column(values) for name, values in columns.items()}, BELONGS)
    content = storage.read("file")
    storage.write("file", bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DamagedFileError, match="column 'margins_0' does not have the checksum"):
        read_content(storage, "file", "fit", BELONGS, ["margins_0"])


def test_parts_of_a_large_file_are_its_rows_in_order(tmp_path: Path) -> None:
    storage, values = LocalStorage(str(tmp_path)), np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    write_table(storage, "file", {"values": matrix_column(values), "id": pa.array(range(100))}, BELONGS)
    types = {"values": matrix_type("float32", 7), "id": pa.int64()}
    parts = read_in_parts(storage, "file", "fit", BELONGS, ["id", "values"], types, 100, 400)
    assert parts is not None
    storage.write("file", b"replaced once it was verified")
    found = [(part["id"].to_pylist(), matrix_of(part["values"])) for part in parts]
    assert len(found) > 5
    assert [row for ids, _ in found for row in ids] == list(range(100))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in found]), values)
    assert read_in_parts(storage, "none", "fit", BELONGS, ["id"], types, 100, 400) is None


@pytest.mark.parametrize(
    ("types", "num_rows", "message"),
    [
        ({"id": pa.int64()}, 99, "it has 100 rows, not 99"),
        ({"id": pa.int32()}, 100, "its column 'id' is of int64, not of int32"),
        ({"values": matrix_type("float32", 2)}, 100, "its column 'values' has nulls"),
    ],
)
def test_parts_of_a_file_of_other_columns_are_refused(
    types: dict[str, pa.DataType], num_rows: int, message: str, tmp_path: Path
) -> None:
    storage = LocalStorage(str(tmp_path))
    values = pa.array([[0.0, float(i)] if i != 70 else None for i in range(100)], matrix_type("float32", 2))
    write_table(storage, "file", {"values": values, "id": pa.array(range(100))}, BELONGS)
    with pytest.raises(DamagedFileError, match=f"file is damaged: {message}"):
        list(read_in_parts(storage, "file", "fit", BELONGS, list(types), types, num_rows, 400) or ())


def test_damage_is_found_before_any_part_is_decoded(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    write_table(storage, "file", {"id": pa.array(range(100))}, BELONGS)
    content = storage.read("file")
    storage.write("file", content[:90] + bytes([content[90] ^ 1]) + content[91:])
    with pytest.raises(DamagedFileError, match="does not have the checksum"):
        read_in_parts(storage, "file", "fit", BELONGS, ["id"], {}, 100, 400)
