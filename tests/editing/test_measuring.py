"""What a sweep's margins come to, for one edit of all targets and for an edit of each, held to loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coar_dist.config.schema import EditConfig, ExampleGroup
from coar_dist.editing import plain
from coar_dist.editing.choose_sizes import choose_sizes
from coar_dist.editing.edit_each import Fixes, check_wrong, fix_each, sweep_name
from coar_dist.editing.held_out import HeldOut, measured_task, metric_of
from coar_dist.editing.plain import plain_outputs
from coar_dist.editing.sweep import Sweep, group_means, margins_of
from coar_dist.errors import ConfigError, NonFiniteMarginError
from coar_dist.store.edits import CurvePoint
from coar_dist.store.margins import MarginStore
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import local_storage, small_task

NUM_EXAMPLES, NUM_COMPONENTS, SIZES = 23, 12, (0, 1, 2, 4, 7)
RANDOM = np.random.default_rng(6)
TARGETS = np.array([2, 5, 11, 21])
ORDERS = {
    name: RANDOM.permutation(NUM_COMPONENTS) for name in ("coar", "random", *(f"coar/{target}" for target in TARGETS))
}
SWEEP = Sweep.of(ORDERS, SIZES, NUM_COMPONENTS)
MARGINS = RANDOM.normal(0.3, 1.0, (SWEEP.design.num_masks, NUM_EXAMPLES)).astype(np.float32)
MARGINS[0, TARGETS] = -1.0  # no mask is ablated: they are wrong
IS_CHOICE = RANDOM.random(NUM_EXAMPLES) < 0.5
GROUPS = {
    "all": np.arange(NUM_EXAMPLES),
    "targets": np.arange(0, NUM_EXAMPLES, 3),
    "others": np.arange(1, NUM_EXAMPLES, 2),
    "chosen on alone": np.flatnonzero(IS_CHOICE)[:3],
}


@pytest.fixture
def store(tmp_path: Path) -> MarginStore:
    number = SWEEP.design.num_masks
    store = MarginStore(
        local_storage(tmp_path), "margins/sweep", "x", NUM_COMPONENTS, number, NUM_EXAMPLES, 5, "float32"
    )
    masks = SWEEP.design.masks(0, number)
    for start, stop in ((0, 9), (9, number)):
        store.write(start, masks[start:stop], MARGINS[start:stop], {})
    return store


def held_out(metric: str) -> HeldOut:
    return HeldOut(None, metric, MARGINS[0], {}, GROUPS, IS_CHOICE)  # type: ignore[arg-type]


def mean(metric: str, mask: int, ids: Any) -> float:
    values = [float(MARGINS[mask, i] > 0) if metric == "accuracy" else float(MARGINS[mask, i]) for i in ids]
    return sum(values) / len(values)


@pytest.mark.parametrize("per_batch", [3, 256])
@pytest.mark.parametrize("metric", ["accuracy", "output"])
def test_means_of_groups_and_margins_are_those_of_the_masks(
    store: MarginStore, metric: str, per_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.editing.sweep._MASKS_PER_BATCH", per_batch)
    groups = {"a": np.array([0, 4, 5, 22]), "b": np.array([7])}
    found = group_means(store, metric, groups)
    for name, ids in groups.items():
        expected = [mean(metric, mask, ids) for mask in range(len(MARGINS))]
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    ids = np.array([22, 3, 4, 3])
    np.testing.assert_array_equal(margins_of(store, ids), MARGINS[:, ids])


@pytest.mark.parametrize("metric", ["accuracy", "output"])
@pytest.mark.parametrize("limit", [0.0, 0.05, 0.2, 10.0])
def test_sizes_are_chosen_on_one_part_and_measured_on_the_other(store: MarginStore, metric: str, limit: float) -> None:
    edit = EditConfig(improve=["targets"], keep={"others": limit})
    found = choose_sizes(held_out(metric), edit, SWEEP, store)
    choice = {name: [i for i in ids if IS_CHOICE[i]] for name, ids in GROUPS.items()}
    measure = {name: [i for i in ids if not IS_CHOICE[i]] for name, ids in GROUPS.items()}
    names = [name for name in GROUPS if measure[name]]
    assert names == ["all", "targets", "others"]
    assert found.unablated == pytest.approx({name: mean(metric, 0, measure[name]) for name in names})
    assert list(found.selected) == list(ORDERS)
    points = {}
    for selection in ORDERS:
        masks = SWEEP.masks[selection].tolist()
        allowed = [
            k
            for k, mask in enumerate(masks)
            for lost in [mean(metric, masks[0], choice["others"]) - mean(metric, mask, choice["others"])]
            if (abs(lost) if metric == "output" else lost) <= limit + 1e-9
        ]
        best = max(allowed, key=lambda k: (mean(metric, masks[k], choice["targets"]), -k))
        selected = found.selected[selection]
        assert selected.num_components == SIZES[best]
        assert selected.values == pytest.approx({name: mean(metric, masks[best], measure[name]) for name in names})
        for part, groups in (("choice", choice), ("measure", measure)):
            for name, ids in groups.items():
                for size, mask in zip(SIZES, masks, strict=True):
                    if ids:
                        points[selection, size, name, part] = (len(ids), mean(metric, mask, ids))
    curve = {(p.selection, p.num_components, p.group, p.part): (p.num_examples, p.value) for p in found.curve}
    assert all(isinstance(point, CurvePoint) for point in found.curve)
    assert curve.keys() == points.keys()
    for key, value in points.items():
        assert curve[key] == pytest.approx(value), key


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.5])
def test_each_target_gets_the_size_that_makes_it_right_and_costs_least(store: MarginStore, limit: float) -> None:
    fixes = fix_each(held_out("accuracy"), TARGETS, ["coar"], SWEEP, store, limit)["coar"]
    assert list(fixes.columns) == [
        "num_components",
        "fixed",
        "margin_before",
        "margin_after",
        "accuracy_before",
        "accuracy_after",
    ]
    for row, target in enumerate(TARGETS):
        masks = SWEEP.masks[sweep_name("coar", target)].tolist()
        choice = [i for i in range(NUM_EXAMPLES) if IS_CHOICE[i] and i != target]
        measure = [i for i in range(NUM_EXAMPLES) if not IS_CHOICE[i] and i != target]
        losses = [mean("accuracy", masks[0], choice) - mean("accuracy", mask, choice) for mask in masks]
        allowed = [k for k, mask in enumerate(masks) if MARGINS[mask, target] > 0 and losses[k] <= limit + 1e-9]
        best = min(allowed, key=lambda k: (round(losses[k], 9), k), default=0)
        found = {name: column[row] for name, column in fixes.columns.items()}
        assert found == pytest.approx(
            {
                "num_components": SIZES[best],
                "fixed": bool(allowed),
                "margin_before": MARGINS[0, target],
                "margin_after": MARGINS[masks[best], target],
                "accuracy_before": mean("accuracy", 0, measure),
                "accuracy_after": mean("accuracy", masks[best], measure),
            }
        )
    dtypes = {name: column.dtype.name for name, column in fixes.columns.items()}
    assert dtypes == {"num_components": "int64", "fixed": "bool", **dict.fromkeys(list(dtypes)[2:], "float64")}


def test_a_summary_counts_the_costs_of_what_became_right() -> None:
    columns = {
        "num_components": np.array([1, 4, 9]),
        "fixed": np.array([True, False, True]),
        "accuracy_before": np.array([0.9, 0.9, 0.8]),
        "accuracy_after": np.array([0.8, 0.1, 0.5]),
    }
    summary = Fixes(columns).summary()
    assert summary.num_components == 4
    assert summary.values == pytest.approx({"fixed": 2 / 3, "median_cost": 0.2, "worst_cost": 0.3})
    none = Fixes({**columns, "fixed": np.zeros(3, np.bool_)}).summary()
    assert none.values["fixed"] == 0.0
    assert math.isnan(none.values["median_cost"])
    assert math.isnan(none.values["worst_cost"])


def test_targets_that_are_right_already_are_refused() -> None:
    check_wrong(held_out("accuracy"), TARGETS)
    right = np.flatnonzero(MARGINS[0] > 0)
    with pytest.raises(ConfigError, match=rf"2 examples are right already, e\.g\. \[{right[0]}, {right[1]}\]"):
        check_wrong(held_out("accuracy"), np.array([2, right[0], right[1]]))


def task_of(num_examples: int, columns: dict[str, Any] | None = None) -> Task:
    task = small_task(num_examples)
    examples = ExampleSet(task.examples.inputs, task.examples.targets, columns or {})
    return Task(task.model, examples, task.output_function)


def test_plain_outputs_are_those_of_each_example_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_ROWS", 3)
    task = task_of(7, {"group": np.arange(7)})
    task.model.train()
    before = copy.deepcopy(task.model.state_dict())
    values, predictions = plain_outputs(task)
    assert task.model.training
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    with torch.no_grad():
        logits = copy.deepcopy(task.model).eval()(task.examples.inputs).double().numpy()
    assert predictions is not None
    np.testing.assert_array_equal(predictions, logits.argmax(axis=1))
    labels = task.examples.targets.numpy()
    expected = [row[label] - np.delete(row, label).max() for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(plain, "_MOST_VALUES", 7)  # two rows of three logits
    sizes: list[int] = []
    task.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    plain_outputs(task)
    assert sizes == [1, 2, 2, 2, 1]


def test_outputs_that_are_not_finite_are_named() -> None:
    task = task_of(5)
    assert isinstance(task.examples.inputs, torch.Tensor)
    task.examples.inputs[[1, 3]] = torch.nan
    with pytest.raises(NonFiniteMarginError, match="outputs of 2 examples are not finite: example 1 has nan"):
        plain_outputs(task)
    assert not task.model.training


@pytest.mark.parametrize(
    ("output", "metric", "expected"),
    [("margin", None, "accuracy"), ("loss", None, "accuracy"), ("margin", "output", "output")],
)
def test_metrics_go_with_output_functions(output: str, metric: str | None, expected: str) -> None:
    edit = EditConfig(metric=metric)
    assert metric_of(edit, output) == expected
    task = small_task()
    task = Task(task.model, task.examples, output_function(output))
    measured = measured_task(task, edit).output_function.name
    assert measured == ("margin" if expected == "accuracy" else output)


@pytest.mark.parametrize(
    ("output", "metric", "measured"),
    [
        *((name, "accuracy", "margin") for name in ("margin", "logsumexp_margin", "logit", "loss")),
        ("answer_token_margin", "accuracy", "answer_token_margin"),
        *((name, "output", name) for name in ("next_token_margin", "mean_token_logprob", "of the user's own")),
    ],
)
def test_where_outputs_say_what_is_right_accuracy_is_measured(output: str, metric: str, measured: str) -> None:
    task = small_task()
    task = Task(task.model, task.examples, replace(output_function("margin"), name=output))
    assert metric_of(EditConfig(), output) == metric
    assert measured_task(task, EditConfig()).output_function.name == measured


def test_what_says_nothing_of_right_and_wrong_has_no_accuracy() -> None:
    task = Task(small_task().model, small_task().examples, output_function("next_token_margin"))
    assert metric_of(EditConfig(), "next_token_margin") == "output"
    assert measured_task(task, EditConfig()) is task
    with pytest.raises(ConfigError, match=r"edit\.metric=accuracy: .*'next_token_margin' do not say.*metric=output"):
        measured_task(task, EditConfig(metric="accuracy"))


KINDS = np.array(["a", "b", "c"] * 10)
PAIRS = np.arange(30) // 2


def test_groups_are_of_the_conditions_and_leave_out_what_is_used() -> None:
    task = task_of(30, {"kind": KINDS, "pair": PAIRS})
    used = np.array([0, 4, 29])
    edit = EditConfig(
        target=ExampleGroup(where={"kind": "a"}, ids=[0]),
        groups={"b": ExampleGroup(where={"kind": "b"})},
        pairs="pair",
        keep={"b": 0.1},
    )
    found = HeldOut.of(task, *plain_outputs(task), edit, used)
    expected = {"all": np.ones(30, bool), "targets": KINDS == "a", "others": KINDS != "a", "b": KINDS == "b"}
    assert list(found.groups) == list(expected)
    for name, wanted in expected.items():
        assert found.groups[name].tolist() == [i for i in range(30) if wanted[i] and i not in used], name
    assert (found.is_choice[::2] == found.is_choice[1::2]).all()
    assert 0 < found.is_choice.sum() < 30
    assert found.part("b", "choice").tolist() == [i for i in found.groups["b"] if found.is_choice[i]]
    assert found.part("b", "measure").tolist() == [i for i in found.groups["b"] if not found.is_choice[i]]
    assert list(found.columns) == ["example_id", "label", "prediction", "margin", "kind", "pair"]
    np.testing.assert_array_equal(found.columns["label"], task.examples.targets)
    np.testing.assert_array_equal(found.columns["example_id"], np.arange(30))
    metrics = found.metrics(np.array([1.0, -3.0, 2.0, 4.0], np.float32))
    assert metrics == pytest.approx({"accuracy": 0.75, "output": 1.0})
    without = HeldOut.of(task, *plain_outputs(task), EditConfig(target=ExampleGroup(ids=[0]), improve=["others"]), used)
    assert list(without.groups) == ["all", "others"]
    np.testing.assert_array_equal(without.groups["others"], without.groups["all"])


def test_the_correlation_of_two_forms_is_of_pairs_that_are_measured_on() -> None:
    task = task_of(30, {"form": np.array(["with", "without"] * 15), "pair": PAIRS})
    edit = EditConfig(target=ExampleGroup(where={"form": "with"}), pairs="pair")
    found = HeldOut.of(task, *plain_outputs(task), edit, np.array([], np.int64))
    outputs = np.random.default_rng(1).normal(size=30).astype(np.float32)
    measured = [pair for pair in range(15) if not found.is_choice[2 * pair]]
    expected = np.corrcoef([[outputs[2 * pair + form] for pair in measured] for form in (0, 1)])[0, 1]
    assert found.paired_correlation("pair", "targets", outputs) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("edit", "used", "message"),
    [
        (EditConfig(), range(30), r"edit\.reference: targets and references are all examples of the run"),
        (
            EditConfig(improve=["others"], pairs="couple"),
            (),
            r"pairs='couple': .* no such column, but example_id",
        ),
        (
            EditConfig(),
            (),
            r"edit\.improve: there is no group 'targets' among the held-out examples, as edit\.target has no condition",
        ),
        (EditConfig(improve=["others"], keep={"b": 0.1}), (), r"edit\.keep: there is no group 'b'"),
        (
            EditConfig(target=ExampleGroup(where={"kind": "a"})),
            range(3, 30),
            r"edit\.improve: of the group 'targets' there are [01] held-out examples to choose on and [01] to measure",
        ),
    ],
)
def test_what_cannot_be_chosen_or_measured_on_is_refused(edit: EditConfig, used: Any, message: str) -> None:
    task = task_of(30, {"kind": KINDS})
    outputs, predictions = plain_outputs(task)
    with pytest.raises(ConfigError, match=message):
        HeldOut.of(task, outputs, predictions, edit, np.array(used, np.int64))
