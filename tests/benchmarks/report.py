"""What the report page costs: its size, the time and memory to make it, and the time to load it.

    python -m tests.benchmarks.report [--sizes 10x240 500x2304 ...] [--folder DIR] [--no-browser]

Every size is examples x components: a run of random weights, images of 64 x 64 pixels, 10 classes
and a column of 5 values. The page is made in a process of its own, whose greatest memory is printed. Chromium loads it
three times, until everything that it shows is there; the median is printed, and without Chromium nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.report.browser import chromium, show
from tests.report.synthetic import synthetic_run

SIZES = [f"{examples}x{components}" for components in (240, 2304, 82944) for examples in (10, 500, 50000)]
_PROGRAM = r"""
import json, re, sys, time
from coar_dist.report.page.render import write_page
from coar_dist.report.summary import summarise
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory
began = time.perf_counter()
run = RunDirectory.open(storage_at(sys.argv[1]))
write_page(run, summarise(run))
seconds = time.perf_counter() - began
status = open("/proc/self/status").read()  # ru_maxrss is that of the parent, too
print(json.dumps([seconds, time.process_time(), 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])]))
"""


def measure(folder: Path, num_examples: int, num_components: int, has_browser: bool = True) -> dict[str, float]:
    """Make a run and its page: ``bytes``, ``seconds``, ``cpu`` seconds with the start of the process, ``memory`` in
    bytes, ``load`` in seconds (NaN without Chromium)."""
    num_layers = 16
    synthetic_run(
        folder,
        num_examples,
        num_layers,
        num_components // num_layers,
        num_classes=10,
        columns={"site": np.arange(num_examples) % 5},
        side=64,
    )
    done = subprocess.run([sys.executable, "-c", _PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu, memory = json.loads(done.stdout.splitlines()[-1])
    page = folder / "report" / "index.html"
    return {
        "bytes": page.stat().st_size,
        "seconds": seconds,
        "cpu": cpu,
        "memory": memory,
        "load": _load(page) if has_browser else float("nan"),
    }


def _load(page: Path) -> float:
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return float("nan")
    taken = []
    with chromium() as browser:
        for _ in range(3):
            began = time.perf_counter()
            show(browser, page, 1400)
            assert browser.execute_script("return document.documentElement.className") == "ready"
            taken.append(time.perf_counter() - began)
        assert browser.get_log("browser") == []
    return statistics.median(taken)


def main() -> None:
    """Print a row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="EXAMPLESxCOMPONENTS")
    parser.add_argument("--no-browser", action="store_true", help="do not load the page")
    parser.add_argument("--folder", type=Path, default=None, help="where runs are made and removed again")
    arguments = parser.parse_args()
    table = Table(title="The report page")
    for name in ("examples", "components", "page, MB", "made in, s", "CPU, s", "memory, GB", "loaded in, s"):
        table.add_column(name, justify="right")
    for size in arguments.sizes:
        num_examples, num_components = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found = measure(Path(folder) / "run", num_examples, num_components, not arguments.no_browser)
        numbers = (found["bytes"] / 1e6, found["seconds"], found["cpu"], found["memory"] / 1e9, found["load"])
        table.add_row(f"{num_examples:,}", f"{num_components:,}", *(f"{number:.2f}" for number in numbers))
        print(size, *(f"{number:.2f}" for number in numbers), flush=True)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
