"""What a cluster adds to the work: actors side by side, the driver's own share, a killed node, and a submitted job.

    python -m tests.benchmarks.cluster                   all sections, about 4 minutes on 2 cores
    python -m tests.benchmarks.cluster --sections actors driver

No GPU is needed: nodes say that they have some, and paced actors, which wait as if for a device, write real shards.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from coar_dist.ablation.actor import AblationActor, AblationJob
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.value import ZeroWeights
from coar_dist.ablation.work import ROWS_KEY
from coar_dist.cluster.dispatch import run_ranges
from coar_dist.cluster.ranges import RangesToDo, WorkRange
from coar_dist.cluster.work import Counts, DriverCallbacks, SharedPlan, Work
from coar_dist.components.discovery import discover
from coar_dist.config.schema import ClusterConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.locations import storage_at
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.models import small_task
from tests.object_store import BUCKET, ObjectStore

CONSOLE = Console(width=110)
MASKS_PER_SHARD = 16
SECONDS_PER_RANGE = 0.2
PLAN = EnginePlan("weights", 7, compiled=False)
SECONDS_PER_REQUEST = 0.05
"""Of the object store, as of one in the same region."""


class PacedActor(AblationActor):
    """Takes ``SECONDS_PER_RANGE`` for a range, as a device would, without the host's cores."""

    def compute(self, masks: WorkRange) -> Callable[[], None]:
        design, store = self._job.stores[masks.store_name]
        assert isinstance(store, MarginStore)
        rows = design.masks(masks.start, masks.stop)
        time.sleep(SECONDS_PER_RANGE)
        margins = np.random.default_rng(masks.start).standard_normal((len(rows), 7), dtype=np.float32)
        return lambda: store.write(masks.start, rows, margins, {})


def job_of(folder: Path | str, num_ranges: int) -> tuple[AblationJob, RangesToDo]:
    """A run in ``folder``, of which so many ranges are missing."""
    task = small_task()
    components = discover(task.model, "conv_filters")
    design = Bernoulli(components.num_components, num_ranges * MASKS_PER_SHARD, 0.1, 0)
    storage = storage_at(folder)
    if isinstance(storage, LocalStorage):
        storage.create()
    identity = {"ablation.examples_per_block": 100, "ablation.margins_dtype": "float32"}
    directory = RunDirectory.create(storage, identity, components, len(task.examples))
    directory.set_designs({"train": RunDesign("train", design)})
    store = directory.margins("train")
    job = AblationJob(ZeroWeights(components), {"train": (design, store)}, "float32", None, PlanPins())
    return job, RangesToDo({"train": store.missing()}, {"train": MASKS_PER_SHARD}, "masks")


def run(
    folder: Path,
    num_ranges: int,
    config: ClusterConfig,
    on_progress: Callable[[Counts], None] = lambda counts: None,
) -> tuple[float, float]:
    """Seconds from the first shard to the last one, and CPU seconds of this process meanwhile."""
    job, ranges = job_of(folder, num_ranges)
    store = job.store("train")
    work = Work(
        "benchmark", PacedActor, small_task(), job, ranges, SharedPlan(PLAN, None), ROWS_KEY, predict=lambda: math.inf
    )
    process, first = psutil.Process(), list[tuple[float, float]]()

    def now() -> tuple[float, float]:
        cpu = process.cpu_times()
        return time.perf_counter(), cpu.user + cpu.system

    def note(counts: Counts) -> None:
        if not first and counts.num_units:
            first.append(now())
        on_progress(counts)

    run_ranges(config, work, DriverCallbacks(note, lambda _: None, lambda *_: None, lambda: None, lambda _: None))
    ended = now()
    assert store.missing() == []
    return ended[0] - first[0][0], ended[1] - first[0][1]


def actors_section(folder: Path, ranges_per_actor: int, counts: Sequence[int] = (1, 2, 4)) -> None:
    """1, 2 and 4 actors with a GPU each that is not there: how near the work comes to an equal share."""
    table = Table(title=f"Paced actors, {SECONDS_PER_RANGE} s a range of {MASKS_PER_SHARD} masks", title_justify="left")
    for column in ("actors", "ranges", "seconds", "ideal", "efficiency", "driver's CPU", "shards/s"):
        table.add_column(column, justify="right")
    for count in counts:
        num_ranges = ranges_per_actor * count
        config = ClusterConfig(max_actors=count, min_actors=count, cpus_per_actor=1, gpus_per_actor=1.0)
        seconds, cpu = run(folder / f"actors{count}", num_ranges, config)
        ideal = (num_ranges / count - 2) * SECONDS_PER_RANGE  # the first is told of when the second is computed
        table.add_row(
            str(count), str(num_ranges), f"{seconds:.2f}", f"{ideal:.2f}", f"{ideal / seconds:.0%}",
            f"{cpu / seconds:.1%} of a core", f"{num_ranges / seconds:.1f}",
        )  # fmt: skip
    CONSOLE.print(table)


def driver_section(folder: Path, ranges_per_actor: int) -> None:
    """The driver's own CPU time at 20 shards a second: 4 paced actors."""
    num_ranges = 4 * ranges_per_actor
    config = ClusterConfig(max_actors=4, min_actors=4, cpus_per_actor=1, gpus_per_actor=1.0)
    seconds, cpu = run(folder / "driver", num_ranges, config)
    cores = psutil.cpu_count() or 1
    CONSOLE.print(
        f"Driver at {num_ranges / seconds:.1f} shards/s: {cpu / num_ranges * 1e3:.2f} ms of CPU a shard, "
        f"{cpu / seconds:.1%} of one core, {cpu / seconds / cores:.1%} of this machine's {cores}."
    )


def object_store_section(_folder: Path, num_ranges: int) -> None:
    """The share of its time in which an actor, without Ray, does not compute: shards are small, the store is far."""
    with contextlib.ExitStack() as stack:
        store = ObjectStore()
        stack.callback(store.stop)
        store.make_bucket()
        store.delay_s = SECONDS_PER_REQUEST
        stack.enter_context(mock.patch.dict(os.environ, store.environment))
        idle = {}
        for overlaps in (False, True):
            job, ranges = job_of(f"s3://{BUCKET}/{overlaps}", num_ranges)
            actor = PacedActor()
            actor.overlaps = overlaps
            actor.setup(small_task(), job, num_threads=1)
            actor.use(PLAN)
            started = time.perf_counter()
            written = [done for work_range in ranges for done in actor.run(work_range).written]
            written += actor.flush().written
            seconds = time.perf_counter() - started
            assert len(written) == num_ranges
            idle[overlaps] = 1 - sum(report.forward_s for _, report in written) / seconds
    CONSOLE.print(
        f"In an object store that takes {SECONDS_PER_REQUEST} s a request, ranges of {SECONDS_PER_RANGE} s: an actor "
        f"computes nothing for {idle[True]:.1%} of its time, for {idle[False]:.1%} if it waits until each shard is "
        f"written."
    )


def killed_node_section(folder: Path, ranges_per_actor: int) -> None:
    """Two nodes of two actors; one node is killed half way."""
    times = {}
    for kills in (False, True):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2})
        other = cluster.add_node(num_cpus=2, num_gpus=2)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        killed: list[float] = []
        config = ClusterConfig(max_actors=4, min_actors=1, gpus_per_actor=1.0)

        def on_progress(
            counts: Counts, cluster: Cluster = cluster, node: object = other, kills: bool = kills,
            killed: list[float] = killed,
        ) -> None:  # fmt: skip
            if kills and not killed and counts.num_shards >= 2 * ranges_per_actor:
                killed.append(time.perf_counter())
                cluster.remove_node(node, allow_graceful=False)

        try:
            times[kills], _ = run(folder / f"node{kills}", 4 * ranges_per_actor, config, on_progress=on_progress)
        finally:
            ray.shutdown()
            cluster.shutdown()
    ideal = (ranges_per_actor / 2 + ranges_per_actor) * SECONDS_PER_RANGE
    CONSOLE.print(
        f"A node of two killed when half of {4 * ranges_per_actor} ranges were done: {times[True]:.1f} s, unbroken "
        f"{times[False]:.1f} s; with nothing lost and no pause it would be {ideal:.1f} s. What the node was computing "
        f"was done again."
    )


def submit_section(folder: Path, _ranges_per_actor: int) -> None:
    """From `ray job submit` to the job's first line, its first shard and its end."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    temporary = tempfile.mkdtemp(dir="/tmp", prefix="cs")  # Ray's sockets need a short path
    head = ["ray", "start", "--head", "--block", "--port=26379", "--dashboard-host=127.0.0.1", "--dashboard-port=28265"]
    options = ["--node-ip-address=127.0.0.1", f"--temp-dir={temporary}", "--num-cpus=2", "--disable-usage-stats"]
    with (folder / "head.log").open("w") as log:
        node = subprocess.Popen([*head, *options], env=environment, stdout=log, stderr=log)
    try:
        address = ["--address", "http://127.0.0.1:28265"]
        while subprocess.run(["ray", "job", "list", *address], env=environment, capture_output=True).returncode:
            assert node.poll() is None
            time.sleep(0.5)
        run_dir = folder / "submitted"
        small = [
            "task.examples.arguments.num_examples=100",
            "train.epochs=2",
            "train.minimum_accuracy=0",
            "baselines=[]",
        ]
        command = ["python", "-m", "coar_dist", f"run.dir={run_dir}", "stages=[train,ablate,fit]", *small]
        started = time.perf_counter()
        submit = ["ray", "job", "submit", *address, "--working-dir", ".", "--", *command]
        job = subprocess.Popen(submit, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        first_log = first_shard = None
        while job.poll() is None:
            seconds = time.perf_counter() - started
            if first_log is None and (run_dir / "logs").exists():
                first_log = seconds
            if first_shard is None and any((run_dir / "margins").rglob("*.parquet")):
                first_shard = seconds
            time.sleep(0.05)
        assert job.returncode == 0
        CONSOLE.print(
            f"Submitted job: the run's log after {first_log:.1f} s, its first shard after {first_shard:.1f} s, two "
            f"epochs of training among them, the end after {time.perf_counter() - started:.1f} s."
        )
    finally:
        node.terminate()
        node.wait()
        shutil.rmtree(temporary, ignore_errors=True)


SECTIONS: dict[str, Callable[..., None]] = {
    "actors": actors_section,
    "driver": driver_section,
    "object_store": object_store_section,
    "killed_node": killed_node_section,
    "submit": submit_section,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--ranges", type=int, default=100, help="per actor")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4], help="of the section of that name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sections:
            if name in ("actors", "driver"):
                ray.init(
                    "local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
                )
            try:
                more = [arguments.actors] if name == "actors" else []
                SECTIONS[name](Path(folder), arguments.ranges, *more)
            finally:
                ray.shutdown()


if __name__ == "__main__":
    main()
