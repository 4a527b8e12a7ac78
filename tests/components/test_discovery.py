from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from coar_dist.components.discovery import check_components, discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.components.selectors import SELECTORS
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


@pytest.mark.parametrize(
    ("module", "selector", "found"),
    [
        (nn.Linear(3, 5), "linear_rows", [("weight", 0, 5)]),
        (nn.MultiheadAttention(4, 2), "linear_rows", [("in_proj_weight", 0, 12), ("out_proj.weight", 0, 4)]),
        (nn.MultiheadAttention(4, 2, kdim=3), "linear_rows", [("out_proj.weight", 0, 4)]),
        (Conv1D(5, 3), "linear_rows", [("weight", 1, 5)]),
        (Conv1D(5, 3), "transposed_linear_inputs", [("weight", 0, 3)]),
        (Conv1D(5, 3), "transposed_linear_outputs", [("weight", 1, 5)]),
        *((kind(3, 5, 2), "conv_filters", [("weight", 0, 5)]) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
        (nn.Conv2d(4, 6, 2, groups=2), "conv_filters", [("weight", 0, 6)]),
        (nn.ConvTranspose1d(3, 5, 2), "conv_filters", [("weight", 1, 5)]),
        (nn.ConvTranspose2d(3, 5, 2), "conv_filters", [("weight", 1, 5)]),
        (nn.ConvTranspose3d(4, 6, 2, groups=2), "conv_filters", []),
        (nn.Embedding(7, 3), "embedding_rows", [("weight", 0, 7)]),
        (nn.GRU(3, 4, bias=False), "recurrent_units", [("weight_ih_l0", 0, 4)]),
        (nn.LSTM(3, 4, num_layers=2), "recurrent_units", [("weight_ih_l0", 0, 4), ("weight_ih_l1", 0, 4)]),
        (
            nn.RNN(3, 4, bidirectional=True),
            "recurrent_units",
            [("weight_ih_l0", 0, 4), ("weight_ih_l0_reverse", 0, 4)],
        ),
        (nn.LSTM(3, 4, proj_size=2), "recurrent_units", []),
    ],
)
@pytest.mark.parametrize("place", ["", "a.b"])
def test_what_selectors_find_in_one_module(
    module: nn.Module, selector: str, found: list[tuple[str, int, int]], place: str
) -> None:
    """By parameter, axis and number, whether the model is the module or holds it."""
    model = module if not place else nn.ModuleDict({"a": nn.ModuleDict({"b": module})})
    groups = SELECTORS[selector](model)
    firsts = [(group.slices[0].parameter, group.slices[0].axis, group.num_components) for group in groups]
    assert firsts == [(f"{place}.{name}".removeprefix("."), axis, number) for name, axis, number in found]
    if found:
        check_components(model, discover(model, selector))


@pytest.mark.parametrize(("kind", "num_gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_recurrent_unit_is_its_rows_of_all_gates(kind: type[nn.RNNBase], num_gates: int, bias: bool) -> None:
    (group,) = discover(kind(3, 4, bias=bias), "recurrent_units").groups
    parameters = ["weight_ih_l0", "weight_hh_l0", *(["bias_ih_l0", "bias_hh_l0"] if bias else [])]
    rows = [(part.parameter, part.axis, part.size, list(part.starts)) for part in group.slices]
    assert rows == [
        (name, 0, 1, list(range(gate * 4, gate * 4 + 4))) for name in parameters for gate in range(num_gates)
    ]
    assert (group.name, group.layer, list(group.numbers)) == ("l0[{}]", 0, [0, 1, 2, 3])
