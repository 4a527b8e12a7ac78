from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.components.selectors import neurons

INDEX = ComponentIndex(
    (
        ComponentGroup.of("a.weight", 0, 3),
        ComponentGroup.of("a.weight", 1, 2, block_size=4),
        ComponentGroup.of("b", 0, 1),
    )
)


def test_ids_run_through_the_groups() -> None:
    assert INDEX.num_components == len(INDEX) == 6
    assert INDEX.offsets.tolist() == [0, 3, 5, 6]
    assert INDEX.ids("b").tolist() == [5]
    with pytest.raises(KeyError, match=r"'c' has no components.*a\.weight"):
        INDEX.ids("c")


def test_tables_and_back() -> None:
    table = INDEX.table()
    assert table["component_id"] == list(range(6))
    assert table["start"] == [0, 1, 2, 0, 4, 0]
    assert table["size"] == [1, 1, 1, 4, 4, 1]
    assert table["module"] == ["a"] * 5 + [""]
    assert table["name"] == ["a[0]", "a[1]", "a[2]", "a[:, 0]", "a[:, 1]", "b[0]"]
    assert ComponentIndex.from_tables(table, INDEX.slice_table()) == INDEX


def test_neurons_are_of_the_module_that_gives_them() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    index = ComponentIndex(tuple(neurons(Plain())))
    assert (index.names()[0], index.groups[0].module, index.groups[0].parameter) == ("a.N0", "a", "b.weight")
    again = ComponentIndex.from_tables(index.table(), index.slice_table())
    assert [group.module for group in again.groups] == ["a", "b"]
    assert again._only([0, 7, 8]).table()["module"] == ["a", "b", "b"]
    assert again.fingerprint == index.fingerprint
    before = {**index.table(), "module": ["b"] * 6 + ["out"] * 5}  # of a run that was made when it was the reader
    assert ComponentIndex.from_tables(before, index.slice_table()) == index
    block = nn.TransformerEncoderLayer(8, 2, 16)
    assert [group.module for group in neurons(block)] == ["linear1"]
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=4))
    assert [group.module for group in neurons(gpt2)] == ["transformer.h.0.mlp", "transformer.h.1.mlp"]


def sets() -> ComponentIndex:
    """Two value heads with their biases, one expert out of four, a whole layer, and a few rows without order."""
    heads = ComponentGroup(
        (Slices("v.weight", 0, 3, (0, 3)), Slices("v.bias", 0, 3, range(0, 6, 3))), range(2), "L3V{}", "value", 3
    )
    expert = ComponentGroup((Slices("e.down", 0, 1, (2,)), Slices("e.bias", 0, 1, (2,))), (2,), "L3E{}", "expert", 3)
    layer = ComponentGroup((Slices("o.weight", 0, 8, (0,)), Slices("w.weight", 1, 6, (0,))), (4,), "L4", "layer", 4)
    return ComponentIndex((heads, expert, layer, ComponentGroup.of("r.weight", 0, 9).only([7, 1, 2])))


def test_sets_of_slices() -> None:
    index = sets()
    assert index.names() == ["L3V0", "L3V1", "L3E2", "L4", "r[7]", "r[1]", "r[2]"]
    assert index["L3V1"].slices == (("v.weight", 0, 3, 3), ("v.bias", 0, 3, 3))
    assert index[-1].slices == (("r.weight", 0, 2, 1),)
    assert index.parameters == ["v.weight", "v.bias", "e.down", "e.bias", "o.weight", "w.weight", "r.weight"]
    assert index.ids("e.bias").tolist() == [2]
    assert [component.id for component in index] == list(range(7))
    slices = index.slice_table()
    assert slices["component_id"] == [0, 1, 0, 1, 2, 2, 3, 3, 4, 5, 6]
    assert slices["start"] == [0, 3, 0, 3, 2, 2, 0, 0, 7, 1, 2]
    again = ComponentIndex.from_tables(index.table(), slices)
    assert again == index
    assert again.names() == index.names()
    assert again.fingerprint == index.fingerprint


def test_some_of_an_index() -> None:
    index = sets()
    assert index[:3].names() == index.where(layer=3).names() == ["L3V0", "L3V1", "L3E2"]
    assert index[[5, 0, 5]].names() == ["L3V0", "r[1]"]
    assert index[np.arange(7) > 4].names() == index.where(name="r*")[1:].names() == ["r[1]", "r[2]"]
    assert index.where(kind="expert", layer=3).groups == (index.groups[1],)
    assert index[:].fingerprint == index.fingerprint
    with pytest.raises(ValueError, match=r"has layer=7.*kinds are \['expert', 'layer', 'slice', 'value'\]"):
        index.where(layer=7)
    with pytest.raises(KeyError, match=r"no component 'L9' among 7, such as L3V0"):
        index["L9"]
    with pytest.raises(IndexError):
        index[7]


def test_half_a_million_components_take_no_time_or_memory() -> None:
    index = ComponentIndex(tuple(ComponentGroup.of(f"{layer}.weight", 1, 16_000) for layer in range(32)))
    assert len(index) == 512_000
    assert all(isinstance(group.slices[0].starts, range) for group in index.groups)
    assert index[511_999].name == "31[:, 15999]"
    assert ComponentIndex.from_tables(index.table(), index.slice_table()) == index


def test_fingerprint_tells_orders_and_sizes_apart() -> None:
    others = [
        ComponentIndex(INDEX.groups[::-1]),
        ComponentIndex(INDEX.groups[:2]),
        ComponentIndex((ComponentGroup.of("a.weight", 0, 3, block_size=2), *INDEX.groups[1:])),
        ComponentIndex((ComponentGroup.of("a.weight", 0, 4).only([0, 1, 3]), *INDEX.groups[1:])),
        sets(),
        sets()[1:],
    ]
    assert len({INDEX.fingerprint, *(other.fingerprint for other in others)}) == 7


def test_the_fingerprint_is_that_of_runs_made_before_components_were_sets() -> None:
    expected = hashlib.sha256(b'[["a.weight", 0, 3, 1], ["a.weight", 1, 2, 4], ["b", 0, 1, 1]]').hexdigest()
    assert INDEX.fingerprint == f"sha256:{expected}"


def test_overlapping_components_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"overlap: a\[0\] and a\[0\] share a part of a\.weight \(axis 0\)"):
        ComponentIndex((ComponentGroup.of("a.weight", 0, 3), ComponentGroup.of("a.weight", 0, 3)))
    head = ComponentGroup((Slices("o.weight", 1, 4, (2,)),), (5,), "L0H{}")
    with pytest.raises(ValueError, match=r"overlap: L0H5 and o\[:, 3\] share a part of o\.weight \(axis 1\)"):
        ComponentIndex((head, ComponentGroup.of("o.weight", 1, 8).only([0, 3, 6])))
    with pytest.raises(ValueError, match=r"overlap: L0B1 and L0B2"):
        ComponentIndex((ComponentGroup((Slices("o.weight", 0, 3, (0, 4, 6)),), (0, 1, 2), "L0B{}"),))
    beside = ComponentGroup.of("o.weight", 1, 8).only([0, 1, 6, 7])
    assert ComponentIndex((head, beside)).num_components == 5


@pytest.mark.parametrize("wrong", [{"axis": -1}, {"size": 0}, {"starts": ()}, {"starts": (-1, 0)}])
def test_slices_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a"):
        Slices(**{"parameter": "a", "axis": 0, "size": 1, "starts": (0,), **wrong})
    with pytest.raises(ValueError, match=r"'L\{\}'.*as many starts"):
        ComponentGroup((Slices("a", 0, 1, (0, 1)), Slices("b", 0, 1, (0,))), (0, 1), "L{}")
