"""Attention with gates is PyTorch's own with the components' weights zeroed, whatever it is called with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coar_dist.components.attention import can_be_gated
from coar_dist.components.gates import gated
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from tests.models import random_masks, randomise

ROWS, LENGTH, SOURCE, SIZE, HEADS = 5, 4, 6, 8, 2
COMPONENTS = ComponentIndex(
    (
        ComponentGroup.of("in_proj_weight", 0, 6, 4),
        ComponentGroup.of("out_proj.weight", 0, SIZE),
        ComponentGroup.of("out_proj.weight", 1, HEADS, SIZE // HEADS),
    )
)
RANDOM = torch.Generator().manual_seed(5)
QUERY, KEY, VALUE = (torch.randn(ROWS, length, SIZE, generator=RANDOM) for length in (LENGTH, SOURCE, SOURCE))
HIDDEN = torch.rand(LENGTH, SOURCE, generator=RANDOM) < 0.4
HIDDEN[:, 0] = False
PADDING = torch.arange(SOURCE) > torch.tensor([[5], [3], [4], [5], [2]])
ADDED = torch.randn(ROWS * HEADS, LENGTH, SOURCE, generator=RANDOM)


def ablated(module: nn.Module, mask: Any) -> nn.Module:
    module = copy.deepcopy(module)
    for component in COMPONENTS:
        for parameter, axis, start, size in component.slices if not mask[component.id] else ():
            module.get_parameter(parameter).detach().narrow(axis, start, size).zero_()
    return module


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attn_mask": HIDDEN},
        {"attn_mask": ADDED, "need_weights": False},
        {"key_padding_mask": PADDING, "average_attn_weights": False},
        {"key_padding_mask": PADDING.float() * -3.0, "attn_mask": HIDDEN.float() * -2.0},
    ],
    ids=["plain", "mask", "mask per head", "padding", "added"],
)
@pytest.mark.parametrize(("batch_first", "bias"), [(True, True), (False, False)])
def test_attention_with_gates_is_that_of_zeroed_weights(options: dict[str, Any], batch_first: bool, bias: bool) -> None:
    module = randomise(nn.MultiheadAttention(SIZE, HEADS, bias=bias, batch_first=batch_first))
    masks = random_masks(ROWS, COMPONENTS.num_components, 0.3)

    def call(module: nn.Module) -> tuple[Tensor, Tensor | None]:
        inputs = (QUERY, KEY, VALUE) if batch_first else (x.transpose(0, 1) for x in (QUERY, KEY, VALUE))
        output, weights = module(*inputs, **options)
        return output if batch_first else output.transpose(0, 1), weights

    with torch.no_grad(), gated(module, COMPONENTS, ROWS, torch.device("cpu")) as gates:
        whole = call(module)
        gates.gates.copy_(torch.from_numpy(masks))
        found = call(module)
    assert "forward" not in vars(module)
    with torch.no_grad():
        torch.testing.assert_close(whole, call(module))
        for row, mask in enumerate(masks):
            output, weights = call(ablated(module, mask))
            torch.testing.assert_close(found[0][row], output[row])
            assert (found[1] is None) == (weights is None) == (options.get("need_weights") is False)
            if weights is not None:
                assert found[1] is not None
                torch.testing.assert_close(found[1][row], weights[row])


def test_attention_that_is_not_the_same_mathematics_gets_no_gates() -> None:
    assert can_be_gated(nn.MultiheadAttention(8, 2))
    for options in ({"kdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        assert not can_be_gated(nn.MultiheadAttention(8, 2, **options))
    module = randomise(nn.MultiheadAttention(SIZE, HEADS))
    with (
        gated(module, COMPONENTS, ROWS, torch.device("cpu")),
        pytest.raises(RuntimeError, match=r"needs a batch axis\. Use ablation\.mode=weights"),
    ):
        module(QUERY[0], KEY[0], VALUE[0])
