from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from coar_dist.components.discovery import discover
from coar_dist.components.gate_places import places_of
from coar_dist.components.gates import gated
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker
from coar_dist.components.masks import check_masks
from coar_dist.errors import ComponentMismatchError
from tests.models import SmallResNet, randomise


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("writes_whole", [False, True])  # as on a CPU, and as on a CUDA device
def test_masks_zero_their_slices_and_give_the_exact_bits_back(writes_whole: bool) -> None:
    model = randomise(SmallResNet())
    groups = (ComponentGroup.of("linear.weight", 1, 2, 2), ComponentGroup.of("linear.weight", 0, 3))
    components = ComponentIndex((*discover(model, "conv_filters").groups, *groups))
    mask = np.ones(components.num_components, dtype=bool)
    mask[[1, 12, 15]] = False  # filter 1 of conv1, input features 0..1 and output feature 1 of linear
    before = bits(model)
    masker = WeightMasker(model, components)
    assert not masker.writes_whole
    masker.writes_whole = writes_whole
    with masker.ablated(mask):
        assert not model.conv1.weight[1].any()
        assert model.conv1.weight[0].all()
        assert not model.linear.weight[:, :2].any()
        assert not model.linear.weight[1].any()
        assert model.linear.weight[0, 2:].all()
    assert bits(model) == before
    with masker.ablating() as zero:
        zero(mask)
        zero(~mask)
        assert model.conv1.weight[1].all()
        assert not model.conv1.weight[0].any()
    assert bits(model) == before


def test_bits_come_back_when_the_forward_raises() -> None:
    model = randomise(SmallResNet())
    components = discover(model, "conv_filters")
    before = bits(model)
    with (
        pytest.raises(RuntimeError, match="boom"),
        WeightMasker(model, components).ablated(np.zeros(components.num_components, dtype=bool)),
    ):
        raise RuntimeError("boom")
    assert bits(model) == before


def test_gates_leave_nothing_behind() -> None:
    model = randomise(SmallResNet())
    components = discover(model, "conv_filters")
    images = torch.randn(5, 1, 6, 6)
    before, expected = bits(model), model(images)
    with gated(model, components, 5, torch.device("cpu")) as gates:
        torch.testing.assert_close(gates.model(images), expected)
        gates.gates.zero_()
        assert not torch.allclose(gates.model(images), expected)
    with pytest.raises(RuntimeError, match="boom"), gated(model, components, 5, torch.device("cpu")):
        raise RuntimeError("boom")
    assert bits(model) == before
    assert torch.equal(model(images), expected)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert not [name for name, _ in model.named_buffers() if "component" in name]


def test_models_without_a_gated_form_are_told_apart() -> None:
    model = randomise(SmallResNet())
    assert all(len(places) == 1 for places in places_of(model, discover(model, "conv_filters")))
    norms = ComponentIndex((ComponentGroup.of("bn1.weight", 0, 4),))
    assert places_of(model, norms) == [[]]


def test_a_tied_parameter_is_gated_wherever_it_is_read() -> None:
    tied = randomise(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    tied[2].weight = tied[0].weight
    components = ComponentIndex((ComponentGroup.of("0.weight", 0, 4),))
    assert [place.module for place in places_of(tied, components)[0]] == ["0", "2"]
    inputs = torch.randn(3, 4) + 0.2
    masks = np.array([[True, False, True, True], [False, False, True, True], [True, True, True, False]])
    with gated(tied, components, 3, torch.device("cpu")) as gates:
        gates.gates.copy_(torch.from_numpy(masks))
        found = tied(inputs)
    for row, mask in enumerate(masks):
        with WeightMasker(tied, components).ablated(mask):
            torch.testing.assert_close(found[row], tied(inputs)[row])


@pytest.mark.parametrize(
    ("masks", "found"),
    [
        (np.ones((2, 4)), r"shape \(2, 4\) and dtype float64"),
        (np.ones(4, dtype=bool), r"shape \(4,\) and dtype bool"),
        (np.ones((2, 5), dtype=bool), r"shape \(2, 5\) and dtype bool"),
        (np.ones((2, 4, 4), dtype=bool), r"shape \(2, 4, 4\) and dtype bool"),
        (np.ones((4, 1, 4), dtype=bool), r"shape \(4, 1, 4\) and dtype bool"),
        ([[True] * 4], "list"),
    ],
)
def test_masks_of_another_shape_or_dtype_are_refused(masks: object, found: str) -> None:
    with pytest.raises(ComponentMismatchError, match=rf"masks are {found}, but must be a \(num_masks, 4\) bool array"):
        check_masks(masks, 4)  # type: ignore[arg-type]
    check_masks(np.ones((0, 4), dtype=bool), 4)
    check_masks(np.ones((3, 4), dtype=bool), 4)
