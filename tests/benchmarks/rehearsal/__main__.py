"""The whole pipeline at full size: driver, Ray actors, store, fit, evaluation and report, without forward passes.

    python -m tests.benchmarks.rehearsal                       both shapes; an hour and 15 GB of disk on 2 cores
    python -m tests.benchmarks.rehearsal --shapes plain --scale 0.25
    python -m tests.benchmarks.rehearsal --smoke               seconds

Margins have a linear part that is known, so that the attributions can be held to it. Printed are seconds, bytes and the
memory of every kind of process for each stage; what the sizes of setups B and C would take by the same operations; and
what the plan stage says of the same.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import ray
from rich.console import Console
from rich.table import Table

from coar_dist.result.run import Run
from coar_dist.stages.later import needs_of as later_needs
from coar_dist.stages.needs import Need
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory
from tests.benchmarks.rehearsal.engine import ABLATION_FRACTION, rehearsed
from tests.benchmarks.rehearsal.extrapolate import extrapolated
from tests.benchmarks.rehearsal.known import Known
from tests.benchmarks.rehearsal.shapes import SETUPS, SHAPES, Shape, task_of
from tests.benchmarks.rehearsal.watch import Usage, watched

STAGES = ("ablate", "fit", "evaluate", "report")
CONSOLE = Console(width=130)
_SMOKE = 0.01


def rehearse(shape: Shape, folder: Path, num_actors: int, memory_gb: float) -> dict[str, Usage]:
    """Run all stages of a shape, each by a command of its own; and check what comes out."""
    task, components = task_of(shape)
    run_dir = folder / "run"
    run_dir.mkdir(parents=True)
    usages: dict[str, Usage] = {}
    for stage in STAGES:
        with watched(run_dir) as usage:
            config = shape.config(str(run_dir), [stage], num_actors, memory_gb)
            run_stages(config, Console(file=sys.stderr), task, components)
        usages[stage] = usage
        CONSOLE.print(f"  {stage}: {usage.seconds:.1f} s")
    found = correlation_of_weights(shape, run_dir)
    CONSOLE.print(f"  found and true weights correlate by {found.mean():.4f} (worst example {found.min():.4f})")
    return usages


def correlation_of_weights(shape: Shape, run_dir: Path, most_blocks: int = 4) -> np.ndarray:
    """(n,) of the examples of some blocks: correlation of their attributions with the true weights."""
    run = Run(RunDirectory.open(storage_at(run_dir)))
    known = Known(shape.num_components, shape.num_examples, ABLATION_FRACTION)
    found = []
    for block in run._reader.directory.margins("train").blocks[:most_blocks]:
        weights, true = run.weights(range(*block)), known.weights(block)
        found += [np.corrcoef(*pair)[0, 1] for pair in zip(weights, true, strict=True)]
    return np.array(found)


def plan_of(shape: Shape, folder: Path, num_actors: int, memory_gb: float) -> tuple[str, dict[str, Need]]:
    """What the plan stage says, and the numbers of it for the stages after the ablate stage."""
    task, components = task_of(shape)
    text = io.StringIO()
    found: list[Need] = []

    def noted(*arguments: Any) -> list[Need]:
        found.extend(later_needs(*arguments))
        return found

    config = shape.config(str(folder / "planned"), ["plan"], num_actors, memory_gb)
    with mock.patch("coar_dist.stages.later.needs_of", noted):
        run_stages(config, Console(file=text, width=120), task, components)
    return text.getvalue(), {need.stage: need for need in found}


def plan_table(usages: dict[str, Usage], needs: dict[str, Need]) -> Table:
    """What was planned over what was measured."""
    table = Table(title="planned / measured", title_justify="left")
    for name in ("stage", "seconds", "of CPU", "memory", "read", "written"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, usage in usages.items():
        if stage not in needs:
            continue
        need = needs[stage]
        memory = max(usage.peaks.get(kind, 0) for kind in ("driver", "actors and workers"))
        pairs = ((need.seconds, usage.seconds), (need.seconds, usage.cpu_seconds), (need.memory, memory))
        bytes_ = ((need.read, usage.read), (need.written, usage.written))
        table.add_row(stage, *(f"{planned / max(measured, 1e-9):.2f}" for planned, measured in (*pairs, *bytes_)))
    return table


def usage_table(shape: Shape, usages: dict[str, Usage]) -> Table:
    kinds = sorted({kind for usage in usages.values() for kind in usage.peaks})
    table = Table(title=_in_words(shape), title_justify="left")
    for name in ("stage", "seconds", "written", "read", "files", *kinds, "all together"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, usage in usages.items():
        peaks = (_gb(usage.peaks.get(kind, 0)) for kind in kinds)
        sizes = (f"{usage.seconds:.1f}", _gb(usage.written), _gb(usage.read), f"{usage.num_files:,}")
        table.add_row(stage, *sizes, *peaks, _gb(usage.together))
    return table


def _in_words(shape: Shape) -> str:
    masks = f"{shape.num_masks:,} masks" + (
        f" + {shape.num_gradient_masks:,} with gradients" * bool(shape.num_gradient_masks)
    )
    return f"{shape.name}: {masks} x {shape.num_components:,} components x {shape.num_examples:,} examples"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--scale", type=float, default=1.0, help="of masks, components and examples")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--memory-gb", type=float, default=8.0, help="regression.memory_gb")
    parser.add_argument("--smoke", action="store_true", help=f"--scale {_SMOKE}, and no setups")
    parser.add_argument("--keep", type=Path, help="where the runs are to stay")
    arguments = parser.parse_args()
    scale = _SMOKE if arguments.smoke else arguments.scale
    # Actors import this package, wherever they are started.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    folder = arguments.keep or Path(tempfile.mkdtemp())
    CONSOLE.print(f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, scale {scale:g}")
    ray.init(num_cpus=arguments.actors, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with rehearsed():
            rehearse(SHAPES["plain"].scaled(_SMOKE), folder / "warm", arguments.actors, arguments.memory_gb)
            CONSOLE.print("(That was tiny, and loaded the libraries.)")
            for name in arguments.shapes:
                shape = SHAPES[name].scaled(scale) if scale != 1.0 else SHAPES[name]
                CONSOLE.print(_in_words(shape))
                text, needs = plan_of(shape, folder / name, arguments.actors, arguments.memory_gb)
                CONSOLE.print(text)
                usages = rehearse(shape, folder / name, arguments.actors, arguments.memory_gb)
                CONSOLE.print(usage_table(shape, usages))
                CONSOLE.print(plan_table(usages, needs))
                if name == "plain" and not arguments.smoke:
                    for setup in SETUPS.values():
                        CONSOLE.print(_in_words(setup))
                        CONSOLE.print(extrapolated(shape, usages, setup))
                        CONSOLE.print(plan_of(setup, folder / "setups", arguments.actors, arguments.memory_gb)[0])
    finally:
        ray.shutdown()
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
