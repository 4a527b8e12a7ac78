"""The soak: many kills and much damage, each followed by the same run again, whose bytes must be an unbroken run's.

python -m tests.benchmarks.chaos                        100 kills and 2,000 damaged files
python -m tests.benchmarks.chaos --kills 9 --cases 50
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import damage_and_repair, kill_until_done
from tests.small_run import files_of, run_small, without_ray

VICTIMS = ("driver", "actor", "node")


def measure_kills(console: Console, folder: Path, num_kills: int, seed: int) -> None:
    """Kill drivers, actors and nodes in turn, with 1, 2 and 3 actors."""
    with without_ray():
        run_small(folder / "whole")
    whole = files_of(folder / "whole")
    table = Table(title=f"{num_kills} kills, seed {seed}: all files against an unbroken run")
    for column in ("killed", "actors", "kills", "drivers started", "s", "files", "differing"):
        table.add_column(column, justify="left" if column == "killed" else "right")
    rng = random.Random(seed)
    done, number = 0, 0
    while done < num_kills:
        victims, actors = VICTIMS[number % 3], 1 + number // 3 % 3
        root = folder / f"kills_{number}"
        started = time.monotonic()
        result = kill_until_done(root, actors, min(rng.randint(2, 8), num_kills - done), rng, 0.01 * actors, victims)
        found = files_of(root)
        differing = [name for name in {**whole, **found} if whole.get(name) != found.get(name)]
        row = (result["kills"], result["drivers"], f"{time.monotonic() - started:.0f}", len(found), len(differing))
        table.add_row(victims, str(actors), *map(str, row))
        console.print(f"killed {victims} with {actors} actors: {row}", highlight=False)
        assert not differing, differing
        done += result["kills"]
        number += 1
    console.print(table)


def measure_damage(console: Console, folder: Path, num_cases: int, seed: int) -> None:
    """Damage one file of a finished run, run it again, compare."""
    counts = Counter[str]()
    with without_ray():
        run_small(folder / "run")
        run_small(folder / "other", seed=1)
        whole = files_of(folder / "run")
        for case in range(seed, seed + num_cases):
            root = folder / "damaged"
            shutil.copytree(folder / "run", root)
            counts[damage_and_repair(root, whole, folder / "other", random.Random(case))] += 1
            shutil.rmtree(root)
    table = Table(title=f"{num_cases} damaged files, seeds from {seed}: all ended in the same bytes")
    table.add_column("damage, refusals until it was repaired")
    table.add_column("cases", justify="right")
    for what, count in sorted(counts.items()):
        table.add_row(what, str(count))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.cases:
            measure_damage(console, Path(folder) / "damage", arguments.cases, arguments.seed)
        if arguments.kills:
            measure_kills(console, Path(folder) / "kills", arguments.kills, arguments.seed)


if __name__ == "__main__":
    main()
