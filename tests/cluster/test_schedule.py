from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coar_dist.cluster.ranges import RangesToDo, WorkRange
from coar_dist.cluster.schedule import Schedule
from coar_dist.errors import ClusterError, RangeFailedError
from tests.untimed import UNTIMED


def ranges(count: int) -> list[WorkRange]:
    return [WorkRange("train", 10 * i, 10 * i + 10, "masks") for i in range(count)]


def schedule_of(count: int, actors: str = "ab", max_attempts: int = 2, max_losses: int = 10) -> Schedule:
    to_do = RangesToDo({"train": [(0, 10 * count)]}, {"train": 10}, "masks")
    schedule = Schedule(to_do, max_attempts, max_losses, memory_key="model.rows")
    for actor in actors:
        schedule.joined(actor, f"host-{actor}")
    return schedule


def take(schedule: Schedule, actor: str, now: float = 0.0) -> WorkRange:
    masks = schedule.next_for(actor, now)
    assert masks is not None
    return masks


def finish(schedule: Schedule, masks: WorkRange, actor: str, now: float) -> bool:
    schedule.computed(masks, actor, now)
    return schedule.done(masks, actor)


def kill_while(schedule: Schedule, masks: WorkRange, actor: str, node_died: bool = False) -> None:
    """The actor dies with ``masks`` executing, and another of its name comes."""
    assert take(schedule, actor) == masks
    schedule.lost(actor, "killed", node_died)
    schedule.joined(actor, f"host-{actor}")


def test_every_range_is_handed_out_once() -> None:
    schedule = schedule_of(3)
    handed = [schedule.next_for(actor, 0.0) for actor in ("a", "b", "a", "b")]
    assert handed == [*ranges(3), None]
    assert (schedule.num_in_flight("a"), schedule.num_in_flight("b"), schedule.num_pending) == (2, 1, 0)
    for actor, masks in zip("aba", ranges(3), strict=True):
        assert not schedule.is_done
        assert schedule.is_running(masks)
        assert finish(schedule, masks, actor, 1.0)
        assert not schedule.is_running(masks)
    assert schedule.is_done


@pytest.mark.parametrize("is_loss", [True, False])
def test_ranges_of_an_actor_that_is_gone_go_back_to_the_front_in_order(is_loss: bool) -> None:
    schedule = schedule_of(4)
    take(schedule, "a")
    take(schedule, "a")
    assert schedule.num_pending == 2
    if is_loss:
        schedule.lost("a", "killed", node_died=False)
    else:
        schedule.left("a")
    assert schedule.num_pending == 4
    assert [schedule.next_for("b", 0.0) for _ in range(4)] == ranges(4)


def test_a_failed_range_is_tried_on_another_actor_and_then_stops_the_run() -> None:
    schedule = schedule_of(2)
    first = take(schedule, "a")
    schedule.failed(first, "a", RuntimeError("one"))
    assert take(schedule, "a") == ranges(2)[1]
    assert take(schedule, "b") == first
    with pytest.raises(
        RangeFailedError,
        match=r"(?s)masks 0\.\.9 of 'train' failed 2 times, on a \(host-a\), b \(host-b\).*two",
    ):
        schedule.failed(first, "b", RuntimeError("two"))


def test_a_lonely_actor_tries_its_failed_range_again() -> None:
    schedule = schedule_of(1, "a")
    first = take(schedule, "a")
    schedule.failed(first, "a", RuntimeError("one"))
    assert take(schedule, "a") == first


def test_losses_without_progress_stop_the_run_beyond_a_limit_that_grows_with_the_actors() -> None:
    schedule = schedule_of(100, "abc", max_losses=3)
    for _ in range(5):
        for actor in "abc":
            take(schedule, actor)
        for actor in "abc":  # more than the limit in all, but with progress in between
            schedule.lost(actor, "killed", node_died=False)
            schedule.joined(actor, f"host-{actor}")
        finish(schedule, take(schedule, "a"), "a", 1.0)
    for _ in range(9):
        take(schedule, "a")
        schedule.lost("a", "killed", node_died=False)
        schedule.joined("a", "host-a")
    take(schedule, "b")
    with pytest.raises(
        ClusterError,
        match=r"(?s)10 actors died.*a on host-a: killed.*b on host-b: out of memory \(at masks \d+.*lower model\.rows",
    ):
        schedule.lost("b", "out of memory", node_died=False)


def test_actors_that_die_before_they_join_count_too() -> None:
    schedule = schedule_of(1, "", max_losses=2)
    schedule.lost("a", "no such image", node_died=False)
    schedule.lost("b", "no such image", node_died=False)
    with pytest.raises(ClusterError, match=r"3 actors died in a row(?s:.*)c: no such image \(at no range\)"):
        schedule.lost("c", "no such image", node_died=False)


def test_a_thousand_actors_may_go_at_once() -> None:
    schedule = schedule_of(5000, "")
    for i in range(1000):
        schedule.joined(f"actor-{i}", "host")
        take(schedule, f"actor-{i}")
    for i in range(1000):
        schedule.lost(f"actor-{i}", "killed", node_died=False)
    assert schedule.num_pending == 5000


def test_few_that_come_back_do_not_make_the_loss_of_many_too_much() -> None:
    """The limit grows with the most actors that there have been, not with those of the moment."""
    schedule = schedule_of(500, "", max_losses=3)
    for i in range(100):
        schedule.joined(f"actor-{i}", "host")
    for i in range(50):
        schedule.lost(f"actor-{i}", "killed", node_died=True)
    for i in range(50, 100):
        schedule.left(f"actor-{i}")
    for _ in range(3 + 2 * 100 - 50):
        schedule.joined("late", "host")
        schedule.lost("late", "killed", node_died=True)
    schedule.joined("late", "host")
    with pytest.raises(ClusterError, match="204 actors died in a row"):
        schedule.lost("late", "killed", node_died=True)


def test_a_range_whose_actors_keep_dying_waits_for_all_others_and_is_named_in_the_end() -> None:
    schedule = schedule_of(4, max_losses=5)
    poison, *others = ranges(4)
    for _ in range(3):
        kill_while(schedule, poison, "a")
    assert [take(schedule, "a"), take(schedule, "b"), take(schedule, "b")] == others
    assert schedule.next_for("a", 0.0) is None  # the others are still running
    for actor, masks in zip("abb", others, strict=True):
        finish(schedule, masks, actor, 1.0)
    for _ in range(4):
        kill_while(schedule, poison, "b")
    take(schedule, "a")
    with pytest.raises(
        ClusterError,
        match=r"(?s)^masks 0\.\.9 of 'train': every actor that computed it died \(the last of 8\): "
        r"b on host-b: killed; .*; a on host-a: out of memory\nAll other ranges are done\..*lower model\.rows",
    ):
        schedule.lost("a", "out of memory", node_died=False)


def test_a_suspect_range_that_gets_through_counts() -> None:
    schedule = schedule_of(2)
    first, second = ranges(2)
    for masks in (first, first, first, second, second, second, first, second, first):
        kill_while(schedule, masks, "a")
    finish(schedule, take(schedule, "a"), "a", 1.0)
    for _ in range(5):  # more than ten in all, but not in a row
        kill_while(schedule, first, "a")
    assert schedule.num_left == 1
    finish(schedule, take(schedule, "a"), "a", 1.0)
    assert schedule.is_done


def test_a_node_that_goes_makes_no_range_suspect() -> None:
    schedule = schedule_of(2)
    for _ in range(9):
        kill_while(schedule, ranges(2)[0], "a", node_died=True)
    assert take(schedule, "a") == ranges(2)[0]


def test_only_the_range_that_was_executing_is_suspect() -> None:
    schedule = schedule_of(5)
    for _ in range(3):
        assert [take(schedule, "a"), take(schedule, "a")] == ranges(2)
        schedule.lost("a", "killed", node_died=False)
        schedule.joined("a", "host-a")
    assert [take(schedule, "a") for _ in range(4)] == ranges(5)[1:]


def with_typical_time(count: int, seconds: float, actors: str = "abc") -> Schedule:
    """Five more ranges are done already, each in ``seconds``."""
    schedule = schedule_of(count + 5, actors)
    for _ in range(5):
        finish(schedule, take(schedule, "a", 0.0), "a", seconds)
    return schedule


def test_an_idle_actor_gets_a_copy_of_the_slowest_range() -> None:
    schedule = with_typical_time(3, 10.0)
    first, second, third = ranges(8)[5:]
    for at, masks in ((100.0, first), (101.0, second)):
        assert schedule.next_for("a", at) == masks
    assert schedule.next_for("b", 119.0) == third  # what is pending comes first
    assert schedule.next_for("b", 119.9) is None  # less than twice the typical time
    assert schedule.next_for("b", 120.1) == first
    assert schedule.next_for("b", 120.2) is None
    assert schedule.next_for("a", 200.0) == third  # not its own
    assert schedule.next_for("c", 200.0) == second
    assert schedule.next_for("c", 999.0) is None  # two copies at most
    assert finish(schedule, first, "b", 130.0)
    assert not finish(schedule, first, "a", 131.0)  # the first result counts
    assert schedule.num_left == 2


def test_copies_of_a_done_range_may_fail_and_be_lost() -> None:
    schedule = with_typical_time(2, 1.0)
    first, second = take(schedule, "a", 10.0), take(schedule, "b", 10.0)
    assert schedule.next_for("c", 20.0) == first
    assert schedule.next_for("c", 20.0) == second
    finish(schedule, first, "a", 21.0)
    finish(schedule, second, "b", 21.0)
    assert schedule.is_done
    assert schedule.num_in_flight("c") == 2  # still busy
    schedule.failed(first, "c", RuntimeError("late"))
    schedule.lost("c", "killed", node_died=False)
    assert (schedule.num_pending, schedule.num_left) == (0, 0)


def test_a_range_that_loses_one_of_its_copies_goes_on_and_may_get_another() -> None:
    schedule = with_typical_time(1, 1.0)
    masks = take(schedule, "a", 10.0)
    assert schedule.next_for("b", 20.0) == masks
    schedule.lost("a", "killed", node_died=True)
    assert schedule.num_pending == 0
    assert schedule.next_for("c", 20.5) == masks
    schedule.failed(masks, "c", RuntimeError("one"))
    assert schedule.next_for("c", 21.0) is None  # not where it failed
    schedule.lost("b", "killed", node_died=True)
    assert schedule.num_pending == 1


def test_too_few_times_make_no_range_slow() -> None:
    schedule = schedule_of(5)
    for _ in range(4):
        finish(schedule, take(schedule, "a", 0.0), "a", 1.0)
    take(schedule, "a", 0.0)
    assert schedule.next_for("b", 1000.0) is None


def test_a_range_that_failed_on_all_actors_is_tried_again() -> None:
    schedule = schedule_of(1, max_attempts=3)
    for actor in ("a", "b"):
        schedule.failed(take(schedule, actor, 0.0), actor, RuntimeError("one"))
    assert schedule.next_for("a", 1.0) is not None


def test_a_death_is_the_fault_of_what_was_computed_not_of_what_was_written() -> None:
    schedule = schedule_of(3, "ab", max_losses=100)
    written, computing, queued = (take(schedule, "a") for _ in range(3))
    schedule.computed(written, "a", 1.0)
    assert schedule.unwritten("a") == [written]
    assert schedule.executing("a") == computing
    assert schedule.num_in_flight("a") == 2
    schedule.lost("a", "killed", node_died=False)
    assert [take(schedule, "b") for _ in range(3)] == [written, computing, queued]
    assert schedule.num_retried == 3
    assert {each: len(deaths) for each, deaths in schedule._deaths.items()} == {computing: 1}
    schedule.computed(written, "b", 2.0)
    schedule.failed(written, "b", OSError("disk full"))
    assert schedule.unwritten("b") == []
    assert schedule.num_failed == 1
    schedule.left("b")
    schedule.joined("c", "host-c")
    for masks in (computing, queued, written):
        assert take(schedule, "c") == masks
        assert finish(schedule, masks, "c", 3.0)
    assert schedule.is_done


def test_a_range_that_is_being_written_may_get_a_copy_elsewhere() -> None:
    schedule = with_typical_time(1, 1.0)
    masks = take(schedule, "a", 10.0)
    schedule.computed(masks, "a", 11.0)
    assert schedule.next_for("a", 20.0) is None
    assert schedule.next_for("b", 20.0) == masks
    assert finish(schedule, masks, "b", 21.0)
    assert not schedule.done(masks, "a")
    assert schedule.unwritten("a") == []


@settings(UNTIMED, max_examples=200)
@given(
    count=st.integers(0, 60),
    num_actors=st.integers(1, 8),
    ranges_in_flight=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    trouble=st.sampled_from([0.0, 0.1, 0.4]),
)
def test_whatever_happens_every_range_counts_once(
    count: int, num_actors: int, ranges_in_flight: int, seed: int, trouble: float
) -> None:
    dice = random.Random(seed)
    schedule = schedule_of(count, "", max_attempts=10**6, max_losses=10**6)
    in_flight: dict[str, list[WorkRange]] = {}
    unwritten: dict[str, list[WorkRange]] = {}
    counted: Counter[WorkRange] = Counter()
    now, num_joined = 0.0, 0
    while not schedule.is_done:
        now += dice.expovariate(1.0)
        while len(in_flight) < num_actors:
            schedule.joined(f"actor-{num_joined}", f"host-{num_joined % 3}")
            in_flight[f"actor-{num_joined}"], unwritten[f"actor-{num_joined}"] = [], []
            num_joined += 1
        for actor in dice.sample(sorted(in_flight), len(in_flight)):
            while len(in_flight[actor]) < ranges_in_flight:
                masks = schedule.next_for(actor, now)
                if masks is None:
                    break
                assert masks not in in_flight[actor] + unwritten[actor]
                assert not counted[masks]
                in_flight[actor].append(masks)
                assert sum(masks in in_flight[other] + unwritten[other] for other in in_flight) <= 2
            assert schedule.num_in_flight(actor) == len(in_flight[actor])
            assert schedule.unwritten(actor) == unwritten[actor]
        busy = [actor for actor in in_flight if in_flight[actor] + unwritten[actor]]
        assert busy, "nothing runs and not all is done"
        actor = dice.choice(busy)
        event = dice.random()
        if event < trouble / 2:
            schedule.lost(actor, "killed", node_died=dice.random() < 0.5)
            del in_flight[actor]
        elif event < trouble:
            failing = dice.choice([running for running in (in_flight[actor], unwritten[actor]) if running])
            schedule.failed(failing.pop(0), actor, RuntimeError("failed"))
            if dice.random() < 0.5:
                schedule.left(actor)
                del in_flight[actor]
        elif unwritten[actor] and (not in_flight[actor] or dice.random() < 0.5):
            masks = unwritten[actor].pop(0)
            counted[masks] += schedule.done(masks, actor)
        else:
            unwritten[actor].append(in_flight[actor].pop(0))
            schedule.computed(unwritten[actor][-1], actor, now)
    assert counted == Counter(ranges(count))
    assert schedule.num_pending == 0
