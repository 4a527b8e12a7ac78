from __future__ import annotations

from coar_dist.cluster.pace import Pace, cut_ranges
from coar_dist.cluster.ranges import RangesToDo, WorkRange

TO_DO = RangesToDo(
    {"gradients": [(0, 40)], "train": [(0, 128)], "leave_one_out": [(0, 64)]},
    {"gradients": 20, "train": 64, "leave_one_out": 64},
    "masks",
    {"train": 60.0, "leave_one_out": 30.0},
)
GRADIENTS, _, TRAIN, _, LEAVE_ONE_OUT = TO_DO


def first(pace: Pace, work_range: WorkRange, actor: str = "a") -> int:
    """Units of the first part."""
    part, rest = pace.cut(work_range, actor)
    assert part.num_units + (0 if rest is None else rest.num_units) == work_range.num_units
    return part.num_units


def test_an_actor_gets_what_it_does_in_the_time_of_a_shard() -> None:
    pace = Pace(TO_DO)
    assert first(pace, TRAIN) == 64  # nothing is known
    pace.timed("a", 4.0)  # 15 masks a minute
    pace.timed("b", 0.5)
    assert [first(pace, each) for each in (TRAIN, LEAVE_ONE_OUT, GRADIENTS)] == [8, 4, 20]
    assert first(pace, TRAIN, "b") == 64
    pace.measured("a", WorkRange("train", 0, 8, "masks"), 60.0)  # slower than in the trial, by this store alone
    assert [first(pace, each) for each in (TRAIN, LEAVE_ONE_OUT)] == [8, 4]
    pace.measured("a", WorkRange("train", 8, 16, "masks"), 80.0)
    assert [first(pace, each) for each in (TRAIN, LEAVE_ONE_OUT)] == [4, 4]
    pace.measured("a", WorkRange("train", 16, 20, "masks"), 2.0)
    assert first(pace, TRAIN) == 64
    pace.left("a")
    assert first(pace, LEAVE_ONE_OUT) == 64


def test_the_slowest_actor_says_how_many_can_share_a_shard() -> None:
    pace = Pace(TO_DO)
    assert [pace.num_parts(name) for name in TO_DO.gaps] == [1, 1, 1]
    pace.timed("a", 4.0)
    pace.timed("b", 0.5)
    assert [pace.num_parts(name) for name in TO_DO.gaps] == [1, 8, 16]


def test_all_that_is_missing_is_cut_as_actors_will_get_it() -> None:
    found = list(cut_ranges(TO_DO, 2.0))
    sizes = {name: [part.num_units for part in found if part.store_name == name] for name in TO_DO.gaps}
    assert sizes == {"gradients": [20, 20], "train": [16] * 8, "leave_one_out": [8] * 8}
    assert [part.num_units for part in cut_ranges(TO_DO, 1e-9)] == [20, 20, 64, 64, 64]
