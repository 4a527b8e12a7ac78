from __future__ import annotations

import pytest

from coar_dist.ablation.schedule import MaskRange, Schedule, default_masks_per_shard, split_ranges
from coar_dist.errors import ClusterError, RangeFailedError


def ranges(count: int) -> list[MaskRange]:
    return [MaskRange("train", 10 * i, 10 * i + 10) for i in range(count)]


def test_gaps_are_cut_at_the_same_places_in_every_run() -> None:
    whole = split_ranges("train", [(0, 25)], 10)
    assert [(r.start, r.stop) for r in whole] == [(0, 10), (10, 20), (20, 25)]
    assert [(r.start, r.stop) for r in split_ranges("train", [(10, 20), (25, 42)], 10)] == [
        (10, 20),
        (25, 30),
        (30, 40),
        (40, 42),
    ]


def test_every_range_is_handed_out_once() -> None:
    schedule = Schedule(ranges(3), max_attempts=2)
    handed = [schedule.next_for(actor, True) for actor in ("a", "b", "a", "b")]
    assert handed == [*ranges(3), None]
    assert (schedule.num_running("a"), schedule.num_running("b")) == (2, 1)
    for actor, masks in zip("aba", ranges(3), strict=True):
        assert not schedule.is_done
        schedule.done(masks, actor)
    assert schedule.is_done


def test_ranges_of_a_lost_actor_go_back_to_the_front_in_order() -> None:
    schedule = Schedule(ranges(4), max_attempts=2)
    schedule.next_for("a", True)
    schedule.next_for("a", True)
    schedule.lost("a", "killed")
    assert [schedule.next_for("b", True) for _ in range(4)] == ranges(4)


def test_a_failed_range_is_tried_on_another_actor_and_then_stops_the_run() -> None:
    schedule = Schedule(ranges(2), max_attempts=2)
    first = schedule.next_for("a", True)
    assert first is not None
    schedule.failed(first, "a", RuntimeError("one"))
    assert schedule.next_for("a", True) == ranges(2)[1]
    assert schedule.next_for("b", True) == first
    with pytest.raises(RangeFailedError, match=r"(?s)masks 0\.\.9 of design 'train' failed 2 times, on a, b.*two"):
        schedule.failed(first, "b", RuntimeError("two"))


def test_a_lonely_actor_tries_its_failed_range_again() -> None:
    schedule = Schedule(ranges(1), max_attempts=2)
    first = schedule.next_for("a", False)
    assert first is not None
    schedule.failed(first, "a", RuntimeError("one"))
    assert schedule.next_for("a", other_actors=False) == first


def test_losses_without_progress_stop_the_run_and_progress_resets_them() -> None:
    schedule = Schedule(ranges(5), max_attempts=2, max_losses=3)
    for _ in range(2):
        schedule.next_for("a", True)
        schedule.lost("a", "killed")
    masks = schedule.next_for("a", True)
    assert masks is not None
    schedule.done(masks, "a")
    schedule.lost("a", "killed")
    schedule.lost("b", "killed")
    with pytest.raises(ClusterError, match=r"3 actors died in a row.*out of memory"):
        schedule.lost("c", "out of memory")


def test_few_examples_get_more_masks_in_a_shard() -> None:
    assert [default_masks_per_shard(count) for count in (1, 8, 16, 128, 50_000)] == [1024, 1024, 512, 64, 64]
