from __future__ import annotations

import pytest
import torch
from torch import nn

from coar_dist.components.discovery import check_components, discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import ComponentMismatchError, ConfigError, NoComponentsError
from coar_dist.tasks.models import cifar_resnet20, digits_resnet
from tests.models import SmallResNet


@pytest.mark.parametrize(("build", "count"), [(cifar_resnet20, 688), (digits_resnet, 240)])
def test_component_counts_of_the_presets(build: object, count: int) -> None:
    with torch.device("meta"):
        model = build()  # type: ignore[operator]
    assert discover(model, "conv_filters").num_components == count


def test_order_follows_named_modules() -> None:
    names = [group.parameter for group in discover(SmallResNet(), "conv_filters").groups]
    assert names == ["conv1.weight", "conv2.weight", "grouped.weight"]
    assert [group.parameter for group in discover(nn.Linear(3, 5), "linear_rows").groups] == ["weight"]


def test_include_and_exclude() -> None:
    index = discover(SmallResNet(), "conv_filters", include=["conv*"], exclude=["*1.weight"])
    assert [group.parameter for group in index.groups] == ["conv2.weight"]
    with pytest.raises(NoComponentsError, match=r"leave none of the 3 parameters.*grouped\.weight"):
        discover(SmallResNet(), "conv_filters", include=["nothing"])


def test_a_selector_without_a_match_says_what_there_is() -> None:
    with pytest.raises(NoComponentsError, match=r"matches nothing in Linear.*'Linear': 1.*'linear_rows': 5"):
        discover(nn.Linear(3, 5), "conv_filters")
    with pytest.raises(ConfigError, match=r"components\.selector='filters'.*conv_filters"):
        discover(SmallResNet(), "filters")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (ComponentGroup.of("conv9.weight", 0, 4), "no parameter 'conv9.weight'"),
        (ComponentGroup.of("conv1.weight", 0, 5), r"shape \(4, 1, 3, 3\).*need 5 indices along axis 0"),
        (ComponentGroup.of("conv1.weight", 7, 4), "along axis 7"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(group: ComponentGroup, message: str) -> None:
    with pytest.raises(ComponentMismatchError, match=message):
        check_components(SmallResNet(), ComponentIndex((group,)))


def test_tied_components_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ComponentMismatchError, match=r"1\.weight and 0\.weight are one tied parameter"):
        check_components(model, discover(model, "linear_rows"))


def test_a_whole_weight_beside_its_slices_is_refused_whatever_they_are_called() -> None:
    model = nn.Linear(3, 5)
    whole = ComponentGroup((Slices("weight", 0, 5, (0,)),), (0,), "one")
    column = ComponentGroup((Slices("weight", 1, 1, (2,)),), (0,), "one")
    with pytest.raises(ComponentMismatchError, match="one is all of weight, and one a part of it"):
        check_components(model, ComponentIndex((whole, column)))
    both = ComponentGroup((*whole.slices, *column.slices), (0,), "both")
    with pytest.raises(ComponentMismatchError, match="both is all of weight, and both a part of it"):
        check_components(model, ComponentIndex((both,)))


def test_a_layer_without_outputs_has_no_rows() -> None:
    rows = discover(nn.Sequential(nn.Linear(3, 0), nn.Linear(3, 2)), "linear_rows")
    assert rows.names() == ["1[0]", "1[1]"]
