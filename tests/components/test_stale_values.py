"""Tensors that modules keep beside their parameters and buffers are found wherever they are held, and dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coar_dist.components.stale_values import forget_as_in_training, kept_attributes, tensors_in

A, B, PARAMETER = torch.zeros(2), torch.ones(3), nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (A, [A]),
        ((A, 1, B), [A, B]),
        ([A, None], [A]),
        ({"a": A, "b": "text", "c": B}, [A, B]),
        (PARAMETER, []),
        ([PARAMETER, B], [B]),
        (1.5, []),
        (None, []),
        ({}, []),
    ],
    ids=str,
)
def test_tensors_are_found_in_what_holds_them(value: Any, expected: list[Tensor]) -> None:
    found = tensors_in(value)
    assert len(found) == len(expected)
    assert all(a is b for a, b in zip(found, expected, strict=True))


class Keeping(nn.Module):
    """Keeps in eval mode what it has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(2))
        self.inner = nn.Linear(2, 2)
        self.size = 3
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["product"] = x * self.weight
        return self.kept["product"]


class Forgetting(Keeping):
    """Drops it when it is set to training."""

    def train(self, mode: bool = True) -> Forgetting:
        super().train(mode)
        if mode:
            self.kept = {}
        return self


@pytest.mark.parametrize("kind", [Keeping, Forgetting])
@pytest.mark.parametrize("training", [False, True])
def test_what_training_drops_is_dropped_and_the_modes_stay(kind: type[Keeping], training: bool) -> None:
    model = nn.Sequential(kind(), kind().eval(), nn.Dropout())
    model[0].train(training)
    model[2].train(not training)
    modes = [module.training for module in model.modules()]
    assert kept_attributes(model[0]) == []
    model(torch.ones(2))
    assert kept_attributes(model[0]) == kept_attributes(model[1]) == ["kept"]
    forget_as_in_training(model)
    assert kept_attributes(model[0]) == kept_attributes(model[1]) == ([] if kind is Forgetting else ["kept"])
    assert [module.training for module in model.modules()] == modes


def test_a_module_with_nothing_to_forget_is_not_set_to_training() -> None:
    class Counting(Forgetting):
        num_calls = 0

        def train(self, mode: bool = True) -> Counting:
            self.num_calls += 1
            super().train(mode)
            return self

    model = Counting()
    forget_as_in_training(model)
    assert model.num_calls == 0
