from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from rich.console import Console
from xdist.scheduler import LoadScopeScheduling

import coar_dist
from coar_dist.config.schema import EvaluationConfig
from coar_dist.store.reader import RunReader
from tests.chaos import files_of, run_small, without_ray
from tests.models import small_task
from tests.object_store import BUCKET, ObjectStore

OWN_CLUSTERS = {
    "test_app",
    "test_benchmarks_run",
    "test_deploy",
    "test_driver",
    "test_kills",
    "test_metrics",
    "test_object_store_run",
    "test_plan",
    "test_ray_jobs",
}
"""Files whose tests start clusters: all in one process, since two that start at once can take each other's port."""


class ClustersApart(LoadScopeScheduling):  # type: ignore[misc]
    """The other process takes the other files, one by one, with one cluster for all of them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if Path(file).stem in OWN_CLUSTERS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ClustersApart:
    return ClustersApart(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device answers"))


os.environ |= {"RAY_prestart_worker_first_driver": "0"}  # no workers that nobody asked for


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster for the whole session, larger than the machine so that scheduling can be tested."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an unbroken ``run_small``."""
    root = tmp_path_factory.mktemp("whole") / "run"
    with without_ray():
        run_small(root)
    return files_of(root)


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server with one bucket."""
    import s3fs

    store = ObjectStore()
    environment = store.environment
    s3fs.S3FileSystem(
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        skip_instance_cache=True,
    ).mkdir(BUCKET)
    yield store
    store.stop()


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    """A whole run of the small model: read it, do not change it."""
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


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent
