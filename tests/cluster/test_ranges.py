from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coar_dist.cluster.ranges import RangesToDo, WorkRange
from tests.untimed import UNTIMED


def test_gaps_are_cut_at_the_same_places_in_every_run() -> None:
    whole = RangesToDo({"train": [(0, 25)]}, {"train": 10}, "masks")
    assert [(r.start, r.stop) for r in whole] == [(0, 10), (10, 20), (20, 25)]
    gaps = {"train": [(10, 20), (25, 42)], "evaluation": [], "leave_one_out": [(3, 9)]}
    parts = RangesToDo(gaps, {"train": 10, "evaluation": 1, "leave_one_out": 4}, "masks")
    assert list(parts) == [
        *(WorkRange("train", *limits, "masks") for limits in [(10, 20), (25, 30), (30, 40), (40, 42)]),
        *(WorkRange("leave_one_out", *limits, "masks") for limits in [(3, 4), (4, 8), (8, 9)]),
    ]
    assert (len(parts), parts.num_units) == (7, 33)
    assert not RangesToDo({"train": []}, {"train": 10}, "masks")


@UNTIMED
@given(st.lists(st.integers(0, 200), unique=True).map(sorted), st.integers(1, 30))
def test_the_length_is_the_number_of_ranges(limits: list[int], units_per_shard: int) -> None:
    gaps = list(zip(limits[::2], limits[1::2], strict=False))
    to_do = RangesToDo({"train": gaps}, {"train": units_per_shard}, "masks")
    assert len(to_do) == len(list(to_do))
    assert [i for found in to_do for i in range(found.start, found.stop)] == [i for gap in gaps for i in range(*gap)]


def parts(work_range: WorkRange, most_units: float) -> list[WorkRange]:
    found, rest = [], work_range
    while rest is not None:
        part, rest = rest.cut(most_units)
        found.append(part)
    return found


@pytest.mark.parametrize(
    ("size", "most_units", "sizes"),
    [
        (64, 64.0, [64]),
        (64, 63.9, [32, 32]),
        (64, 5.0, [4] * 16),
        (3, 0.1, [1, 2]),  # three units are halved once: a part has one at least
        (7, 2.0, [1, 2, 2, 2]),
        (1, 0.1, [1]),
    ],
)
def test_whole_shards_are_halved_until_a_part_is_small_enough(size: int, most_units: float, sizes: list[int]) -> None:
    whole = next(iter(RangesToDo({"train": [(0, size)]}, {"train": size}, "masks", {"train": 60.0})))
    assert [part.num_units for part in parts(whole, most_units)] == sizes


@UNTIMED
@given(
    size=st.integers(1, 100),
    gap=st.tuples(st.integers(0, 300), st.integers(1, 300)),
    most_units=st.lists(st.floats(0.1, 120.0), min_size=2, max_size=2),
)
def test_of_two_cuttings_one_range_lies_in_the_other_or_they_are_apart(
    size: int, gap: tuple[int, int], most_units: list[float]
) -> None:
    start, stop = gap[0], gap[0] + gap[1]
    to_do = RangesToDo({"train": [(start, stop)]}, {"train": size}, "masks", {"train": 60.0})
    found = [[part for whole in to_do for part in parts(whole, most)] for most in most_units]
    for cut, most in zip(found, most_units, strict=True):
        assert [unit for part in cut for unit in range(part.start, part.stop)] == list(range(start, stop))
        assert all(part.num_units <= max(most + 1, 2) for part in cut)
    for one in found[0]:
        units = set(range(one.start, one.stop))
        for other in found[1]:
            both = units & set(range(other.start, other.stop))
            assert not both or both in (units, set(range(other.start, other.stop)))


def test_ranges_of_a_store_without_a_time_are_never_cut() -> None:
    to_do = RangesToDo({"train": [(5, 12)]}, {"train": 10}, "masks")
    assert [work_range.cut(0.5) for work_range in to_do] == [(work_range, None) for work_range in to_do]


def test_messages_name_unit_limits_and_store() -> None:
    assert str(WorkRange("gradient_x_parameter", 512, 700, "examples")) == "examples 512..699 of 'gradient_x_parameter'"
