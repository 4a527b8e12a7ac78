"""Ways to break the small run: kill its driver, actors or nodes, damage its files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from coar_dist.errors import DamagedFileError, RunMismatchError
from tests.small_run import files_of, run_small


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
            command = [sys.executable, "-m", "tests.small_run", str(run_dir), str(max_actors), str(seconds), *address]
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


@dataclass(frozen=True)
class Damaged:
    """What a damage is made from.

    Attributes:
        content: the file's, as it was.
        others: that of the file in another run of the same files.
        neighbours: that of another file of the run.
        rng: of places and sizes.
    """

    content: bytes
    others: bytes
    neighbours: bytes
    rng: random.Random

    @property
    def middle(self) -> int:
        return len(self.content) // 2


DAMAGES: dict[str, Callable[[Damaged], bytes]] = {
    "first byte changed": lambda file: bytes([file.content[0] ^ 1 << file.rng.randrange(8)]) + file.content[1:],
    "truncated": lambda file: file.content[: file.rng.randrange(len(file.content))],
    "emptied": lambda file: b"",
    "bits flipped": lambda file: _flipped(bytearray(file.content), file.rng),
    "zeros written": lambda file: _zeroed(bytearray(file.content), file.rng),
    "bytes inserted": lambda file: file.content[: file.middle] + file.rng.randbytes(7) + file.content[file.middle :],
    "bytes appended": lambda file: file.content + file.rng.randbytes(file.rng.randrange(1, 20)),
    "swapped with another run's": lambda file: file.others,
    "replaced by another file": lambda file: file.neighbours,
}
"""What may become of a file's content."""
WITHOUT_A_FILE = ("deleted", "duplicated")
"""What else may happen to a file; what is duplicated are shards."""


def damage(root: Path, name: str, neighbour: str, other: Path, kind: str, rng: random.Random) -> None:
    """Damage one file of a finished run.

    Args:
        root: the run directory.
        name: the file.
        neighbour: another file of the run.
        other: a finished run of another model with the same files.
        kind: of ``DAMAGES`` or ``WITHOUT_A_FILE``.
        rng: of places and sizes.
    """
    path = root / name
    if kind == "deleted":
        path.unlink()
    elif kind == "duplicated":
        start, stop = (int(part) for part in path.stem.split("-"))
        path.with_name(f"{start + 1:010d}-{stop + 1:010d}.parquet").write_bytes(path.read_bytes())
    else:
        contents = (place.read_bytes() for place in (path, other / name, root / neighbour))
        path.write_bytes(DAMAGES[kind](Damaged(*contents, rng)))


def is_shard(name: str) -> bool:
    """Whether a file is one of margins or gradients."""
    return name.startswith(("margins/", "gradients/"))


def damage_and_repair(root: Path, whole: dict[str, bytes], other: Path, rng: random.Random) -> str:
    """Damage one file of a finished run in a random way, and run it again until it is done.

    Returns:
        What was done, and how many refusals there were.
    """
    names = sorted([*files_of(root), "run.json"])
    name = rng.choice(names)
    kind = rng.choice([*DAMAGES, *(WITHOUT_A_FILE if is_shard(name) else WITHOUT_A_FILE[:1])])
    damage(root, name, rng.choice([other_name for other_name in names if other_name != name]), other, kind, rng)
    if is_shard(name):  # so that it is used again
        shutil.rmtree(root / "attributions")
        shutil.rmtree(root / "evaluation")
    return f"{kind}, {repair(root, whole, [name], kind)} refusals"


def repair(root: Path, whole: dict[str, bytes], names: Sequence[str], kind: str) -> int:
    """Run a damaged run again until it is done; how many refusals there were.

    Every refusal on the way must name a damaged file, and the end must be the same bytes.
    """
    what = f"{names} {kind}"
    for refusals in range(len(names) + 2):
        try:
            run_small(root)
        except (RunMismatchError, DamagedFileError) as error:
            refused = error
        else:
            found = files_of(root)
            differing = [file for file in {**found, **whole} if found.get(file) != whole.get(file)]
            assert not differing, f"{what}: {differing} differ"
            return refusals
        if isinstance(refused, DamagedFileError):
            assert any(name in str(refused) for name in names), f"{what}: {refused}"
        else:  # a run.json of another run: which of the two is wrong, only the user knows
            assert (names, kind) == (["run.json"], "swapped with another run's"), f"{what}: {refused}"
            assert "model.weights" in str(refused)
            (root / "run.json").unlink()
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
