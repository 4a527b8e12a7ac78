"""What every actor does, without Ray."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coar_dist.cluster import ray_tasks, visibility
from coar_dist.cluster.parts import Result, Started
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.worker import Worker
from coar_dist.errors import ClusterError
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
    job: Any = SimpleNamespace(storage=local_storage(tmp_path))
    with pytest.raises(ClusterError, match=rf"node {re.escape(host)} does not see {tmp_path}/run\.json, .*s3://"):
        Worker().address(job)
    (tmp_path / "run.json").touch()
    assert Worker().address(job).host == host


def test_an_actor_computes_on_the_threads_that_it_is_given() -> None:
    for num_threads in (3, 2):
        Talking().setup("task", None, num_threads)
        assert torch.get_num_threads() == num_threads


def test_a_part_of_a_computation_runs_on_the_threads_that_it_is_given() -> None:
    answers = ray_tasks._run_part(lambda shared, item: (shared, item, torch.get_num_threads()), "shared", 7, 3)
    assert list(answers) == [Started(), Result(("shared", 7, 3))]


def test_every_line_of_an_actor_s_log_is_told_once() -> None:
    actor = Talking()
    actor.setup("task", None, 1)
    logs = [actor.run(WorkRange("train", start, start + 1, "masks")).log for start in (0, 1)]
    assert logs == [
        (
            (logging.WARNING, "preparing task"),
            (logging.INFO, "computing masks 0..0 of 'train'"),
            (logging.INFO, "writing"),
        ),
        ((logging.INFO, "computing masks 1..1 of 'train'"), (logging.INFO, "writing")),
    ]


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
