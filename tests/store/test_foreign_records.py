"""JSON files of a run that somebody else has made: their checksums are right, and any value in them may be wrong.

Whatever stands there, a reader is refused with a named error or gets what lies in the run directory, and nothing
outside is looked at.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coar_dist.ablation.work import MissingWork
from coar_dist.config.schema import Config
from coar_dist.designs.given import Listed, packed
from coar_dist.designs.independent import Bernoulli, Correlated
from coar_dist.designs.subsets import Balanced
from coar_dist.editing.edit_record import load_edit
from coar_dist.errors import CoarDistError, DamagedFileError
from coar_dist.stages.collect import recorded_plan
from coar_dist.store.ceilings import Ceiling, CeilingTable
from coar_dist.store.edits import EDIT_FILE, EditStore
from coar_dist.store.gradients import GateGradients
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.locations import storage_at
from coar_dist.store.object_storage import ObjectStorage
from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.record import RUN_FILE, fingerprint_of
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.storage import Storage
from coar_dist.store.values import values_of_run
from tests.models import local_storage
from tests.store.records import EDIT
from tests.store.refitting import fit
from tests.store.test_store import COMPONENTS, IDENTITY, NUM_EXAMPLES

GONE = object()
HOSTILE = [
    *(GONE, None, True, -1, 0, 1.5, 10**30, float("nan"), [], {}, {"..": 1}),
    *("", "..", "../../outside", "/etc/passwd", "x" * 10**5, "\x1b[2J", "a\0b", "s3://bucket/x"),
]
Path_ = tuple[str | int, ...]


class Inside(LocalStorage):
    """Notices every file that is looked at outside of the run directory."""

    def path(self, name: str = "") -> Path:
        found = super().path(name)
        assert found.resolve().is_relative_to(Path(self.location).resolve()), name
        return found


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run.json in which every key is set."""
    root = tmp_path_factory.mktemp("whole")
    identity = {
        **IDENTITY,
        "ablation.precision": "float32",
        "ablation.value": "mean",
        "ablation.mean_over": "all",
        "ablation.values": "sha256:0123",
        "ablation.seed": 3,
    }
    run = RunDirectory.create(storage_at(root), identity, COMPONENTS, NUM_EXAMPLES, [0.5, float("nan")])
    masks = packed(np.eye(11, dtype=np.bool_))
    run.set_designs(
        {
            "train": RunDesign("train", Bernoulli(11, 20, 0.2, 5)),
            "gradients": RunDesign("gradients", Balanced(11, 4, 0.5, 5)),
            "ceiling_a": RunDesign("ceiling", Correlated(11, 4, 0.2, 5, correlation=0.5)),
            "sweep": RunDesign("edit", Listed.of(masks, 11)),
        }
    )
    run.set_engine_plan({"mode": "rows", "rows_per_forward": 4, "compiled": False})
    run.set_gradient_cost(3.0)
    run.set_baselines({"neuron_conductance": {"num_steps": 2}})
    written: dict[str, Any] = json.loads((root / RUN_FILE).read_text())
    del written["sha256"]
    return written


def places_in(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The paths of everything in a JSON document, of lists and objects too."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_in(entry, (*path, key))


def changed(record: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(record)
    *parents, last = path
    place = functools.reduce(lambda part, key: part[key], parents, found)
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return found


def renamed(record: dict[str, Any], path: Path_, name: str) -> dict[str, Any]:
    entry = functools.reduce(lambda part, key: part[key], path, record)
    return changed(changed(record, path, GONE), (*path[:-1], name), entry)


def write(root: Path, file: str, record: dict[str, Any]) -> None:
    (root / file).write_text(json.dumps({**record, "sha256": fingerprint_of(record)}))


def read_everything(root: Path) -> None:
    """What becomes paths, sizes and classes."""
    run = RunDirectory.open(Inside(str(root)))
    assert run.num_masks >= 0
    _ = run.held_out, run.engine_plan, run.gradient_cost, run.created[:10], run.versions, run.fingerprint
    assert run.num_examples == NUM_EXAMPLES or run.num_examples < 10**8
    for name, entry in run.designs.items():
        for store in run.shards(name):
            assert not store.has(0, 1)
            assert len(store.missing()) == (store.num_masks > 0)
            run.storage.sweep(store.folder)
        if isinstance(entry.design, Listed):
            with pytest.raises(CoarDistError, match=r"missing|damaged"):
                entry.design.load()
    for method in run.baselines:
        assert run.baseline(method).missing() == [(0, run.num_examples)]
    values_of_run(run.storage, run.identity)


def refused(read: Callable[[], object]) -> str | None:
    try:
        read()
    except CoarDistError as error:
        return str(error)
    return None


def test_no_value_of_run_json_does_harm(record: dict[str, Any], tmp_path: Path) -> None:
    run, seen = tmp_path / "run", set()
    run.mkdir()
    for path in places_in(record):
        for value in HOSTILE:
            write(run, RUN_FILE, changed(record, path, value))
            message = refused(lambda: read_everything(run))
            assert message is None or ("\x1b" not in message and len(message) < 1000), (path, value)
            if message is not None and "run.json is damaged" in message:
                seen.add(path)
    assert [each.name for each in tmp_path.iterdir()] == ["run"]
    free = {path for path in places_in(record) if path not in seen}
    texts = {("created",), *(("versions", name) for name in record["versions"])}  # any text will do
    assert {path for path in free if path[0] != "identity"} - texts == {
        *(("engine_plan", name) for name in record["engine_plan"])  # held to their type where they are used
    }
    assert {path[1] for path in free if path[0] == "identity"} == {"model.weights"}


def test_no_name_in_run_json_leads_out_of_the_run(record: dict[str, Any], tmp_path: Path) -> None:
    for path in [("designs", "train"), ("designs", "sweep"), ("baselines", "neuron_conductance")]:
        for name in ("..", "../x", "/x", "a/b", "", ".hidden", "a\\b", "\x1b[2J"):
            write(tmp_path, RUN_FILE, renamed(record, path, name))
            with pytest.raises(DamagedFileError, match=rf"run\.json is damaged: {path[0]} has the key '.*': must be"):
                RunDirectory.open(Inside(str(tmp_path)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("designs", "train", "num_masks"), -3, r"designs\.train\.num_masks is -3: must be a whole number in 0\.\."),
        (("designs", "train", "seed"), "5", r"designs\.train\.seed is '5': must be a whole number"),
        (("designs", "train", "active"), 1, r"designs\.train\.active is 1: must be true or false"),
        (("designs", "train", "role"), "boss", r"role is 'boss': must be one of train, gradients"),
        (("designs", "train", "ablation_fraction"), float("nan"), r"is nan: must be a number strictly between"),
        (("designs", "train", "kind"), "correlated", r"designs\.train cannot be: .*correlation"),
        (("designs", "gradients", "ablation_fraction"), 0.9, r"designs\.gradients cannot be: ablation_fraction=0\.9"),
        (("identity", "num_examples"), 10**8, r"identity\.num_examples is 100000000: must be a whole number in 1"),
        (("identity", "ablation.examples_per_block"), 0, r"examples_per_block is 0: must be a whole number, at least"),
        (("identity", "ablation.values"), "sha256:../../x", r"must be sha256: and hexadecimal digits"),
        (("identity", "ablation.value"), "noise", r"is 'noise': must be one of zero_weights"),
        (("designs",), GONE, r"designs is missing"),
        (("format",), GONE, r"format is missing"),
    ],
)
def test_the_key_of_run_json_is_named_with_the_value_and_the_way_out(
    record: dict[str, Any], tmp_path: Path, path: Path_, value: Any, message: str
) -> None:
    write(tmp_path, RUN_FILE, changed(record, path, value))
    with pytest.raises(DamagedFileError, match=rf"run\.json is damaged: .*{message}.*\. Run the ablate stage"):
        read_everything(tmp_path)
    made = RunDirectory.create(storage_at(tmp_path), IDENTITY, COMPONENTS, NUM_EXAMPLES)
    assert made.is_new
    assert (tmp_path / f"{RUN_FILE}.damaged").exists()


@pytest.mark.parametrize("text", ["[" * 10**5, "7", '"x"', "[]", "{", '{"format": 1' + "0" * 5000 + "}", "\x00"])
def test_what_is_no_object_of_json_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN_FILE).write_text(text)
    with pytest.raises(DamagedFileError, match=r"run\.json is damaged"):
        RunDirectory.open(storage_at(tmp_path))


def test_no_value_of_edit_json_does_harm(tmp_path: Path) -> None:
    sweep = RunDirectory.create(local_storage(tmp_path / "run"), IDENTITY, COMPONENTS, NUM_EXAMPLES)
    EditStore(sweep).write(EDIT, "settings")
    written = json.loads((tmp_path / "run" / EDIT_FILE).read_text())
    del written["sha256"]
    assert "raises 1 target" in look(tmp_path / "run")
    seen = set()
    for path in places_in(written):
        for value in HOSTILE:
            write(tmp_path / "run", EDIT_FILE, changed(written, path, value))
            message = refused(lambda: look(tmp_path / "run"))
            assert message is None or ("\x1b" not in message and len(message) < 1000), (path, value)
            if message is not None:
                assert f"{EDIT_FILE} is damaged" in message
                seen.add(path)
    assert seen == set(places_in(written))
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def look(folder: Path) -> str:
    """What is made of an edit's record."""
    edit = load_edit(folder)
    table = edit.to_pandas()
    assert len(table) == len(edit.measured)
    assert edit.mask.sum() == edit.components.num_components - len(set(edit.component_ids))
    return repr(edit)


@pytest.mark.parametrize("storage", [LocalStorage("runs/mine"), ObjectStorage("s3://bucket/run")], ids=["local", "s3"])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0"])
def test_no_storage_has_a_name_outside(storage: Storage, name: str) -> None:
    for use in (storage.files, storage.folders, storage.size, storage.open, storage.read, storage.sweep):
        if use == storage.sweep and isinstance(storage, ObjectStorage):
            continue  # which does nothing
        with pytest.raises(DamagedFileError, match=r"is no name of a file within a run directory"):
            use(name)  # type: ignore[operator]
    with pytest.raises(DamagedFileError, match=r"neither read nor written"):
        storage.write(name, b"")


def written_again(root: Path, file: str, **changes: Any) -> None:
    """A Parquet file with other metadata and right checksums."""
    storage = storage_at(root)
    found = read_content(storage, file, "", {})
    assert found is not None
    columns = {name: found.columns[name].combine_chunks() for name in found.columns.column_names}
    metadata = {name: value for name, value in found.metadata.items() if name not in ("sha256", "footer_sha256")}
    metadata = {name: value for name, value in {**metadata, **changes}.items() if value is not GONE}
    write_table(storage, file, columns, metadata)


@pytest.mark.parametrize("value", [GONE, None, 7, "", "%", "AAAA", ["x"]])
@pytest.mark.parametrize("name", ["masks", "known", "kept_squares", "ablated_squares"])
def test_metadata_of_gradients_that_are_not_what_they_should_be_are_damage(
    tmp_path: Path, name: str, value: Any
) -> None:
    run = RunDirectory.create(local_storage(tmp_path / "run"), IDENTITY, COMPONENTS, NUM_EXAMPLES)
    run.set_designs({"gradients": RunDesign("gradients", Bernoulli(11, 4, 0.5, 5))})
    store = run.gradients("gradients")[0]
    sums, known = np.ones((2, 3, 11), np.float32), np.ones(11, np.bool_)
    masks = run.design("gradients").masks(0, 4)
    store.write(0, masks, GateGradients(np.ones((4, 3), np.float32), *sums, *np.ones((2, 11)), known), {})
    np.testing.assert_array_equal(next(iter(store.read()))[0], masks)
    written_again(tmp_path / "run", store.file(0, 4), **{name: value})
    with pytest.raises(DamagedFileError, match=rf"0000000004\.parquet is damaged: {name} of its metadata"):
        list(store.read())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"settings": GONE}, "settings is missing"),
        ({"settings": {"method": "../x", "num_masks": "2", "num_pairs": 0}}, "settings.num_masks is '2'"),
        ({"ceiling": {"mean": 1.0}}, "ceiling.standard_error is missing"),
    ],
)
def test_metadata_of_a_ceiling_that_are_not_what_they_should_be_are_damage(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    run = RunDirectory.create(local_storage(tmp_path / "run"), IDENTITY, COMPONENTS, NUM_EXAMPLES)
    designs = [("train", "train", 20), ("evaluation_0.2", "evaluation", 40)]
    run.set_designs({name: RunDesign(role, Bernoulli(11, size, 0.2, 5)) for name, role, size in designs})
    fit(run, 1.0, 1)
    table = CeilingTable(run, "evaluation_0.2")
    table.write(Ceiling(*np.ones(6), np.ones(NUM_EXAMPLES), 40, 0, "coar"))
    assert table.read().num_masks == 40
    written_again(tmp_path / "run", table.file, **changes)
    with pytest.raises(DamagedFileError, match=rf"is damaged: in its metadata, {re.escape(key)}.*evaluate stage"):
        table.read()


@pytest.mark.parametrize(
    "plan", [{"mode": "rows"}, {"mode": "x", "rows_per_forward": 1, "compiled": True}, {"rm": "-rf"}]
)
def test_an_engine_plan_that_cannot_be_is_damage(record: dict[str, Any], tmp_path: Path, plan: dict[str, Any]) -> None:
    write(tmp_path, RUN_FILE, {**record, "engine_plan": plan})
    run = RunDirectory.open(storage_at(tmp_path))
    with pytest.raises(DamagedFileError, match=r"run\.json is damaged: engine_plan cannot be: .*(missing|one of)"):
        recorded_plan(run, Config(), MissingWork(None, 0, 0))  # type: ignore[arg-type]
