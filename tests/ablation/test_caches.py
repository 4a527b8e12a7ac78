"""What modules keep of ablated weights is emptied before each pass; what tracing leaves in them is taken out."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from coar_dist.ablation.caches import forget_between_passes
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.tracing import traced
from coar_dist.components.discovery import discover
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import random_masks, randomise, slow_margins

INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


class Table(nn.Module):
    """Looks its biases up in a table of weights at its first pass, and keeps them; places depend on no weight."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.rows, self.kept, self.places = nn.Linear(4, 6), kept, None

    def forward(self, x: Tensor) -> Tensor:
        if self.places is None:
            self.places = torch.linspace(0.0, 1.0, 6)
        if isinstance(self.kept, dict):
            self.kept.setdefault("biases", self.rows.weight.sum(dim=1) ** 2)
            biases = self.kept["biases"]
        else:
            self.kept = self.rows.weight.sum(dim=1) ** 2 if self.kept is None else self.kept
            biases = self.kept
        return self.rows(x) + biases + self.places


class Net(nn.Module):
    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.table, self.head = Table(kept), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.table(x)))
        return logits


@pytest.mark.parametrize("kept", [None, {}], ids=["attribute", "dictionary"])
def test_margins_are_not_of_weights_of_earlier_passes(kept: Any) -> None:
    task = Task(randomise(Net(kept)), ExampleSet(INPUTS, torch.arange(5) % 3), output_function("margin"))
    components = discover(task.model, "linear_rows")
    masks = random_masks(8, components.num_components, 0.3)
    truth = slow_margins(Task(copy.deepcopy(task.model), task.examples, task.output_function), components, masks)
    for mode in ("weights", "rows"):
        engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), truth, rtol=1e-4, atol=1e-4)


def test_only_what_depends_on_ablated_weights_is_emptied() -> None:
    model = randomise(Net())
    with torch.no_grad():
        run = lambda: model(INPUTS).sum(dim=1)  # noqa: E731
        assert forget_between_passes(model, discover(model, "linear_rows", include=["head*"]), run) == []
        assert forget_between_passes(model, discover(model, "linear_rows"), run) == ["Table.kept"]
        before, table = run(), model.table.places
        model.table.rows.weight.mul_(2.0)
        changed = run()
        assert (changed - before).abs().min() > 1e-3
        assert model.table.places is table


class Names(list[str]):
    """A list of a kind of its own."""


class Numbers(dict[str, int]):
    """A dict of a kind of its own."""

    def __init__(self, keys: str) -> None:
        super().__init__(dict.fromkeys(keys, 0))


class Noting(nn.Module):
    """Notes what it has seen, as fx runs it on stand-ins for tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = ["before"]
        self.by_name: dict[str, Any] = {"kept": INPUTS}
        self.last: Any = None
        self.names, self.numbers = Names("ab"), Numbers("ab")
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.by_name["x"] = x
        self.by_name.pop("kept", None)
        self.last = self.new = x
        return self.linear(x)


def test_tracing_leaves_modules_as_they_were() -> None:
    model = nn.Sequential(Noting(), nn.ReLU())
    noting, (seen, by_name) = model[0], (model[0].seen, model[0].by_name)
    names = set(vars(noting))

    class Through(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return not isinstance(module, nn.Sequential | Noting)

    graph = traced(Through(), model)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0.linear", "1"]
    assert noting.seen is seen
    assert noting.by_name is by_name
    assert seen == ["before"]
    assert list(by_name) == ["kept"]
    assert noting.last is None
    assert (noting.names, noting.numbers) == (["a", "b"], {"a": 0, "b": 0})  # kinds of their own stay as they are
    assert set(vars(noting)) == names
