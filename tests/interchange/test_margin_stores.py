"""Margins of the research code: into a run directory, fitted, and back."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap
from rich.console import Console
from sklearn.linear_model import LinearRegression

from coar_dist.ablation.work import missing_work, stores_of
from coar_dist.api import Run, open_run
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import Config, RegressionConfig, RunConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import (
    CoarDistError,
    ComponentMismatchError,
    ConfigError,
    ForeignFileError,
    MissingWorkError,
    NonFiniteMarginError,
    RunMismatchError,
    RunNotFoundError,
    StorageError,
)
from coar_dist.interchange.exporting import export_margins
from coar_dist.interchange.importing import import_margins, read_components
from coar_dist.interchange.margin_stores import open_store
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.agreement import METRICS
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.examples import ExampleTable
from coar_dist.store.locations import storage_at
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.interchange.research import initialize_store, update_row, write_store
from tests.models import local_storage, random_masks, small_task

NUM_MASKS, NUM_COMPONENTS, NUM_EXAMPLES = 120, 11, 9


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    masks = random_masks(NUM_MASKS, NUM_COMPONENTS, seed=seed)
    weights = random.normal(size=(NUM_COMPONENTS, NUM_EXAMPLES))
    noise = random.normal(size=(NUM_MASKS, NUM_EXAMPLES))
    return masks, masks @ weights + 0.3 * noise + 10.0 * np.arange(NUM_EXAMPLES)


def bring(folder: Path, run_dir: Path, only_complete: bool = False, leave_out: tuple[int, ...] = (), **how: object):
    store = open_store(folder)
    return import_margins(store, store.examine(only_complete, leave_out), storage_at(run_dir), **how)


def fit(run_dir: Path, console: Console, **settings: object) -> Run:
    config = Config(stages=["fit"], run=RunConfig(str(run_dir)), regression=RegressionConfig(**settings))
    run_stages(config, console)
    return open_run(run_dir)


def own_run(root: Path, masks: np.ndarray, margins: np.ndarray) -> RunDirectory:
    """A run directory as the ablate stage makes it."""
    components = ComponentIndex((ComponentGroup.of("conv.weight", 0, masks.shape[1]),))
    identity = {"model.weights": "w", "ablation.examples_per_block": 4, "ablation.margins_dtype": "float32"}
    run = RunDirectory.create(local_storage(root), identity, components, margins.shape[1])
    run.set_designs({"train": RunDesign("train", Bernoulli(masks.shape[1], len(masks), 0.2, 1))})
    run.margins("train").write(0, masks, margins.astype(np.float32), {})
    return run


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_becomes_a_run_that_is_fitted_like_any_other(tmp_path: Path, quiet: Console, dtype: str) -> None:
    masks, margins = problem()
    names = {"conv1.weight": 4, "layer.conv2.weight": 7}
    (tmp_path / "components.json").write_text(json.dumps(names))
    done = bring(
        write_store(tmp_path / "store", masks, margins, dtype),
        tmp_path / "run",
        components=read_components(tmp_path / "components.json"),
        block_bytes=1000,
    )
    assert (done.num_written, done.num_left_out) == (NUM_MASKS, 0)
    run = fit(tmp_path / "run", quiet, regularisation=0.0)
    assert len(list((tmp_path / "run" / "margins" / "train").glob("0*.parquet"))) > 4
    stored_masks, stored = run.margins()
    np.testing.assert_array_equal(stored_masks, masks)
    np.testing.assert_array_equal(stored, margins.astype(dtype).astype(np.float32))
    truth = LinearRegression().fit(masks.astype(np.float64), stored.astype(np.float64))
    np.testing.assert_allclose(run.weights(), truth.coef_, atol=1e-5)
    np.testing.assert_allclose(run.intercepts(), truth.intercept_, rtol=1e-6)
    np.testing.assert_allclose(run.predict(masks), truth.predict(masks), atol=1e-4)
    assert {group.parameter: group.num_components for group in run.components.groups} == names
    assert np.isnan(ExampleTable(run.directory).read()["margin"]).all()
    design = run.directory.design("train")
    assert (design.kind, design.num_masks) == ("imported", NUM_MASKS)
    assert design.ablation_fraction == pytest.approx(1 - masks.mean(), rel=5e-3)


def test_attributions_are_those_of_the_margins_collected_here(small_run: Run, tmp_path: Path, quiet: Console) -> None:
    """Out as a store and in again, the train and the held-out masks: the same bits of weights and correlations."""
    directory = small_run.directory
    for name in ("train", "evaluation_0.2"):
        export_margins(directory, tmp_path / name, name)
        bring(tmp_path / name, tmp_path / "run", design_name=name, ablation_fraction=0.2)
    again = fit(tmp_path / "run", quiet)
    run_stages(Config(stages=["evaluate", "report"], run=RunConfig(str(tmp_path / "run"))), quiet)
    np.testing.assert_array_equal(again.weights(), small_run.weights())
    np.testing.assert_array_equal(again.intercepts(), small_run.intercepts())
    tables = [EvaluationTable(run, "coar", "evaluation_0.2").read() for run in (directory, again.directory)]
    for name in METRICS:
        np.testing.assert_array_equal(*(table[name] for table in tables))
    text = quiet.file.getvalue()  # type: ignore[union-attr]
    assert "(trained)" in text
    assert "12 components in 1 parameter" in text


def test_an_exported_store_is_the_research_codes(small_run: Run, tmp_path: Path) -> None:
    masks, margins = small_run.margins("train")
    export_margins(small_run.directory, tmp_path / "store", name="val_margins", dtype="float16")
    found = {key: open_memmap(tmp_path / "store" / f"{key}.npy", mode="r") for key in ("masks", "val_margins")}
    np.testing.assert_array_equal(found["masks"], masks)
    np.testing.assert_array_equal(found["val_margins"], margins.astype(np.float16))
    assert (found["masks"].dtype, found["val_margins"].dtype) == (np.bool_, np.float16)
    completed = open_memmap(tmp_path / "store" / "_completed.npy", mode="r")
    assert completed.shape == (150,)
    assert completed.all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    with pytest.raises(ConfigError, match="already exists"):
        export_margins(small_run.directory, tmp_path / "store")
    with pytest.raises(ConfigError, match="must end in _margins"):
        export_margins(small_run.directory, tmp_path / "other", name="margin")
    with pytest.raises(ConfigError, match="one of float32, float16"):
        export_margins(small_run.directory, tmp_path / "other", dtype="float64")
    with pytest.raises(StorageError, match="nowhere"):
        export_margins(small_run.directory, tmp_path / "nowhere" / "store")


def test_margins_beyond_float16_are_not_exported_as_infinity(tmp_path: Path) -> None:
    masks, margins = problem()
    bring(write_store(tmp_path / "store", masks, margins * 1e5, "float32"), tmp_path / "run")
    with pytest.raises(NonFiniteMarginError, match="beyond the range of float16"):
        export_margins(RunDirectory.open(storage_at(tmp_path / "run")), tmp_path / "back", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "store"]


def test_incomplete_rows_are_listed_or_left_out_by_request(tmp_path: Path, quiet: Console) -> None:
    masks, margins = problem()
    folder = write_store(tmp_path / "store", masks, margins)
    completed = open_memmap(folder / "_completed.npy", mode="r+")
    completed[[5, 6, 7]] = False
    update_row(folder, 20, {"masks": np.zeros(NUM_COMPONENTS, bool)})  # flagged, but nothing reached the disk
    update_row(folder, 119, {"test_margins": np.zeros(NUM_EXAMPLES, np.float16)})
    with pytest.raises(
        MissingWorkError, match=r"5 of 120 rows are not complete: 5\.\.7, 20, 119 \(2 of them are flagged"
    ):
        bring(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    done = bring(folder, tmp_path / "run", only_complete=True, block_bytes=500)
    assert (done.num_written, done.num_left_out) == (115, 5)
    whole = np.delete(np.arange(NUM_MASKS), [5, 6, 7, 20, 119])
    stored_masks, stored = open_run(tmp_path / "run").margins()
    np.testing.assert_array_equal(stored_masks, masks[whole])
    np.testing.assert_array_equal(stored, margins[whole].astype(np.float16))
    assert fit(tmp_path / "run", quiet).weights().shape == (NUM_EXAMPLES, NUM_COMPONENTS)


def test_a_store_that_nothing_was_written_to(tmp_path: Path) -> None:
    initialize_store(tmp_path / "store", 50, {"masks": ("bool_", 4), "test_margins": ("float16", 3)})
    with pytest.raises(MissingWorkError, match=r"50 of 50 rows are not complete: 0\.\.49"):
        bring(tmp_path / "store", tmp_path / "run")
    with pytest.raises(MissingWorkError, match="none of its 50 rows is complete"):
        bring(tmp_path / "store", tmp_path / "run", only_complete=True)


def test_margins_that_are_not_finite_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    masks, margins = problem()
    margins[[3, 50], 2] = np.nan
    margins[51, 8] = np.inf
    folder = write_store(tmp_path / "store", masks, margins)
    with pytest.raises(NonFiniteMarginError, match=r"3 margins .* rows 3, 50\.\.51, of examples 2, 8\. Leave these"):
        bring(folder, tmp_path / "run", block_bytes=3000)
    with pytest.raises(ConfigError, match=r"names example 9, but .* has examples 0\.\.8"):
        bring(folder, tmp_path / "run", leave_out=(9,))
    bring(folder, tmp_path / "run", leave_out=(8, 2))
    kept = [0, 1, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(open_run(tmp_path / "run").margins()[1], margins[:, kept].astype(np.float16))
    with pytest.raises(RunMismatchError, match="imported_without_examples"):
        bring(folder, tmp_path / "run", leave_out=(2, 8, 0))


def damage(folder: Path, kind: str) -> None:
    path = folder / "test_margins.npy"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif kind == "no header":
        path.write_bytes(b"hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing":
        (folder / "masks.npy").unlink()
    elif kind == "no flags":
        (folder / "_completed.npy").unlink()
    elif kind == "objects":
        np.save(path, np.array([[None, "code"]], dtype=object), allow_pickle=True)
    elif kind == "dtype":
        np.save(path, np.load(path).astype(np.int64))
    elif kind == "float masks":
        np.save(folder / "masks.npy", np.load(folder / "masks.npy").astype(np.float32))
    elif kind == "shape":
        np.save(path, np.load(path)[:-1])
    else:
        path.rename(folder / "val.npy")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "test_margins.npy is damaged"),
        ("no header", "test_margins.npy is damaged"),
        ("empty", "test_margins.npy is damaged"),
        ("missing", "masks.npy is not there"),
        ("no flags", "_completed.npy is not there"),
        ("objects", "test_margins.npy is damaged, or no array"),
        ("dtype", r"test_margins.npy is int64 \(120, 9\)"),
        ("float masks", "masks.npy is float32"),
        ("shape", r"test_margins.npy is float16 \(119, 9\)"),
        ("renamed", r"it has no \*_margins.npy"),
    ],
)
def test_damaged_stores_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    folder = write_store(tmp_path / "store", *problem())
    damage(folder, kind)
    with pytest.raises(ForeignFileError, match=message):
        open_store(folder)


def test_of_several_margins_one_must_be_named(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "store", *problem())
    np.save(folder / "val_margins.npy", np.load(folder / "test_margins.npy"))
    with pytest.raises(ConfigError, match="has test_margins, val_margins: name one"):
        open_store(folder)
    assert open_store(folder, "val_margins").name == "val_margins"


def test_an_import_goes_on_where_it_stopped(tmp_path: Path) -> None:
    masks, margins = problem()
    folder = write_store(tmp_path / "store", masks, margins)

    def stop(done: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(folder, tmp_path / "run", on_progress=stop, block_bytes=700)
    with pytest.raises(MissingWorkError, match="lacks"):
        open_run(tmp_path / "run").margins()
    first = sorted((tmp_path / "run" / "margins" / "train").iterdir())
    changed = [path.stat().st_mtime_ns for path in first]
    done = bring(folder, tmp_path / "run", block_bytes=2000)
    assert 0 < done.num_written < NUM_MASKS - 40
    assert [path.stat().st_mtime_ns for path in first] == changed
    np.testing.assert_array_equal(open_run(tmp_path / "run").margins()[0], masks)
    assert bring(folder, tmp_path / "run").num_written == 0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    masks, margins = problem()
    folder = write_store(tmp_path / "store", masks, margins)
    three = ComponentIndex((ComponentGroup.of("a", 0, 3),))
    cases: list[tuple[type[CoarDistError], str, dict[str, object]]] = [
        (ComponentMismatchError, "components given are 3, but the masks .* have 11", {"components": three}),
        (ConfigError, "must be train, or begin with evaluation_", {"design_name": "tune"}),
        (ConfigError, "ablation_fraction=0.9: the masks ablate 0.2", {"ablation_fraction": 0.9}),
        (RunNotFoundError, "import the masks of design=train first", {"design_name": "evaluation_0.2"}),
    ]
    for error, message, how in cases:
        with pytest.raises(error, match=message):
            bring(folder, tmp_path / "run", **how)
    bring(folder, tmp_path / "run")
    other = write_store(tmp_path / "other", *problem(seed=1))
    with pytest.raises(RunMismatchError, match=r"design 'train' .* was imported, so no others can take its place"):
        bring(other, tmp_path / "run")
    changed = write_store(tmp_path / "changed", masks, margins + 1.0)  # the same masks
    with pytest.raises(RunMismatchError, match="so no others can take its place"):
        bring(changed, tmp_path / "run")
    smaller = write_store(tmp_path / "smaller", masks[:, 1:], margins[:, 1:])
    with pytest.raises(ComponentMismatchError, match=r"10 components and 8 examples .* has 11 and 9"):
        bring(smaller, tmp_path / "run", design_name="evaluation_research")


def test_the_ablate_stage_does_not_extend_imported_margins(tmp_path: Path, quiet: Console) -> None:
    import coar_dist

    task = small_task()
    folder = write_store(tmp_path / "store", *problem())
    bring(folder, tmp_path / "run")
    arguments = (task.model, task.examples.inputs, task.examples.targets)
    with pytest.raises(RunMismatchError, match=r"imported from the COAR research code\. The ablate stage cannot add"):
        coar_dist.attribute(*arguments, run_dir=tmp_path / "run", num_masks=300, console=quiet)
    with pytest.raises(ConfigError, match="imported design cannot be drawn again"):
        open_run(tmp_path / "run").directory.design("train").masks(0, 1)


def test_imported_held_out_masks_in_a_run_of_our_own(tmp_path: Path, quiet: Console) -> None:
    """They stay when the run is extended, are evaluated, and the ablate stage never makes up for lost ones."""
    masks, margins = problem()
    run = own_run(tmp_path / "run", masks, margins)
    held_out, truth = problem(seed=4)
    folder = write_store(tmp_path / "store", held_out, truth, "float32")
    bring(folder, tmp_path / "run", design_name="evaluation_research", ablation_fraction=0.2)
    with pytest.raises(ConfigError, match="components have no effect"):
        bring(folder, tmp_path / "run", design_name="evaluation_research", components=run.components)
    with pytest.raises(RunMismatchError, match="was not made by an import"):
        bring(folder, tmp_path / "run")

    fitted = fit(tmp_path / "run", quiet)
    run_stages(Config(stages=["evaluate"], run=RunConfig(str(tmp_path / "run"))), quiet)
    correlations = EvaluationTable(fitted.directory, "coar", "evaluation_research").read()["correlation"]
    predicted = fitted.predict(held_out)
    expected = [np.corrcoef(predicted[:, i], truth[:, i])[0, 1] for i in range(NUM_EXAMPLES)]
    np.testing.assert_allclose(correlations, expected, atol=1e-5)

    longer = Bernoulli(NUM_COMPONENTS, 500, 0.2, 1)
    run = fitted.directory
    run.set_designs({"train": RunDesign("train", longer)})  # as the ablate stage does
    assert run.designs["evaluation_research"].design.kind == "imported"
    work = missing_work(run, stores_of(run), Config())
    assert work.plain_masks == 500 - NUM_MASKS
    for shard in (tmp_path / "run" / "margins" / "evaluation_research").iterdir():
        shard.unlink()
    with pytest.raises(MissingWorkError, match=r"'evaluation_research' was imported and lacks masks 0\.\.119"):
        missing_work(run, stores_of(run), Config())


def test_run_directories_of_our_own_are_what_they_were(tmp_path: Path) -> None:
    """The fingerprint of imported designs is no part of the identity of others: old shards still belong."""
    design = Bernoulli(11, 5, 0.2, 3)
    assert design.identity() == {"kind": "bernoulli", "num_components": 11, "ablation_fraction": 0.2, "seed": 3}
    components = ComponentIndex((ComponentGroup.of("a", 0, 11),))
    identity = {"ablation.examples_per_block": 3, "ablation.margins_dtype": "float32"}
    run = RunDirectory.create(local_storage(tmp_path), identity, components, 4)
    run.set_designs({"train": RunDesign("train", design)})
    stored = json.loads((tmp_path / "run.json").read_text())["designs"]["train"]
    assert stored == {"role": "train", **design.identity(), "num_masks": 5, "active": True}


def made_store(folder: Path, num_masks: int, num_components: int, num_examples: int) -> Path:
    initialize_store(folder, num_masks, {"masks": ("bool_", num_components), "test_margins": ("float16", num_examples)})
    random = np.random.default_rng(0)
    for key in ("masks", "test_margins"):
        array = open_memmap(folder / f"{key}.npy", mode="r+")
        for start in range(0, num_masks, 100):
            array[start : start + 100] = random.random((min(num_masks, 100), array.shape[1])) * 3 > 0.3
    open_memmap(folder / "_completed.npy", mode="r+")[:] = True
    return folder


def test_stores_are_read_and_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """28 MB of masks and margins through a few times 256 KB."""
    num_masks, num_components, num_examples, block = 4000, 3000, 2000, 2**18
    small = open_store(made_store(tmp_path / "small", 20, 30, 20))  # what is imported on first use takes memory, too
    import_margins(small, small.examine(), storage_at(tmp_path / "small run"))
    made_store(tmp_path / "store", num_masks, num_components, num_examples)
    monkeypatch.setattr(MarginStore, "write", counted := CountRows(MarginStore.write))
    tracemalloc.start()
    try:
        store = open_store(tmp_path / "store")
        content = store.examine(block_bytes=block)
        done = import_margins(store, content, storage_at(tmp_path / "run"), block_bytes=block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.num_written == num_masks
    assert counted.largest == block // (num_components + 4 * num_examples)
    assert peak < 12 * block, peak
    run = open_run(tmp_path / "run")
    for batch, (masks, margins) in enumerate(run.directory.margins("train").read((1024, 2000), 500)):
        rows = slice(batch * 500, batch * 500 + 500)
        np.testing.assert_array_equal(masks, store.masks[rows])
        np.testing.assert_array_equal(margins, store.margins[rows, 1024:2000])


class CountRows:
    """A method that remembers the most rows that it was called with."""

    def __init__(self, method: object) -> None:
        self.method, self.largest = method, 0

    def __get__(self, store: MarginStore, owner: type) -> object:
        def write(start: int, masks: np.ndarray, *others: object) -> None:
            self.largest = max(self.largest, len(masks))
            self.method(store, start, masks, *others)  # type: ignore[operator]

        return write
