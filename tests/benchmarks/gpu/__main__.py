"""Everything about coar_dist that only a GPU can show, in one command of 12 minutes.

    python -m tests.benchmarks.gpu --out DIR                        all sections; DIR/gpu.md and DIR/gpu.json
    python -m tests.benchmarks.gpu --out DIR --sections exactness throughput
    python -m tests.benchmarks.gpu --out DIR --smoke                every section, tiny, on the CPU

It needs torch, numpy, pyarrow and this repository; what else is missing (ray, cuml) is named as skipped. Sections are
independent of each other; each begins no further measurement when its time, and what others have left, is over. The
exit status is 1 where a section failed or an error is above its limit.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.gpu import engine_sections, product_sections, regression_sections
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.gpu.sections import Section, measure_limits

SECTIONS: dict[str, tuple[Callable[[Section], None], float]] = {
    "ridge": (regression_sections.ridge_section, 45),
    "lasso": (regression_sections.lasso_section, 25),
    "run": (product_sections.whole_run, 40),
    "ray": (engine_sections.ray_actors, 10),
    "language": (product_sections.language, 45),
    "values": (product_sections.values, 20),
    "statistics": (regression_sections.sufficient_statistics, 20),
    "fit": (regression_sections.whole_fit, 20),
    "memory": (engine_sections.out_of_memory, 20),
    "identical": (engine_sections.identical, 30),
    "few": (engine_sections.few_examples, 30),
    "setup_b": (product_sections.setup_b, 150),
    "gap": (product_sections.gap, 60),
    "gradients": (engine_sections.gradients, 40),
    "exactness": (engine_sections.exactness, 60),
    "throughput": (engine_sections.throughput, 90),
}
"""By name: what it does, and after how many seconds, and those that others before it have left, it begins nothing more.
What has never run on a GPU comes first, what compiles last."""
_NEEDS = {"ray": ("ray",), "run": ("rich", "pydantic"), "setup_b": ("rich", "pydantic")}


def main() -> int:
    """Run the sections; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.md and gpu.json")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=12.0, help="of all sections; each has its share")
    arguments = parser.parse_args()
    if not arguments.smoke and not torch.cuda.is_available():
        parser.error("no CUDA device answers. --smoke runs every section tiny on the CPU.")
    logging.basicConfig(level=logging.WARNING)
    device = "cpu" if arguments.smoke else "cuda"
    results = Results(arguments.out, device)
    print("; ".join(f"{key} {value}" for key, value in results.machine.items()))
    limits = measure_limits(device, arguments.smoke)
    for name, rate in limits.items():
        is_bytes = name in ("copy", "upload")
        results.add("limits", name, rate / (1e9 if is_bytes else 1e12), "GB/s" if is_bytes else "TFLOP/s")
    share = arguments.minutes * 60 / sum(SECTIONS[name][1] for name in arguments.sections)
    spare = 0.0
    for name in arguments.sections:
        function, most = SECTIONS[name]
        print(name, flush=True)
        spare = max(spare, 0.0) + most * min(share, 1.0)
        section = Section(name, device, arguments.smoke, time.monotonic() + spare, limits, results)
        absent = [package for package in _NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        try:
            if absent:
                section.skip(name, f"{' and '.join(absent)} not installed")
            else:
                function(section)
        except Exception as error:  # the other sections are worth as much without this one
            results.failed[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        results.seconds[name] = time.monotonic() - section.started
        spare -= results.seconds[name]
        results.write()
        if device == "cuda":
            torch.cuda.empty_cache()
    print((arguments.out / "gpu.md").read_text())
    return 0 if results.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
