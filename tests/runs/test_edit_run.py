"""Edits from the model to the exported weights, held to models that are edited by hand."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

import coar_dist
from coar_dist.config.methods import label_of
from coar_dist.config.schema import ExamplesConfig, SubsetConfig
from coar_dist.editing.criterion import split
from coar_dist.editing.plain import plain_outputs
from coar_dist.errors import ComponentMismatchError, ConfigError, DamagedFileError, RunMismatchError
from coar_dist.report.page import PAGE
from coar_dist.report.page.edits import gather_edits
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import SmallResNet, randomise, slow_margins
from tests.small_run import without_ray

NUM_EXAMPLES = 80
SELECTIONS = ["leave_one_out", "greedy", "magnitude", "random"]


@pytest.fixture(scope="module")
def task() -> Task:
    """A small net trained on bright bars at three places, in noise enough for errors; ``group`` is the place."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallResNet()
        labels = torch.arange(NUM_EXAMPLES) % 3
        images = torch.randn(NUM_EXAMPLES, 1, 6, 6)
        images[torch.arange(NUM_EXAMPLES), 0, 2 * labels] += 1.2
        optimizer = torch.optim.Adam(model.parameters(), 0.03)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images + torch.randn_like(images)), labels).backward()
            optimizer.step()
    return Task(model.eval(), ExampleSet(images, labels, {"group": labels.numpy()}), output_function("margin"))


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> coar_dist.Run:
    with without_ray():
        return coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            columns=task.examples.columns,
            run_dir=tmp_path_factory.mktemp("runs") / "edited",
            num_masks=100,
            ablation_fraction=0.2,
            baselines=["leave_one_out"],
            console=Console(file=io.StringIO()),
        )


def edit(run: coar_dist.Run, *arguments: Any, **options: Any) -> tuple[coar_dist.Edit, str]:
    """The edit, and what was printed."""
    printed = io.StringIO()
    with without_ray():
        made = run.edit(*arguments, **options, console=Console(file=printed, width=200))
    return made, printed.getvalue()


LOWER = {"target": {"where": {"group": 1}, "sample": 6}, "reference": {"sample": 20}, "direction": "lower"}


@pytest.fixture(scope="module")
def lowered(run: coar_dist.Run) -> tuple[coar_dist.Edit, str]:
    return edit(
        run, **LOWER, max_components=6, name="lowered", compare=SELECTIONS, metric="output", keep={"others": 1.0}
    )


def zeroed(model: nn.Module, edit_json: dict[str, Any]) -> nn.Module:
    """A copy with the slices zeroed that ``edit.json`` spells out."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for entry in edit_json["components"]:
            for part in entry["slices"]:
                model.get_parameter(part["parameter"]).narrow(part["axis"], part["start"], part["size"]).zero_()
    return model


def margins_of(model: nn.Module, task: Task) -> NDArray[np.float32]:
    with torch.no_grad():
        return task.output_function(model(task.examples.inputs), task.examples.targets).numpy()


def test_what_is_exported_gives_the_measured_numbers(
    run: coar_dist.Run, task: Task, lowered: tuple[coar_dist.Edit, str]
) -> None:
    made, printed = lowered
    folder = Path(made.storage)
    record = json.loads((folder / "edit.json").read_text())
    assert 1 <= len(made.component_ids) <= 6
    assert [entry["component_id"] for entry in record["components"]] == list(made.component_ids)
    plain = SmallResNet().eval()
    plain.load_state_dict(safetensors.torch.load_file(folder / "edited.safetensors"))
    by_hand = zeroed(task.model, record)
    assert all(torch.equal(v, by_hand.state_dict()[k]) for k, v in plain.state_dict().items())
    before, after = margins_of(task.model, task), margins_of(plain, task)
    used = set(made.targets) | set(made.references)
    is_choice = split(NUM_EXAMPLES, 0.5, 0, None)
    ids = np.array([i for i in range(NUM_EXAMPLES) if i not in used and not is_choice[i]])
    groups = {"all": ids, "targets": ids[ids % 3 == 1], "others": ids[ids % 3 != 1]}
    assert set(made.measured) == set(groups)
    for name, members in groups.items():
        found = made.measured[name]
        assert found.num_examples == len(members)
        for values, stored in ((before, found.before), (after, found.after)):
            assert stored["accuracy"] == float((values[members] > 0).mean())
            assert stored["output"] == pytest.approx(float(values[members].astype(np.float64).mean()), abs=1e-7)
            assert stored["accuracy"] == pytest.approx(
                float((margins_of(task.model if values is before else by_hand, task)[members] > 0).mean())
            )
    assert made.measured["targets"].after["output"] < made.measured["targets"].before["output"] - 0.1
    for name in ("COAR", "Leave-one-out", "greedy", "magnitude", "random", "nothing"):
        assert name in printed
    assert (folder / "curve.png").exists()


def test_scores_are_the_t_statistic(run: coar_dist.Run, lowered: tuple[coar_dist.Edit, str]) -> None:
    made, _ = lowered
    targets = run.weights(list(made.targets)).astype(np.float64)
    references = run.weights(list(made.references)).astype(np.float64)
    scores = np.array(
        [
            (t.mean() - r.mean()) / np.sqrt(t.var() / len(t) + r.var() / len(r))
            for t, r in zip(targets.T, references.T, strict=True)
        ]
    )
    order = np.argsort(-scores, kind="stable")  # to lower, the highest are ablated
    assert list(made.component_ids) == order[: len(made.component_ids)].tolist()
    np.testing.assert_allclose(made.scores, scores[list(made.component_ids)], rtol=1e-9)
    assert set(made.targets) <= set(range(1, NUM_EXAMPLES, 3))
    assert not set(made.references) & set(range(1, NUM_EXAMPLES, 3))  # none that is like the targets


def test_the_curve_is_the_truth_at_every_size(
    run: coar_dist.Run, task: Task, lowered: tuple[coar_dist.Edit, str]
) -> None:
    import pyarrow.parquet as pq

    made, _ = lowered
    rows = pq.read_table(Path(made.storage) / "curve.parquet").to_pylist()
    assert {row["selection"] for row in rows} == {"coar", *SELECTIONS}
    used = set(made.targets) | set(made.references)
    is_choice = split(NUM_EXAMPLES, 0.5, 0, None)
    weights_of = {"coar": "coar", "leave_one_out": "leave_one_out"}
    for selection, method in weights_of.items():
        targets, references = (run.weights(list(ids), method) for ids in (made.targets, made.references))
        spread = np.sqrt(targets.var(0, dtype=float) / len(targets) + references.var(0, dtype=float) / len(references))
        difference = targets.mean(0, dtype=float) - references.mean(0, dtype=float)
        scores = np.divide(difference, spread, out=np.zeros(len(spread)), where=spread > 0)  # of dead filters 0
        order = np.argsort(-scores, kind="stable")
        masks = np.ones((7, run.components.num_components), dtype=bool)
        for size in range(7):
            masks[size, order[:size]] = False
        truth = slow_margins(task, run.components, masks)
        found = [row for row in rows if row["selection"] == selection]
        assert len(found) == 7 * 3 * 2
        for row in found:
            ids = [i for i in range(NUM_EXAMPLES) if i not in used and is_choice[i] == (row["part"] == "choice")]
            ids = [i for i in ids if row["group"] == "all" or (i % 3 == 1) == (row["group"] == "targets")]
            assert row["num_examples"] == len(ids)
            assert row["value"] == pytest.approx(truth[row["num_components"], ids].mean(), abs=1e-4)


class Keeping(nn.Conv2d):
    """Reads its weight at its first pass in eval mode alone, as LeViT does its attention biases."""

    kept: Tensor | None = None

    def train(self, mode: bool = True) -> Keeping:
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.weight.detach().clone()
        return self._conv_forward(x, self.kept, self.bias)


def test_what_a_module_keeps_of_its_weights_is_edited_too(task: Task, lowered: tuple[coar_dist.Edit, str]) -> None:
    model = copy.deepcopy(task.model)
    plain = margins_of(model, task)
    with lowered[0].applied(model):
        edited = margins_of(model, task)
    assert not np.array_equal(edited, plain)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = Keeping
    np.testing.assert_array_equal(margins_of(model, task), plain)  # from now on all weights are kept
    with lowered[0].applied(model):
        np.testing.assert_array_equal(margins_of(model, task), edited)
    np.testing.assert_array_equal(margins_of(model, task), plain)
    np.testing.assert_array_equal(margins_of(lowered[0].edited(model), task), edited)
    np.testing.assert_array_equal(margins_of(model, task), plain)
    assert not any(module.training for module in model.modules())


def test_an_edit_is_applied_and_undone(task: Task, lowered: tuple[coar_dist.Edit, str]) -> None:
    made = coar_dist.load_edit(lowered[0].storage)
    model = copy.deepcopy(task.model)
    bits = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_hand = margins_of(zeroed(model, json.loads((Path(made.storage) / "edit.json").read_text())), task)
    with made.applied(model) as same:
        assert same is model
        np.testing.assert_array_equal(margins_of(model, task), by_hand)
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Expected 3D"), made.applied(model):
        model(torch.zeros(2))
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    np.testing.assert_array_equal(margins_of(made.edited(model), task), by_hand)
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    other = randomise(SmallResNet(), seed=9)
    with pytest.raises(ComponentMismatchError, match=r"'lowered' .* was made for a model with weights sha256:"):
        made.edited(other)
    with pytest.raises(ConfigError, match=r"example_id=3: the edit 'lowered' is one for all its targets"):
        made.edited(model, example_id=3)


def test_the_page_shows_what_was_measured(run: coar_dist.Run, lowered: tuple[coar_dist.Edit, str]) -> None:
    made, printed = lowered
    shown = {edit.name: edit for edit in gather_edits(run.directory)}["lowered"]
    zero = [name for name, found in made.selected.items() if found.num_components == 0]
    assert len(shown.notes) == bool(zero) + any(found.num_components == 6 for found in made.selected.values())
    assert all(note in printed for note in shown.notes)
    assert shown.metrics == ["accuracy", "mean output"]
    for row in shown.measured:
        measured = made.measured[row.group]
        assert row.num_examples == measured.num_examples
        assert row.cells == [(measured.before[metric], measured.after[metric]) for metric in ("accuracy", "output")]
    assert [name for name, *_ in shown.selected] == ["nothing", *map(label_of, made.selected)]
    assert shown.components == [run.components.name_of(component) for component in made.component_ids]
    first = made.component_ids[0]
    assert shown.components[0] == "{module}[{index}]".format(**run.components.to_frame().loc[first])
    assert "<svg" in shown.figure


def test_a_page_that_is_there_is_said_to_be_older(run: coar_dist.Run, lowered: tuple[coar_dist.Edit, str]) -> None:
    said = "index.html is as it was; it shows the edit after stages=[report]"
    assert said not in lowered[1]  # there is none
    with without_ray():
        text = Path(run.write_report(progress=False)).read_text()
    shown = text[text.index('<section id="edits">') : text.index('<section id="quality">')]
    made = lowered[0]
    for component in made.component_ids:
        name = run.components.name_of(component)
        assert f'<a href="#component-{quote(name)}"><code>{name}</code></a>' in shown
    assert "`" not in shown
    assert "within the limits." in shown or "more may do better." in shown
    options = {"max_components": 6, "name": "lowered", "compare": SELECTIONS, "metric": "output"}
    _, printed = edit(run, **LOWER, **options, keep={"others": 1.0})
    assert "is there already" in printed
    assert said in " ".join(printed.split())
    Path(run.directory.storage.location, PAGE).unlink()


def test_finished_edits_are_found_and_broken_ones_continue(run: coar_dist.Run) -> None:
    options = {**LOWER, "max_components": 4, "name": "broken", "metric": "output", "keep": {"others": 1.0}}
    made, printed = edit(run, **options)
    assert "5 masks x 80 examples" in printed
    folder = Path(made.storage)
    again, printed = edit(run, **options)
    assert again == made
    assert "is there already" in printed
    assert " masks x" not in printed
    written = (folder / "edit.json").read_bytes()
    (folder / "edit.json").write_bytes(written.replace(b'"lower"', b'"raise"'))
    with pytest.raises(DamagedFileError, match="checksum"):
        coar_dist.load_edit(folder)
    again, printed = edit(run, **options)
    assert "5 masks: all there already" in printed
    assert (folder / "edit.json").read_bytes() == written
    _, printed = edit(run, **{**options, "max_components": 1})
    assert "holds an edit of other settings or attributions, which this one replaces" in printed
    again, printed = edit(run, **options)
    assert "which this one replaces" in printed
    assert again == made
    for shard in (folder / "margins").rglob("*.parquet"):
        shard.unlink()
    (folder / "edit.json").unlink()
    (name,) = coar_dist.open_run(folder).directory.designs
    swept = folder / "designs" / f"{name}.parquet"
    masks = swept.read_bytes()
    swept.write_bytes(masks[:-1])
    again, printed = edit(run, **options)
    assert "5 masks x 80 examples" in printed
    assert swept.read_bytes() == masks
    assert (folder / "edit.json").read_bytes() == written


def test_every_wrong_prediction_has_an_edit_of_its_own(run: coar_dist.Run, task: Task) -> None:
    made, printed = edit(
        run, {"correct": False}, {"correct": True, "sample": 20}, max_components=5, each=True, keep={"all": 0.5},
        name="fixes", compare=["random"],
    )  # fmt: skip
    import pyarrow.parquet as pq

    before = margins_of(task.model, task)
    assert list(made.targets) == np.flatnonzero(before <= 0).tolist()
    rows = pq.read_table(Path(made.storage) / "each.parquet").to_pylist()
    assert [row["example_id"] for row in rows] == list(made.targets)
    is_choice = split(NUM_EXAMPLES, 0.5, 0, None)
    others = [i for i in range(NUM_EXAMPLES) if i not in made.references and not is_choice[i]]
    for row in rows:
        masks = np.ones((1, run.components.num_components), dtype=bool)
        masks[0, row["components"]] = False
        after = slow_margins(task, run.components, masks)[0]
        target = row["example_id"]
        ids = [i for i in others if i != target]
        assert row["margin_after"] == pytest.approx(after[target], abs=1e-4)
        assert row["fixed"] == (after[target] > 0)
        assert len(row["components"]) == row["num_components"]
        assert row["accuracy_after"] == pytest.approx((after[ids] > 0).mean())
        assert row["accuracy_before"] == pytest.approx((before[ids] > 0).mean())
    fixed = [row for row in rows if row["fixed"]]
    costs = [row["accuracy_before"] - row["accuracy_after"] for row in fixed]
    assert made.each is not None
    assert len(fixed) > 0
    assert made.each["fixed"] == pytest.approx(len(fixed) / len(rows))
    assert made.each["median_cost"] == pytest.approx(np.median(costs))
    assert made.each["worst_cost"] == pytest.approx(max(costs))
    assert "made right" in printed
    target = fixed[0]["example_id"]
    edited = made.edited(task.model, example_id=target)
    assert margins_of(edited, task)[target] > 0
    with pytest.raises(ConfigError, match="has one edit per target"):
        made.edited(task.model)
    with pytest.raises(ConfigError, match=r"example_id=-1: the targets of 'fixes' are"):
        made.edited(task.model, example_id=-1)


def test_held_out_examples_of_two_forms(run: coar_dist.Run, task: Task) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(30, 1, 6, 6, generator=generator)
    both = torch.stack([images, images + 0.5], dim=1).flatten(0, 1)
    with torch.no_grad():
        labels = task.model(images).argmax(dim=1).repeat_interleave(2)
    columns = {"pair": np.repeat(np.arange(30), 2), "group": np.tile([0, 1], 30)}
    held_out = ExampleSet(both, labels, columns)
    made, printed = edit(
        run, {"where": {"group": 1}, "sample": 5}, {"sample": 10}, max_components=3, held_out=held_out, pairs="pair",
        keep={"others": 0.2}, name="pairs",
    )  # fmt: skip
    measured = np.flatnonzero(~split(60, 0.5, 0, columns["pair"]))
    of_pairs = Task(task.model, held_out, task.output_function)
    for model, found in zip((task.model, made.edited(task.model)), made.paired_correlation or (), strict=True):
        margins = margins_of(model, of_pairs)[measured]
        assert found == pytest.approx(np.corrcoef(margins[::2], margins[1::2])[0, 1], abs=1e-6)
    assert made.measured["targets"].num_examples == 15
    assert "both forms" in printed


def test_groups_are_functions_too_and_the_worst_of_them_counts(run: coar_dist.Run) -> None:
    groups = {f"group_{i}": {"where": {"group": i}} for i in range(3)}
    made, _ = edit(
        run, lambda columns: (columns["group"] == 2) & (columns["margin"] < 3), {"classes": [0, 1], "sample": 20},
        max_components=3, groups=groups, improve=list(groups), keep={"all": 0.1}, name="worst",
    )  # fmt: skip
    assert "lowest of `group_0`" in made.criterion
    assert set(made.measured) >= {"others", "all", *groups}
    assert all(target % 3 == 2 for target in made.targets)


def custom(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.gather(1, targets[:, None]).squeeze(1) * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": {"classes": [7]}}, r"^target\.classes=\[7\] leaves no example: 80 examples"),
        ({"target": {}}, r"^target has no condition"),
        ({"target": [1, 2], "reference": [2, 3]}, r"^reference: 1 of its 2 examples are targets too, first \[2\]"),
        ({"target": [1], "max_components": 999, "improve": ["all"]}, r"^max_components=999: the model has 12 "),
        ({"target": {"where": {"shape": 1}}}, r"there is no column 'shape'; the examples have example_id"),
        ({"target": [1], "method": "shapley"}, r"^method='shapley': must be one of gradient_ridge, coar, coar_la"),
        ({"target": [1], "compare": ["coar"], "method": "coar"}, r"^compare=\['coar'\]: coar is method already"),
        ({"target": [1], "direction": "up"}, r"^direction='up': must be one of raise, lower"),
        ({"target": [1], "keep": {"all": -1.0}}, r"^keep\.all=-1\.0: must be a finite number, at least 0"),
        ({"target": [1], "keep": {"dogs": 0.1}}, r"^keep: there is no group 'dogs'.*use: all, targets, others"),
        ({"target": [1], "colour": 3}, r"edit: unknown option 'colour'; the options are name, target"),
        ({"target": {"colour": 3}}, r"a group of examples has no condition 'colour'; the conditions are ids, classes"),
        ({"target": {"correct": True}, "each": True}, r"^target: \d+ examples are right already, e\.g\. \[0, "),
        ({"target": [0], "each": True, "direction": "lower"}, r"^direction=lower: each makes wrong predictions right"),
        ({"target": [0], "each": True, "pairs": "group"}, r"^pairs='group' has no effect with each:"),
        ({"target": [1], "name": "../up"}, r"^name='\.\./up': must be a name of a folder"),
        ({"target": {"correct": True}, "reference": {"correct": False}}, r"none are left to choose and to measure on"),
        ({"target": {"classes": [1], "sample": 3}, "reference": {"sample": 3}, "pairs": "no"}, r"^pairs='no': "),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(run: coar_dist.Run, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        edit(run, **{"name": "refused", **arguments})


def test_targets_by_their_ids_are_measured_themselves(run: coar_dist.Run) -> None:
    made, _ = edit(
        run, target=[1, 4], direction="lower", max_components=3, keep={"others": 5.0}, metric="output", name="ids"
    )
    assert made.targets == (1, 4)
    assert made.criterion.endswith("`others` changes by no more than 5 (chosen and measured on the targets themselves)")
    margins = run.examples()["margin"]
    assert made.measured["targets"].num_examples == 2
    assert made.measured["targets"].before["output"] == pytest.approx(float(margins[[1, 4]].mean()), rel=1e-5)
    assert made.component_ids
    assert made.measured["targets"].after["output"] < made.measured["targets"].before["output"]


def test_examples_by_name_beside_a_model_in_memory(run: coar_dist.Run, task: Task, tmp_path: Path) -> None:
    path = tmp_path / "held_out.npz"
    np.savez(path, images=task.examples.inputs.numpy() + 0.1, labels=task.examples.targets.numpy())
    arguments = {"path": str(path), "inputs": "images", "targets": "labels"}
    examples = ExamplesConfig("numpy_arrays", arguments, SubsetConfig(first=50))
    options: dict[str, Any] = {
        **LOWER,
        "target": {"classes": [1], "sample": 6},
        "max_components": 2,
        "metric": "output",
    }
    made, _ = edit(run, **options, examples=examples, name="by_name")
    assert sum(found.num_examples for name, found in made.measured.items() if name != "all") == 25
    held_out = task.examples.rows(0, 30)
    with pytest.raises(ConfigError, match=r"held_out has no effect beside examples\."):
        edit(run, **options, examples=examples, held_out=held_out)
    with pytest.raises(ConfigError, match=r"held_out has no effect beside each,"):
        edit(run, {"correct": False}, each=True, held_out=held_out)
    model = copy.deepcopy(task.model).train()
    outputs, predictions = plain_outputs(Task(model, task.examples, task.output_function))
    assert model.training
    np.testing.assert_array_equal(outputs, margins_of(task.model, task))
    np.testing.assert_array_equal(predictions == task.examples.targets.numpy(), outputs > 0)


class InADictionary(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"scores": self.inner(images)}


def test_outputs_without_logits_have_no_predictions(task: Task) -> None:
    of_scores = output_function(lambda outputs, targets: custom(outputs["scores"], targets))
    outputs, predictions = plain_outputs(Task(InADictionary(task.model).eval(), task.examples, of_scores))
    assert predictions is None
    with torch.no_grad():
        np.testing.assert_array_equal(outputs, custom(task.model(task.examples.inputs), task.examples.targets).numpy())


def test_another_model_is_refused(run: coar_dist.Run, task: Task) -> None:
    inputs, targets = task.examples.inputs, task.examples.targets
    other = randomise(SmallResNet(), seed=9)
    with pytest.raises(RunMismatchError, match=r"model\.weights is .* explains .*An edit is made for the model"):
        edit(run, [1], improve=["all"], model=other, inputs=inputs, targets=targets)
    with pytest.raises(RunMismatchError, match="examples is "):
        edit(run, [1], improve=["all"], model=task.model, inputs=inputs + 1, targets=targets)
    opened = coar_dist.open_run(run.directory.storage.location)
    with pytest.raises(ConfigError, match="opened from its files has no model: give model, inputs and targets"):
        edit(opened, [1])
    model = {"model": task.model, "inputs": inputs, "targets": targets, "columns": task.examples.columns}
    made, _ = edit(opened, **LOWER, **model, max_components=2, metric="output", name="opened")
    assert made.metric == "output"
    with pytest.raises(ConfigError, match=r"metric=accuracy: values of task\.output_function='.*custom' do not"):
        edit(opened, **LOWER, **model, output_function=custom, metric="accuracy")
