"""What the driver calls, and what it makes of the answers, without Ray."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ray.exceptions import RayActorError

from coar_dist.cluster import driver, visibility
from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.shared_value import unpacked
from coar_dist.cluster.work import Counts, SharedPlan
from coar_dist.cluster.writing import WriteError
from coar_dist.errors import NotOnThisNodeError, RangeFailedError, StorageError, TaskError
from tests.cluster.simulated import Simulated, simulate, task_error

NO_PLAN = SharedPlan(None, request="40 masks")


def raising(answers: Mapping[tuple[str, str], Exception]) -> Any:
    """A script of what calls raise, by actor and method, once each."""
    left = dict(answers)

    def script(name: str, method: str, arguments: tuple[Any, ...]) -> None:
        if (name, method) in left:
            raise left.pop((name, method))

    return script


def test_every_actor_gets_its_calls_in_order_and_every_range_is_told_of_once() -> None:
    told = simulate(raising({}), plan=NO_PLAN)
    assert told.of("address") == [(f"actor-{i}", (None,)) for i in (0, 1)]
    assert [(name, unpacked(arguments[0]), arguments[2]) for name, arguments in told.of("setup")] == [
        ("actor-0", "task", 3),  # threads
        ("actor-1", "task", 3),
    ]
    assert told.of("start") == [("actor-0", ("40 masks", 2, None))]
    assert told.of("use") == [("actor-1", ("plan",))]
    assert [method for name, method, _ in told.calls if name == "actor-0"][:4] == ["address", "setup", "start", "run"]
    assert [method for name, method, _ in told.calls if name == "actor-1"][:4] == ["address", "setup", "use", "run"]
    assert len(told.starts) == 1
    assert told.counts == Counts(num_units=40, num_shards=4, num_failed=0, num_retried=0, num_lost=0, num_actors=2)
    assert told.metrics["margins"] == 40 * 7
    assert (told.metrics["coar_masks_left"], told.metrics["coar_actors_alive"]) == (0, 0)
    texts = [f"log of masks {start}..{start + 9} of 'train'" for start in (0, 10, 20, 30)]
    assert Counter(text for text, _ in told.log) == Counter(["chosen", *texts])
    assert {(origin.actor, origin.node) for _, origin in told.log} == {("actor-0", "host"), ("actor-1", "host")}
    shards = {text: origin.shard for text, origin in told.log}
    assert shards[texts[2]] == "margins/train/20-30"


def test_an_actor_that_finds_no_model_is_sent_everything_and_so_are_all_from_then_on() -> None:
    cause = NotOnThisNodeError("the model cannot be built there")
    told = simulate(raising({(f"actor-{i}", "setup"): task_error(cause) for i in (0, 1)}), plan=NO_PLAN)
    setups = told.of("setup")
    tasks = {name: [arguments[0] for called, arguments in setups if called == name] for name, _ in setups}
    assert {name: len(each) for name, each in tasks.items()} == {"actor-0": 2, "actor-1": 2}
    (first, whole), (other, last) = tasks["actor-0"], tasks["actor-1"]
    assert first is other
    assert whole is last
    assert whole is not first
    assert (told.counts.num_failed, told.counts.num_lost, told.counts.num_shards) == (0, 0, 4)


def test_a_late_copy_of_a_slow_range_counts_in_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_WAIT_S", 0.0)
    answered: list[tuple[str, int]] = []

    def script(name: str, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "run":
            answered.append((name, arguments[0].start))

    def next_of(calls: Sequence[tuple[str, str, tuple[Any, ...]]]) -> int | None:
        """The first range of actor-0 comes behind its copy, and before the last range."""
        for place, (name, method, arguments) in enumerate(calls):
            start = arguments[0].start if method == "run" else None
            is_first = (name, start) == ("actor-0", 0)
            if is_first and not any(done == 0 for _, done in answered):
                continue
            if start == 190 and ("actor-0", 0) not in answered:
                continue
            return place
        return None

    told = simulate(script, 20, nodes=3, next_of=next_of)
    of_the_first = [name for name, start in answered if start == 0]
    assert len(of_the_first) == 2
    assert of_the_first[1] == "actor-0"
    assert told.metrics["margins"] == 200 * 7
    assert told.counts == Counts(num_units=200, num_shards=20, num_failed=0, num_retried=0, num_lost=0, num_actors=3)


def runs(told: Simulated) -> list[tuple[str, int]]:
    """Actors and first masks of the ranges that were handed out."""
    return [(name, work_range.start) for name, (work_range,) in told.of("run")]


def test_a_shard_is_done_when_it_is_written_and_the_last_one_is_waited_for() -> None:
    told = simulate(raising({}), 3, max_actors=1)
    calls = [method for _, method, _ in told.calls][2:]
    assert calls == ["run", "run", "run", "flush"]
    assert told.counts is not None
    assert told.counts.num_shards == 3


@pytest.mark.parametrize("is_written", [True, False])
def test_what_a_lost_actor_has_written_is_not_computed_again(is_written: bool) -> None:
    """It dies in its second range, and has not said yet that the first one is written."""

    def script(name: str, method: str, arguments: tuple[Any, ...]) -> None:
        if name == "actor-0" and method == "run" and arguments[0].start == 10:
            raise RayActorError()

    looks = Counter[int]()

    def is_there(start: int) -> bool:
        looks[start] += 1
        return is_written or looks[start] > 1

    told = simulate(script, 4, max_actors=1, is_there=is_there)
    assert told.counts is not None
    assert (told.counts.num_shards, told.counts.num_lost) == (4, 1)
    assert told.metrics["margins"] == 40 * 7
    assert runs(told).count(("actor-1", 0)) == (not is_written)


@pytest.mark.parametrize("method", ["run", "flush"])
def test_a_shard_that_cannot_be_written_is_the_fault_of_its_own_range(method: str) -> None:
    """That is told by the call for the next range, or by the one that waits for the last."""
    first, second = (WorkRange("train", start, start + 10, "masks") for start in (0, 10))
    failing = first if method == "run" else second
    computed: dict[str, WorkRange] = {}

    def script(name: str, called: str, arguments: tuple[Any, ...]) -> None:
        if errors and called in ("run", "flush") and computed.get(name) == failing:
            raise task_error(WriteError(failing, errors.pop()))
        if called == "run":
            (computed[name],) = arguments

    def simulated() -> Simulated:
        return simulate(script, 2, nodes=1, max_attempts=2, is_there=lambda start: start != failing.start)

    errors: list[Exception] = [OSError("disk full")]
    told = simulated()
    assert told.counts is not None
    assert (told.counts.num_shards, told.counts.num_failed) == (2, 1)
    assert ("actor-1", failing.start) in runs(told)
    assert (method == "flush") == (len(told.of("flush")) == 2)
    errors = [StorageError("No space left."), StorageError("No space left.")]
    with pytest.raises(StorageError, match=rf"^{failing} could not be written by actor-1 and others: No space left\."):
        simulated()


def test_an_actor_on_a_node_that_is_drained_finishes_what_it_has_and_gets_no_more() -> None:
    answered = Counter[str]()

    def script(name: str, method: str, arguments: tuple[Any, ...]) -> None:
        answered[name] += method == "run"

    def is_drained() -> bool:
        """From the moment on when actor-1, of the last node, has computed two ranges."""
        return answered["actor-1"] >= 2

    told = simulate(script, 20, is_drained=is_drained)
    assert answered["actor-1"] == [name for name, _ in runs(told)].count("actor-1") <= 4
    of_actor_1 = [method for name, method, _ in told.calls if name == "actor-1"]
    assert of_actor_1[-1] == "flush"
    assert {name for name, _ in runs(told)} == {"actor-0", "actor-1"}  # there is no room for another one
    assert told.counts == Counts(num_units=200, num_shards=20, num_failed=0, num_retried=0, num_lost=0, num_actors=1)


@pytest.mark.parametrize("at", [("address", 1), ("setup", 2), ("start", 1), ("run", 1), ("run", 4)])
def test_after_notice_what_is_under_way_is_finished_and_nothing_begun(at: tuple[str, int]) -> None:
    """Notice comes with an answer: the first one of a method, the second one, ..."""
    interruption = Interruption()
    answered: list[tuple[str, str]] = []
    num_before = 0

    def script(name: str, method: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_before
        answered.append((name, method))
        if [called for _, called in answered].count(at[0]) == at[1] and not interruption.is_noticed:
            interruption.is_noticed, num_before = True, len(answered)

    with pytest.raises(KeyboardInterrupt):
        simulate(script, 40, plan=NO_PLAN, interruption=interruption)
    after = answered[num_before:]
    assert sum(method == "run" for _, method in after) <= 4  # two that each of two actors has got
    last = dict(answered)
    computed = {name for name, method in answered if method == "run"}
    assert {name for name, method in last.items() if method == "flush"} == computed


def test_every_actor_gets_parts_of_shards_by_its_own_speed() -> None:
    """Of two ranges of ten masks: by the trial, then by what the first part took."""
    speeds = {"actor-0": 0.4, "actor-1": 2.0}
    told = simulate(raising({}), 2, plan=NO_PLAN, seconds_of=speeds.__getitem__, ranges_in_flight=1)
    sizes: dict[str, set[int]] = {name: set() for name in speeds}
    for name, (work_range,) in told.of("run"):
        sizes[name].add(work_range.num_units)
    assert max(sizes["actor-0"]) in (5, 10)  # ten take 4 s, where nothing of them has gone to the other one
    assert max(sizes["actor-1"]) in (2, 3)  # 5 s are 2.5 masks, and a quarter of ten is 2 or 3
    done = sorted((work_range.start, work_range.stop) for _, (work_range,) in told.of("run"))
    assert [start for start, _ in done] == [0, *(stop for _, stop in done[:-1])]
    assert told.counts is not None
    assert (told.counts.num_units, told.counts.num_shards) == (20, len(done))
    assert told.metrics["margins"] == 20 * 7


def test_parts_of_shards_go_to_more_actors_than_there_are_shards() -> None:
    told = simulate(raising({}), 1, plan=NO_PLAN, seconds_of=lambda name: 5.0, ranges_in_flight=1)
    assert len(told.of("run")) == 8  # ten masks halved three times
    assert {name for name, _ in told.of("run")} == {"actor-0", "actor-1"}


def test_what_on_wait_raises_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_WAIT_S", 0.0)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise LookupError("somebody else writes to this run")

    with pytest.raises(LookupError, match="somebody else"):
        simulate(raising({}), num_ranges=40, on_wait=stop)
    assert calls == 4


def test_a_node_that_writes_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "_BETWEEN_LOOKS_S", 0.0)
    with pytest.raises(StorageError, match=r"node host computed masks 0\.\.9.*/here/margins/train/0-10 .*s3://"):
        simulate(raising({}), is_shared=False)


def test_errors_of_the_user_s_code_fail_fast() -> None:
    error = task_error(ValueError("this model needs 3 channels"))
    with pytest.raises(TaskError, match=r"masks 0\.\.9.*ValueError: this model needs 3 channels"):
        simulate(raising({("actor-0", "run"): error}))


def test_a_lasting_fault_names_the_range_and_the_actors() -> None:
    def script(name: str, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "run" and arguments[0].start == 10:
            raise task_error(RuntimeError("CUDA error: broken for good"))

    where = r"actor-\d+ \(host\)"
    with pytest.raises(
        RangeFailedError, match=rf"(?s)masks 10\.\.19 of 'train' failed 2 times, on {where}, {where}.*broken for good"
    ):
        simulate(script, max_attempts=2)


def test_set_ups_that_fail_in_a_row_stop_the_run_and_others_do_not() -> None:
    no_kernel = [task_error(RuntimeError("no kernel for this device")) for _ in range(4)]
    in_a_row = raising({("actor-0", "setup"): no_kernel[0], ("actor-1", "setup"): no_kernel[1]})
    with pytest.raises(RangeFailedError, match=r"2 actors could not be set up; the last error was:(?s:.*)no kernel"):
        simulate(in_a_row, max_actors=1, max_attempts=2)
    passing = {("actor-1", "run"): task_error(RuntimeError("out of memory"))}  # which ends that actor
    apart = {("actor-0", "setup"): no_kernel[2], ("actor-2", "setup"): no_kernel[3]}
    told = simulate(raising(apart | passing), max_actors=1, max_attempts=2, ranges_in_flight=1)
    assert told.counts == Counts(num_units=40, num_shards=4, num_failed=1, num_retried=1, num_lost=0, num_actors=1)
    assert {name for name, _ in told.of("run")} == {"actor-1", "actor-3"}


@pytest.mark.parametrize("method", ["address", "setup", "start"])
def test_an_actor_that_dies_before_there_is_a_plan_is_replaced_and_never_called_again(method: str) -> None:
    told = simulate(raising({("actor-0", method): RayActorError()}), plan=NO_PLAN)
    before = ["address", "setup", "start"]
    assert [called for name, called, _ in told.calls if name == "actor-0"] == before[: before.index(method) + 1]
    assert told.of("start")[-1] == ("actor-1", ("40 masks", 2, None))
    assert told.of("use") == [("actor-2", ("plan",))]
    assert told.counts is not None
    assert (told.counts.num_shards, told.counts.num_lost) == (4, 1)


def test_a_range_that_failed_goes_to_another_actor() -> None:
    told = simulate(raising({("actor-0", "run"): task_error(RuntimeError("broken GPU"))}), ranges_in_flight=1)
    tried = [name for name, (work_range,) in told.of("run") if work_range.start == 0]
    assert len(tried) == 2
    assert tried[0] == "actor-0" != tried[1]
    assert told.metrics["coar_shards_failed_total"] == told.metrics["coar_shards_retried_total"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_whatever_dies_and_fails_the_work_is_done(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "_BETWEEN_LOOKS_S", 0.0)
    dice = random.Random(seed)
    gone: set[str] = set()

    def script(name: str, method: str, arguments: tuple[Any, ...]) -> None:
        assert name not in gone
        if dice.random() < 0.2:
            gone.add(name)
            raise dice.choice([RayActorError(), task_error(RuntimeError("failed"))])

    told = simulate(
        script, num_ranges=30, plan=NO_PLAN, nodes=4, max_attempts=100, is_there=lambda start: dice.random() < 0.9
    )
    assert told.counts is not None
    assert (told.counts.num_shards, told.counts.num_units) == (30, 300)
    assert told.metrics["margins"] == 300 * 7
    assert len(told.starts) == 1
    ready = {name for method in ("start", "use") for name, _ in told.of(method)}
    assert {name for name, _ in told.of("run")} <= ready
    logged = Counter(text for text, _ in told.log)
    assert len(logged) == 31
    assert logged["chosen"] == 1
