"""Gates of experts multiply the weights with which their outputs are added up: what zeroed experts give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coar_dist.components.gate_hooks import GateError
from coar_dist.components.gates import gated
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from tests.models import random_masks, randomise

ROWS, TOKENS, SIZE, EXPERTS, CHOSEN = 5, 3, 4, 6, 2


class Experts(nn.Module):
    """Adds up the outputs of a token's experts, by weights that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(EXPERTS, SIZE, SIZE))

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        outputs = torch.einsum("ti,tkio->tko", tokens, self.weight[chosen])
        return (outputs * weights[..., None]).sum(dim=1)


class Mixture(nn.Module):
    """``passed`` says how the experts are called."""

    def __init__(self, passed: str) -> None:
        super().__init__()
        self.router, self.experts, self.passed = nn.Linear(SIZE, EXPERTS), Experts(), passed

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(dim=-1).topk(CHOSEN, dim=-1)
        if self.passed == "by position":
            return self.experts(tokens, chosen, weights).reshape(x.shape)
        if self.passed == "by name":
            return self.experts(tokens, weights=weights, chosen=chosen.int()).reshape(x.shape)
        return self.experts(tokens, chosen=chosen, weights=weights[:, :1]).reshape(x.shape)


INPUTS = torch.randn(ROWS, TOKENS, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("passed", ["by position", "by name"])
@pytest.mark.parametrize("block_size", [1, 2])
def test_gates_of_experts_are_zeroed_experts(passed: str, block_size: int) -> None:
    model = randomise(Mixture(passed))
    components = ComponentIndex((ComponentGroup.of("experts.weight", 0, EXPERTS // block_size, block_size),))
    masks = random_masks(ROWS, components.num_components, 0.4)
    with torch.no_grad(), gated(model, components, ROWS, torch.device("cpu")) as gates:
        gates.gates.copy_(torch.from_numpy(masks))
        found = model(INPUTS)
    for row, mask in enumerate(masks):
        zeroed: Any = copy.deepcopy(model)
        with torch.no_grad():
            for component in (~mask).nonzero()[0]:
                zeroed.experts.weight[component * block_size : (component + 1) * block_size] = 0.0
            torch.testing.assert_close(found[row], zeroed(INPUTS)[row])


def test_experts_that_are_not_given_weights_of_their_choice_are_refused() -> None:
    model = randomise(Mixture("one weight for two experts"))
    components = ComponentIndex((ComponentGroup.of("experts.weight", 0, EXPERTS),))
    with (
        torch.no_grad(),
        gated(model, components, ROWS, torch.device("cpu")),
        pytest.raises(GateError, match="Experts is not given its tokens' experts and their weights, row by row"),
    ):
        model(INPUTS)
