"""Outputs of regressions, of binary and multi-label classifiers, and of one class or column."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import coar_dist
from coar_dist.errors import TaskError
from coar_dist.tasks.logits import predicted_classes
from coar_dist.tasks.outputs import output_function
from tests.small_run import without_ray

OUTPUTS = torch.tensor([[1.5, -2.0, 0.25], [0.5, 3.0, -1.0]])


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "expected"),
    [
        ("value", OUTPUTS[:, :1], torch.zeros(2), [1.5, 0.5]),
        ("value", OUTPUTS[:, 0], torch.zeros(2), [1.5, 0.5]),
        ("value:2", OUTPUTS, torch.zeros(2, 3), [0.25, -1.0]),
        ("logit:1", OUTPUTS, torch.tensor([0, 2]), [-2.0, 3.0]),
        ("squared_error", OUTPUTS[:, :1], torch.tensor([1.0, 2.0]), [0.25, 2.25]),
        ("squared_error", OUTPUTS, torch.tensor([[1.5, 0.0, 0.0], [0.5, 0.0, 0.0]]), [4.0625 / 3, 10.0 / 3]),
        ("label_margin", OUTPUTS[:, 1], torch.tensor([0, 1]), [2.0, 3.0]),
        ("label_margin", OUTPUTS, torch.tensor([[1, 0, 0], [0, 1, 1]]), [3.25 / 3, 1.5 / 3]),
    ],
)
def test_values_by_hand(name: str, outputs: torch.Tensor, targets: torch.Tensor, expected: list[float]) -> None:
    function = output_function(name)
    function.check(outputs, targets)
    found = function(outputs, targets)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert function.identity() == name


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        ("value", OUTPUTS, torch.zeros(2), r"needs one output per example.*\(2, 3\).*value:0 \.\. value:2"),
        ("value:3", OUTPUTS, torch.zeros(2), r"needs outputs \(num_examples, num_columns > 3\)"),
        ("squared_error", OUTPUTS, torch.zeros(2), r"as many targets as outputs per example.*\(3,\).*\(\)"),
        ("squared_error", OUTPUTS[:, 0], torch.tensor([0.0, float("nan")]), r"targets are not finite"),
        ("label_margin", OUTPUTS, torch.tensor([[0, 1, 0], [0, 2, 1]]), r"example 1 has \[0, 2, 1\]"),
    ],
)
def test_what_does_not_fit_is_named(name: str, outputs: Any, targets: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        output_function(name).check(outputs, targets)


def test_predictions_are_of_class_labels_alone() -> None:
    predicted = predicted_classes(OUTPUTS, torch.tensor([0, 1]))
    assert predicted is not None
    assert predicted.tolist() == [0, 1]
    assert predicted_classes(OUTPUTS[:, :1], torch.tensor([0, 1])) is None
    assert predicted_classes(OUTPUTS, torch.tensor([0.0, 1.0])) is None


def test_a_regression_keeps_its_targets_and_predicts_no_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    inputs, targets = torch.randn(8, 3), torch.randn(8)
    with without_ray():
        run = coar_dist.attribute(
            model,
            inputs,
            targets,
            run_dir=tmp_path,
            num_masks=30,
            ablation_fraction=0.3,
            output_function="value",
            console=Console(file=io.StringIO()),
        )
    examples = run.examples()
    np.testing.assert_array_equal(examples["target"], targets.numpy())
    assert np.isnan(np.asarray(examples["prediction"], np.float64)).all()
    with torch.no_grad():
        np.testing.assert_allclose(examples["margin"], model(inputs)[:, 0].numpy(), rtol=1e-5)
