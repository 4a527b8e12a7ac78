"""Calls as a new user gets them wrong: each ends in an error that names the argument, its value and the way out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import coar_dist
from coar_dist.errors import CoarDistError, ComponentMismatchError, ConfigError, MissingWorkError, RunMismatchError
from tests.models import small_task
from tests.small_run import without_ray

TASK = small_task()
IMAGES, LABELS = TASK.examples.inputs, TASK.examples.targets
KEPT = np.ones((2, 12), bool)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> coar_dist.Run:
    with without_ray():
        return coar_dist.attribute(
            TASK.model, IMAGES, LABELS, run_dir=tmp_path_factory.mktemp("wrong") / "run", num_masks=60, progress=False
        )


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (TASK.model, {"components": "conv_filter"}, r"components='conv_filter': must be .* Did you mean conv_filters\?"),
    (TASK.model, {"include": "conv*"}, r"include='conv\*': must be a list, e\.g\. \['conv\*'\]\."),
    (TASK.model, {"exclude": "conv*"}, r"exclude='conv\*': must be a list"),
    (TASK.model, {"design": "bernouli"}, r"design='bernouli': must be .* Did you mean bernoulli\?"),
    (TASK.model, {"output_function": "margins"}, r"output_function='margins': must be .* Did you mean margin\?"),
    (TASK.model, {"seed": "a"}, "seed='a': must be a whole number."),
    (TASK.model, {"ablation_fraction": 5}, "ablation_fraction=5: must be a number strictly between 0 and 1.$"),
    (TASK.model, {"evaluation": 10}, "evaluation=10: must be an EvaluationConfig, a dict"),
    (TASK.model, {"columns": [1, 2]}, "columns is a list, but must be a dict"),
    (TASK.model, {"targets": ["a"] * 7}, r"targets holds strings\. Give class labels as integers"),
    (TASK.model, {"targets": np.array(["a"] * 7)}, r"targets holds strings\. Give class labels as integers"),
    (TASK.model, {"run_dir": 3}, r"run_dir=3: must be a path, or s3://bucket/prefix\."),
    (copy.deepcopy(TASK.model).to("meta"), {}, "the model is on the meta device"),
    (lambda images: images, {}, r"model is a function, not a torch\.nn\.Module"),
    (nn.Linear, {}, r"model is the class Linear, not a model\. Call it: Linear\(\.\.\.\)"),
]


@pytest.mark.parametrize(("model", "wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_arguments_of_attribute(model: Any, wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"targets": LABELS, "run_dir": tmp_path / "run", "progress": False, **wrong}
    with pytest.raises(CoarDistError, match=f"^{message}"):
        coar_dist.attribute(model, IMAGES, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda run: coar_dist.open_run(None), ConfigError, "run_dir=None: must be a path"),
        (
            lambda run: coar_dist.open_run("nowhere"),
            CoarDistError,
            r".*Correct run_dir, or make one with coar_dist\.attribute",
        ),
        (lambda run: coar_dist.load_edit("nowhere"), CoarDistError, "nowhere is no edit"),
        (
            lambda run: coar_dist.load_edit(run.path),
            MissingWorkError,
            r".*is missing: make it with run\.edit",
        ),
        (lambda run: run.top("cat"), IndexError, "example ids must be integers, not the text 'cat'"),
        (lambda run: run.by_method("ridge").values, ConfigError, "method='ridge': must be one that the run has: coar"),
        (lambda run: run.predict(off=KEPT[0]), ConfigError, "off is a bool array, but must be ids or names"),
        (lambda run: run.edit("1"), ConfigError, "'1' is no group of examples: give ids"),
        (lambda run: run.edit(1.5), ConfigError, r"1\.5 is no group of examples: give ids"),
        (lambda run: run.plot.predictions([]), ConfigError, "there is no example: name at least one"),
        (lambda run: coar_dist.find_components(len), CoarDistError, r"model is a builtin.*, not a torch\.nn\.Module"),
        (
            lambda run: coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, masks=KEPT, precision="fp16"),
            ConfigError,
            "precision='fp16': must be one of float32, bfloat16",
        ),
        (
            lambda run: coar_dist.attribute(TASK.model, IMAGES, LABELS, run_dir=run.path, seed=1),
            RunMismatchError,
            r"seed is 1, but design 'train' of .* Use another run_dir, or seed=0\.",
        ),
    ],
    ids=range(13),
)
def test_calls_of_what_comes_after(
    call: Callable[[coar_dist.Run], Any], kind: type[Exception], message: str, run: coar_dist.Run
) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        call(run)


def test_fingerprints_in_messages_are_short(run: coar_dist.Run) -> None:
    other = small_task(seed=1).model
    short = r"'sha256:[0-9a-f]{8}\.\.\.'"
    with pytest.raises(RunMismatchError, match=rf"model\.weights is {short}, but the run was made with {short}\."):
        run.ablate(other, off=[0])
    edit = run.edit([0, 1], max_components=2, progress=False)
    with pytest.raises(ComponentMismatchError, match=r"weights sha256:[0-9a-f]{8}\.\.\., but this SmallResNet has"):
        edit.edited(other)
    with pytest.raises(MissingWorkError, match=r"is a run, not an edit\. Its edits are edit, in .*/run/edits\."):
        coar_dist.load_edit(run.path)


def test_what_is_shown_of_an_object_fits_in_a_line(run: coar_dist.Run) -> None:
    shown = [repr(each) for each in (run, run[:2], run.components, run.components[3], TASK.examples, run.plot)]
    assert all(len(text) < 200 and "\n" not in text for text in shown)
    assert shown[2] == "ComponentIndex(12 filters in 3 groups, conv1[0] to grouped[3])"
    assert shown[4] == "ExampleSet(7 examples: inputs float32 (7, 1, 6, 6), targets int64 (7,))"


def test_masks_may_be_tensors() -> None:
    masks = torch.from_numpy(KEPT)
    found: Any = coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, masks=masks)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, masks=KEPT))
