"""``ablated_outputs`` takes what ``attribute`` takes, by the same names, and what it took before with a warning."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import coar_dist
from coar_dist.errors import ConfigError, NoComponentsError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from tests.models import random_masks, slow_margins, small_task

TASK = small_task()
IMAGES, LABELS = TASK.examples.inputs, TASK.examples.targets
INDEX = coar_dist.ComponentIndex(
    (coar_dist.ComponentGroup.of("conv1.weight", 0, 4), coar_dist.ComponentGroup.of("conv2.weight", 0, 4))
)
MASKS = random_masks(5, 8, alpha=0.4)
TRUTH = slow_margins(TASK, INDEX, MASKS)


def test_shared_arguments_have_one_name_and_one_order() -> None:
    ours, others = (
        inspect.signature(function).parameters for function in (coar_dist.ablated_outputs, coar_dist.attribute)
    )
    own = {"masks", "precision", "plan"}
    shared = [name for name in others if name in ours]
    assert set(ours) - set(shared) == own
    assert shared[:3] == list(ours)[:3] == ["model", "inputs", "targets"]
    assert [name for name in ours if name in others] == shared
    for name in set(shared) - {"ablation_value"}:  # attribute has another place that says it
        assert ours[name].default == others[name].default, name
        assert ours[name].kind == others[name].kind, name


def test_inputs_come_in_every_form_and_components_by_name() -> None:
    examples = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)  # type: ignore[arg-type]
    forms: list[Any] = [(IMAGES, LABELS), (IMAGES.numpy(), LABELS.tolist()), (examples,), (ExampleSet(IMAGES, LABELS),)]  # type: ignore[union-attr]
    for inputs in forms:
        found = coar_dist.ablated_outputs(TASK.model, *inputs, masks=MASKS, components=INDEX)
        np.testing.assert_allclose(found, TRUTH, rtol=1e-4, atol=2e-5)
    found = coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, masks=MASKS, include=["conv*"], exclude=["grouped*"])
    np.testing.assert_allclose(found, TRUTH, rtol=1e-4, atol=2e-5)
    with pytest.raises(NoComponentsError):
        coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, masks=MASKS, include=["nothing*"])


def test_targets_are_optional_where_the_output_reads_none() -> None:
    kept = np.ones((1, 8), bool)
    with torch.no_grad():
        logits = TASK.model.eval()(IMAGES)
    arguments: dict[str, Any] = {"masks": kept, "components": INDEX, "output_function": "logit:2"}
    for inputs in (IMAGES, ExampleSet(IMAGES, torch.zeros(7)), TensorDataset(IMAGES)):  # type: ignore[arg-type]
        found = coar_dist.ablated_outputs(TASK.model, inputs, **arguments)
        np.testing.assert_allclose(found[0], logits[:, 2].numpy(), rtol=1e-4, atol=2e-5)
    with pytest.raises(TaskError, match="targets=None: every example needs a target"):
        coar_dist.ablated_outputs(TASK.model, IMAGES, masks=kept, components=INDEX)


def test_the_reference_comes_in_every_form() -> None:
    arguments: dict[str, Any] = {"masks": MASKS, "components": INDEX, "ablation_value": "mean"}
    truth = coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, **arguments, reference=IMAGES[:4])  # type: ignore[index]
    others = TensorDataset(IMAGES[:4], LABELS[:4])  # type: ignore[index]
    found = coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, **arguments, reference=others)
    np.testing.assert_array_equal(found, truth)
    assert np.abs(truth - coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, **arguments)).max() > 1e-5


def test_the_former_order_and_name_still_work_with_a_warning() -> None:
    former: Any = coar_dist.ablated_outputs
    with pytest.warns(FutureWarning, match="the order of the arguments is") as caught:
        found = former(TASK.model, INDEX, MASKS, IMAGES, LABELS, "margin")
    assert {each.filename for each in caught} == {__file__}
    np.testing.assert_allclose(found, TRUTH, rtol=1e-4, atol=2e-5)
    with pytest.warns(FutureWarning, match="the order of the arguments is"):
        found = former(TASK.model, INDEX, MASKS, inputs=IMAGES, targets=LABELS)
    np.testing.assert_allclose(found, TRUTH, rtol=1e-4, atol=2e-5)
    with pytest.warns(FutureWarning, match="output is called output_function"):
        found = former(TASK.model, IMAGES, LABELS, masks=MASKS, components=INDEX, output="logit")
    assert np.abs(found - TRUTH).max() > 0.01
    with pytest.raises(ConfigError, match=r"^output_function='logits'"):
        coar_dist.ablated_outputs(TASK.model, IMAGES, LABELS, masks=MASKS, components=INDEX, output_function="logits")
