"""The process that measures: sections in their order, each event appended to the results as it comes.

It may be killed at any time, by itself too: a library that is broken here ends the process, and an error on the device
leaves it of no use. Whoever started it starts another one for the sections that are left.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib.util
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.gpu import engine_sections, product_sections, regression_sections
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.gpu.schedule import BROKEN_DEVICE, NO_DEVICE, SECONDS, allowance
from tests.benchmarks.gpu.sections import Section, machine, measure_limits

FUNCTIONS: dict[str, Callable[[Section], None]] = {
    "ridge": regression_sections.ridge_section,
    "lasso": regression_sections.lasso_section,
    "run": product_sections.whole_run,
    "fit": regression_sections.whole_fit,
    "statistics": regression_sections.sufficient_statistics,
    "ray": product_sections.shared_gpu,
    "setup_b": product_sections.setup_b,
    "language": product_sections.language,
    "gradients": engine_sections.gradients,
    "gap": product_sections.gap,
    "values": product_sections.values,
    "identical": engine_sections.identical,
    "memory": engine_sections.out_of_memory,
    "few": engine_sections.few_examples,
    "exactness": engine_sections.exactness,
    "throughput": engine_sections.throughput,
}
assert list(FUNCTIONS) == list(SECONDS)
_OF_THE_PRODUCT = ("rich", "pydantic", "PIL")
_NEEDS = {"ray": (*_OF_THE_PRODUCT, "ray"), "run": _OF_THE_PRODUCT, "setup_b": _OF_THE_PRODUCT}


def main() -> int:
    """Run the sections; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seconds", type=float, required=True, help="of all sections")
    parser.add_argument("--sections", nargs="+", choices=tuple(FUNCTIONS), required=True)
    arguments = parser.parse_args()
    faulthandler.enable()
    until, starter = time.monotonic() + arguments.seconds, os.getppid()
    quiet = logging.StreamHandler()
    quiet.setLevel(logging.WARNING)
    logging.basicConfig(handlers=[quiet])
    device = "cpu" if arguments.smoke else "cuda"
    if arguments.smoke:
        torch.set_num_threads(1)  # what is tiny is slower on more
    if not arguments.smoke and not torch.cuda.is_available():
        return NO_DEVICE
    results = Results(arguments.out)
    if not results.machine:
        results.say(machine=machine(device))
        print("; ".join(f"{key} {value}" for key, value in results.machine.items()), flush=True)
    if not results.limits:
        results.say(limits=measure_limits(device, arguments.smoke))
        for name, rate in results.limits.items():
            is_bytes = name in ("copy", "upload")
            results.add("limits", name, rate / (1e9 if is_bytes else 1e12), "GB/s" if is_bytes else "TFLOP/s")
    for number, name in enumerate(arguments.sections):
        if os.getppid() != starter:  # nobody watches any more
            return 1
        print(name, flush=True)
        started = time.monotonic()
        most = allowance(arguments.sections[number:], until - started)
        results.say(allowed={name: most})
        section = Section(name, device, arguments.smoke, started + most, results.limits, results)
        absent = [package for package in _NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
        try:
            if absent:
                section.skip(name, f"{' and '.join(absent)} not installed")
            else:
                FUNCTIONS[name](section)
        except Exception as error:  # the other sections are worth as much without this one
            results.fail(name, f"{type(error).__name__}: {error}")
            traceback.print_exc()
        results.say(ended=name, seconds=time.monotonic() - started)
        gc.collect()  # engines and their models hold each other
        if device == "cuda" and not device_answers():
            return BROKEN_DEVICE
    return 0


def device_answers() -> bool:
    """Free what the section held, and see whether the device still computes for this process."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return bool(torch.ones(1, device="cuda").sum().item() == 1.0)
    except Exception as error:  # whatever it says, another process is needed
        print(f"  the device no longer answers: {type(error).__name__}: {error}", flush=True)
        return False


if __name__ == "__main__":
    sys.exit(main())
