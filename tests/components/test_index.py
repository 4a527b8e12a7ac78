from __future__ import annotations

import pytest

from coar_dist.components.index import ComponentGroup, ComponentIndex

INDEX = ComponentIndex(
    (ComponentGroup("a.weight", 0, 3), ComponentGroup("a.weight", 1, 2, block_size=4), ComponentGroup("b", 0, 1))
)


def test_ids_run_through_the_groups() -> None:
    assert INDEX.num_components == len(INDEX) == 6
    assert INDEX.offsets.tolist() == [0, 3, 5, 6]
    assert list(INDEX.ids("b")) == [5]
    names = ["a.weight[0]", "a.weight[1]", "a.weight[2]", "a.weight[0]", "a.weight[1]", "b[0]"]
    assert [INDEX.name_of(i) for i in range(6)] == names
    with pytest.raises(KeyError, match=r"'c' has no components.*a\.weight"):
        INDEX.ids("c")


def test_table_and_back() -> None:
    table = INDEX.table()
    assert table["component_id"] == list(range(6))
    assert table["start"] == [0, 1, 2, 0, 4, 0]
    assert table["size"] == [1, 1, 1, 4, 4, 1]
    assert table["module"] == ["a"] * 5 + [""]
    assert ComponentIndex.from_table(table) == INDEX


def test_fingerprint_tells_orders_and_sizes_apart() -> None:
    others = [
        ComponentIndex(INDEX.groups[::-1]),
        ComponentIndex(INDEX.groups[:2]),
        ComponentIndex((ComponentGroup("a.weight", 0, 3, block_size=2), *INDEX.groups[1:])),
    ]
    assert len({INDEX.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_repeated_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"repeat.*a\.weight"):
        ComponentIndex((ComponentGroup("a.weight", 0, 3), ComponentGroup("a.weight", 0, 3)))
