"""BatchNorm goes into the convolution before it where nobody else sees either; anywhere else it stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation.folding import fold_batch_norms
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from tests.models import randomise

INPUTS = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(3)).double()
FILTERS = ComponentIndex((ComponentGroup.of("conv.weight", 0, 4),))


class Net(nn.Module):
    """A convolution and a BatchNorm; ``how`` puts them together."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor], norm: nn.Module, bias: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv1d(2, 4, 3, bias=bias), norm, nn.Conv1d(2, 4, 3)
        self.again = nn.Conv1d(4, 4, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def net(how: Callable[[Any, Tensor], Tensor] = lambda m, x: m.norm(m.conv(x)), bias: bool = True, **norm: Any) -> Net:
    model = Net(how, nn.BatchNorm1d(4, **norm), bias)
    randomise(model) if norm.get("track_running_stats", True) else model.eval()
    return model.double()


def hooked(module: str, kind: str) -> Net:
    model = net()
    hook = (lambda m, inputs: None) if kind == "register_forward_pre_hook" else (lambda m, inputs, output: None)
    getattr(model.get_submodule(module), kind)(hook)
    return model


def tied() -> Net:
    model = net(lambda m, x: m.norm(m.conv(x)) + m.other(x))
    model.other.weight = model.conv.weight
    return model


def in_training() -> Net:
    model = net()
    model.norm.train()
    model.norm.momentum = 0.0
    return model


KEPT: dict[str, Callable[[], Net]] = {
    "the norm is called twice": lambda: net(lambda m, x: m.norm(m.conv(x)) + m.norm(m.other(x))),
    "the convolution is called twice": lambda: net(lambda m, x: m.norm(m.conv(x)) + m.conv(2 * x)),
    "the convolution's output is read twice": lambda: net(lambda m, x: m.norm(y := m.conv(x)) + y),
    "its weight is read": lambda: net(lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum()),
    "the norm's weight is read": lambda: net(lambda m, x: m.norm(m.conv(x)) * m.norm.weight.sum()),
    "its weight is another's too": tied,
    "there is a sum between": lambda: net(lambda m, x: m.norm(m.conv(x) + 1.0)),
    "there is no convolution": lambda: net(lambda m, x: m.norm(torch.relu(m.conv(x)))),
    "the norm has no statistics": lambda: net(track_running_stats=False),
    "the norm is in training": in_training,
    **{
        f"{kind} of {module}": lambda module=module, kind=kind: hooked(module, kind)  # type: ignore[misc]
        for module in ("conv", "norm")
        for kind in ("register_forward_pre_hook", "register_forward_hook")
    },
}


@pytest.mark.parametrize("why", KEPT)
def test_a_norm_stays_where_somebody_would_notice(why: str) -> None:
    model = KEPT[why]()
    before = copy.deepcopy(model.state_dict())
    assert fold_batch_norms(model, FILTERS) == {}
    assert isinstance(model.norm, nn.BatchNorm1d)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("parameter", ["norm.weight", "norm.bias", "conv.bias"])
def test_a_norm_stays_where_components_would_go(parameter: str) -> None:
    assert fold_batch_norms(net(), ComponentIndex((ComponentGroup.of(parameter, 0, 4),))) == {}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [{}, {"affine": False}, {"eps": 0.3}], ids=str)
def test_folding_changes_no_output_with_or_without_a_filter(bias: bool, norm: dict[str, Any]) -> None:
    model = net(lambda m, x: m.again(torch.relu(m.norm(m.conv(x)))), bias, **norm)
    folded = copy.deepcopy(model)
    assert list(fold_batch_norms(folded, FILTERS)) == ["conv"]
    assert isinstance(folded.norm, nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(folded(INPUTS), model(INPUTS), rtol=1e-12, atol=1e-12)
        for each in (model, folded):
            each.conv.weight[1] = 0.0
        torch.testing.assert_close(folded(INPUTS), model(INPUTS), rtol=1e-12, atol=1e-12)


def test_of_two_pairs_one_may_be_folded() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.ReLU(), nn.BatchNorm3d(2))
    model = randomise(model).double()  # type: ignore[assignment]
    inputs = torch.randn(2, 1, 2, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    expected = model(inputs)
    assert fold_batch_norms(model, ComponentIndex((ComponentGroup.of("0.weight", 0, 2),))).keys() == {"0"}
    assert [type(module).__name__ for module in model] == ["Conv3d", "Identity", "ReLU", "BatchNorm3d"]
    torch.testing.assert_close(model(inputs), expected)
