"""Reused activations: exact on models of every make, kept off where leaving out a module changes what others do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from coar_dist.ablation.cut_probe import hold_cuts
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.liveness import read_and_overwritten
from coar_dist.ablation.plan import EnginePlan
from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.given import LeaveOneOut
from coar_dist.errors import CoarWarning
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.logits import logits_of
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.ablation.test_engine_kinds import gpt2_task
from tests.models import random_masks, randomise, slow_margins

NUM_EXAMPLES = 5
POINTS = torch.randn(NUM_EXAMPLES, 4, generator=torch.Generator().manual_seed(3)) + 0.5
LABELS = torch.arange(NUM_EXAMPLES) % 3


def reusing(task: Task, components: ComponentIndex) -> set[str]:
    """The parameters before which activations are reused, where margins are exact."""
    num = components.num_components
    masks = np.concatenate(
        [LeaveOneOut.of(num).masks(0, num)[:: -(-num // 20)], np.ones((1, num), bool), random_masks(3, num)]
    )
    truth = slow_margins(task, components, masks)
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    many, expected = np.tile(masks, (5, 1)), np.tile(truth, (5, 1))
    effects = np.abs(truth - truth[-4]).max()
    assert effects > 0.01
    for mode, rows in (("weights", 3), ("rows", 7)):
        engine.use(EnginePlan(mode, rows, compiled=False))
        np.testing.assert_allclose(engine.margins(many), expected, rtol=1e-4, atol=1e-4 * effects)
    groups = enumerate(components.groups) if engine.reuse_activations else ()
    cuts = {group.parameter.removesuffix(".weight"): engine._cuts.of_group(number) for number, group in groups}
    return {name for name, cut in cuts.items() if cut is not None and cut.held}


class Blocks(nn.Module):
    """Takes two inputs by name; every block gives a tuple."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, dict[str, Any]]:
            return x + self.down(torch.tanh(self.up(x))) * scale, {"nothing": None, "of all": torch.ones(1, 3)}

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor, doubled: bool = False) -> Tensor:
        for block in self.blocks:
            x, others = block(x, scale)
            x = x * others["of all"].sum()
        logits: Tensor = self.head(x) * (2 if doubled else 1)
        return logits


class Skips(nn.Module):
    """The last layers read what the first ones give, and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.head = (nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.one(x))
        second = torch.tanh(self.two(first))
        logits: Tensor = self.head(torch.tanh(self.three(second)) + first * second + x)
        return logits


class ReadsATable(Skips):
    """A module gives three rows whatever the number of examples: as many as one of the probe's passes has."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.zeros(3, 4))

        def forward(self) -> Tensor:
            return torch.tanh(self.rows)

    def __init__(self) -> None:
        super().__init__()
        self.table = self.Table()

    def forward(self, x: Tensor) -> Tensor:
        table = self.table()
        x = torch.tanh(self.two(torch.relu(self.one(x))))
        logits: Tensor = self.head(torch.tanh(self.three(x)) @ table.T @ table)
        return logits


class OverwritesReused(Skips):
    """What is behind the cut works in place on what is before it."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        second = torch.tanh(self.two(first))
        first += 1.5 * second
        logits: Tensor = self.head(first.mul_(torch.sigmoid(self.three(second))))
        return logits


class CalledTwice(Skips):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.one(torch.tanh(self.two(torch.tanh(self.one(x))))))
        return logits


class Remembers(Skips):
    """A layer leaves something behind that a later one reads and changes."""

    class Leaving(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.left = super().forward(x)
            return self.left * 0.5

    def __init__(self) -> None:
        super().__init__()
        self.one = self.Leaving(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.two(self.one(x)))
        self.one.left = self.one.left + torch.tanh(self.three(hidden))
        logits: Tensor = self.head(self.one.left)
        return logits


class Shares(Skips):
    """A dict that only the first layer fills goes from layer to layer."""

    class Sharing(nn.Linear):
        def forward(self, x: Tensor, shared: dict[str, Tensor] | None = None) -> Tensor:
            assert shared is not None
            if not shared:
                shared["first"] = x
            return super().forward(x) + shared["first"]

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = self.Sharing(4, 4), self.Sharing(4, 4), self.Sharing(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        shared: dict[str, Tensor] = {}
        x = torch.tanh(self.two(torch.tanh(self.one(x, shared)), shared))
        logits: Tensor = self.head(self.three(x, shared))
        return logits


class ShortcutInPlace(Skips):
    """The activation works in place on a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = self.two(self.act(x)) + x
        x = self.three(self.act(x)) + x
        logits: Tensor = self.head(x)
        return logits


class OverwritesData(Skips):
    """Works in place on an activation, and no version counter says so."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        second = torch.tanh(self.two(first))
        first.data.mul_(1.5)
        logits: Tensor = self.head(self.three(second) + first)
        return logits


def task_of(model: nn.Module, inputs: Any = POINTS) -> Task:
    return Task(randomise(model), ExampleSet.of(inputs, LABELS), output_function("margin"))


def blocks_task() -> Task:
    scale = torch.linspace(0.5, 2.0, NUM_EXAMPLES)[:, None]
    return task_of(Blocks(), {"x": POINTS, "scale": scale, "doubled": True})


def bert_task() -> Task:
    config = BertConfig(
        vocab_size=23,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=12,
        num_labels=3,
    )
    tokens = torch.randint(0, 23, (NUM_EXAMPLES, 6), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(tokens)
    attention[1, 4:] = 0
    return task_of(BertForSequenceClassification(config), {"input_ids": tokens, "attention_mask": attention})


def t5_task() -> Task:
    config = T5Config(
        vocab_size=23, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    random = torch.Generator().manual_seed(1)
    tokens, given = (torch.randint(1, 23, (NUM_EXAMPLES, length), generator=random) for length in (6, 4))
    examples = ExampleSet.of({"input_ids": tokens, "decoder_input_ids": given}, LABELS)
    first = output_function(lambda outputs, targets: logits_of(outputs)[:, -1, 3] - logits_of(outputs)[:, 0, 4])
    return Task(randomise(T5ForConditionalGeneration(config)), examples, first)


TASKS: dict[str, tuple[Callable[[], Task], str, int]] = {
    "gpt2": (gpt2_task, "heads", 2),
    "gpt2, every row": (gpt2_task, "transposed_linear_outputs", 6),
    "bert": (bert_task, "linear_rows", 13),
    "t5": (t5_task, "linear_rows", 10),
    "blocks that give tuples": (blocks_task, "linear_rows", 6),
    "skips": (lambda: task_of(Skips()), "linear_rows", 3),
    "reads a table": (lambda: task_of(ReadsATable()), "linear_rows", 4),
    "overwrites": (lambda: task_of(OverwritesReused()), "linear_rows", 3),
}


@pytest.mark.parametrize("name", TASKS)
def test_activations_are_reused_whatever_the_model_takes(name: str) -> None:
    make, selector, num_reusing = TASKS[name]
    task = make()
    with warnings.catch_warnings():  # no model has all of these
        warnings.simplefilter("ignore", CoarWarning)
        components = discover(task.model, selector, exclude=["*lm_head*", "*.[qkv].*", "*.wi.*", "*c_fc*", "*pooler*"])
    found = reusing(task, components)
    assert len(found) == num_reusing, found
    assert len(components.groups) - num_reusing <= 1


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        (CalledTwice, {"one", "two"}),
        (Remembers, {"one", "head"}),
        (Shares, {"one", "two", "three"}),
        (ShortcutInPlace, {"one"}),
        (OverwritesData, {"two", "three", "head"}),
    ],
)
def test_what_cannot_be_left_out_is_run(kind: type[nn.Module], refused: set[str]) -> None:
    task = task_of(kind())
    components = discover(task.model, "linear_rows")
    assert not reusing(task, components) & refused


def test_what_is_behind_the_cut_reads_no_more_than_is_kept() -> None:
    """Of four blocks before the cut the last one's output alone."""
    engine = AblationEngine(blocks_task(), discover(Blocks(), "linear_rows"), "cpu", "float32")
    cut = engine._cuts.of_group(4)
    hold_cuts(engine._cuts, engine.model, [cut])
    kept = cut.before(**engine.model.examples.inputs)
    assert set(kept) == {"scale", "doubled", "blocks.1:0"}
    assert cut.saved == pytest.approx(4 / 7)


def test_a_pass_unlike_those_of_the_probe_reuses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Routed(Skips):
        def forward(self, x: Tensor) -> Tensor:
            is_seen = x[:, 0].max() < 50.0  # by the probe
            x = self.one(x) if is_seen else torch.cat([self.one(x[:2]), self.one(x[2:])])
            logits: Tensor = self.head(torch.tanh(self.two(x)))
            return logits

    points = torch.randn(9, 4, generator=torch.Generator().manual_seed(3))
    points[4, 0] = 60.0
    task = Task(randomise(Routed()), ExampleSet(points, torch.arange(9) % 3), output_function("margin"))
    components = discover(task.model, "linear_rows", include=["two*"])
    masks = np.tile(~np.eye(4, dtype=bool), (4, 1))
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    assert engine.reuse_activations
    np.testing.assert_allclose(engine.margins(masks), slow_margins(task, components, masks), rtol=1e-4, atol=1e-5)
    assert "activations are not reused from now on" in caplog.text


def test_origins_of_a_result() -> None:
    tensors = {name: torch.randn(3, 3) for name in "abcdef"}
    a, b, c, d, e, _ = tensors.values()

    def run() -> Tensor:
        view = a.t()[0]
        buffer = torch.zeros(3)
        buffer.copy_(view)
        d.mul_(2.0)
        unused = (b @ c).softmax(dim=1)
        picked = e.argmax(dim=1)
        del unused
        return torch.where(picked > 0, buffer, buffer + 1).sum()

    read, overwritten = read_and_overwritten(run, tensors)
    assert read == {"a", "e"}
    assert overwritten == {"d"}
