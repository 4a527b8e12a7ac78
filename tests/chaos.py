"""One small, slow run, and the ways to break it. ``python -m tests.chaos <run_dir> <max_actors>`` runs it."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import psutil
import torch
from ray.cluster_utils import Cluster
from rich.console import Console
from torch import Tensor, nn

import coar_dist
from coar_dist.ablation.plan import EnginePlan
from coar_dist.cluster.work import DriverCallbacks, Work
from coar_dist.config.schema import AblationConfig, ClusterConfig, EvaluationConfig
from coar_dist.errors import DamagedFileError, RunMismatchError
from coar_dist.store.reader import RunReader
from tests.models import small_task

PLAN = EnginePlan("weights", 7, compiled=False)


class Slow(nn.Module):
    """A model whose forward pass takes a while, so that there is time to kill it."""

    def __init__(self, inner: nn.Module, seconds: float) -> None:
        super().__init__()
        self.inner = inner
        self._seconds = seconds

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self._seconds)
        output: Tensor = self.inner(images)
        return output


def run_small(
    run_dir: str | Path, max_actors: int = 1, seconds: float = 0.0, address: str | None = None, seed: int = 0
) -> RunReader:
    """All stages of a small run: 65 shards of train, held-out and leave-one-out masks and of gradients."""
    task = small_task(seed=seed)
    return coar_dist.attribute(
        Slow(task.model, seconds),
        task.examples.inputs,
        task.examples.targets,
        run_dir=run_dir,
        num_masks=200,
        num_gradient_masks=15,
        ablation_fraction=0.2,
        stages=("ablate", "fit", "evaluate"),
        baselines=["leave_one_out"],
        evaluation=EvaluationConfig(num_masks=40, ablation_fractions=[0.2], seed=7, curve_shares=[0.5]),
        ablation=AblationConfig(
            masks_per_shard=4,
            mode=PLAN.mode,
            rows_per_forward=PLAN.rows_per_forward,
            compile=False,
            examples_per_block=4,
        ),
        cluster=ClusterConfig(address=address, max_actors=max_actors),
        console=Console(file=io.StringIO()),
    )


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Ranges are computed in this process, by the actor's own code."""

    def run_here(config: ClusterConfig, work: Work, callbacks: DriverCallbacks) -> None:
        actor = work.actor()
        actor.setup(copy.deepcopy(work.task), work.job, config.cpus_per_actor)  # an actor may change its model
        if work.plan is not None and work.plan.needs_start:
            callbacks.on_start(actor.start(work.plan.request, 1, work.plan.value))
        elif work.plan is not None:
            actor.use(work.plan.value)
        for work_range in work.ranges:
            actor.run(work_range)

    with mock.patch("coar_dist.cluster.driver.run_ranges", run_here):
        yield


def files_of(root: Path) -> dict[str, bytes]:
    """The files that must be the same in every run, by name, with their bytes."""
    folders = ("margins", "gradients", "baselines", "attributions", "evaluation")
    paths = [*root.glob("*.parquet"), *(path for folder in folders for path in (root / folder).rglob("*"))]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(paths)
        if path.is_file() and not path.name.endswith((".damaged", ".tmp"))
    }


def kill_until_done(
    run_dir: Path, max_actors: int, num_kills: int, rng: random.Random, seconds: float, victims: str
) -> dict[str, int]:
    """Run ``run_small`` in processes of their own, killing the driver, actors or nodes at random moments.

    Args:
        run_dir: the run directory.
        max_actors: actors, and for ``nodes`` also the nodes at a time.
        num_kills: kills, if the run lasts that long; then it is left to end.
        rng: of the moments.
        seconds: of one forward pass.
        victims: ``driver``, ``actor`` or ``node``.

    Returns:
        How many kills there were, and how many drivers were started.
    """
    num_killed = num_started = 0
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(_Nodes.of(max_actors)) if victims == "node" else None
        address = [] if nodes is None else [nodes.address]
        while True:
            num_started += 1
            command = [sys.executable, "-m", "tests.chaos", str(run_dir), str(max_actors), str(seconds), *address]
            driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
            try:
                while driver.poll() is None and num_killed < num_kills:
                    time.sleep(rng.uniform(1.0, 9.0) if victims == "driver" else rng.uniform(0.1, 1.5))
                    if victims == "driver":
                        driver.kill()
                        num_killed += 1
                        break
                    if victims == "actor":
                        num_killed += _kill_actor(driver.pid, rng)
                    elif nodes is not None and any((run_dir / "margins").glob("*/0*.parquet")):
                        nodes.replace_one(rng)
                        num_killed += 1
                _, errors = driver.communicate(timeout=300)
            finally:
                if driver.poll() is None:
                    driver.kill()
            if driver.returncode == 0:
                return {"kills": num_killed, "drivers": num_started}
            if driver.returncode != -signal.SIGKILL:
                raise AssertionError(f"the run ended with {driver.returncode}: {errors}")


class _Nodes:
    """A Ray cluster whose head has no room for actors, with nodes that have room for one each."""

    def __init__(self, num_nodes: int) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(num_nodes)]
        self.address: str = self._cluster.address

    @classmethod
    @contextlib.contextmanager
    def of(cls, num_nodes: int) -> Iterator[_Nodes]:
        nodes = cls(num_nodes)
        try:
            yield nodes
        finally:
            nodes._cluster.shutdown()

    def replace_one(self, rng: random.Random) -> None:
        """SIGKILL a node's processes, and add another node."""
        node = self._nodes.pop(rng.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))


def _kill_actor(driver: int, rng: random.Random) -> int:
    """SIGKILL one of the driver's actors; the number of those killed, 0 where there is none yet."""
    actors = _actors_of(driver)
    with contextlib.suppress(ProcessLookupError):
        if actors:
            os.kill(rng.choice(actors), signal.SIGKILL)
            return 1
    return 0


def _actors_of(driver: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(driver).children(recursive=True)
        return [
            child.pid for child in children if _title(child).startswith(("ray::AblationActor", "ray::BaselineActor"))
        ]
    return []


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def damage(root: Path, other: Path, rng: random.Random) -> tuple[str, str]:
    """Damage one file of a finished run in a random way.

    Args:
        root: the run directory.
        other: a finished run of another model with the same files.
        rng: which file and which way.

    Returns:
        The file's name, and what was done to it.
    """
    names = sorted([*files_of(root), "run.json"])
    name = rng.choice(names)
    path = root / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    kinds: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: bytes(content[: rng.randrange(len(content))]),
        "emptied": lambda: b"",
        "bits flipped": lambda: _flipped(content, rng),
        "zeros written": lambda: _zeroed(content, rng),
        "bytes inserted": lambda: bytes(content[:middle]) + rng.randbytes(7) + bytes(content[middle:]),
        "bytes appended": lambda: bytes(content) + rng.randbytes(rng.randrange(1, 20)),
        "swapped with another run's": lambda: (other / name).read_bytes(),
        "replaced by another file": lambda: (root / rng.choice([n for n in names if n != name])).read_bytes(),
    }
    if name.startswith(("margins/", "gradients/")):
        kinds["duplicated"] = lambda: bytes(content)
    kind = rng.choice([*kinds, "deleted"])
    if kind == "deleted":
        path.unlink()
    elif kind == "duplicated":
        start, stop = (int(part) for part in path.stem.split("-"))
        path.with_name(f"{start + 1:010d}-{stop + 1:010d}.parquet").write_bytes(content)
    else:
        path.write_bytes(kinds[kind]())
    return name, kind


def damage_and_mend(root: Path, whole: dict[str, bytes], other: Path, rng: random.Random) -> str:
    """Damage a finished run, and run it again until it is done.

    Every refusal on the way must name the damaged file, and the end must be the same bytes.

    Returns:
        What was done, and how many refusals there were.
    """
    name, kind = damage(root, other, rng)
    what = f"{name} {kind}"
    if name.startswith(("margins/", "gradients/")):  # so that it is used again
        shutil.rmtree(root / "attributions")
        shutil.rmtree(root / "evaluation")
    for refusals in range(3):
        try:
            run_small(root)
        except (RunMismatchError, DamagedFileError) as error:
            refused = error
        else:
            found = files_of(root)
            differing = [file for file in {**found, **whole} if found.get(file) != whole.get(file)]
            assert not differing, f"{what}: {differing} differ"
            return f"{kind}, {refusals} refusals"
        if isinstance(refused, DamagedFileError):
            assert Path(name).name in str(refused), f"{what}: {refused}"
        else:  # a run.json of another run: which of the two is wrong, only the user knows
            assert (name, kind) == ("run.json", "swapped with another run's"), f"{what}: {refused}"
            assert "model.weights" in str(refused)
            (root / name).unlink()
    raise AssertionError(f"{what}: refused again and again")


def _flipped(content: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 9])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def _zeroed(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    stop = min(start + rng.randrange(1, 600), len(content))
    content[start:stop] = bytes(stop - start)
    return bytes(content)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_small(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
