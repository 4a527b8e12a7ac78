"""Parts of a computation on workers that are lost, by a made-up backend and a made-up clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coar_dist.cluster import parts, resources
from coar_dist.cluster.actors import Loss
from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.parts import Result, Started, Tasks, run_parts
from coar_dist.cluster.ray_tasks import on_cluster
from coar_dist.cluster.resources import Cluster
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError, CoarWarning, warn

TIMEOUT_S, STEP_S = 10.0, 1.0
DIED, NODE_DIED = Loss("it crashed.", node_died=False), Loss("its node died.", node_died=True)
CLUSTER = Cluster(ClusterConfig(cpus_per_actor=3, start_timeout_s=TIMEOUT_S), 0.0, False, Interruption())


class Workers(Tasks):
    """A clock, and tasks that answer one thing a step: ``script`` tells what, by the item and the number of its try.

    A step takes ``STEP_S``. A script that gives None says nothing; after Started it is asked for the next answer.
    """

    def __init__(self, script: Callable[[Any, int], Sequence[Any]], num_workers: int = 2) -> None:
        self.now, self.num_workers, self.script = 0.0, num_workers, script
        self.tries: list[Any] = []
        self.left: dict[int, Iterator[Any]] = {}
        self.cancelled: list[Any] = []

    def num_wanted(self, num_left: int) -> int:
        return min(self.num_workers, num_left)

    def submit(self, item: Any) -> Any:
        self.left[len(self.tries)] = iter(self.script(item, self.tries.count(item)))
        self.tries.append(item)
        return len(self.tries) - 1

    def answers(self, tasks: Sequence[Any], wait_s: float) -> Iterator[tuple[Any, Any]]:
        self.now += STEP_S
        assert self.now < 10_000, "it does not end"
        for task in tasks:
            answer = next(self.left[task], None)
            if answer is not None:
                yield task, answer

    def cancel(self, task: Any) -> None:
        self.cancelled.append(self.tries[task])

    def check(self) -> None: ...

    def nothing_runs(self, last_loss: str) -> ClusterError:
        return CLUSTER.nothing_runs(last_loss)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[Any]]:
    def start(workers: Workers, items: Sequence[Any]) -> Iterator[Any]:
        monkeypatch.setattr(parts, "time", SimpleNamespace(monotonic=lambda: workers.now))
        monkeypatch.setattr(resources, "total_resources", lambda: {"CPU": 1.0})
        return run_parts(workers, items, TIMEOUT_S, "Buy memory.")

    return start


def done(item: Any) -> list[Any]:
    return [Started(), Result(item * 10)]


def test_a_lost_worker_s_part_is_run_again_behind_the_others(run: Any) -> None:
    workers = Workers(lambda item, tries: [Started(), DIED] if (item, tries) in ((1, 0), (1, 1)) else done(item))
    assert sorted(run(workers, [1, 2, 3, 4])) == [10, 20, 30, 40]
    assert workers.tries.index(3) < [i for i, item in enumerate(workers.tries) if item == 1][1]
    assert workers.tries.count(1) == 3
    assert not workers.cancelled


def test_work_may_take_longer_than_a_start_may(run: Any) -> None:
    slow = [Started(), *[None] * 50, Result(7)]
    assert list(run(Workers(lambda item, tries: slow), ["a", "b", "c"])) == [7, 7, 7]
    values = run(workers := Workers(lambda item, tries: done(item), num_workers=1), [1, 2])
    assert next(values) == 10
    workers.now += 100  # whoever takes the values is busy
    assert next(values) == 20


@pytest.mark.parametrize("lost", [[NODE_DIED], [Started(), NODE_DIED]], ids=["waiting", "running"])
def test_where_all_workers_vanish_an_error_says_so_in_time(run: Any, lost: list[Any]) -> None:
    """The last parts never start again; what came before has been handed over."""
    workers = Workers(lambda item, tries: done(item) if item < 3 else lost if tries == 0 else [])
    found: list[int] = []
    with pytest.raises(ClusterError) as raised:
        found.extend(run(workers, [1, 2, 3, 4]))
    assert sorted(found) == [10, 20]
    assert TIMEOUT_S < workers.now <= TIMEOUT_S + 5 * STEP_S  # by the made-up clock
    assert sorted(workers.cancelled) == [3, 4]
    text = str(raised.value)
    assert text.startswith("no worker has run for cluster.start_timeout_s=10 s. Asked for: 3 CPU each. The cluster has")
    assert "1 CPU and 0 GPU. The last worker was lost: its node died." in text
    assert "run the stage again: what is finished is kept" in text
    assert len(text.splitlines()) <= 6


def test_a_worker_that_stays_is_progress_enough(run: Any) -> None:
    """One of two workers is lost for good: the other one does its parts, too."""
    workers = Workers(lambda item, tries: [Started(), NODE_DIED] if tries == 0 and item % 2 else done(item))
    assert sorted(run(workers, range(1, 7))) == [10, 20, 30, 40, 50, 60]


def test_a_part_that_kills_workers_is_named_after_the_others_are_done(run: Any) -> None:
    workers = Workers(lambda item, tries: [Started(), DIED] if item == 2 else done(item))
    found: list[int] = []
    with pytest.raises(ClusterError, match=r"lost 4 times at the same part: it crashed\. Buy memory\."):
        found.extend(run(workers, [1, 2, 3, 4, 5]))
    assert found == [10, 30, 40, 50]
    assert workers.tries.count(2) == 4


def test_nodes_that_die_again_and_again_end_the_work(run: Any) -> None:
    workers = Workers(lambda item, tries: [Started(), NODE_DIED])
    with pytest.raises(ClusterError, match=r"15 workers were lost in a row .*its node died\. Buy memory\."):
        list(run(workers, [1, 2]))


def test_what_is_not_finished_is_cancelled(run: Any) -> None:
    values = run(workers := Workers(lambda item, tries: done(item)), [1, 2, 3, 4])
    next(values)
    values.close()
    assert workers.cancelled == [2]


@pytest.mark.slow
def test_a_killed_worker_and_too_few_cpus_on_ray(ray_cluster: None, tmp_path: Any) -> None:
    def dies_once(shared: Any, item: int) -> int:
        marker = shared / "died"
        if item == 1 and not marker.exists():
            marker.touch()
            __import__("os")._exit(1)
        return item * 10

    with on_cluster(ClusterConfig(max_actors=1), way_out="") as execute:
        assert sorted(execute(dies_once, tmp_path, [0, 1, 2])) == [0, 10, 20]
    assert (tmp_path / "died").exists()
    with (
        pytest.raises(ClusterError, match=r"no worker has run for .*=0\.1 s\. Asked for: 64 CPU each.*has 4 CPU"),
        on_cluster(ClusterConfig(cpus_per_actor=64, start_timeout_s=0.1), way_out=""),
    ):
        pass


@pytest.mark.filterwarnings("ignore:6 is made")  # once more, when it is made again
def test_what_is_kept_is_read_by_later_tasks_and_made_again_where_it_is_lost(ray_cluster: None, tmp_path: Any) -> None:
    """The second value is made from the first; Ray says of either that it is lost when it is read first."""
    from ray import ObjectRef
    from ray.exceptions import ObjectLostError

    def lost_once(name: str, value: Any) -> None:
        if not (tmp_path / name).exists():
            (tmp_path / name).touch()
            raise ObjectLostError(value.name, None, "")

    def first(folder: Any, item: int) -> Any:
        (folder / f"{item}.{len(list(folder.iterdir()))}").touch()
        warn(f"{item} is made")
        return np.full(200_000, item)

    def second(values: Any) -> Any:
        lost_once("first lost", values[1])
        return sum(value.read() for value in values)

    def check(value: Any, item: int) -> int:
        lost_once("second lost", value)
        return int(value.read()[0]) + item

    made = tmp_path / "made"
    made.mkdir()
    with on_cluster(ClusterConfig(max_actors=2, start_timeout_s=60), way_out="") as execute:
        assert execute.width == 2
        with pytest.warns(CoarWarning, match="5 is made"), pytest.warns(CoarWarning, match="6 is made"):
            firsts = execute.keep(first, made, [5, 6])
        before: list[ObjectRef[Any]] = [value.reference for value in firsts]  # type: ignore[attr-defined]
        kept = execute.keep_one(second, firsts)
        assert [int(value.read()[0]) for value in firsts] == [5, 6]
        after = [value.reference for value in firsts]  # type: ignore[attr-defined]
        assert (before[0] == after[0], before[1] == after[1]) == (True, False)
        assert len(list(made.glob("6.*"))) == 2
        assert sorted(execute(check, kept, [0, 1, 2])) == [11, 12, 13]
        assert int(kept.read()[0]) == 11
        with pytest.raises(ClusterError, match="wrong"):
            execute.keep_one(_raises, "wrong")


def _raises(words: str) -> None:
    raise ClusterError(words)
