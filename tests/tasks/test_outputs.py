"""Output functions against literal loops in float64, their checks, and the engine with each of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.components.discovery import discover
from coar_dist.errors import TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import OUTPUT_FUNCTIONS, output_function
from coar_dist.tasks.task import Task
from tests.models import random_masks, slow_margins, small_task

OF_CLASSES = ("margin", "logsumexp_margin", "logit", "loss")


def literal(name: str, logits: list[float], label: int) -> float:
    others = [value for index, value in enumerate(logits) if index != label]
    if name == "margin":
        return logits[label] - max(others)
    if name == "logsumexp_margin":
        return logits[label] - math.log(math.fsum(math.exp(value) for value in others))
    if name == "loss":
        return math.log(math.fsum(math.exp(value) for value in logits)) - logits[label]
    return logits[label]


@pytest.mark.parametrize("offset", [0.0, -40.0, 300.0])
@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_of_classes(name: str, num_classes: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    logits = 3 * torch.randn(9, num_classes, generator=generator) + offset
    labels = torch.arange(9) % num_classes
    values = OUTPUT_FUNCTIONS[name](logits, labels)
    assert values.dtype == torch.float32
    expected = [literal(name, row, int(label)) for row, label in zip(logits.double().tolist(), labels, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * (1 + abs(offset)))
    in_half = OUTPUT_FUNCTIONS[name](logits.bfloat16(), labels)
    assert in_half.dtype == torch.float32
    expected = [
        literal(name, row, int(label)) for row, label in zip(logits.bfloat16().double().tolist(), labels, strict=True)
    ]
    np.testing.assert_allclose(in_half, expected, rtol=1e-5, atol=1e-5 * (1 + abs(offset)))


def test_log_odds_and_the_sign_of_the_loss() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    p = logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(OUTPUT_FUNCTIONS["logsumexp_margin"](logits, labels), (p / (1 - p)).log())
    torch.testing.assert_close(OUTPUT_FUNCTIONS["loss"](logits, labels), -p.log())


def test_answer_token_margin() -> None:
    logits = torch.randn(4, 6, 11, generator=torch.Generator().manual_seed(1)) + 5
    targets = torch.tensor([[5, 3, 7, 8], [0, 10, 0, 1], [2, 4, 5, 6], [3, 1, 0, 2]])
    expected = [
        logits[row, position, answer].item() - max(logits[row, position, other].item() for other in others)
        for row, (position, answer, *others) in enumerate(targets.tolist())
    ]
    for given in (logits, (logits,)):
        np.testing.assert_allclose(OUTPUT_FUNCTIONS["answer_token_margin"](given, targets), expected, rtol=1e-6)
    changed = logits.clone()
    changed[:, 1] += 100.0  # no prompt ends there
    np.testing.assert_allclose(OUTPUT_FUNCTIONS["answer_token_margin"](changed, targets), expected, rtol=1e-6)


def test_answer_probability_difference() -> None:
    logits = 3 * torch.randn(3, 6, 11, generator=torch.Generator().manual_seed(1)) + 5
    targets = torch.tensor([[5, 1, 3, 7, 8], [0, 2, 10, 0, 1], [2, 1, 4, 5, 6]])
    p = logits.double().softmax(dim=2)
    right = [p[0, 5, 3], p[1, 0, 10] + p[1, 0, 0], p[2, 2, 4]]
    wrong = [p[0, 5, 7] + p[0, 5, 8], p[1, 0, 1], p[2, 2, 5] + p[2, 2, 6]]
    expected = [float(one - other) for one, other in zip(right, wrong, strict=True)]
    for given in (logits, (logits,)):
        found = OUTPUT_FUNCTIONS["answer_probability_difference"](given, targets)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.int64), "num_answers >= 4"),
        (torch.tensor([[0, 1, 2, 3], [6, 1, 2, 3]]), r"1 example have a position outside 0\.\.5: example 1"),
        (torch.tensor([[0, 1, 2, 3], [0, 1, 2, 11]]), r"a token outside the vocabulary 0\.\.10: example 1"),
        (torch.tensor([[0, 0, 2, 3], [0, 1, 2, 3]]), r"a number of right answers outside 1\.\.1: example 0"),
        (torch.tensor([[0, 1, 2, 3], [0, 2, 2, 3]]), r"a number of right answers outside 1\.\.1: example 1"),
        (torch.tensor([[0, 1, 2, 3], [0, 1, 3, 3]]), "an answer twice: example 1"),
    ],
)
def test_sets_of_answers_that_do_not_fit_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        OUTPUT_FUNCTIONS["answer_probability_difference"].check(torch.zeros(1, 6, 11), targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"needs logits .* targets are torch.int64 of shape \(3,\)"),
        (torch.zeros(3, 2, dtype=torch.int64), "num_alternatives >= 3"),
        (torch.tensor([[0, 1, 2], [6, 1, 2]]), r"1 example have a position outside 0\.\.5: example 1"),
        (torch.tensor([[-1, 1, 2], [0, 1, 2]]), "example 0 has .-1, 1, 2."),
        (torch.tensor([[0, 1, 2], [0, 1, 11]]), r"a token outside the vocabulary 0\.\.10: example 1"),
        (torch.tensor([[0, 1, 2], [0, 2, 2]]), "the answer among its alternatives: example 1"),
    ],
)
def test_answers_that_do_not_fit_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        OUTPUT_FUNCTIONS["answer_token_margin"].check(torch.zeros(1, 6, 11), targets)


@pytest.mark.parametrize("name", OF_CLASSES)
def test_labels_that_do_not_fit_are_refused_by_name(name: str) -> None:
    with pytest.raises(TaskError, match=f"{name} needs integer class labels"):
        OUTPUT_FUNCTIONS[name].check(torch.zeros(1, 3), torch.zeros(4))
    with pytest.raises(TaskError, match=f"{name} needs logits of shape"):
        OUTPUT_FUNCTIONS[name].check(torch.zeros(1, 3, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TaskError, match="example 1 has target 3"):
        OUTPUT_FUNCTIONS[name].check(torch.zeros(1, 3), torch.tensor([0, 3]))


class Prompts(nn.Module):
    """Logits at every position, of embeddings that see what came before."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden, self.head = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(tokens).cumsum(dim=1))))


def task_of(name: str) -> tuple[Task, str]:
    if name in OF_CLASSES:
        task = small_task()
        return Task(task.model, task.examples, output_function(name)), "conv_filters"
    if name in ("value", "squared_error", "label_margin"):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1))
        return Task(model, ExampleSet(torch.randn(5, 4), torch.arange(5) % 2), output_function(name)), "linear_rows"
    tokens = torch.randint(0, 11, (5, 6), generator=torch.Generator().manual_seed(0))
    targets = torch.stack([torch.arange(5) % 6, torch.arange(5), torch.arange(5) + 1, torch.arange(5) + 5], dim=1)
    if name == "answer_probability_difference":
        targets = torch.cat([targets[:, :1], torch.ones_like(targets[:, :1]), targets[:, 1:]], dim=1)
    examples = ExampleSet(tokens, tokens if name == "next_token_margin" else targets)
    return Task(Prompts().eval(), examples, output_function(name)), "linear_rows"


@pytest.mark.parametrize("name", list(OUTPUT_FUNCTIONS))
def test_the_engine_with_every_output_function(name: str) -> None:
    task, selector = task_of(name)
    assert task.check() == pytest.approx(slow_values(task)[:2], rel=1e-5)
    assert task.identity()["output_function"] == name
    components = discover(task.model, selector)
    masks = random_masks(6, components.num_components, 0.2)
    truth = slow_margins(task, components, masks)
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5 * (1 + np.abs(truth).max())}
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    np.testing.assert_allclose(engine.margins(masks), truth, **tolerance)
    gradients = engine.gate_gradients(masks, (0, len(task.examples)))
    np.testing.assert_allclose(gradients.margins, truth, **tolerance)
    assert np.isfinite(gradients.kept).all()
    assert gradients.kept.std() > 0


def slow_values(task: Task) -> list[float]:
    with torch.no_grad():
        outputs = task.model(task.examples.inputs)
    return [float(v) for v in task.output_function(outputs, task.examples.targets)]
