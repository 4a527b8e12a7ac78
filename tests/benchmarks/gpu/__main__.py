"""Everything about coar_dist that only a GPU can show, in one command of 13 minutes, or in parts.

    python -m tests.benchmarks.gpu --out DIR                        all sections; DIR/gpu.md and DIR/gpu.json
    python -m tests.benchmarks.gpu --out DIR --sections exactness throughput
    python -m tests.benchmarks.gpu --out DIR --smoke                every section, tiny, on the CPU

It needs torch, numpy, pyarrow and this repository; what else is missing (ray, cuml) is named as skipped. Sections are
independent of each other. Each begins no further measurement when its share of the time is over, and is killed where
one takes much longer; every number is on the disk when it is printed (DIR/gpu.jsonl). The exit status is 1 where a
section failed or an error is above its limit.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.gpu import schedule
from tests.benchmarks.gpu.results import Results
from tests.benchmarks.gpu.schedule import NO_DEVICE, SECONDS

WORKER = (sys.executable, "-m", "tests.benchmarks.gpu.worker")
_POLL_S = 0.1


def main() -> int:
    """Run the sections; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.md, gpu.json and gpu.jsonl")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--sections", nargs="+", choices=tuple(SECONDS), default=list(SECONDS))
    parser.add_argument("--minutes", type=float, default=13.5, help="of everything; each section has its share")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.minutes * 60
    (arguments.out / "gpu.jsonl").unlink(missing_ok=True)
    results = Results(arguments.out)
    left = list(arguments.sections)
    while left:
        seconds = until - time.monotonic()
        if seconds <= 0:
            for name in left:
                results.skip(name, name, f"the {arguments.minutes:g} minutes are over")
            break
        options = ["--out", str(arguments.out), "--seconds", str(seconds), *["--smoke"] * arguments.smoke]
        process = subprocess.Popen([*WORKER, *options, "--sections", *left])
        why = watched(process, results, until)
        if process.returncode == NO_DEVICE:
            parser.error("no CUDA device answers. --smoke runs every section tiny on the CPU.")
        begun = [name for name in left if name in results.allowed]
        left = left[len(begun) :]
        if begun and begun[-1] not in results.seconds:
            results.fail(begun[-1], why)
        elif not begun:
            results.fail("start", why)
            break
    results.write()
    print((arguments.out / "gpu.md").read_text())
    return 0 if results.is_sound else 1


def watched(process: subprocess.Popen[bytes], results: Results, until: float) -> str:
    """Write results as they come until a process ends or is killed; how it ended, in words.

    Args:
        process: a worker.
        results: where it appends.
        until: ``time.monotonic`` at which it is killed, whatever it does.
    """
    begun, section_s = time.monotonic(), float("inf")
    known = len(results.allowed)
    try:
        while process.poll() is None:
            time.sleep(_POLL_S)
            if results.follow():
                results.write()
                if len(results.allowed) > known:
                    known, begun = len(results.allowed), time.monotonic()
                    section_s = list(results.allowed.values())[-1] + schedule.GRACE_S
            if time.monotonic() > min(until, begun + section_s):
                return f"killed after {time.monotonic() - begun:.0f} s"
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        results.follow()
    code = process.returncode
    return f"its process ended: {signal.Signals(-code).name}" if code < 0 else f"its process ended with status {code}"


if __name__ == "__main__":
    sys.exit(main())
