"""What scheduling and resuming do at the size that is promised: 1,000 actors, 1,000,000 ranges, 100,000 shards.

    python -m tests.benchmarks.scale [--actors 1000] [--ranges 1000000] [--shards 100000]

The schedule alone, without Ray: ranges take 10 s of simulated time, some ten times as long; ranges fail, actors die,
and whole nodes of 8 go at once. A decision is a range handed out, or an answer (done, failed, lost) taken in.

Resuming: what the ablate stage does with a folder of shards before it starts an actor, on a local disk: list them,
verify footers where they are few enough, find what is missing.
"""

from __future__ import annotations

import argparse
import heapq
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from coar_dist.cluster.ranges import RangesToDo, WorkRange
from coar_dist.cluster.schedule import Schedule
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.independent import Bernoulli
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.run_directory import RunDesign, RunDirectory

RANGES_IN_FLIGHT = 2
ACTORS_PER_NODE = 8
FAILURE, LOSS, NODE_LOSS, SLOW = 1e-3, 1e-3, 1e-4, 1e-3  # per answer
NO_TROUBLE, TROUBLE = 0.0, 1.0


def simulate(num_actors: int, num_ranges: int, trouble: float) -> dict[str, float]:
    """Run a schedule to its end.

    Args:
        num_actors: alive at a time.
        num_ranges: of 64 masks.
        trouble: 1 for failures, losses and slow ranges, 0 for none.

    Returns:
        Counts of what happened, and the seconds that the schedule itself took.
    """
    dice = random.Random(0)
    ranges = RangesToDo({"train": [(0, 64 * num_ranges)]}, {"train": 64}, "masks")
    schedule = Schedule(ranges, max_attempts=10, memory_key="")
    counts = {"handed out": 0, "done": 0, "failed": 0, "lost": 0, "late copies": 0, "seconds": 0.0}
    answers: list[tuple[float, int, str, WorkRange]] = []  # a heap: when, tie-break, actor, range
    busy_until: dict[str, float] = {}
    num_joined = 0
    clock = time.perf_counter

    def join() -> str:
        nonlocal num_joined
        actor = f"actor-{num_joined}"
        schedule.joined(actor, f"host-{num_joined % (num_actors // ACTORS_PER_NODE + 1)}")
        busy_until[actor] = 0.0
        num_joined += 1
        return actor

    def feed(actor: str, now: float) -> None:
        while schedule.num_in_flight(actor) < RANGES_IN_FLIGHT:
            begin = clock()
            masks = schedule.next_for(actor, now)
            counts["seconds"] += clock() - begin
            if masks is None:
                return
            counts["handed out"] += 1
            seconds = dice.uniform(8.0, 12.0) * (10.0 if dice.random() < trouble * SLOW else 1.0)
            busy_until[actor] = max(busy_until[actor], now) + seconds
            heapq.heappush(answers, (busy_until[actor], counts["handed out"], actor, masks))

    def lose(actor: str, now: float, node_died: bool) -> None:
        del busy_until[actor]
        begin = clock()
        schedule.lost(actor, "killed", node_died)
        counts["seconds"] += clock() - begin
        counts["lost"] += 1
        feed(join(), now)

    for _ in range(num_actors):
        feed(join(), 0.0)
    next_look = 0.0
    while not schedule.is_done:
        now, _, actor, masks = heapq.heappop(answers)
        if actor not in busy_until:
            continue
        event = dice.random()
        if event < trouble * NODE_LOSS:
            for other in list(busy_until)[:ACTORS_PER_NODE]:
                lose(other, now, node_died=True)
        elif event < trouble * (NODE_LOSS + LOSS):
            lose(actor, now, node_died=False)
        elif event < trouble * (NODE_LOSS + LOSS + FAILURE):
            begin = clock()
            schedule.failed(masks, actor, RuntimeError("CUDA error"))
            counts["seconds"] += clock() - begin
            counts["failed"] += 1
            feed(actor, now)
        else:
            begin = clock()
            schedule.computed(masks, actor, now)
            is_first = schedule.done(masks, actor)
            counts["seconds"] += clock() - begin
            counts["done" if is_first else "late copies"] += 1
            feed(actor, now)
        if schedule.num_pending == 0 and now >= next_look:  # the driver asks for its idle actors twice a second
            next_look = now + 0.5
            for other in list(busy_until):
                feed(other, now)
    assert counts["done"] == num_ranges
    return counts


def measure_schedule(console: Console, num_actors: int, num_ranges: int) -> None:
    """Print decisions per second and peak memory of the state machine."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = Table(title=f"Schedule: {num_actors:,} actors, {num_ranges:,} ranges")
    for column in ("case", "decisions", "failed", "lost", "copies", "decisions/s", "s", "peak memory"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case, trouble in (("nothing happens", NO_TROUBLE), ("failures, losses, slow ranges", TROUBLE)):
        counts = simulate(num_actors, num_ranges, trouble)
        answers = sum(counts[name] for name in ("done", "failed", "lost", "late copies"))
        decisions, seconds = counts["handed out"] + answers, counts["seconds"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        table.add_row(
            case,
            f"{decisions:,.0f}",
            f"{counts['failed']:,.0f}",
            f"{counts['lost']:,.0f}",
            f"{counts['late copies']:,.0f}",
            f"{decisions / seconds:,.0f}",
            f"{seconds:.1f}",
            f"{peak / 1024:.0f} MB (before: {before / 1024:.0f})",
        )
    console.print(table)


def measure_resume(console: Console, folder: Path, num_shards: int) -> None:
    """Print how long it takes to know what is done, with one shard missing in the middle."""
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, 688),))
    identity = {"ablation.examples_per_block": 1024, "ablation.margins_dtype": "float16"}
    storage = LocalStorage(str(folder / "run"))
    storage.create()
    run = RunDirectory.create(storage, identity, components, 16)
    design = Bernoulli(688, 64 * num_shards, 0.1, seed=0)
    run.set_designs({"train": RunDesign("train", design)})
    store = run.margins("train")
    masks, margins = design.masks(0, 64), np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    for shard in range(num_shards):
        if shard != num_shards // 2:
            store.write(64 * shard, masks, margins, {})
    started = time.perf_counter()
    assert store.set_aside_wrong(is_new_run=False) == []
    assert store.missing() == [(64 * (num_shards // 2), 64 * (num_shards // 2) + 64)]
    resume = time.perf_counter() - started
    started = time.perf_counter()
    assert store.wrong_shards("footers") == {}
    footers = time.perf_counter() - started
    table = Table(title=f"Resume from {num_shards - 1:,} shards")
    for column in ("until the gaps are known, s", "verifying all footers (inspect), s", "us per footer"):
        table.add_column(column, justify="right")
    table.add_row(f"{resume:.2f}", f"{footers:.2f}", f"{footers / num_shards * 1e6:.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=1000)
    parser.add_argument("--ranges", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100_000)
    arguments = parser.parse_args()
    console = Console(width=140)
    measure_schedule(console, arguments.actors, arguments.ranges)
    with tempfile.TemporaryDirectory() as folder:
        measure_resume(console, Path(folder), arguments.shards)


if __name__ == "__main__":
    main()
