"""Whoever reads a run changes nothing in it, meets files whole while they are replaced, and names what is damaged."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import coar_dist
from coar_dist.console.saying import Terminal
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import DamagedFileError, MissingWorkError, StorageError
from coar_dist.report.inspection import inspect_run
from coar_dist.store.agreement import METRICS
from coar_dist.store.aside import damaged_set_aside
from coar_dist.store.budget_curve import BudgetCurve, BudgetCurveTable
from coar_dist.store.ceilings import Ceiling, CeilingTable
from coar_dist.store.columns import matrix_of
from coar_dist.store.edits import CurvePoint, EditStore
from coar_dist.store.encoding import encoded
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.examples import ExampleTable
from coar_dist.store.gradients import GateGradients
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.locations import storage_at
from coar_dist.store.lock import only_writer
from coar_dist.store.object_storage import ObjectStorage
from coar_dist.store.parquet import is_made_with, read_content
from coar_dist.store.previews import PreviewTable
from coar_dist.store.reader import RunReader
from coar_dist.store.responses import Response, Responses, ResponseTable
from coar_dist.store.run_directory import GRADIENT_DESIGN, RunDesign, RunDirectory
from coar_dist.store.storage import Storage, StoredFile
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import random_masks
from tests.object_store import BUCKET, ObjectStore
from tests.store.records import EDIT
from tests.store.refitting import fit, keep_refitting
from tests.store.test_store import COMPONENTS, NUM_EXAMPLES, margins_of, new_run

HELD_OUT = "evaluation_0.2"
NUM_COMPONENTS = COMPONENTS.num_components
Read = Callable[[], Any]
NOT_COMPLETE = "not complete"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with at least one file of every kind."""
    root = tmp_path_factory.mktemp("readers") / "run"
    run = new_run(root)
    designs = {
        "train": run.designs["train"],
        GRADIENT_DESIGN: RunDesign("gradients", Bernoulli(NUM_COMPONENTS, 4, 0.2, 1)),
        HELD_OUT: RunDesign("evaluation", Bernoulli(NUM_COMPONENTS, 40, 0.2, 2)),
    }
    run.set_designs(designs)
    run.set_baselines({"neuron_conductance": {"num_steps": 2}})
    ExampleTable(run).write(None, None, np.arange(NUM_EXAMPLES, dtype=np.float32))
    for name, size in (("train", 10), (HELD_OUT, 20)):
        for start in (0, size):
            run.margins(name).write(start, random_masks(size, NUM_COMPONENTS), margins_of(size), {})
    for store in run.gradients(GRADIENT_DESIGN):
        size = store.block[1] - store.block[0]
        sums, squares = np.ones((2, size, NUM_COMPONENTS), np.float32), np.ones((2, NUM_COMPONENTS))
        known = np.ones(NUM_COMPONENTS, np.bool_)
        gradients = GateGradients(np.ones((4, size), np.float32), *sums, *squares, known)
        store.write(0, random_masks(4, NUM_COMPONENTS), gradients, {})
    run.baseline("neuron_conductance").write(0, np.ones((NUM_EXAMPLES, NUM_COMPONENTS), np.float32))
    fit(run, 1.0, 1)
    EvaluationTable(run, "coar", HELD_OUT).write({name: np.ones(NUM_EXAMPLES) for name in METRICS})
    CeilingTable(run, HELD_OUT).write(Ceiling(*np.ones(6), np.ones(NUM_EXAMPLES), 40, 0, "coar"))
    BudgetCurveTable(run, "coar", HELD_OUT).write(BudgetCurve(np.arange(2), np.array([5, 20]), np.ones((2, 2))), {})
    for first, end in run.margins("train").blocks:
        PreviewTable(run).write((first, end), [b"picture"] * (end - first), 4, 4)
    response = Response(0, 1.0, np.ones((2, 3), np.float32), pattern=np.ones((1, 1), np.float32))
    ResponseTable(run).write((0, NUM_COMPONENTS), {1: Responses(np.ones((1, 2, 2), np.float16), (response,))})
    edit = EditStore(RunDirectory.create(run.storage, run.identity, COMPONENTS, NUM_EXAMPLES))
    edit.write_curve([CurvePoint("coar", 1, "all", "choice", 3, 0.5)])
    edit.write_each({"example_id": np.arange(2)}, [[1], [2, 3]])
    edit.write(EDIT, "settings")
    return root


def readers_of(storage: Storage) -> dict[str, Read]:
    """Everything that reads a run, by what it reads."""
    run = RunDirectory.open(storage)
    coar, evaluation = AttributionTable(run, "coar"), EvaluationTable(run, "coar", HELD_OUT)
    blocks = run.margins("train").blocks
    curve = BudgetCurveTable(run, "coar", HELD_OUT)
    return {
        "components": lambda: run.components,
        "examples": lambda: RunReader(run).examples(),
        "weights": lambda: RunReader(run).weights(method="coar"),
        "intercepts": lambda: RunReader(run).intercepts(method="coar"),
        "predict": lambda: RunReader(run).predict(random_masks(3, NUM_COMPONENTS), method="coar"),
        "quality": lambda: RunReader(run).quality(method="coar"),
        "standard errors": lambda: RunReader(run).standard_errors(method="coar"),
        "evaluation": lambda: RunReader(run).evaluation("coar"),
        "ceiling": lambda: RunReader(run).ceiling(HELD_OUT),
        "curve": curve.read,
        "margins": lambda: RunReader(run).margins(),
        "held-out margins": lambda: RunReader(run).margins(HELD_OUT),
        "gradients": lambda: [list(store.read()) for store in run.gradients(GRADIENT_DESIGN)],
        "gradients' margins": lambda: [list(store.read_margins()) for store in run.gradients(GRADIENT_DESIGN)],
        "gradient masks": lambda: [store.masks() for store in run.gradients(GRADIENT_DESIGN)],
        "baseline": lambda: run.baseline("neuron_conductance").read((0, NUM_EXAMPLES)),
        "previews": lambda: PreviewTable(run).read(range(NUM_EXAMPLES)),
        "responses": lambda: ResponseTable(run).read(range(NUM_COMPONENTS)),
        "edit": EditStore(run).read,
        "edit's curve": EditStore(run).read_curve,
        "edits of each": EditStore(run).read_each,
        "settings": lambda: coar.settings(blocks[0]),
        "settings' fingerprint": lambda: coar.settings_fingerprint(blocks),
        "whether attributions are complete": lambda: coar.is_complete({"penalty": 1}, blocks),
        "whether there are standard errors": lambda: coar.has_standard_errors(blocks[0]),
        "whether the evaluation is complete": evaluation.is_complete,
        "whether the ceiling is complete": CeilingTable(run, HELD_OUT, "coar").is_complete,
        "whether the curve is complete": lambda: curve.is_complete({}),
        "whether the examples are complete": ExampleTable(run).is_complete,
        "missing previews": PreviewTable(run).missing,
        "missing responses": ResponseTable(run).missing,
        "missing masks": lambda: [store.missing() for name in run.designs for store in run.shards(name)],
        "wrong shards": lambda: [run.margins(name).wrong_shards("everything") for name in ("train", HELD_OUT)],
        "engine plan": lambda: run.engine_plan,
        "inspect": lambda: inspect_run(storage, True, Terminal(Console(quiet=True))),
    }


class ReadOnly(LocalStorage):
    """A run directory of somebody else, who lets others read it; ``opened`` are the files that were read."""

    opened: ClassVar[set[str]] = set()

    def open(self, name: str, size: int | None = None) -> StoredFile | None:
        self.opened.add(name)
        return super().open(name, size)

    def read(self, name: str) -> bytes:
        self.opened.add(name)
        return super().read(name)

    def write(self, name: str, content: bytes) -> None:
        raise StorageError(f"{self.where(name)} cannot be written: Permission denied.")

    def move(self, name: str, new_name: str) -> None:
        raise StorageError(f"{self.where(name)} cannot be renamed: Permission denied.")

    def sweep(self, folder: str) -> None:
        raise StorageError(f"{self.where(folder)} cannot be swept: Permission denied.")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def damages(content: bytes, other: bytes) -> dict[str, bytes]:
    """Whatever may become of a file's content, by name; ``other`` is that of another file."""
    middle = len(content) // 2
    places = {"first byte": 0, "a column": 6, "the footer": len(content) - 40, "last byte": len(content) - 1}
    return {
        **{name: content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :] for name, at in places.items()},
        "cut off": content[:-3],
        "half of it": content[:middle],
        "emptied": b"",
        "zeros": content[:4] + bytes(60) + content[64:],
        "bytes inserted": content[:4] + b"more" + content[4:],
        "bytes appended": content + b"more",
        "of another file": other,
        **({"of other types": of_other_types(content)} if content.startswith(b"PAR1") else {}),
    }


def of_other_types(content: bytes) -> bytes:
    """A file with the same metadata and valid checksums, all of whose columns hold something else."""
    table = pq.read_table(pa.BufferReader(content))
    metadata = json.loads(pq.read_metadata(pa.BufferReader(content)).metadata[b"coar_dist"])
    columns = {name: pa.array(np.zeros(len(table), np.int8)) for name in table.column_names}
    belongs_to = {name: value for name, value in metadata.items() if name not in ("sha256", "footer_sha256")}
    return encoded(columns, belongs_to, compress=False)


def kinds_of_files(root: Path) -> dict[str, str]:
    """One file of each folder, and every file at the top, but the lock and run.json, without which nothing opens."""
    names = sorted(name for name in contents(root) if not name.startswith(("run.json", "driver.lock")))
    return {name if "/" not in name else name.rpartition("/")[0] + name.rpartition("/")[2][:8]: name for name in names}


def damage_that(read: Read) -> str | None:
    """What a reader says of a damaged file; None where it met none."""
    try:
        found = read()
    except (DamagedFileError, MissingWorkError) as error:
        return str(error)
    match found:
        case dict(), [str(text)]:  # the previews that there are, and what is wrong with the others
            return text
        case False:  # whether something is complete, as it was
            return NOT_COMPLETE
    return None


def test_all_of_a_whole_run_is_read_without_a_right_to_write(whole: Path) -> None:
    before = contents(whole)
    for read in readers_of(ReadOnly(str(whole))).values():
        read()
    assert contents(whole) == before


def test_readers_of_a_damaged_run_name_the_damage_and_change_nothing(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    storage = ReadOnly(str(root))
    readers = readers_of(storage)
    readers["components"] = lambda: RunDirectory.open(storage).components  # which an open run has read already
    opened_by: dict[str, list[str]] = {}
    for what, read in readers.items():
        ReadOnly.opened.clear()
        assert damage_that(read) is None, what
        for name in ReadOnly.opened:
            opened_by.setdefault(name, []).append(what)
    names = list(kinds_of_files(root).values())
    assert opened_by.keys() >= set(names)
    stages = {"attributions": "fit", "evaluation": "evaluate", "curve": "edit", "each": "edit", "edit": "edit"}
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        stage = stages.get(re.split(r"[/.]", name)[0], "ablate")
        wrong = rf"is damaged.*[Rr]un the {stage} stage: it"
        foreign = rf"({wrong}|belongs to something else.*[Rr]un the {stage} stage: it|is missing or of earlier .*: run)"
        content = (root / name).read_bytes()
        for damage, damaged in damages(content, (root / other).read_bytes()).items():
            (root / name).write_bytes(damaged)
            before = contents(root)
            said = {what: damage_that(readers[what]) for what in opened_by[name]}
            assert any(said.values()), (name, damage)  # who reads other columns may read them
            for what, text in said.items():
                expected = foreign if damage == "of another file" else wrong
                is_right = text in (None, NOT_COMPLETE) or re.search(rf"{root}/{name} {expected}", text)
                assert is_right, (name, damage, what, text)
            assert contents(root) == before, (name, damage)
        (root / name).write_bytes(content)


def test_the_process_that_holds_the_run_sets_aside_what_it_meets(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    name = "margins/train/0000000010-0000000020.parquet"
    content = (root / name).read_bytes()
    damaged = damages(content, b"")["a column"]
    (root / name).write_bytes(damaged)
    storage = storage_at(root)
    expected = rf"{name} is damaged: .*It was set aside as {name}\.damaged\. Run the ablate stage: it makes"
    with (
        pytest.raises(DamagedFileError, match=expected),
        only_writer(storage) as hold,
        damaged_set_aside(storage, hold),
    ):
        RunReader(RunDirectory.open(storage)).margins()
    assert (root / f"{name}.damaged").read_bytes() == damaged
    with pytest.raises(MissingWorkError, match=r"lacks 10 of 20 masks: 10\.\.19\. Run the ablate"):
        RunReader(RunDirectory.open(storage)).margins()


def test_whoever_reads_while_another_process_refits_meets_whole_files_alone(whole: Path, tmp_path: Path) -> None:
    """5,040 files are read."""
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    run = RunDirectory.open(storage_at(root))
    table, blocks = AttributionTable(run, "coar"), run.margins("train").blocks
    context = multiprocessing.get_context("spawn")
    barrier, stop = context.Barrier(2), context.Event()
    refits = context.Process(target=keep_refitting, args=(str(root), barrier, stop))
    refits.start()
    try:
        barrier.wait(60)
        seen = set()
        for number in range(840):
            weights = RunReader(run).weights(method="coar")
            block = blocks[number % 3]
            of_block, intercepts = table.read(block)
            assert is_made_with(run.storage, table.file(block), run.belongs_to("attributions"))
            errors = table.read_standard_errors(block)
            for values in (of_block, intercepts, errors, *(weights[slice(*block)] for block in blocks)):
                assert len(np.unique(values)) == 1, "of two fits"
            seen.add(weights[0, 0])
        assert refits.is_alive()
        assert len(seen) > 10
    finally:
        stop.set()
        refits.join(60)
    assert refits.exitcode == 0
    assert list(root.rglob("*.damaged")) == []


class Replaced(ObjectStorage):
    """Each file is replaced between a reader's first two requests, as often as ``times`` says."""

    times: list[Callable[[], None]]

    def open(self, name: str, size: int | None = None) -> StoredFile | None:
        file = super().open(name, size)
        if file is not None and self.times:
            self.times.pop()()
        return file


def test_an_object_that_is_replaced_between_two_requests_is_read_again(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    location = f"s3://{BUCKET}/replaced"
    run = RunDirectory.create(
        ObjectStorage(location), {"model.weights": "w", "ablation.examples_per_block": 8}, COMPONENTS, NUM_EXAMPLES
    )
    table = AttributionTable(run, "coar")

    def write(number: float, num_errors: int) -> Callable[[], None]:
        """Files of other lengths, so that nothing of the one fits the other."""
        weights = np.full((8, NUM_COMPONENTS), number, np.float32)
        errors = None if num_errors == 0 else np.full((8, num_errors), number, np.float32)
        made = Attributions(weights, np.zeros(8), *np.zeros((4, 8)), errors)
        return lambda: table.write((0, 8), {}, made)

    storage = Replaced(location)
    monkeypatch.setattr(Replaced, "times", [write(3.0, 0), write(2.0, 9)], raising=False)
    write(1.0, 0)()
    found = read_content(storage, table.file((0, 8)), "fit", run.belongs_to("attributions"))
    assert found is not None
    assert np.unique(matrix_of(found.columns["weights"])).tolist() == [3.0]
    monkeypatch.setattr(Replaced, "times", [write(float(i), i % 2) for i in range(100)])
    with pytest.raises(StorageError, match="was replaced 20 times while it was read"):
        read_content(storage, table.file((0, 8)), "fit", run.belongs_to("attributions"))


def test_only_the_stages_and_the_writers_side_of_the_store_rename_files() -> None:
    package = Path(coar_dist.__file__).parent
    sources = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    moving = {name for name, text in sources.items() if re.search(r"\.move\(", text)}
    assert moving - {f"store/{name}.py" for name in ("storage", "local_storage", "object_storage", "rehearsal")} == {
        "store/aside.py"
    }
    renaming = {name for name, text in sources.items() if "coar_dist.store.aside import" in text}
    assert renaming == {
        "interchange/importing.py",
        *(f"stages/{name}.py" for name in ("session", "train")),
        *(
            f"store/{name}.py"
            for name in ("edits", "mask_file", "range_files", "run_directory", "shards", "tables", "values")
        ),
    }
