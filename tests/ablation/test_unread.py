"""Logits that are not read are not made, and every margin is that of all logits."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.unread import with_logits_read_alone
from coar_dist.components.discovery import discover
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import OUTPUT_FUNCTIONS, output_function
from coar_dist.tasks.task import Task
from tests.models import random_masks, randomise, slow_margins

LENGTH, VOCABULARY, NUM_EXAMPLES = 7, 11, 5
TOKENS = torch.randint(0, VOCABULARY, (NUM_EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
LAST = torch.full((NUM_EXAMPLES, 1), LENGTH - 1)
SPREAD = torch.tensor([[6], [2], [0], [5], [2]])


class Language(nn.Module):
    """A causal mean over tokens, and logits at the positions that are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 6), nn.Linear(6, VOCABULARY)
        self.num_logits: list[int] = []

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        embedded = self.embed(input_ids)
        hidden = embedded + torch.tanh(self.mix(embedded.cumsum(dim=1)))
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep:]
        else:
            hidden = torch.take_along_dim(hidden, logits_to_keep[..., None], dim=1)
        self.num_logits.append(hidden.shape[1])
        logits: Tensor = self.head(hidden)
        return logits


class KeepsTheFirst(Language):
    """What it calls ``logits_to_keep`` are others."""

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        logits = super().forward(input_ids)
        return logits[:, :logits_to_keep] if isinstance(logits_to_keep, int) and logits_to_keep else logits


def answers(positions: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(1)
    tokens = torch.stack([torch.randperm(VOCABULARY, generator=random)[:3] for _ in positions])
    return torch.cat([positions, tokens], dim=1)


def continuations(starts: list[int], stops: list[int]) -> Tensor:
    """Targets that count from some token up to another."""
    place = torch.arange(LENGTH)
    counted = (place >= torch.tensor(starts)[:, None]) & (place < torch.tensor(stops)[:, None])
    return TOKENS.masked_fill(~counted, -100)


CASES: dict[str, tuple[str, Tensor, int]] = {
    "the last": ("answer_token_margin", answers(LAST), 1),
    "one of each": ("answer_token_margin", answers(SPREAD), 1),
    "sets of the last": (
        "answer_probability_difference",
        torch.cat([answers(LAST)[:, :1], torch.ones_like(LAST), answers(LAST)[:, 1:]], dim=1),
        1,
    ),
    "the last three": ("next_token_margin", continuations([5] * 5, [7] * 5), 3),
    "some of each": ("next_token_margin", continuations([1, 3, 2, 5, 4], [4, 4, 3, 7, 6]), 4),
    "all": ("next_token_margin", continuations([1, 1, 3, 1, 1], [7, 5, 7, 7, 7]), LENGTH),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_gives_the_same_values(case: str) -> None:
    name, targets, _ = CASES[case]
    function = OUTPUT_FUNCTIONS[name]
    logits = torch.randn(NUM_EXAMPLES, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(2)) - 7.0
    assert function.reads is not None
    positions, own = function.reads(targets)
    alone = function(torch.take_along_dim(logits, positions[..., None], dim=1), own)
    torch.testing.assert_close(alone, function(logits, targets), rtol=0, atol=0)
    # Nothing else is read.
    changed = torch.randn_like(logits).scatter(1, positions[..., None].expand(-1, -1, VOCABULARY), 0.0)
    mask = torch.zeros_like(logits).scatter(1, positions[..., None].expand(-1, -1, VOCABULARY), 1.0)
    torch.testing.assert_close(function(logits * mask + changed, targets), function(logits, targets))


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_no_other_logits_are_made(case: str, as_dict: bool) -> None:
    name, targets, num_logits = CASES[case]
    model = randomise(Language())
    task = Task(model, ExampleSet({"input_ids": TOKENS} if as_dict else TOKENS, targets), output_function(name))
    components = discover(model, "linear_rows", include=["mix*", "head*"])
    masks = random_masks(6, components.num_components, 0.3)
    truth = slow_margins(task, components, masks)
    assert np.ptp(truth, axis=0).min() > 0.05
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 3, compiled=False))
        engine.model.module.num_logits.clear()
        np.testing.assert_allclose(engine.margins(masks), truth, rtol=1e-5, atol=1e-5)
        assert set(engine.model.module.num_logits) == {num_logits}


@pytest.mark.parametrize("kind", ["its own meaning", "given"])
def test_a_models_or_a_users_own_stays(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    targets = answers(LAST)
    model, inputs = randomise(KeepsTheFirst()), {"input_ids": TOKENS}
    if kind == "given":
        model, inputs = randomise(Language()), {"input_ids": TOKENS, "logits_to_keep": LAST - torch.tensor([2, 1, 0])}
        targets[:, 0] = 1
    task = Task(model, ExampleSet(inputs, targets), output_function("answer_token_margin"))
    components = discover(model, "linear_rows")
    masks = random_masks(4, components.num_components, 0.3)
    truth = slow_margins(task, components, masks)
    caplog.set_level(logging.INFO)
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    np.testing.assert_allclose(engine.margins(masks), truth, rtol=1e-5, atol=1e-5)
    assert set(engine.model.module.num_logits) == {3 if kind == "given" else LENGTH}
    assert ("all logits are made, not only those that are read" in caplog.text) == (kind == "its own meaning")


def test_a_users_function_says_what_it_reads() -> None:
    def first_logit(outputs: Any, targets: Tensor) -> Tensor:
        return outputs[:, 0, 0] * targets

    first_logit.reads = lambda targets: (torch.zeros(len(targets), 1, dtype=torch.long), targets)  # type: ignore[attr-defined]
    model = randomise(Language())
    task = Task(model, ExampleSet(TOKENS, torch.arange(1.0, 1.0 + NUM_EXAMPLES)), output_function(first_logit))
    components = discover(model, "linear_rows")
    masks = random_masks(4, components.num_components, 0.3)
    truth = slow_margins(task, components, masks)
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    engine.model.module.num_logits.clear()
    np.testing.assert_allclose(engine.margins(masks), truth, rtol=1e-5, atol=1e-5)
    assert set(engine.model.module.num_logits) == {1}


def test_a_pass_without_a_plan_takes_no_more_memory_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3000)))
    task = Task(model, ExampleSet(torch.randn(40, 4), torch.arange(40)), output_function("margin"))
    components = discover(model, "linear_rows", include=["0*"])
    monkeypatch.setattr("coar_dist.ablation.engine._DEFAULT_BYTES", {"cpu": 10 * 12_000})
    assert 2 <= AblationEngine(copy.deepcopy(task), components, "cpu", "float32").plan.rows_per_forward <= 10


def test_rows_that_do_not_fit_are_not_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 3)))
    task = Task(model, ExampleSet(torch.randn(40, 4), torch.arange(40) % 3), output_function("margin"))
    components = discover(model, "linear_rows")
    monkeypatch.setattr("coar_dist.ablation.memory.allowed_bytes", lambda *_: 6 * 4 * 2 * 50)
    for mode in ("weights", "rows"):
        engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", EnginePlan(mode, 64, False))
        assert 2 <= engine.plan.rows_per_forward <= 12
        assert f"{40 if mode == 'weights' else 64} rows take" in caplog.text
    assert engine.most_gradient_rows() < engine.most_rows()


class Overwriting(Language):
    """Writes to its inputs."""

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor = 0) -> Tensor:
        logits = super().forward(input_ids, logits_to_keep)
        input_ids.zero_()
        return logits


def test_looking_at_logits_leaves_the_examples_as_they_are() -> None:
    name, targets, _ = CASES["the last"]
    examples = ExampleSet(TOKENS.clone(), targets)
    found = with_logits_read_alone(Overwriting(), examples, output_function(name), torch.device("cpu"))
    assert found is not None
    assert found.inputs["logits_to_keep"] == 1
    assert torch.equal(found.inputs["input_ids"], TOKENS)
    assert torch.equal(examples.inputs, TOKENS)
