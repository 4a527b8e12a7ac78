from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOLVERS = ["primal", "primal+gradients", "dual", "dual+gradients", "lasso", "iterative"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells the peak of a part of a run")
def test_the_memory_of_a_fit_is_what_is_counted() -> None:
    """Of every solver, within a fifth, on the CPU. The arrays of a few examples are small beside it."""
    # Else the C library keeps arrays of this size after they are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.regression.peaks", *SOLVERS]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    ratios = {solver: numbers["measured"] / numbers["estimated"] for solver, numbers in found.items()}
    assert {solver: ratio for solver, ratio in ratios.items() if not 1 / 1.2 < ratio < 1.2} == {}, ratios
