from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import (
    DamagedFileError,
    MissingWorkError,
    NonFiniteMarginError,
    RunMismatchError,
    RunNotFoundError,
    StorageError,
)
from coar_dist.store.agreement import METRICS
from coar_dist.store.aside import damaged_set_aside, set_aside
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.locations import storage_at
from coar_dist.store.lock import only_writer
from coar_dist.store.margins import MarginStore
from coar_dist.store.record import fingerprint_of
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage, random_masks
from tests.untimed import UNTIMED

COMPONENTS = ComponentIndex((ComponentGroup.of("a.weight", 0, 7), ComponentGroup.of("b.weight", 1, 4, 2)))
IDENTITY = {"model.weights": "w", "ablation.examples_per_block": 3, "ablation.margins_dtype": "float32"}
NUM_EXAMPLES = 8


def new_run(root: Path, **changes: object) -> RunDirectory:
    run = RunDirectory.create(local_storage(root), {**IDENTITY, **changes}, COMPONENTS, NUM_EXAMPLES)
    set_train(run, 20)
    return run


def set_train(run: RunDirectory, num_masks: int, seed: int = 5, **others: RunDesign) -> None:
    train = RunDesign("train", Bernoulli(11, num_masks, 0.2, seed))
    run.set_designs({"train": train, **others})


def margins_of(num_masks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, (num_masks, NUM_EXAMPLES)).astype(np.float32)


def fill(store: MarginStore, cuts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    masks, margins = random_masks(20, 11), margins_of(20)
    for start, stop in pairwise(cuts):
        store.write(start, masks[start:stop], margins[start:stop], {})
    return masks, margins


def read_all(store: MarginStore, masks_per_batch: int = 100) -> tuple[np.ndarray, np.ndarray]:
    columns = []
    for block in store.blocks:
        batches = list(store.read(block, masks_per_batch))
        masks = np.concatenate([batch for batch, _ in batches])
        columns.append(np.concatenate([batch for _, batch in batches]))
    return masks, np.concatenate(columns, axis=1)


def read_by_holder(store: MarginStore) -> tuple[np.ndarray, np.ndarray] | None:
    """What the process that holds the run reads; None where it had to set a shard aside."""
    try:
        with only_writer(store.storage) as hold, damaged_set_aside(store.storage, hold):
            return read_all(store)
    except DamagedFileError:
        return None


def test_margins_come_back_however_shards_are_cut(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    store = run.margins("train")
    masks, margins = fill(store, [0, 3, 10, 11, 20])
    assert store.blocks == [(0, 3), (3, 6), (6, 8)]
    for size in (1, 4, 7, 100):
        batches = [len(batch) for batch, _ in store.read(None, size)]
        assert batches == [size] * (20 // size) + ([20 % size] if 20 % size else [])
        stored_masks, stored_margins = read_all(store, size)
        np.testing.assert_array_equal(stored_masks, masks)
        np.testing.assert_array_equal(stored_margins, margins)


class FarAway(LocalStorage):
    """Reads some files at a time."""

    parallel_reads = 3


def test_margins_come_back_in_order_where_shards_are_read_at_once(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    masks, margins = fill(run.margins("train"), list(range(0, 21, 2)))
    far = RunDirectory.open(FarAway(str(tmp_path))).margins("train")
    np.testing.assert_array_equal(read_all(far)[0], masks)
    np.testing.assert_array_equal(read_all(far)[1], margins)
    (tmp_path / far.file(8, 10)).write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match=far.file(8, 10)):
        read_all(far)


def test_a_fingerprint_is_of_the_values_whatever_their_order() -> None:
    text = b'{"a": 1, "b": {"c": [2, 3], "d": null}}'
    assert fingerprint_of({"b": {"d": None, "c": [2, 3]}, "a": 1}) == f"sha256:{hashlib.sha256(text).hexdigest()}"
    assert fingerprint_of({"b": {"d": None, "c": [3, 2]}, "a": 1}) != fingerprint_of(json.loads(text))


def test_the_schema_is_a_contract(tmp_path: Path) -> None:
    store = new_run(tmp_path).margins("train")
    fill(store, [0, 20])
    schema = pq.read_schema(tmp_path / "margins" / "train" / "0000000000-0000000020.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "mask_id": "int64",
        "mask": "fixed_size_binary[2]",
        "margins_0": "fixed_size_list<element: float>[3]",
        "margins_3": "fixed_size_list<element: float>[3]",
        "margins_6": "fixed_size_list<element: float>[2]",
    }


def test_missing_ranges_are_named_and_more_masks_extend_the_run(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    store = run.margins("train")
    fill(store, [0, 4, 8])
    assert store.missing() == [(8, 20)]
    store.write(12, random_masks(4, 11), margins_of(4), {})
    assert store.missing() == [(8, 12), (16, 20)]
    with pytest.raises(MissingWorkError, match=r"lacks 8 of 20 masks: 8\.\.11, 16\.\.19"):
        next(store.read(None, 5))
    set_train(run, 30)
    assert run.margins("train").missing() == [(8, 12), (16, 30)]
    set_train(run, 6)
    shorter = RunDirectory.open(storage_at(tmp_path)).margins("train")
    assert len(next(shorter.read(None, 100))[0]) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_margins_that_cannot_be_stored_are_refused(tmp_path: Path, value: float) -> None:
    store = new_run(tmp_path, **{"ablation.margins_dtype": "float16"}).margins("train")
    margins = margins_of(4)
    margins[2, 5] = value
    with pytest.raises(NonFiniteMarginError, match="margin of example 5 under mask 10"):
        store.write(8, random_masks(4, 11), margins, {})
    assert store.missing() == [(0, 20)]
    margins[2, 5] = 1.0
    store.write(8, random_masks(4, 11), margins, {})
    assert store.ranges() == [(8, 12)]


@settings(UNTIMED, max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), damage=st.sampled_from(["flip", "truncate"]), bit=st.integers(0, 7))
def test_a_damaged_shard_is_never_used(
    tmp_path_factory: pytest.TempPathFactory, position: float, damage: str, bit: int
) -> None:
    store = new_run(tmp_path_factory.mktemp("run")).margins("train")
    masks, margins = fill(store, [0, 10, 20])
    path = Path(store.storage.where(store.file(10, 20)))
    content = bytearray(path.read_bytes())
    offset = int(position * len(content))
    content[offset] ^= 1 << bit
    path.write_bytes(content if damage == "flip" else content[:offset])
    reasons = store.set_aside_wrong(is_new_run=False)
    if not reasons:
        stored = read_by_holder(store)
        if stored is not None:  # the flipped bit means nothing to the reader
            np.testing.assert_array_equal(stored[0], masks)
            np.testing.assert_array_equal(stored[1], margins)
            return
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").exists()
    assert store.missing() == [(10, 20)]
    store.write(10, masks[10:], margins[10:], {})
    np.testing.assert_array_equal(read_all(store)[1], margins)


def test_shards_of_another_run_or_design_are_set_aside(tmp_path: Path) -> None:
    store = new_run(tmp_path / "a").margins("train")
    other = new_run(tmp_path / "b", **{"model.weights": "other"}).margins("train")
    fill(store, [0, 10, 20])
    fill(other, [0, 10, 20])
    first, second = (tmp_path / "a" / store.file(start, start + 10) for start in (0, 10))
    first.write_bytes((tmp_path / "b" / other.file(0, 10)).read_bytes())
    second.write_bytes(first.read_bytes())
    with pytest.raises(RunMismatchError, match=r"holds 2 shards of another run, whose run\.json is lost.*Nothing was"):
        store.set_aside_wrong(is_new_run=True)
    reasons = store.set_aside_wrong(is_new_run=False)
    assert len(reasons) == 2
    assert "belongs to something else: its design differs." in reasons[0]
    assert store.missing() == [(0, 20)]


def test_of_very_many_shards_only_the_names_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.store.shards._MOST_FOOTERS", 2)
    store = new_run(tmp_path).margins("train")
    fill(store, [0, 5, 10, 20])
    path = tmp_path / store.file(5, 10)
    path.write_bytes(path.read_bytes()[:-9])
    assert store.set_aside_wrong(is_new_run=False) == []
    assert list(store.wrong_shards("footers")) == [(5, 10)]
    with pytest.raises(DamagedFileError, match=r"0000000005-0000000010\.parquet is damaged, .*Remove the file"):
        read_all(store)
    assert read_by_holder(store) is None
    assert store.missing() == [(5, 10)]


def test_overlapping_shards_are_refused_and_the_second_is_set_aside(tmp_path: Path) -> None:
    store = new_run(tmp_path).margins("train")
    fill(store, [0, 10, 20])
    store.write(8, random_masks(4, 11), margins_of(4), {})
    with pytest.raises(DamagedFileError, match=r"0000000000-0000000010.*and .*0000000008-0000000012.*overlap"):
        store.missing()
    wrong = store.wrong_shards("footers")
    assert store.missing(without=wrong) == []  # what inspect asks, which sets nothing aside
    (reason,) = store.set_aside_wrong(is_new_run=False)
    assert "0000000008-0000000012.parquet overlaps the shard before it" in reason
    assert store.missing() == []


def test_of_shards_cut_twice_the_largest_stays(tmp_path: Path) -> None:
    """As when an actor of a killed driver writes what another one has cut meanwhile."""
    store = new_run(tmp_path).margins("train")
    fill(store, [0, 5, 10, 20])
    store.write(0, random_masks(10, 11), margins_of(10), {})
    first, second = store.set_aside_overlapping()
    assert "0000000000-0000000005.parquet overlaps the shard before it. Set aside" in first
    assert "0000000005-0000000010.parquet overlaps the shard before it. Set aside" in second
    assert store.ranges() == [(0, 10), (10, 20)]
    assert store.set_aside_overlapping() == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(StorageError, match=r"file cannot be written: .*No space left.*what is finished is kept"):
        local_storage(tmp_path).write("file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_another_identity_is_refused_with_both_values(tmp_path: Path) -> None:
    new_run(tmp_path)
    new_run(tmp_path)
    with pytest.raises(RunMismatchError, match=r"model\.weights is 'x', but the run was made with 'w'.*run\.dir"):
        new_run(tmp_path, **{"model.weights": "x"})
    with pytest.raises(RunMismatchError, match=r"num_examples is 9.*with 8"):
        RunDirectory.create(local_storage(tmp_path), IDENTITY, COMPONENTS, 9)
    with pytest.raises(RunMismatchError, match="components is"):
        RunDirectory.create(local_storage(tmp_path), IDENTITY, ComponentIndex(COMPONENTS.groups[:1]), NUM_EXAMPLES)
    run = RunDirectory.open(storage_at(tmp_path))
    with pytest.raises(RunMismatchError, match=r"design\.seed is 6.*collected with 5.*design\.seed=5"):
        set_train(run, 20, seed=6)


@pytest.mark.parametrize(
    ("stored", "asked", "is_same"),
    [
        ([1.0, -2.0], [1.0, -2.0], True),
        ([1.0, float("nan")], [1.0, float("nan")], True),
        ([1.0, float("nan")], [1.0, 2.0], False),
        ([10.0, 0.0], [10.1, 0.009], True),  # 1% and 0.01 are other hardware
        ([10.0, 0.0], [10.25, 0.0], False),
        ([10.0, 0.0], [10.0, 0.011], False),
    ],
)
def test_the_first_margins_must_be_those_that_the_run_began_with(
    tmp_path: Path, stored: list[float], asked: list[float], is_same: bool
) -> None:
    RunDirectory.create(local_storage(tmp_path), IDENTITY, COMPONENTS, NUM_EXAMPLES, stored)
    expected = contextlib.nullcontext() if is_same else pytest.raises(RunMismatchError, match="unablated margins")
    with expected:
        RunDirectory.create(local_storage(tmp_path), IDENTITY, COMPONENTS, NUM_EXAMPLES, asked)


def test_a_damaged_run_json_is_set_aside_by_the_writer(tmp_path: Path) -> None:
    new_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert new_run(tmp_path).is_new
    assert RunDirectory.open(storage_at(tmp_path)).num_masks == 20
    assert (tmp_path / "run.json.damaged").read_text() == "{}"


def test_run_json_and_components_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"no run\.json"):
        RunDirectory.open(storage_at(tmp_path / "nothing"))
    new_run(tmp_path)
    assert RunDirectory.open(storage_at(tmp_path)).components == COMPONENTS
    record = json.loads((tmp_path / "run.json").read_text())
    assert set(record) == {"format", "created", "versions", "identity", "probe_margins", "designs", "sha256"}
    new_run(tmp_path.with_name("other"), **{"model.weights": "x"})
    other = (tmp_path.with_name("other") / "components.parquet").read_bytes()
    (tmp_path / "components.parquet").write_bytes(other)
    with pytest.raises(DamagedFileError, match=r"belongs to something else: its run differs.*ablate stage"):
        _ = RunDirectory.open(storage_at(tmp_path)).components
    new_run(tmp_path)  # the ablate stage has the index in hand
    assert RunDirectory.open(storage_at(tmp_path)).components == COMPONENTS
    assert (tmp_path / "components.parquet.damaged").exists()
    (tmp_path / "run.json").write_text('{"format": 1')
    with pytest.raises(DamagedFileError, match=r"run\.json is damaged"):
        RunDirectory.open(storage_at(tmp_path))


def values_in(record: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all numbers, texts and truth values of a JSON document."""
    if isinstance(record, dict | list):
        for key, value in record.items() if isinstance(record, dict) else enumerate(record):
            yield from values_in(value, (*path, key))
    else:
        yield path


def test_each_value_of_run_json_that_is_edited_is_noticed(tmp_path: Path) -> None:
    """It is valid JSON of the right kind all the same."""
    run = RunDirectory.create(local_storage(tmp_path), IDENTITY, COMPONENTS, NUM_EXAMPLES, [1.5, 2.5])
    set_train(run, 20)
    run.set_engine_plan({"mode": "rows", "compiled": False})
    text = (tmp_path / "run.json").read_text()
    paths = list(values_in(json.loads(text)))
    assert {("format",), ("sha256",), ("designs", "train", "seed"), ("probe_margins", 1)} < set(paths)
    for path in paths:
        record = json.loads(text)
        *parents, last = path
        place = functools.reduce(lambda part, key: part[key], parents, record)
        value = place[last]
        place[last] = f"{value}x" if isinstance(value, str) else (not value) if isinstance(value, bool) else value - 1
        (tmp_path / "run.json").write_text(json.dumps(record))
        with pytest.raises(DamagedFileError, match=r"run\.json is damaged: it does not have the checksum"):
            RunDirectory.open(storage_at(tmp_path))
    record = json.loads(text)
    del record["sha256"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(DamagedFileError, match=r"run\.json is damaged: it does not have the checksum"):
        RunDirectory.open(storage_at(tmp_path))


def test_a_file_that_is_set_aside_keeps_those_set_aside_before(tmp_path: Path) -> None:
    storage = local_storage(tmp_path)
    for number in range(3):
        storage.write("a/file", f"writing {number}".encode())
        set_aside(storage, "a/file")
    kept = {path.name: path.read_text() for path in (tmp_path / "a").iterdir()}
    assert kept == {
        "file.damaged": "writing 0",
        "file.1.damaged": "writing 1",
        "file.2.damaged": "writing 2",
    }


def test_what_killed_writers_left_is_swept_away_with_wrong_shards(tmp_path: Path) -> None:
    store = new_run(tmp_path).margins("train")
    fill(store, [0, 20])
    (tmp_path / store.folder / ".0000000000-0000000020.parquet.0123.tmp").write_bytes(b"ha")
    assert store.set_aside_wrong(is_new_run=False) == []
    assert [path.name for path in (tmp_path / store.folder).iterdir()] == ["0000000000-0000000020.parquet"]


def test_attribution_tables(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    table = AttributionTable(run, "coar")
    blocks = run.margins("train").blocks
    weights = np.random.default_rng(0).normal(size=(8, 11)).astype(np.float32)
    for first, end in blocks:
        assert not table.is_complete({"a": 1}, blocks)
        rows = slice(first, end)
        table.write((first, end), {"a": 1}, Attributions.of_weights(weights[rows], weights[rows, 0].astype(float)))
    assert table.is_complete({"a": 1}, blocks)
    assert not table.is_complete({"a": 2}, blocks)
    np.testing.assert_array_equal(table.read((3, 6))[0], weights[3:6])
    whole = pq.read_table(tmp_path / "attributions")
    assert whole["example_id"].to_pylist() == list(range(8))
    assert whole["regularisation"].null_count == 8
    path = tmp_path / table.file((3, 6))
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"is damaged: .*Run the fit stage: it sets the file aside and makes"):
        table.read((3, 6))
    table.set_aside_wrong(blocks)
    assert {path.name for path in path.parent.glob("*.damaged")} == {f"{path.name}.damaged"}
    with pytest.raises(MissingWorkError, match="run the fit stage"):
        table.read((3, 6))
    with pytest.raises(MissingWorkError, match=r"lack attributions/coar\.00000003-00000006"):
        table.settings_fingerprint(blocks)


def test_evaluation_tables_keep_undefined_as_null(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    set_train(run, 20, evaluation=RunDesign("evaluation", Bernoulli(11, 5, 0.1, seed=1)))
    attributions = AttributionTable(run, "coar")
    for first, end in run.margins("train").blocks:
        size = end - first
        nothing = Attributions.of_weights(np.zeros((size, 11), np.float32), np.zeros(size))
        attributions.write((first, end), {"a": 1}, nothing)
    table = EvaluationTable(run, "coar", "evaluation")
    with pytest.raises(MissingWorkError, match="run the evaluate stage"):
        table.read()
    values = np.array([0.5, np.nan, 1.0, 0, 0, 0, 0, -1.0])
    table.write({name: values * (i + 1) for i, name in enumerate(METRICS)})
    for i, name in enumerate(METRICS):
        np.testing.assert_array_equal(table.read()[name], values * (i + 1))
    stored = pq.read_table(tmp_path / table.file)
    assert stored["correlation"].null_count == 1
    assert stored["ablation_fraction"].to_pylist() == [0.1] * 8
    attributions.write((0, 3), {"a": 2}, Attributions.of_weights(np.ones((3, 11), np.float32), np.zeros(3)))
    with pytest.raises(MissingWorkError, match="of earlier attributions: run the evaluate stage"):
        table.read()


def test_designs_that_are_not_asked_for_rest_and_come_back(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    held_out = RunDesign("evaluation", Bernoulli(11, 5, 0.1, seed=1))
    set_train(run, 20, held_out=held_out)
    assert set(RunDirectory.open(storage_at(tmp_path)).designs) == {"train", "held_out"}
    set_train(run, 20)
    assert set(RunDirectory.open(storage_at(tmp_path)).designs) == {"train"}
    changed = RunDesign("evaluation", Bernoulli(11, 5, 0.1, seed=2))
    with pytest.raises(RunMismatchError, match=r"evaluation\.seed is 2"):
        set_train(run, 20, held_out=changed)
    set_train(run, 20, held_out=held_out)
    assert set(RunDirectory.open(storage_at(tmp_path)).designs) == {"train", "held_out"}
