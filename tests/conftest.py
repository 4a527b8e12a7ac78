"""Fixtures that several rooms use. What is heavy is imported where it is used: a test of NumPy code starts at once."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from rich.console import Console

    from coar_dist.store.reader import RunReader
    from tests.object_store import ObjectStore

os.environ |= {
    "OMP_NUM_THREADS": "1",  # of what is small, threads of several processes only wait for each other
    "RAY_prestart_worker_first_driver": "0",  # no workers that nobody asked for
}


class ClustersApart(LoadScopeScheduling):  # type: ignore[misc]
    """One process takes all tests that start Ray clusters: two that start at once can take each other's port.

    It takes them first, since they are most of its time. The others go file by file to whichever process is free.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if nodeid.endswith("@cluster") else nodeid.partition("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        if "cluster" in self.workqueue:
            self.workqueue.move_to_end("cluster", last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ClustersApart:
    return ClustersApart(config, log)


@pytest.hookimpl(tryfirst=True)  # before -m chooses by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.xdist_group("cluster"))  # xdist adds @cluster to the test's id
            if "PYTEST_XDIST_WORKER" in os.environ and hasattr(item, "_id"):
                # xdist 3.8 does so in an attribute that pytest 9.2 does not read.
                item._id = type(item._id).parse(f"{item.nodeid}@cluster")
        if item.get_closest_marker("gpu") and not has_cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device answers"))


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(tryfirst=True)  # before any fixture
def pytest_runtest_setup(item: pytest.Item) -> None:
    os.environ.pop("RAY_TMPDIR", None)
    if not item.get_closest_marker("cluster"):
        os.environ["RAY_TMPDIR"] = "/dev/null/this test starts a cluster: mark it with cluster"  # where none can start


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of many small files that are not about what a power cut leaves.

    Beside others that write much, each wait for the disk takes tenths of a second.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def package_log() -> Iterator[None]:
    """The package's log as it was before: an actor's process is its own, where its handler may stay."""
    logger = logging.getLogger("coar_dist")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster for the whole session, larger than the machine so that scheduling can be tested."""
    import ray

    for is_last in (False, True):  # one that starts on a busy machine may miss its time limit
        try:
            ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            break
        except Exception:
            ray.shutdown()
            if is_last:
                raise
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an unbroken ``run_small``."""
    from tests.small_run import files_of, run_small, without_ray

    root = tmp_path_factory.mktemp("whole") / "run"
    with without_ray():
        run_small(root)
    return files_of(root)


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server with one bucket."""
    from tests.object_store import ObjectStore

    store = ObjectStore()
    store.make_bucket()
    yield store
    store.stop()


@pytest.fixture
def quiet() -> Console:
    from rich.console import Console

    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    """A whole run of the small model: read it, do not change it."""
    from rich.console import Console

    import coar_dist
    from coar_dist.config.schema import EvaluationConfig
    from tests.models import small_task
    from tests.small_run import without_ray

    task = small_task()
    with without_ray():
        return coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=tmp_path_factory.mktemp("runs") / "small",
            num_masks=150,
            ablation_fraction=0.2,
            stages=("ablate", "fit", "evaluate"),
            baselines=["leave_one_out"],
            evaluation=EvaluationConfig(num_masks=40, ablation_fractions=[0.2, 0.1], seed=7),
            console=Console(file=io.StringIO()),
        )


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
