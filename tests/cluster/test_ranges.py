from __future__ import annotations

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


def test_messages_name_unit_limits_and_store() -> None:
    assert str(WorkRange("gradient_x_parameter", 512, 700, "examples")) == "examples 512..699 of 'gradient_x_parameter'"
