"""How long work is said to take before there is an engine."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation.work import ExpectedMasks
from coar_dist.config.schema import AblationConfig, ClusterConfig, Config
from coar_dist.stages.prediction import seconds_of_masks, seconds_per_pass
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task


class Watched(nn.Module):
    """Takes a while for a pass, and so much more for each row, and changes its input."""

    def __init__(self, pass_s: float, row_s: float = 0.0, most_rows: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.part = nn.Dropout(0.5)
        self.part.eval()
        self.pass_s, self.row_s, self.most_rows = pass_s, row_s, most_rows
        self.seen: list[tuple[int, int, bool, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append((len(inputs), torch.get_num_threads(), self.training, torch.is_grad_enabled()))
        if len(inputs) > self.most_rows:
            raise RuntimeError("out of memory")
        time.sleep(self.pass_s + self.row_s * len(inputs))
        return inputs.mul_(self.weight)


def task_of(model: nn.Module, num_examples: int = 50) -> Task:
    examples = ExampleSet(torch.ones(num_examples, 3), torch.zeros(num_examples, dtype=torch.int64))
    return Task(model, examples, output_function("margin"))


def test_a_pass_is_timed_as_an_actor_runs_it_and_nothing_is_changed() -> None:
    model = Watched(0.02)
    task = task_of(model)
    model.weight.data *= 2
    seconds = seconds_per_pass(Config(cluster=ClusterConfig(cpus_per_actor=2)), model, task.examples)
    assert 0.02 / 32 <= seconds < 0.04 / 32
    assert model.seen == [(rows, 2, False, False) for rows in (2, 2, 32, 32)]
    assert (model.training, model.part.training) == (True, False)
    assert bool((task.examples.inputs == 1).all())
    assert torch.get_num_threads() == 1


def test_what_is_slow_is_timed_with_few_examples_and_no_more_than_there_are() -> None:
    slow = Watched(0.0, 0.06)
    assert 0.06 <= seconds_per_pass(Config(), slow, task_of(slow).examples) < 0.1
    assert [rows for rows, *_ in slow.seen] == [2, 2]
    fast = Watched(0.0)
    seconds_per_pass(Config(), fast, task_of(fast, num_examples=5).examples)
    assert [rows for rows, *_ in fast.seen] == [2, 2, 5, 5]


def test_a_pass_that_fails_is_not_known_to_be_small() -> None:
    few, many = Watched(0.0, most_rows=2), Watched(0.0, most_rows=1)
    assert seconds_per_pass(Config(), few, task_of(few).examples) < 0.05
    assert seconds_per_pass(Config(), many, task_of(many).examples) == math.inf
    assert (few.training, many.training) == (True, True)


def test_masks_with_gradients_count_more_and_what_is_compiled_is_never_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.stages.prediction.seconds_per_pass", lambda *_: 0.01)
    task = task_of(Watched(0.0))

    def seconds(**ablation: Any) -> float:
        return seconds_of_masks(Config(ablation=AblationConfig(**ablation)), task, ExpectedMasks(10, 4))

    assert seconds() == pytest.approx((10 + 3 * 4) * 50 * 0.01)
    assert seconds(compile=True) == seconds(device_map="auto") == math.inf
