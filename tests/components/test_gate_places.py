"""Where gates may stand, worked out by hand for every kind of module, and what they multiply there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coar_dist.components.axis_gates import AxisGates
from coar_dist.components.gate_hooks import GateError, spread
from coar_dist.components.gate_places import GatePlace, places_of
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex


class Named(nn.Module):
    """Holds one parameter."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        setattr(self, name, nn.Parameter(torch.zeros(shape)))


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(8, 2, **options)


def wrapped() -> nn.MultiheadAttention:
    """An instance's own forward is somebody's wrapper."""
    module = attention()
    module.forward = module.forward  # type: ignore[method-assign]
    return module


def places(module: nn.Module, *slices: tuple[str, int]) -> list[tuple[str, str, int]]:
    """Module, kind and channel axis of the places of slices of two indices each."""
    model = nn.ModuleDict({"m": module})
    parts = tuple(Slices(f"m.{name}", axis, 1, range(2)) for name, axis in slices)
    (found,) = places_of(model, ComponentIndex((ComponentGroup(parts, range(2), "C{}"),)))
    assert {place.length for place in found} <= {model.get_parameter(f"m.{slices[0][0]}").shape[slices[0][1]]}
    return [(place.module, place.kind, place.channel_axis) for place in found]


@pytest.mark.parametrize(
    ("module", "parameter", "axis", "found"),
    [
        (nn.Linear(8, 8), "weight", 0, ("output", -1)),
        (nn.Linear(8, 8), "weight", 1, ("input", -1)),
        (Conv1D(8, 8), "weight", 0, ("input", -1)),
        (Conv1D(8, 8), "weight", 1, ("output", -1)),
        *((kind(8, 8, 3), "weight", 0, ("output", 1)) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
        *((kind(8, 8, 3), "weight", 1, ("input", 1)) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
        (nn.Conv2d(8, 8, 3), "weight", 2, None),
        (nn.Conv2d(8, 8, 3, groups=2), "weight", 0, ("output", 1)),
        (nn.Conv2d(8, 8, 3, groups=2), "weight", 1, None),
        (nn.ConvTranspose1d(8, 8, 3), "weight", 0, ("input", 1)),
        (nn.ConvTranspose2d(8, 8, 3), "weight", 0, ("input", 1)),
        (nn.ConvTranspose3d(8, 8, 3), "weight", 1, ("output", 1)),
        (nn.ConvTranspose2d(8, 8, 3, groups=2), "weight", 0, None),
        (nn.ConvTranspose2d(8, 8, 3, groups=2), "weight", 1, None),
        (nn.Embedding(8, 8), "weight", 0, ("rows", -1)),
        (nn.Embedding(8, 8), "weight", 1, ("output", -1)),
        (nn.Embedding(8, 8, max_norm=1.0), "weight", 0, None),
        (nn.LayerNorm(8), "weight", 0, None),
        (Named("weight", 4, 8, 8), "weight", 0, ("routing", 0)),
        (Named("down_proj", 4, 8, 8), "down_proj", 0, ("routing", 0)),
        (Named("down_proj", 4, 8, 8), "down_proj", 1, None),
        (Named("down_proj", 8, 8), "down_proj", 0, None),
        (attention(), "in_proj_weight", 0, ("projections", -1)),
        (attention(), "in_proj_weight", 1, None),
        (attention(add_bias_kv=True), "in_proj_weight", 0, None),
        (attention(add_zero_attn=True), "in_proj_weight", 0, None),
        (attention(kdim=6), "q_proj_weight", 0, None),
        (wrapped(), "in_proj_weight", 0, None),
        (attention(), "out_proj.weight", 0, ("attention_output", -1)),
        (attention(), "out_proj.weight", 1, ("attention_input", -1)),
        (attention(add_zero_attn=True), "out_proj.weight", 1, None),
        (attention(kdim=6), "out_proj.weight", 1, None),
        (wrapped(), "out_proj.weight", 0, None),
    ],
)
def test_gates_stand_by_axes(module: nn.Module, parameter: str, axis: int, found: tuple[str, int] | None) -> None:
    assert places(module, (parameter, axis)) == ([] if found is None else [("m", *found)])


def test_a_tied_weight_has_gates_at_all_its_owners() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    model["head"].weight = model["embedding"].weight
    (found,) = places_of(model, ComponentIndex((ComponentGroup.of("embedding.weight", 0, 8),)))
    assert [(place.module, place.kind) for place in found] == [("embedding", "rows"), ("head", "output")]


def test_a_parameter_that_a_function_reads_is_gated_there() -> None:
    model = nn.ModuleDict({"m": nn.Linear(8, 8)})
    components = ComponentIndex((ComponentGroup.of("m.weight", 0, 8), ComponentGroup.of("m.weight", 1, 8)))
    found = places_of(model, components, read={"m.weight"})
    assert [[(place.kind, place.channel_axis) for place in group] for group in found] == [[("read", -1)]] * 2


@pytest.mark.parametrize(
    ("slices", "with_bias"),
    [
        ([("weight", 0), ("bias", 0)], True),
        ([("weight", 0)], False),
        ([("weight", 1), ("bias", 0)], None),  # an input's gates are none of a bias
        ([("bias", 0)], None),
    ],
)
def test_a_bias_goes_with_the_output_that_it_is_added_to(slices: list[tuple[str, int]], with_bias: bool | None) -> None:
    model = nn.ModuleDict({"m": nn.Linear(8, 8), "n": nn.Linear(8, 8)})
    parts = tuple(Slices(f"m.{name}", axis, 2, range(0, 8, 2)) for name, axis in slices)
    (found,) = places_of(model, ComponentIndex((ComponentGroup(parts, range(4), "C{}"),)))
    assert [place.with_bias for place in found] == ([] if with_bias is None else [with_bias])


@pytest.mark.parametrize("bias", [Slices("n.bias", 0, 2, range(0, 8, 2)), Slices("m.bias", 0, 1, range(4))])
def test_a_bias_of_another_module_or_of_other_indices_has_no_gates(bias: Slices) -> None:
    model = nn.ModuleDict({"m": nn.Linear(8, 8), "n": nn.Linear(8, 8)})
    parts = (Slices("m.weight", 0, 2, range(0, 8, 2)), bias)
    assert places_of(model, ComponentIndex((ComponentGroup(parts, range(4), "C{}"),))) == [[]]


def test_experts_are_gated_once_for_all_their_parameters() -> None:
    module = Named("up", 4, 6, 8)
    module.down, module.down_bias = nn.Parameter(torch.zeros(4, 8, 6)), nn.Parameter(torch.zeros(4, 8))
    assert places(module, ("up", 0), ("down", 0), ("down_bias", 0)) == [("m", "routing", 0)]


def gates_of(values: list[Tensor], parts: list[Slices], length: int) -> tuple[Any, AxisGates]:
    """A module that holds the gates of parts of an axis."""
    module = nn.Module()
    keys = [f"gates_{number}" for number in range(len(parts))]
    gates = AxisGates(keys, parts, length, "places")
    for key, value in zip(keys, values, strict=True):
        module.register_buffer(key, value)
    if gates.places is not None:
        module.register_buffer("places", gates.places)
    return module, gates


@pytest.mark.parametrize(
    ("parts", "length", "owners"),
    [
        ([Slices("w", 0, 1, range(5))], 5, [0, 1, 2, 3, 4]),
        ([Slices("w", 0, 2, range(0, 6, 2))], 6, [0, 0, 1, 1, 2, 2]),
        ([Slices("w", 0, 2, range(0, 6, 2))], 7, [0, 0, 1, 1, 2, 2, None]),
        ([Slices("w", 0, 1, (4, 1))], 5, [None, 1, None, None, 0]),
        ([Slices("w", 0, 2, range(2, 6, 2)), Slices("w", 0, 1, (7, 0))], 8, [3, None, 0, 0, 1, 1, None, 2]),
    ],
)
def test_the_gate_of_every_index_of_an_axis(parts: list[Slices], length: int, owners: list[int | None]) -> None:
    """Index ``i`` has the gate of component ``owners[i]``, or is always kept."""
    sizes = [len(part.starts) for part in parts]
    values = torch.rand(3, sum(sizes), generator=torch.Generator().manual_seed(0))
    module, gates = gates_of(list(values.split(sizes, dim=1)), parts, length)
    expected = torch.stack([torch.ones(3) if at is None else values[:, at] for at in owners], dim=1)
    assert gates.num_rows(module) == 3
    assert torch.equal(gates.of_channels(module), expected)
    tokens = torch.tensor([[0, length - 1, 1], [1, 1, 0], [length - 1, 0, 2]])
    assert torch.equal(gates.of_indices(module, tokens), expected.gather(1, tokens))


@pytest.mark.parametrize(
    ("shape", "axis", "module"),
    [
        ((2, 3), -1, nn.Linear(3, 3)),
        ((2, 5, 3), -1, nn.Linear(3, 3)),
        ((6, 5, 3), -1, nn.Linear(3, 3)),  # three windows to a row
        ((2, 3, 4, 4), 1, nn.Conv2d(3, 3, 1)),
        ((1, 5, 3), -1, nn.Embedding(5, 3)),  # positions that are one row for all
        ((2, 5, 3), -1, nn.Embedding(5, 3)),
    ],
)
def test_a_gate_multiplies_its_own_rows_and_channels(shape: tuple[int, ...], axis: int, module: nn.Module) -> None:
    gate = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    found = torch.ones(shape) * spread(gate, torch.ones(shape), axis, module)
    rows = max(shape[0], 2)
    assert found.shape[0] == rows
    for row in range(rows):
        of_row = found[row].movedim(axis if axis < 0 else axis - 1, -1).reshape(-1, 3)
        assert torch.equal(of_row, gate[row * 2 // rows].expand_as(of_row))


@pytest.mark.parametrize(
    ("shape", "axis", "module"),
    [
        ((3, 3), -1, nn.Linear(3, 3)),  # neither two rows nor a multiple
        ((1, 5, 3), -1, nn.Linear(3, 3)),
        ((0, 3), -1, nn.Linear(3, 3)),
        ((2, 4), -1, nn.Linear(3, 3)),
        ((4, 4), -1, nn.Linear(3, 3)),
        ((2, 5, 3), 1, nn.Conv1d(3, 3, 1)),
        ((1, 5, 4), -1, nn.Embedding(5, 3)),
    ],
)
def test_a_tensor_that_a_gate_does_not_fit_is_refused(shape: tuple[int, ...], axis: int, module: nn.Module) -> None:
    said = rf"{type(module).__name__} saw a tensor of shape \({', '.join(map(str, shape))}\) in a pass of 2 rows"
    with pytest.raises(GateError, match=said):
        spread(torch.ones(2, 3), torch.ones(shape), axis, module)


def test_places_are_of_the_group_s_parameter() -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    group = ComponentGroup.of("0.weight", 1, 4, 2)
    assert places_of(model, ComponentIndex((group,))) == [
        [GatePlace("0", "input", -1, "weight", group.slices[0], 8, with_bias=False)]
    ]
