"""Masks of a list: they lie in a file of bits, so that run.json stays small and readers that need none read none."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.given import Listed, packed
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import DamagedFileError, MissingWorkError, RunMismatchError
from coar_dist.store import record
from coar_dist.store.locations import storage_at
from coar_dist.store.parquet import read_metadata
from coar_dist.store.record import read_record, write_record
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.models import local_storage, random_masks

IDENTITY = {"model.weights": "w", "ablation.examples_per_block": 3, "ablation.margins_dtype": "float32"}
SWEEP = "sweep"


def run_with(root: Path, design: Listed, **changes: object) -> RunDirectory:
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, design.num_components),))
    run = RunDirectory.create(local_storage(root), {**IDENTITY, **changes}, components, 4)
    run.set_designs({SWEEP: RunDesign("edit", design)})
    return run


def listed(num_masks: int = 20, num_components: int = 27, seed: int = 0) -> tuple[Listed, np.ndarray]:
    masks = np.random.default_rng(seed).random((num_masks, num_components)) < 0.8
    return Listed.of(packed(masks), num_components), masks


def test_the_masks_come_back_from_their_file(tmp_path: Path) -> None:
    design, masks = listed()
    written = run_with(tmp_path, design).design(SWEEP)
    read = RunDirectory.open(storage_at(tmp_path)).design(SWEEP)
    assert written == read == design
    for found in (design, written, read, pickle.loads(pickle.dumps(read))):
        np.testing.assert_array_equal(found.masks(0, 20), masks)
        np.testing.assert_array_equal(found.masks(7, 9), masks[7:9])
        np.testing.assert_array_equal(found.mask(19), masks[19])
    assert read.ablation_fraction == (~masks).sum() / masks.size
    schema = pq.read_schema(tmp_path / "designs" / f"{SWEEP}.parquet")
    assert {field.name: str(field.type) for field in schema} == {"mask_id": "int64", "mask": "fixed_size_binary[4]"}
    run = {"content": "masks", "run": RunDirectory.open(storage_at(tmp_path)).fingerprint}
    assert read_metadata(storage_at(tmp_path), f"designs/{SWEEP}.parquet", "edit", run) is not None


def test_run_json_is_small_whatever_the_masks(tmp_path: Path) -> None:
    """A sweep for 200 wrong predictions of a model of 22,720 components."""
    num_masks, num_components = 9_599, 22_720
    bits = np.frombuffer(np.random.default_rng(0).bytes(num_masks * num_components // 8), np.uint8)
    run = run_with(tmp_path, Listed.of(bits.reshape(num_masks, -1), num_components))
    assert (tmp_path / "run.json").stat().st_size < 100_000
    assert (tmp_path / "designs" / f"{SWEEP}.parquet").stat().st_size < 1.01 * (bits.size + 8 * num_masks)
    path = tmp_path / "designs" / f"{SWEEP}.parquet"
    path.rename(tmp_path / "away")  # who does not ask for a mask does not read the file
    opened = RunDirectory.open(storage_at(tmp_path))
    assert opened.margins(SWEEP).num_masks == num_masks
    (tmp_path / "away").rename(path)
    for directory in (run, opened):
        design = directory.design(SWEEP)
        design.masks(5, 6)
        assert len(pickle.dumps(design)) < 10_000


def test_designs_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(tmp_path, listed()[0])
    run = RunDirectory.open(storage_at(tmp_path))
    monkeypatch.setattr(record, "design_from_json", lambda *_: pytest.fail("parsed again"))
    for _ in range(3):
        assert run.design(SWEEP) is run.designs[SWEEP].design
        assert run.num_masks == run.margins(SWEEP).num_masks == 20


def test_damaged_masks_are_an_error_for_readers_and_are_written_again(tmp_path: Path) -> None:
    design, masks = listed()
    run_with(tmp_path, design)
    path = tmp_path / "designs" / f"{SWEEP}.parquet"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(packed(masks[:1]).tobytes())] ^= 1
    path.write_bytes(damaged)
    reader = RunDirectory.open(storage_at(tmp_path)).design(SWEEP)
    with pytest.raises(DamagedFileError, match=r"sweep\.parquet is damaged.*Run the edit stage"):
        reader.masks(0, 1)
    assert path.read_bytes() == damaged
    np.testing.assert_array_equal(run_with(tmp_path, design).design(SWEEP).masks(0, 20), masks)
    assert path.read_bytes() == whole
    assert path.with_name("sweep.parquet.damaged").read_bytes() == damaged
    np.testing.assert_array_equal(reader.masks(0, 20), masks)
    path.unlink()
    with pytest.raises(MissingWorkError, match=r"sweep\.parquet is missing: run the edit stage"):
        RunDirectory.open(storage_at(tmp_path)).design(SWEEP).masks(0, 1)
    run_with(tmp_path, design)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("other", ["masks", "run"])
def test_masks_of_something_else_are_never_used(other: str, tmp_path: Path) -> None:
    design, masks = listed()
    run_with(tmp_path / "here", design)
    changes = {"model.weights": "v"} if other == "run" else {}
    run_with(tmp_path / "there", design if other == "run" else listed(seed=1)[0], **changes)
    foreign = (tmp_path / "there" / "designs" / f"{SWEEP}.parquet").read_bytes()
    (tmp_path / "here" / "designs" / f"{SWEEP}.parquet").write_bytes(foreign)
    with pytest.raises(DamagedFileError, match=f"belongs to something else: its {other} differs"):
        RunDirectory.open(storage_at(tmp_path / "here")).design(SWEEP).masks(0, 1)
    again = run_with(tmp_path / "here", design)
    np.testing.assert_array_equal(again.design(SWEEP).masks(0, 20), masks)


def test_earlier_formats_are_refused_and_their_shards_can_be_kept(tmp_path: Path) -> None:
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, 11),))
    run = RunDirectory.create(local_storage(tmp_path), IDENTITY, components, 4)
    designs = {"train": RunDesign("train", Bernoulli(11, 20, 0.2, 5))}
    run.set_designs(designs)
    run.margins("train").write(0, random_masks(20, 11), np.zeros((20, 4), np.float32), {})
    write_record(run.storage, {**read_record(run.storage), "format": 2})
    with pytest.raises(RunMismatchError, match=r"has format 2, this version reads format 4\. Use another run\.dir; or"):
        RunDirectory.open(storage_at(tmp_path))
    (tmp_path / "run.json").unlink()
    again = RunDirectory.create(local_storage(tmp_path), IDENTITY, components, 4)
    again.set_designs(designs)
    assert again.margins("train").missing() == []
