"""What lies in a run directory under which names, what it says of itself, how large it is and what reading it takes."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coar_dist.designs.given import Imported, LeaveOneOut, Listed, packed
from coar_dist.designs.independent import Bernoulli
from coar_dist.designs.subsets import FixedSize
from coar_dist.errors import MissingWorkError, RunMismatchError
from coar_dist.store import encoding, object_storage
from coar_dist.store.baselines import BaselineStore
from coar_dist.store.budget_curve import BudgetCurve, BudgetCurveTable
from coar_dist.store.columns import bytes_column, bytes_of, masks_of, matrix_column, matrix_of, packed_column
from coar_dist.store.edits import CHOICE, MEASURE, EditStore
from coar_dist.store.gradients import GateGradients, GradientStore
from coar_dist.store.identity import IMPORTED_FROM, check_design, check_identity
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.margins import MarginStore
from coar_dist.store.methods import best_method, methods_of
from coar_dist.store.object_storage import ObjectStorage
from coar_dist.store.parquet import why_wrong
from coar_dist.store.reader import RunReader
from coar_dist.store.rehearsal import Rehearsal
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import StoredFile
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage, random_masks
from tests.store.test_contents import INFLUENCES, run
from tests.store.test_store import NUM_EXAMPLES, new_run, set_train

__all__ = ["run"]
BLOCKS = ("00000000-00000003", "00000003-00000006", "00000006-00000008")


def test_the_files_of_a_run(run: RunDirectory) -> None:
    root = Path(str(run.storage))
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == {
        *("run.json", "components.parquet", "slices.parquet", "examples.parquet"),
        "margins/train/0000000000-0000000020.parquet",
        *(f"gradients/gradients/{block}/0000000000-0000000004.parquet" for block in BLOCKS),
        *(f"attributions/{method}.{block}.parquet" for method in ("coar", "leave_one_out") for block in BLOCKS),
        *(f"evaluation/{name}.evaluation_0.2.parquet" for name in ("coar", "ceiling")),
        "evaluation/budget_curve/coar.parquet",
        *(f"baselines/neuron_conductance_num_steps_2/{rows}.parquet" for rows in ("0000000000-0000000005",)),
        "baselines/neuron_conductance_num_steps_2/0000000005-0000000008.parquet",
        *(f"previews/{block}.parquet" for block in BLOCKS),
        "responses/00000000-00000011.parquet",
    }


def said_by(path: Path) -> dict[str, Any]:
    """The metadata of a file, but its checksums."""
    found = json.loads(pq.read_metadata(path).metadata[b"coar_dist"])
    return {key: value for key, value in found.items() if key not in ("footer_sha256", "sha256")}


def test_what_files_say_that_they_belong_to(run: RunDirectory) -> None:
    root, margins = Path(str(run.storage)), run.margins("train").fingerprint
    assert said_by(root / "components.parquet") == {"content": "named components", "run": run.fingerprint}
    assert said_by(root / "slices.parquet") == {"content": "slices", "run": run.fingerprint}
    assert said_by(root / "examples.parquet") == {"content": "examples", "run": run.fingerprint}
    assert said_by(root / "margins/train/0000000000-0000000020.parquet") == {
        "content": "margins",
        "design": margins,
        "start": 0,
        "stop": 20,
    }
    assert said_by(root / "attributions/coar.00000003-00000006.parquet") == {
        "content": "attributions",
        "run": run.fingerprint,
        "method": "coar",
        "examples": [3, 6],
        "settings": {"penalty": 1},
        "r2_new_influences": INFLUENCES[3, 6].tolist(),
    }
    gradients = said_by(root / "gradients/gradients/00000003-00000006/0000000000-0000000004.parquet")
    assert {key: gradients[key] for key in ("content", "start", "stop", "examples")} == {
        "content": "gradients",
        "start": 0,
        "stop": 4,
        "examples": [3, 6],
    }
    assert gradients.keys() == {
        *("content", "design", "start", "stop", "examples", "masks", "known", "kept_squares", "ablated_squares")
    }
    evaluation = said_by(root / "evaluation/coar.evaluation_0.2.parquet")
    assert evaluation.keys() == {"content", "run", "settings"}
    assert evaluation["settings"].keys() == {"design", "num_masks", "attributions", "metrics"}
    assert evaluation["settings"]["design"] == run.margins("evaluation_0.2").fingerprint
    curve = said_by(root / "evaluation/budget_curve/coar.parquet")
    assert curve.keys() == {
        *("content", "run", "design", "num_masks", "num_train_masks", "attributions", "settings"),
    }
    ceiling = said_by(root / "evaluation/ceiling.evaluation_0.2.parquet")
    assert ceiling["ceiling"] == {
        "mean": 0.9,
        "standard_error": 0.01,
        "lower": None,
        "lower_standard_error": None,
        "upper": 0.95,
        "upper_standard_error": 0.02,
    }
    assert ceiling["settings"].keys() == {
        *("design", "num_masks", "partners", "num_pairs", "method", "attributions"),
    }


def test_what_run_json_says(run: RunDirectory) -> None:
    record = json.loads((Path(str(run.storage)) / "run.json").read_text())
    assert record.keys() == {
        *("format", "created", "versions", "identity", "probe_margins", "designs", "baselines", "sha256"),
    }
    created = datetime.datetime.fromisoformat(record["created"])
    assert record["created"] == run.created == created.isoformat(timespec="seconds")
    assert created.utcoffset() == datetime.timedelta(0)
    packages = ("torch", "ray", "numpy", "pyarrow", "coar-dist")
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
    assert record["versions"] == run.versions == versions
    assert record["designs"]["train"] == {
        "role": "train",
        "kind": "bernoulli",
        "num_components": 11,
        "num_masks": 20,
        "ablation_fraction": 0.2,
        "seed": 5,
        "active": True,
    }
    assert record["baselines"] == {"neuron_conductance": {"num_steps": 2}}


def test_a_reader_says_what_it_reads(run: RunDirectory) -> None:
    masks = {"train": 20, "evaluation_0.2": 40, "gradients": 4}
    assert repr(RunReader(run)) == f"RunReader({str(run.storage)!r}: 8 examples, 11 components, masks {masks})"


@pytest.mark.parametrize(("num_stored", "missing"), [(5, r"3 of 8 examples: 5\.\.7"), (0, r"8 of 8 examples: 0\.\.7")])
def test_what_folders_of_shards_lack_is_said_in_their_unit(tmp_path: Path, num_stored: int, missing: str) -> None:
    store = BaselineStore(local_storage(tmp_path), "baselines/a", "fingerprint", 4, 8, "a")
    if num_stored:
        store.write(0, np.ones((num_stored, 4), np.float32))
    with pytest.raises(MissingWorkError, match=f"baselines/a lacks {missing}"):
        store.require_complete()
    margins = MarginStore(local_storage(tmp_path), "margins/a", "fingerprint", 4, 8, 2, 2, "float32")
    with pytest.raises(MissingWorkError, match=r"margins/a lacks 8 of 8 masks: 0\.\.7"):
        margins.require_complete()
    assert (store.has(0, 5), store.has(0, 8), store.has(5, 8)) == (num_stored == 5, False, False)


def test_a_package_that_is_not_installed_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert new_run(tmp_path).versions["ray"] == "not installed"


def test_what_an_edit_s_files_say(tmp_path: Path) -> None:
    assert (CHOICE, MEASURE) == ("choice", "measure")  # parts, as curve.parquet names them
    sweep = new_run(tmp_path)
    EditStore(sweep).write({"name": "an edit"}, "all that it depends on")
    record = json.loads((tmp_path / "edit.json").read_text())
    assert record.pop("sha256").startswith("sha256:")
    assert record == {
        "format": 1,
        "sweep": sweep.fingerprint,
        "settings": "all that it depends on",
        "name": "an edit",
    }


@pytest.mark.parametrize(("num_zeros", "is_compressed"), [(0, False), (44, False), (45, True), (88, True)])
def test_weights_are_compressed_where_most_are_zero(tmp_path: Path, num_zeros: int, is_compressed: bool) -> None:
    weights = np.ones(NUM_EXAMPLES * 11, np.float32)
    weights[:num_zeros] = 0.0
    table = AttributionTable(new_run(tmp_path), "coar")
    table.write((0, 8), {}, Attributions.of_weights(weights.reshape(NUM_EXAMPLES, 11), np.zeros(NUM_EXAMPLES)))
    group = pq.read_metadata(tmp_path / table.file((0, 8))).row_group(0)
    found = {group.column(i).compression for i in range(group.num_columns)}
    assert found == {"ZSTD" if is_compressed else "UNCOMPRESSED"}


@pytest.mark.parametrize(("num_masks", "num_components", "num_examples"), [(1, 3, 2), (60, 500, 40), (400, 30, 7)])
def test_the_bytes_of_a_shard_are_known_beforehand(
    tmp_path: Path, num_masks: int, num_components: int, num_examples: int
) -> None:
    storage, random = local_storage(tmp_path), np.random.default_rng(0)
    masks = random_masks(num_masks, num_components)
    margins = random.normal(size=(num_masks, num_examples)).astype(np.float32)
    weights = random.normal(size=(num_examples, num_components)).astype(np.float32)
    squares, known = random.random((2, num_components)), np.ones(num_components, np.bool_)
    stores: list[tuple[ShardFolder, int]] = []
    for dtype in ("float32", "float16"):
        store = MarginStore(storage, dtype, "fingerprint", num_components, num_masks, num_examples, 16, dtype)
        store.write(0, masks, margins, {})
        stores.append((store, num_masks))
    gradients = GradientStore(storage, "gradients", "fingerprint", num_components, num_masks, (0, num_examples))
    gradients.write(0, masks, GateGradients(margins, weights, weights, *squares, known), {})
    baseline = BaselineStore(storage, "baseline", "fingerprint", num_components, num_examples, "any")
    baseline.write(0, weights)
    for store, size in (*stores, (gradients, num_masks), (baseline, num_examples)):
        (path,) = (tmp_path / store.folder).iterdir()
        assert store.bytes_of(size) == pytest.approx(path.stat().st_size, rel=0.05, abs=300)


class Counted(LocalStorage):
    """Notes what is asked for: the sizes that ``open`` was told, and the bytes that were read."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.sizes: list[int | None] = []
        self.num_bytes = 0

    def open(self, name: str, size: int | None = None) -> StoredFile | None:
        self.sizes.append(size)
        file = super().open(name, size)
        assert file is not None
        read = file.read

        def counted(start: int, stop: int) -> bytes:
            self.num_bytes += stop - start
            return read(start, stop)

        file.read = counted  # type: ignore[method-assign]
        return file


@pytest.mark.parametrize("check", ["names", "footers", "everything"])
def test_looking_for_wrong_shards_reads_what_it_must(tmp_path: Path, check: Any) -> None:
    """The sizes come from one listing. A footer lies in the last bytes of a file of 64 kB."""
    storage = Counted(str(tmp_path))
    local_storage(tmp_path)
    for start in (0, 1000):
        store = MarginStore(storage, "margins", "fingerprint", 4, 2000, 16, 16, "float32")
        store.write(start, random_masks(1000, 4), np.ones((1000, 16), np.float32), {})
    sizes = list(storage.files("margins").values())
    for seen_through in (storage, Rehearsal(storage)):
        storage.sizes, storage.num_bytes = [], 0
        store = MarginStore(seen_through, "margins", "fingerprint", 4, 2000, 16, 16, "float32")
        assert store.wrong_shards(check) == {}
        assert storage.sizes == ([] if check == "names" else sizes)
        if check == "footers":
            assert 0 < storage.num_bytes <= 2 * storage.worth_reading
        else:
            assert (storage.num_bytes > 2 * 64_000) == (check == "everything")


def test_a_file_is_wrong_for_its_footer_or_for_any_byte(tmp_path: Path) -> None:
    storage = local_storage(tmp_path)
    store = MarginStore(storage, "margins", "fingerprint", 4, 20, 16, 16, "float32")
    store.write(0, random_masks(20, 4), np.ones((20, 16), np.float32), {})
    name = store.file(0, 20)
    content = storage.read(name)
    storage.write(name, bytes([content[0] ^ 1]) + content[1:])
    assert why_wrong(storage, name, {}, read_everything=False) is None
    assert why_wrong(storage, name, {}) is not None


@pytest.mark.parametrize(
    ("role", "changed", "option"),
    [
        ("train", {"seed": 6}, "design.seed"),
        ("train", {"ablation_fraction": 0.3}, "design.ablation_fraction"),
        ("gradients", {"seed": 6}, "gradients.seed"),
        ("gradients", {"ablation_fraction": 0.3}, "design.ablation_fraction"),
        ("evaluation", {"seed": 6}, "evaluation.seed"),
        ("evaluation", {"ablation_fraction": 0.3}, "design.ablation_fraction"),
        ("ceiling", {"seed": 6}, "evaluation.seed"),
        ("edit", {"seed": 6}, "edit.seed"),
    ],
)
def test_a_design_that_differs_is_told_by_its_option(
    tmp_path: Path, role: str, changed: dict[str, Any], option: str
) -> None:
    given = {"num_components": 11, "num_masks": 5, "ablation_fraction": 0.2, "seed": 5}
    (key,) = changed
    message = rf"^{option} is {changed[key]}, but design 'name' of .* with {given[key]}\. .*{option}={given[key]}\.$"
    with pytest.raises(RunMismatchError, match=message):
        check_design(local_storage(tmp_path), "name", role, Bernoulli(**given), Bernoulli(**{**given, **changed}))


def test_designs_may_grow_and_may_not_change_their_kind(tmp_path: Path) -> None:
    storage, stored = local_storage(tmp_path), Bernoulli(11, 5, 0.2, 5)
    check_design(storage, "train", "train", stored, Bernoulli(11, 50, 0.2, 5))
    with pytest.raises(RunMismatchError, match=r"design\.kind is 'fixed_size', but .* with 'bernoulli'"):
        check_design(storage, "train", "train", stored, FixedSize(11, 5, 0.2, 5))
    imported = Imported(11, 5, 0.2, 0, "sha256:x")
    check_design(storage, "train", "train", imported, imported)
    with pytest.raises(RunMismatchError, match="was imported, so no others can take its place"):
        check_design(storage, "train", "train", imported, stored)
    with pytest.raises(RunMismatchError, match="was collected here, so no imported masks can take its place"):
        check_design(storage, "train", "train", stored, imported)
    first, second = (Listed.of(packed(random_masks(5, 11, seed=seed)), 11) for seed in (0, 1))
    with pytest.raises(RunMismatchError, match=r"'listed' makes other masks than when design 'sweep' .* former code"):
        check_design(storage, "sweep", "edit", first, second)


@pytest.mark.parametrize(("num_masks", "best"), [(0, "leave_one_out"), (2, "coar")])
def test_a_run_without_train_masks_does_not_ask_for_the_regression_on_them(
    tmp_path: Path, num_masks: int, best: str
) -> None:
    run = new_run(tmp_path)
    set_train(run, num_masks, leave_one_out=RunDesign("baseline", LeaveOneOut.of(11)))
    for method in ("coar", "leave_one_out"):
        for first, end in run.margins("train").blocks:
            weights = Attributions.of_weights(np.ones((end - first, 11), np.float32), np.zeros(end - first))
            AttributionTable(run, method).write((first, end), {}, weights)
    assert best_method(run) == best
    assert methods_of(run) == (["coar", "leave_one_out"] if num_masks else ["leave_one_out"])


@pytest.mark.parametrize(
    "parts", [[slice(0, 5)], [slice(2, 5)], [slice(1, 3)], [slice(2, 3)], [slice(3, 5), slice(0, 2)]], ids=str
)
def test_columns_come_back_whole_cut_and_joined(parts: list[slice]) -> None:
    random = np.random.default_rng(0)
    numbers, rows = random.normal(size=(5, 3)), random.integers(0, 256, (5, 3), dtype=np.uint8)
    masks = random.random((5, 11)) < 0.5

    def cut(column: pa.Array) -> pa.ChunkedArray:
        return pa.chunked_array([column[part] for part in parts])

    def expected(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[part] for part in parts])

    np.testing.assert_array_equal(matrix_of(cut(matrix_column(numbers))), expected(numbers))
    np.testing.assert_array_equal(bytes_of(cut(bytes_column(rows))), expected(rows))
    np.testing.assert_array_equal(masks_of(cut(packed_column(masks)), 11), expected(masks))


def test_a_run_directory_s_label_is_its_name_and_a_hash_of_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(place: str) -> str:
        return hashlib.sha256(place.encode()).hexdigest()[:6]

    monkeypatch.chdir(tmp_path)
    assert LocalStorage("a/run").label == f"run-{hashed(f'{tmp_path}/a/run')}"
    assert ObjectStorage("s3://bucket/a/run").label == f"run-{hashed('s3://bucket/a/run')}"
    assert ObjectStorage("s3://bucket/a/run/").label == f"run-{hashed('s3://bucket/a/run/')}"
    assert ObjectStorage("s3://bucket/a/run/").where("b") == "s3://bucket/a/run/b"


@pytest.mark.parametrize(
    ("protocol", "set_by_the_user", "has_own"),
    [("s3", None, True), ("s3", "AWS_RETRY_MODE", False), ("s3", "AWS_MAX_ATTEMPTS", False), ("gs", None, False)],
)
def test_requests_are_repeated_by_the_client_as_the_user_or_this_package_says(
    protocol: str, set_by_the_user: str | None, has_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"):
        monkeypatch.delenv(name, raising=False)
    if set_by_the_user is not None:
        monkeypatch.setenv(set_by_the_user, "4")
    monkeypatch.setattr("fsspec.filesystem", lambda *given, **options: (given, options))
    given, options = object_storage._filesystem.__wrapped__(protocol)
    own = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 8}}}
    always = {"use_listings_cache": False, "skip_instance_cache": True}
    assert (given, options) == ((protocol,), {**always, **(own if has_own else {})})


def test_a_curve_is_of_as_many_masks_as_the_run_has_now(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    held_out = RunDesign("evaluation", Bernoulli(11, 40, 0.2, 2))
    set_train(run, 20, held_out=held_out)
    for first, end in run.margins("train").blocks:
        weights = Attributions.of_weights(np.ones((end - first, 11), np.float32), np.zeros(end - first))
        AttributionTable(run, "coar").write((first, end), {}, weights)
    table = BudgetCurveTable(run, "coar", "held_out")
    table.write(BudgetCurve(np.arange(2), np.array([5, 20]), np.ones((2, 2))), {})
    assert table.read() is not None
    set_train(run, 30, held_out=held_out)
    assert table.read() is None
    assert not table.is_complete({})
    set_train(run, 20, held_out=RunDesign("evaluation", Bernoulli(11, 50, 0.2, 2)))
    assert table.read() is None


def test_imported_margins_are_of_the_run_that_they_were_imported_to(tmp_path: Path) -> None:
    storage, own, imported = local_storage(tmp_path), {"a": 1}, {"a": 1, IMPORTED_FROM: "the research code"}
    check_identity(storage, imported, imported)
    check_identity(storage, own, own)
    with pytest.raises(RunMismatchError, match=r"imported from the research code\. The ablate stage cannot add"):
        check_identity(storage, imported, own)
    with pytest.raises(RunMismatchError, match=rf"{IMPORTED_FROM} is 'the research code', but .* made with None"):
        check_identity(storage, own, imported)
    with pytest.raises(RunMismatchError, match=r"a is None, but the run was made with 1; b is 2, but .* with None"):
        check_identity(storage, {"a": 1}, {"b": 2})


def test_parts_of_a_file_are_read_as_a_file_is() -> None:
    parts = encoding._Parts(10, {0: b"0123", 6: b"6789"})
    assert (parts.readable(), parts.seekable(), parts.tell()) == (True, True, 0)
    assert (parts.read(2), parts.tell(), parts.read(2), parts.read(2)) == (b"01", 2, b"23", b"")
    assert (parts.seek(-3, io.SEEK_END), parts.read()) == (7, b"789")
    assert (parts.seek(6), parts.seek(1, io.SEEK_CUR), parts.read(1), parts.read(9)) == (6, 7, b"7", b"89")
