"""Inputs and targets in the forms that callers have them in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from coar_dist.errors import TaskError
from coar_dist.tasks.build import as_example_set, given_reference, given_task
from coar_dist.tasks.given import gathered

ROWS = np.random.default_rng(0).normal(size=(6, 3)) * 3 + 100
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


def linear(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_arrays_and_frames_are_taken_in_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    expected = torch.tensor(ROWS).to(dtype)
    for given in (ROWS, ROWS[::-1][::-1], pd.DataFrame(ROWS)):
        task = given_task(linear(dtype), given, LABELS, None, "margin", given)
        assert isinstance(task.examples.inputs, Tensor)
        assert isinstance(task.examples.counterfactual, Tensor)
        for tensor in (task.examples.inputs, task.examples.counterfactual):
            assert tensor.dtype == dtype
            assert torch.equal(tensor, expected)
        task.check()
    reference = given_reference(linear(dtype), pd.DataFrame(ROWS))
    assert reference is not None
    assert torch.equal(reference.inputs, expected)  # type: ignore[arg-type]


def test_whole_numbers_and_tensors_stay_as_they_are() -> None:
    for given in (np.arange(6), torch.tensor(ROWS)):
        found = given_task(linear(), given, LABELS, None, "margin").examples.inputs
        assert isinstance(found, Tensor)
        assert found.dtype == torch.as_tensor(given).dtype


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.tensor(ROWS), r"\(The model's weights are torch.float32, which tensor.to\(torch.float32\) makes"),
        (torch.zeros(6, 3, dtype=torch.uint8), r"tensor.to\(torch.float32\) makes of the inputs.*uint8 pixels"),
        (torch.zeros(6, 4), r"shapes cannot be multiplied \(2x4 and 3x2\)$"),
    ],
)
def test_another_dtype_than_the_weights_has_a_way_out(inputs: Tensor, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        given_task(linear(), inputs, LABELS, None, "margin").check()


def test_lists_of_pairs_and_of_tensors() -> None:
    rows = torch.tensor(ROWS).float()
    for labels in (LABELS, LABELS.tolist()):
        given = list(zip(rows, labels, strict=True))
        inputs, targets = gathered(given, None)
        assert torch.equal(inputs, rows)
        assert torch.equal(targets, LABELS)
    inputs, targets = gathered(list(rows), LABELS)
    assert torch.equal(inputs, rows)
    assert targets is LABELS
    with pytest.raises(TaskError, match=r"the tensors of the list do not fit together: .*Pad them to one shape"):
        gathered([rows, rows[:2]], None)


@pytest.mark.parametrize("key", ["labels", "label"])
def test_targets_within_a_dict(key: str) -> None:
    inputs, targets = gathered({"input": ROWS, key: LABELS}, None)
    assert list(inputs) == ["input"]
    assert targets is LABELS
    inputs, targets = gathered({"input": ROWS, key: LABELS}, -LABELS)
    assert list(inputs) == ["input", key]
    assert torch.equal(targets, -LABELS)
    examples = as_example_set(linear(), {"input": ROWS, key: LABELS})
    assert examples is not None
    assert torch.equal(examples.targets, LABELS)


def test_targets_that_need_not_be_given() -> None:
    def first(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0]

    for function in ("value:1", "logit:0", first):
        assert given_task(linear(), ROWS, None, None, function).examples.targets.shape == (6, 0)
    for function in ("margin", "squared_error"):
        with pytest.raises(TaskError, match="targets=None: every example needs a target"):
            given_task(linear(), ROWS, None, None, function)
    tokens = torch.arange(1, 13).reshape(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    model: Any = nn.Embedding(20, 20)
    found = given_task(model, {"input_ids": tokens, "attention_mask": mask}, None, None, "next_token_margin")
    assert found.examples.targets.tolist() == [[1, 2, 3, 4], [5, 6, -100, -100], [9, 10, 11, -100]]
    found = given_task(model, {"input_ids": tokens.numpy()}, None, None, "next_token_margin")
    assert torch.equal(found.examples.targets, tokens)
