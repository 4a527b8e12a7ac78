"""The circuit stage on whole runs: what it computes, what it does not compute twice, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import coar_dist
from coar_dist.ablation.actor import AblationActor
from coar_dist.api import Run
from coar_dist.config.schema import AblationConfig, CircuitConfig, ClusterConfig, Config, EvaluationConfig, RunConfig
from coar_dist.console.saying import Terminal
from coar_dist.errors import CoarWarning, ConfigError, MissingWorkError, RunMismatchError
from coar_dist.evaluation.necessary import masks_of_pairs, necessary
from coar_dist.report.inspection import inspect_run
from coar_dist.report.page import PAGE
from coar_dist.stages.circuit_run import outputs_over_masks
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.circuits import MAGNITUDE, SIGNED, CircuitTable
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDesign
from tests.models import randomise, slow_margins, small_task
from tests.small_run import without_ray

pytestmark = pytest.mark.usefixtures("no_fsync")

SIZES = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
NO_PLAN = AblationConfig(mode="weights", rows_per_forward=7, compile=False)


@pytest.fixture(autouse=True)
def _in_this_process() -> Iterator[None]:
    with without_ray():
        yield


def run(run_dir: Path, **options: Any) -> Run:
    task = small_task(9)
    given: dict[str, Any] = {
        "ablation": NO_PLAN,
        "num_masks": 40,
        "num_gradient_masks": 0,
        "ablation_fraction": 0.2,
        "previews": False,
        "baselines": ["leave_one_out"],
    }
    return coar_dist.attribute(
        task.model,
        task.examples.inputs,
        task.examples.targets,
        run_dir=run_dir,
        console=Console(file=io.StringIO()),
        **{**given, **options},
    )


def test_circuits_are_the_strongest_components_with_the_rest_ablated(tmp_path: Path) -> None:
    made, output = run(tmp_path), io.StringIO()
    circuit = made.circuit(SIZES, ["conv1*"], console=Console(file=output, width=120))
    assert circuit.known == ["conv1[0]", "conv1[1]", "conv1[2]", "conv1[3]"]
    assert "4 components of 12 known to do the work: conv1[0], conv1[1]" in output.getvalue()
    task, d = small_task(9), 12
    full, none = slow_margins(task, made.components, np.array([[True] * d, [False] * d])).mean(axis=1, dtype=float)
    frame, curve = circuit.to_pandas(), circuit.curve()
    assert frame.index.tolist() == ["coar", "leave_one_out", "random"]
    for method in ("coar", "leave_one_out"):
        mean = made.weights(method=method).mean(axis=0, dtype=float)
        for ranking in (SIGNED, MAGNITUDE):
            score = np.abs(mean) if ranking == MAGNITUDE else mean * np.sign(full - none)
            order = np.argsort(-score, kind="stable")
            masks = np.zeros((len(SIZES), d), dtype=bool)
            for row, size in enumerate(SIZES):
                masks[row, order[: int(size * d)]] = True
            outputs = slow_margins(task, made.components, masks).mean(axis=1, dtype=float)
            rows = curve[(curve["method"] == method) & (curve["ranking"] == ranking)]
            assert rows["num_components"].tolist() == [0, 1, 3, 6, 9, 12]
            np.testing.assert_allclose(rows["output"], outputs, rtol=0, atol=1e-5)
            np.testing.assert_allclose(rows["faithfulness"], (outputs - none) / (full - none), rtol=0, atol=1e-4)
    assert frame["cpr"].notna().all()
    assert frame.loc["random", "auroc"] == frame.loc["random", "auroc_per_example"]
    assert "faithfulness" in circuit.plot().axes[0].get_ylabel()
    assert "known conv1[0], conv1[1]" in repr(circuit)


def test_what_is_there_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, silent = run(tmp_path), Console(file=io.StringIO())
    first = made.circuit(SIZES, console=silent)
    shards = (tmp_path / "circuit/margins").rglob("*.parquet")
    margins = {path.relative_to(tmp_path): path.read_bytes() for path in shards}
    table = (tmp_path / CircuitTable.file).read_bytes()

    def never(*_: Any) -> None:
        raise AssertionError("a model is run")

    monkeypatch.setattr(AblationActor, "__init__", never)
    made.circuit(SIZES, console=silent)
    made.circuit(SIZES, ["conv1*"], console=silent)  # other scores of the same circuits
    (tmp_path / CircuitTable.file).write_bytes(b"damaged")
    again = made.circuit(SIZES, console=silent)
    assert again.found.scores.keys() == first.found.scores.keys()
    assert (tmp_path / CircuitTable.file).read_bytes() == table
    monkeypatch.undo()
    lost = next(iter(margins))
    (tmp_path / lost).unlink()
    (tmp_path / CircuitTable.file).unlink()
    made.circuit(SIZES, console=silent)
    assert (tmp_path / lost).read_bytes() == margins[lost]
    made.refit("lasso", console=silent)
    assert made.circuit(SIZES, methods=["coar_lasso"], console=silent).to_pandas().index.tolist()[0] == "coar_lasso"
    # Another fit of the same method makes other circuits, and the old scores are not shown.
    made.refit({"regularisation": 1000.0}, console=silent)
    made.circuit(SIZES, methods=["coar"], console=silent)
    made.refit({"regularisation": 1.0}, console=silent)
    with pytest.raises(MissingWorkError, match="of earlier attributions: run the circuit stage"):
        CircuitTable(made.directory).read()


def test_other_settings_replace_a_table_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, output = run(tmp_path), io.StringIO()
    console = Console(file=output, width=300)
    first = made.circuit(SIZES, console=console)
    assert "replaced" not in output.getvalue()
    other = made.circuit([0.25, 1.0], "conv1*", console=console)
    said = output.getvalue()
    assert f"{CircuitTable.file} was of sizes={SIZES}, known=None and is replaced, now of sizes=[0.25, 1.0]" in said
    assert "Its margins stay: asking for it again takes no pass." in said
    assert other.curve()["size"].unique().tolist() == [0.25, 1.0]
    with monkeypatch.context() as patched:
        patched.delattr(AblationActor, "compute")
        again = made.circuit(SIZES, console=console)
    assert again.curve().equals(first.curve())
    made.refit({"regularisation": 1000.0}, console=console)
    made.circuit(SIZES, console=console)
    assert f"{CircuitTable.file} was of earlier attributions and is replaced." in output.getvalue()
    damaged = (tmp_path / CircuitTable.file).read_bytes()[:-9]
    (tmp_path / CircuitTable.file).write_bytes(damaged)
    num_said = output.getvalue().count("replaced")
    made.circuit(SIZES, console=console)
    assert output.getvalue().count("replaced") == num_said


def test_necessary_components_are_found_by_ablating_all_pairs(tmp_path: Path) -> None:
    made = run(tmp_path)
    settings = CircuitConfig(threshold=0.4)
    circuit = made.circuit(SIZES, "necessary", settings=settings, console=Console(file=io.StringIO()))
    task, d = small_task(9), 12
    masks = np.concatenate([masks_of_pairs(d), [[True] * d, [False] * d]])
    *outputs, full, none = slow_margins(task, made.components, masks).mean(axis=1, dtype=float)
    wanted = np.flatnonzero(necessary(np.array(outputs), full, none, 0.4))
    assert circuit.found.known == tuple(wanted.tolist())


@pytest.mark.parametrize("value", ["mean", "zero", "resample", "counterfactual"])
def test_what_takes_the_place_of_components_is_that_of_the_run(tmp_path: Path, value: str) -> None:
    task = small_task(9)
    given = {"counterfactual": task.examples.inputs.roll(1, 0)} if value == "counterfactual" else {}  # type: ignore[union-attr]
    made = run(tmp_path, ablation_value=value, **given)
    circuit = made.circuit([0.0, 0.5, 1.0], console=Console(file=io.StringIO()))
    stored = coar_dist.open_run(tmp_path).directory.identity["ablation.value"]
    assert stored == value
    rises = np.sign(circuit.found.full - circuit.found.none)
    order = np.argsort(-made.weights(method="coar").mean(axis=0, dtype=float) * rises, kind="stable")
    masks = np.zeros((3, 12), dtype=bool)
    masks[1, order[:6]], masks[2] = True, True
    if value != "resample":  # which draws for every mask
        outputs = coar_dist.ablated_outputs(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            masks=masks,
            components=made.components,
            ablation_value=value,
            **given,
        )
        np.testing.assert_allclose(circuit.found.outputs["coar", SIGNED], outputs.mean(axis=1), rtol=0, atol=1e-5)
    opened = coar_dist.open_run(tmp_path)
    inputs, targets = task.examples.inputs, task.examples.targets
    if value == "counterfactual":
        with pytest.raises(RunMismatchError, match=r"ablation\.counterfactual is None"):
            opened.circuit([0.0, 1.0], model=task.model, inputs=inputs, targets=targets)
    again = opened.circuit([0.0, 0.5, 1.0], model=task.model, inputs=inputs, targets=targets, **given)
    np.testing.assert_array_equal(again.found.outputs["coar", SIGNED], circuit.found.outputs["coar", SIGNED])


def test_undefined_faithfulness_has_a_reason(tmp_path: Path) -> None:
    task, output = small_task(9), io.StringIO()
    with torch.no_grad():
        task.model.linear.weight.zero_()
    with pytest.warns(CoarWarning, match="the same margin under every mask: 9 of 9"):
        made = coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=tmp_path,
            num_masks=80,
            num_gradient_masks=0,
            baselines=["leave_one_out"],
            console=Console(file=io.StringIO()),
        )
    circuit = made.circuit([0.1, 0.5, 1.0], console=Console(file=output, width=200))
    assert circuit.to_pandas()[["cpr", "cmd"]].isna().all().all()
    assert circuit.curve()["faithfulness"].isna().all()
    assert circuit.found.reason is not None
    assert "undefined: ablating all components leaves the mean output at" in output.getvalue()
    with pytest.raises(ConfigError, match="known=necessary: ablating all components leaves the mean output at"):
        made.circuit([0.1, 0.5, 1.0], "necessary", console=Console(file=io.StringIO()))


def signed_output(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs[:, 0] * targets


def test_what_examples_cancel_has_no_circuit(tmp_path: Path) -> None:
    """Every image twice, of which the second counts nearly as much against the first: CPR would be of 1% of the sum."""
    task, output = small_task(9), io.StringIO()
    images = task.examples.inputs
    made = coar_dist.attribute(
        task.model,
        torch.cat([images, images]),  # type: ignore[list-item]
        torch.cat([torch.ones(9), torch.full((9,), -0.98)]),
        run_dir=tmp_path,
        output_function=signed_output,
        num_masks=40,
        num_gradient_masks=0,
        ablation=NO_PLAN,
        previews=False,
        console=Console(file=io.StringIO()),
    )
    circuit = made.circuit([0.1, 0.5, 1.0], console=Console(file=output, width=300))
    assert circuit.to_pandas()[["cpr", "cmd"]].isna().all().all()
    assert circuit.curve()["output"].notna().all()
    assert "which cannot be told from nothing: over the examples the standard error" in output.getvalue()
    assert "largest CPR: undefined" in repr(circuit)
    assert str(circuit.found.reason).startswith("ablating all components moves the mean output from")


def test_what_a_run_s_own_masks_do_is_read_as_far_as_it_is_there(tmp_path: Path) -> None:
    made = run(tmp_path)
    store = made.directory.margins("train")
    means = made.margins()[1].mean(axis=1, dtype=np.float64)
    np.testing.assert_allclose(outputs_over_masks(store), means, rtol=1e-6)
    more = RunDesign("train", replace(made.directory.design("train"), num_masks=60))
    made.directory.set_designs({**made.directory.designs, "train": more})
    np.testing.assert_allclose(outputs_over_masks(made.directory.margins("train")), means, rtol=1e-6)


def test_wrong_calls_say_what_is_there(tmp_path: Path) -> None:
    made = run(tmp_path)
    with pytest.raises(ConfigError, match=r"methods=\['mine'\]: there are no attributions of mine, only of"):
        made.circuit(methods=["mine"])
    with pytest.raises(ConfigError, match=r"known: there is no component 'L0H1'. Their names are conv1\[0\]"):
        made.circuit(known="L0H1")
    with pytest.raises(ConfigError, match=r"known=\*: these are all 12 components"):
        made.circuit(known="*")
    with pytest.raises(ConfigError, match=r"sizes=\[1.0, 0.5\]: must be two or more shares of the components"):
        made.circuit([1.0, 0.5])
    with pytest.raises(ConfigError, match=r"sizes=\[0.01, 0.02\]: none of them holds one of 12 .* does is 0.083"):
        made.circuit([0.01, 0.02])
    with pytest.raises(ConfigError, match="circuit: a run that was opened from its files has no model"):
        coar_dist.open_run(tmp_path).circuit()
    task = small_task(9)
    other = randomise(small_task(9).model, 5)
    with pytest.raises(RunMismatchError, match=r"model.weights is .* but the run was made with"):
        made.circuit(model=other, inputs=task.examples.inputs, targets=task.examples.targets)


def test_the_stage_runs_among_others(tmp_path: Path) -> None:
    task, output = small_task(9), io.StringIO()
    config = Config(
        ["ablate", "fit", "evaluate", "circuit", "report"],
        run=RunConfig(str(tmp_path), previews=False),
        evaluation=EvaluationConfig(num_masks=10, ablation_fractions=[0.2], curve_shares=[]),
        circuit=CircuitConfig(SIZES, known=["grouped*"]),
        ablation=NO_PLAN,
        cluster=ClusterConfig(where="process"),
    )
    config.design.num_masks, config.design.ablation_fraction = 30, 0.2
    run_stages(config, Console(file=output, width=120), task)
    assert "CPR (higher is better)" in output.getvalue()
    assert (tmp_path / "circuit/faithfulness.svg").stat().st_size > 5000
    assert "faithfulness of circuits by size" in (tmp_path / PAGE).read_text()
    listing = io.StringIO()
    assert inspect_run(storage_at(tmp_path), True, Terminal(Console(file=listing, width=200)))
    assert f"circuit: scores; their masks: coar-dist inspect run.dir={tmp_path}/circuit" in listing.getvalue()
    assert inspect_run(storage_at(tmp_path / "circuit"), True, Terminal(Console(file=io.StringIO(), width=200)))
    damaged = tmp_path / "circuit/circuit.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert not inspect_run(storage_at(tmp_path), True, Terminal(Console(file=io.StringIO(), width=200)))
    config.circuit.known = ["L9"]
    with pytest.raises(ConfigError, match=r"circuit\.known: there is no component 'L9'"):
        run_stages(config, Console(file=io.StringIO()), task)
