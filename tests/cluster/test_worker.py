"""What every actor does, without Ray."""

from __future__ import annotations

import logging
import pickle
import re
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from coar_dist.cluster import ray_tasks, visibility
from coar_dist.cluster.packing import packed
from coar_dist.cluster.parts import Result, Started
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.worker import Worker
from coar_dist.cluster.writing import WriteError
from coar_dist.errors import ClusterError, CoarWarning, StorageError, warn
from tests.models import local_storage

_log = logging.getLogger("coar_dist.some.module")


class Talking(Worker):
    """Logs what it does."""

    def prepare(self, task: Any, job: Any) -> None:
        _log.warning("preparing %s", task)

    def compute(self, work_range: WorkRange) -> Callable[[], None]:
        _log.info("computing %s", work_range)
        _log.debug("with care")
        return lambda: _log.info("writing")


pytestmark = pytest.mark.usefixtures("package_log")


def test_a_node_that_does_not_see_the_run_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "_BETWEEN_LOOKS_S", 0.0)
    host = socket.gethostname()
    storage = local_storage(tmp_path)
    with pytest.raises(ClusterError, match=rf"node {re.escape(host)} does not see {tmp_path}/run\.json, .*s3://"):
        Worker().address(storage)
    (tmp_path / "run.json").touch()
    assert Worker().address(storage).host == host


def test_an_actor_computes_on_the_threads_that_it_is_given() -> None:
    for num_threads in (3, 2):
        Talking().setup("task", None, num_threads)
        assert torch.get_num_threads() == num_threads


def test_a_part_of_a_computation_runs_on_the_threads_that_it_is_given() -> None:
    sent = packed("shared"), []
    part = ray_tasks.RayTasks._part
    answers = part(lambda shared, item: (shared, item, torch.get_num_threads()), sent, 7, 3)
    started, (result, said) = answers
    assert (started, result) == (Started(), Result(("shared", 7, 3)))
    assert (said.log, said.warnings) == ((), ())


@pytest.mark.filterwarnings("default")
def test_what_a_part_says_is_said_where_its_answer_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    def part(shared: str, item: int) -> int:
        _log.info("part %d", item)
        warn(f"design.seed of {shared}")
        warnings.warn("of another library", stacklevel=1)
        return item

    _, (result, said) = ray_tasks.RayTasks._part(part, (packed("this"), []), 7, 1)
    assert result == Result(7)
    assert said.log == ((logging.INFO, "part 7"),)
    assert said.warnings == ("design.seed of this",)
    _log.info("afterwards")
    caplog.clear()
    with caplog.at_level(logging.INFO, "coar_dist"), pytest.warns(CoarWarning, match=r"^design\.seed of this$"):
        said.repeat()
    assert caplog.messages == ["part 7"]


def ready(kind: type[Worker], overlaps: bool = True) -> Any:
    actor = kind()
    actor.overlaps = overlaps
    actor.setup("task", None, 1)
    return actor


def masks(start: int) -> WorkRange:
    return WorkRange("train", start, start + 1, "masks")


def test_every_line_of_an_actor_s_log_is_told_once() -> None:
    actor = ready(Talking, overlaps=False)
    logs = [actor.run(masks(start)).log for start in (0, 1)]
    assert logs == [
        (
            (logging.WARNING, "preparing task"),
            (logging.INFO, "computing masks 0..0 of 'train'"),
            (logging.INFO, "writing"),
        ),
        ((logging.INFO, "computing masks 1..1 of 'train'"), (logging.INFO, "writing")),
    ]
    actor = ready(Talking)
    answers = [actor.run(masks(0)), actor.run(masks(1)), actor.flush(), actor.flush()]
    told = Counter(text for answer in answers for _, text in answer.log if text != "preparing task")
    logged = Counter(["computing masks 0..0 of 'train'", "computing masks 1..1 of 'train'", "writing", "writing"])
    assert told <= logged
    assert told + Counter(text for _, text in actor.log.drain()) == logged


class Patient(Worker):
    """Writes the first shard only when the second range is computed, and computes that only while the first is
    written: it ends if both go on at once."""

    def prepare(self, task: Any, job: Any) -> None:
        self.begun, self.computed = threading.Event(), threading.Event()
        self.written: list[int] = []

    def compute(self, work_range: WorkRange) -> Callable[[], None]:
        if work_range.start == 1:
            assert self.begun.wait(30)
            assert self.written == []
            self.computed.set()
        return partial(self.write, work_range.start)

    def write(self, start: int) -> None:
        self.begun.set()
        assert self.computed.wait(30)
        self.written.append(start)


def test_one_range_is_computed_while_another_is_written() -> None:
    actor = ready(Patient)
    assert actor.run(masks(0)).written == ()
    ((first, report),) = actor.run(masks(1)).written
    assert first == masks(0)
    assert min(report.wait_s, report.forward_s, report.write_s) >= 0
    ((second, _),) = actor.flush().written
    assert second == masks(1)
    assert actor.written == [0, 1]
    assert actor.flush().written == ()


def test_an_actor_that_does_not_overlap_has_written_when_it_answers() -> None:
    actor = ready(Patient, overlaps=False)
    actor.computed.set()
    for start in (0, 2):
        ((done, _),) = actor.run(masks(start)).written
        assert done == masks(start)
        assert actor.written[-1] == start


def test_a_shard_that_cannot_be_written_is_named_by_the_next_call() -> None:
    class Full(Worker):
        def prepare(self, task: Any, job: Any) -> None:
            self.computed: list[int] = []

        def compute(self, work_range: WorkRange) -> Callable[[], None]:
            self.computed.append(work_range.start)
            return partial(self.write, work_range.start)

        def write(self, start: int) -> None:
            if start == 0:
                raise StorageError("No space left.")

    actor = ready(Full)
    actor.run(masks(0))
    with pytest.raises(WriteError, match=r"^masks 0\.\.0 of 'train' could not be written: No space left\.$") as raised:
        actor.flush()
    there_and_back = pickle.loads(pickle.dumps(raised.value))
    assert (there_and_back.work_range, str(there_and_back.error)) == (masks(0), "No space left.")
    assert actor.flush().written == ()
    actor.run(masks(0))
    while not actor._writer._under_way[1].done():
        time.sleep(0.001)
    with pytest.raises(WriteError):
        actor.run(masks(1))
    assert actor.computed == [0, 0]  # not in vain


def test_what_one_actor_finds_out_and_another_takes_over() -> None:
    class Planned(Talking):
        def choose(self, request: Any, num_actors: int, plan: Any) -> Any:
            return ("found out", request, num_actors, plan)

        def adopt(self, plan: Any) -> None:
            self.adopted = plan

    actor = Planned()
    actor.setup("task", None, 1)
    assert actor.start("request", 3, None) == ("found out", "request", 3, None)
    actor.use("plan")
    assert actor.adopted == "plan"
