"""What is written comes back by value, and is in the files under the names and types that readers elsewhere rely on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import MissingWorkError
from coar_dist.store.agreement import METRICS
from coar_dist.store.budget_curve import BudgetCurve, BudgetCurveTable
from coar_dist.store.ceilings import Ceiling, CeilingTable
from coar_dist.store.edits import CurvePoint, EditStore
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.examples import ExampleTable
from coar_dist.store.gradients import GateGradients
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.parquet import read_metadata
from coar_dist.store.previews import PreviewTable
from coar_dist.store.reader import RunReader
from coar_dist.store.rehearsal import Rehearsal
from coar_dist.store.responses import Response, Responses, ResponseTable
from coar_dist.store.run_directory import GRADIENT_DESIGN, RunDesign, RunDirectory
from coar_dist.store.storage import Storage
from coar_dist.store.tables import QUALITY, Attributions, AttributionTable
from tests.models import random_masks
from tests.store.records import EDIT
from tests.store.test_store import NUM_EXAMPLES, margins_of, new_run, set_train

BLOCKS = [(0, 3), (3, 6), (6, 8)]
HELD_OUT = "evaluation_0.2"
RANDOM = np.random.default_rng(3)
WEIGHTS, ERRORS = RANDOM.normal(1.0, 2.0, (2, NUM_EXAMPLES, 11)).astype(np.float32)
INTERCEPTS = RANDOM.normal(5.0, 2.0, NUM_EXAMPLES)
INFLUENCES = {block: RANDOM.normal(7.0, 0.05, 16) for block in BLOCKS}
QUALITIES = {name: RANDOM.normal(1.0, 2.0, NUM_EXAMPLES) for name in ("regularisation", *QUALITY)}
METRIC_VALUES = {name: RANDOM.normal(1.0, 2.0, NUM_EXAMPLES) for name in METRICS}
CURVE = BudgetCurve(np.array([1, 4, 6]), np.array([5, 20]), np.array([[0.1, 0.2], [np.nan, 0.4], [0.5, 0.6]]))
GRADIENT_MASKS = random_masks(4, 11, seed=8)
GROUPS = np.array(["land", "water"] * 4)
LABELS, PREDICTIONS = RANDOM.integers(0, 9, (2, NUM_EXAMPLES))


def ceiling_of(method: str) -> Ceiling:
    correlations = np.array([0.1, np.nan, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    return Ceiling(0.9, 0.01, float("nan"), float("nan"), 0.95, 0.02, correlations, 40, 0, method)


def gate_gradients(first: int, end: int) -> GateGradients:
    random, size = np.random.default_rng(first), end - first
    margins, kept, ablated = (random.normal(size=shape).astype(np.float32) for shape in [(4, size), *[(size, 11)] * 2])
    return GateGradients(margins, kept, ablated, *random.random((2, 11)), random.random(11) < 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = new_run(tmp_path_factory.mktemp("contents") / "run")
    gradients = RunDesign("gradients", Bernoulli(11, 4, 0.2, 1))
    set_train(run, 20, **{HELD_OUT: RunDesign("evaluation", Bernoulli(11, 40, 0.2, 2)), GRADIENT_DESIGN: gradients})
    run.set_baselines({"neuron_conductance": {"num_steps": 2}})
    run.margins("train").write(0, random_masks(20, 11), margins_of(20), {})
    ExampleTable(run).write(LABELS, PREDICTIONS, margins_of(1)[0], {"group": GROUPS})
    run.baseline("neuron_conductance").write(0, WEIGHTS[:5])
    run.baseline("neuron_conductance").write(5, WEIGHTS[5:])
    for block, store in zip(BLOCKS, run.gradients(GRADIENT_DESIGN), strict=True):
        rows = slice(*block)
        quality = [values[rows] for values in QUALITIES.values()]
        fitted = Attributions(WEIGHTS[rows], INTERCEPTS[rows], *quality, ERRORS[rows], INFLUENCES[block])
        AttributionTable(run, "coar").write(block, {"penalty": 1}, fitted)
        without = Attributions.of_weights(-WEIGHTS[rows], -INTERCEPTS[rows])
        AttributionTable(run, "leave_one_out").write(block, {}, without)
        store.write(0, GRADIENT_MASKS, gate_gradients(*block), {})
        PreviewTable(run).write(block, [b"picture"] * (block[1] - block[0]), 4, 3)
    response = Response(0, 1.0, np.ones((2, 3), np.float32), pattern=np.ones((1, 1), np.float32))
    ResponseTable(run).write((0, 11), {4: Responses(np.ones((1, 2, 2), np.float16), (response,))})
    EvaluationTable(run, "coar", HELD_OUT).write(METRIC_VALUES)
    CeilingTable(run, HELD_OUT).write(ceiling_of("coar"))
    BudgetCurveTable(run, "coar", HELD_OUT).write(CURVE, {"a": 1})
    return run


@pytest.fixture
def edit(tmp_path: Path) -> EditStore:
    return EditStore(new_run(tmp_path / "edit"))


HEAD = {"example_id": "int64", "method": "string", "design": "string", "ablation_fraction": "double"}
PER_COMPONENT = "fixed_size_list<element: float>[11]"
CONTRACT: dict[str, tuple[list[int], dict[str, str]]] = {
    "attributions/coar.00000006-00000008.parquet": (
        [6, 7],
        {
            "example_id": "int64",
            "method": "string",
            "intercept": "double",
            **dict.fromkeys(["regularisation", "r2", "r2_new", "duality_gap"], "double"),
            **dict.fromkeys(["weights", "standard_errors"], PER_COMPONENT),
        },
    ),
    f"evaluation/coar.{HELD_OUT}.parquet": (
        list(range(8)),
        {**HEAD, **dict.fromkeys(["correlation", "spearman", "r2", "slope", "intercept"], "double")},
    ),
    f"evaluation/ceiling.{HELD_OUT}.parquet": (list(range(8)), {**HEAD, "correlation": "double"}),
    "evaluation/budget_curve/coar.parquet": (
        [1, 1, 4, 4, 6, 6],
        {**HEAD, "num_masks": "int64", "correlation": "double"},
    ),
    "baselines/neuron_conductance_num_steps_2/0000000005-0000000008.parquet": (
        [5, 6, 7],
        {"example_id": "int64", "weights": PER_COMPONENT},
    ),
    "examples.parquet": (
        list(range(8)),
        {"example_id": "int64", "label": "int64", "prediction": "int64", "margin": "float", "group": "string"},
    ),
    "gradients/gradients/00000003-00000006/0000000000-0000000004.parquet": (
        [3, 4, 5],
        {
            "example_id": "int64",
            "margins": "fixed_size_list<element: float>[4]",
            **dict.fromkeys(["kept", "ablated"], PER_COMPONENT),
        },
    ),
    "previews/00000003-00000006.parquet": (
        [3, 4, 5],
        {"example_id": "int64", "image": "binary", "width": "int32", "height": "int32"},
    ),
    "responses/00000000-00000011.parquet": (
        [None, 0],
        {
            "component_id": "int64",
            "example_id": "int64",
            "strength": "float",
            "first": "int32",
            "shape": "list<element: int32>",
            "scale": "float",
            "activation": "binary",
            "pattern_shape": "list<element: int32>",
            "pattern_scale": "float",
            "pattern": "binary",
        },
    ),
}


CONTENT = {
    "attributions": "attributions",
    "evaluation": "evaluation",
    "evaluation/budget_curve": "budget_curve",
    "baselines/neuron_conductance_num_steps_2": "baseline",
    "": "examples",
    "gradients/gradients/00000003-00000006": "gradients",
    "previews": "previews",
    "responses": "responses",
}
"""What the metadata of the files in each folder say."""


@pytest.mark.parametrize("file", CONTRACT)
def test_the_columns_of_every_file_are_a_contract(run: RunDirectory, file: str) -> None:
    ids, columns = CONTRACT[file]
    table = pq.read_table(f"{run.storage}/{file}")
    assert {field.name: str(field.type) for field in table.schema} == columns
    assert table["example_id"].to_pylist() == ids
    assert (read_metadata(run.storage, file, "", {}) or {})["content"] == CONTENT[file.rpartition("/")[0]]
    nothing = {name: table[name].null_count for name in table.column_names if table[name].null_count}
    of_no_example = dict.fromkeys(
        ["example_id", "strength", "pattern_shape", "pattern_scale", "pattern"], 1
    )  # a kernel
    with_nan = {"correlation": 1} if "ceiling" in file or "curve" in file else {}  # NaN is null
    assert nothing == (of_no_example if file.startswith("responses") else with_nan)
    if "ablation_fraction" in columns:
        assert set(table["ablation_fraction"].to_pylist()) == {0.2}
        assert set(table["design"].to_pylist()) == {HELD_OUT}
    if "method" in columns:
        assert set(table["method"].to_pylist()) == {"ceiling" if "ceiling" in file else "coar"}


@pytest.mark.parametrize("ids", [None, [7, 0, 4, 4], [5], []], ids=str)
@pytest.mark.parametrize("through", [lambda storage: storage, Rehearsal], ids=["itself", "rehearsal"])
def test_a_reader_has_the_values_of_the_examples_that_are_asked_for(
    run: RunDirectory, ids: list[int] | None, through: Callable[[Storage], Storage]
) -> None:
    reader = RunReader(RunDirectory.open(through(run.storage)))
    rows = slice(None) if ids is None else np.array(ids, np.int64)
    np.testing.assert_array_equal(reader.weights(ids), WEIGHTS[rows])
    np.testing.assert_array_equal(reader.weights(ids, "leave_one_out"), -WEIGHTS[rows])
    np.testing.assert_array_equal(reader.intercepts(ids), INTERCEPTS[rows])
    np.testing.assert_array_equal(reader.standard_errors(ids), ERRORS[rows])
    error = np.std(sum(INFLUENCES.values()), ddof=1) / NUM_EXAMPLES / 4
    assert reader.r2_new_error() == pytest.approx(error, rel=1e-12)
    assert np.isnan(reader.r2_new_error("leave_one_out"))
    for found, expected in (
        (reader.quality(ids), QUALITIES),
        (reader.evaluation(None, None, ids), METRIC_VALUES),
        (
            reader.examples(ids),
            {
                "example_id": np.arange(8),
                "label": LABELS,
                "prediction": PREDICTIONS,
                "margin": margins_of(1)[0],
                "group": GROUPS,
            },
        ),
    ):
        assert list(found) == list(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name][rows])
    masks = random_masks(6, 11, seed=4)
    exact = np.einsum("mc,ec->me", masks.astype(np.float64), WEIGHTS.astype(np.float64)) + INTERCEPTS
    np.testing.assert_allclose(reader.predict(masks, ids), exact[:, rows], rtol=1e-12)
    whole_masks, margins = reader.margins()
    np.testing.assert_array_equal(whole_masks, random_masks(20, 11))
    np.testing.assert_array_equal(margins, margins_of(20))


@pytest.mark.parametrize("ids", [[-1], [8], [0, 3, 8], [0.0], [True]], ids=str)
def test_examples_that_there_are_not_are_refused(run: RunDirectory, ids: list[Any]) -> None:
    for read in (RunReader(run).weights, RunReader(run).examples, RunReader(run).quality):
        with pytest.raises(IndexError, match="example ids"):
            read(np.array(ids))


def test_standard_errors_that_were_not_asked_for_are_an_error_with_the_way_out(run: RunDirectory) -> None:
    coar, leave_one_out = AttributionTable(run, "coar"), AttributionTable(run, "leave_one_out")
    assert (coar.has_standard_errors((0, 3)), leave_one_out.has_standard_errors((0, 3))) == (True, False)
    with pytest.raises(MissingWorkError, match=r"no standard errors: .*regression\.standard_errors=true"):
        leave_one_out.read_standard_errors((0, 3))
    assert (coar.settings((3, 6)), leave_one_out.settings((3, 6))) == ({"penalty": 1}, {})


def test_a_ceiling_comes_back(run: RunDirectory) -> None:
    for table in (CeilingTable(run, HELD_OUT), CeilingTable(run, HELD_OUT, "coar")):
        found, expected = vars(table.read()), vars(ceiling_of("coar"))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, name)
    assert CeilingTable(run, HELD_OUT, "coar").is_complete()
    assert not CeilingTable(run, HELD_OUT, "leave_one_out").is_complete()
    with pytest.raises(MissingWorkError, match="of earlier attributions: run the evaluate stage"):
        CeilingTable(run, HELD_OUT, "leave_one_out").read()


def test_a_budget_curve_comes_back(run: RunDirectory) -> None:
    table = BudgetCurveTable(run, "coar", HELD_OUT)
    found = table.read()
    assert found is not None
    for name, value in vars(CURVE).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert (table.is_complete({"a": 1}), table.is_complete({"a": 2})) == (True, False)
    assert BudgetCurveTable(run, "leave_one_out", HELD_OUT).read() is None


@pytest.mark.parametrize("block", [(0, 8), (0, 3), (2, 7), (4, 5), (5, 8)], ids=str)
def test_baselines_come_back_across_shards(run: RunDirectory, block: tuple[int, int]) -> None:
    np.testing.assert_array_equal(run.baseline("neuron_conductance").read(block), WEIGHTS[slice(*block)])


def test_gate_gradients_come_back(run: RunDirectory) -> None:
    for store in run.gradients(GRADIENT_DESIGN):
        ((masks, found),) = store.read()
        np.testing.assert_array_equal(masks, GRADIENT_MASKS)
        np.testing.assert_array_equal(store.masks(), GRADIENT_MASKS)
        for name, value in vars(gate_gradients(*store.block)).items():
            np.testing.assert_array_equal(getattr(found, name), value, name)
        ((masks, margins),) = store.read_margins()
        np.testing.assert_array_equal(masks, GRADIENT_MASKS)
        np.testing.assert_array_equal(margins, found.margins, strict=True)


def test_wrong_files_alone_are_set_aside(run: RunDirectory, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(str(run.storage), root)
    copied = RunDirectory.open(LocalStorage(str(root)))
    tables = {
        "attributions/coar.00000003-00000006.parquet": lambda: AttributionTable(copied, "coar").set_aside_wrong(BLOCKS),
        f"evaluation/coar.{HELD_OUT}.parquet": EvaluationTable(copied, "coar", HELD_OUT).set_aside_wrong,
        f"evaluation/ceiling.{HELD_OUT}.parquet": CeilingTable(copied, HELD_OUT).set_aside_wrong,
        "evaluation/budget_curve/coar.parquet": BudgetCurveTable(copied, "coar", HELD_OUT).set_aside_wrong,
        "examples.parquet": ExampleTable(copied).set_aside_wrong,
        "previews/00000003-00000006.parquet": PreviewTable(copied).set_aside_wrong,
        "responses/00000000-00000011.parquet": ResponseTable(copied).set_aside_wrong,
        "margins/train/0000000000-0000000020.parquet": lambda: copied.margins("train").set_aside_wrong(False),
    }
    for set_aside_wrong in tables.values():
        set_aside_wrong()
    assert list(root.rglob("*.damaged")) == []
    for file, set_aside_wrong in tables.items():
        content = (root / file).read_bytes()
        (root / file).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])  # the end of the footer
        set_aside_wrong()
        assert not (root / file).exists(), file
        assert (root / f"{file}.damaged").exists(), file


def test_examples_take_further_columns(tmp_path: Path) -> None:
    table = ExampleTable(new_run(tmp_path / "run"))
    with pytest.raises(MissingWorkError, match="run the ablate stage"):
        table.read()
    margins = margins_of(1)[0]
    table.write(None, None, margins, {"group": GROUPS})
    assert not table.update({"group": GROUPS})
    assert table.update({"source_id": np.arange(8) * 10})
    assert table.update({"group": GROUPS[::-1]})
    found = table.read()
    assert list(found) == ["example_id", "label", "prediction", "margin", "group", "source_id"]
    assert np.isnan(found["label"]).all()
    assert np.isnan(found["prediction"]).all()
    np.testing.assert_array_equal(found["margin"], margins)
    np.testing.assert_array_equal(found["group"], GROUPS[::-1])
    np.testing.assert_array_equal(found["source_id"], np.arange(8) * 10)


def test_the_files_of_an_edit_come_back(edit: EditStore, tmp_path: Path) -> None:
    points = [CurvePoint("coar", 3, "all", "choice", 5, 0.25), CurvePoint("random", 0, "rest", "measure", 6, -1.5)]
    edit.write_curve(points)
    edit.write_each({"example_id": np.array([4, 9]), "change": np.array([np.nan, 0.5])}, [[1], [2, 3]])
    edit.write(EDIT, "all that it depends on")
    edit.write_weights(b"weights")
    assert edit.read() == (EDIT, "all that it depends on")
    assert edit.read_curve() == points
    found = edit.read_each()
    assert found.pop("components") == [[1], [2, 3]]
    assert list(found) == ["example_id", "change"]
    np.testing.assert_array_equal(found["example_id"], [4, 9])
    np.testing.assert_array_equal(found["change"], [np.nan, 0.5])
    assert (tmp_path / "edit" / "edited.safetensors").read_bytes() == b"weights"


MISSING: dict[str, Callable[[RunDirectory], Any]] = {
    "ablate: components.parquet": lambda run: run.components,
    "ablate: examples.parquet": lambda run: ExampleTable(run).read(),
    "ablate: margins/train": lambda run: RunReader(run).margins(),
    "ablate: gradients/gradients/00000000-00000003": lambda run: run.gradients(GRADIENT_DESIGN)[0].masks(),
    "ablate: baselines/neuron_conductance_num_steps_2": lambda run: run.baseline("neuron_conductance").read((0, 3)),
    "fit: attributions/coar.00000000-00000003.parquet": lambda run: AttributionTable(run, "coar").read((0, 3)),
    "edit: edit.json": lambda run: EditStore(run).read(),
    "edit: curve.parquet": lambda run: EditStore(run).read_curve(),
    "edit: each.parquet": lambda run: EditStore(run).read_each(),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_not_there_is_named_with_the_stage_that_makes_it(tmp_path: Path, what: str) -> None:
    run = new_run(tmp_path / "run")
    set_train(run, 20, **{GRADIENT_DESIGN: RunDesign("gradients", Bernoulli(11, 4, 0.2, 1))})
    run.set_baselines({"neuron_conductance": {"num_steps": 2}})
    (tmp_path / "run" / "components.parquet").unlink()
    stage, file = what.split(": ")
    with pytest.raises(MissingWorkError, match=rf"{file} (is missing|lacks).* [Rr]un the {stage} stage"):
        MISSING[what](RunDirectory.open(run.storage))
