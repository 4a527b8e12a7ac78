"""The peak memory of fits, in a process of its own: ``python -m tests.regression.peaks primal dual+gradients``.

Prints, per solver, the bytes that a fit of few examples takes beyond what the process had, and the estimate.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from coar_dist.config.schema import RegressionConfig
from coar_dist.designs.subsets import Balanced
from coar_dist.regression.fit import fit
from coar_dist.regression.sizes import factor_bytes
from coar_dist.store.gradients import GateGradients
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.regression.problems import problem
from tests.regression.test_fit import run_of

SIZES = {"primal": (1500, 1600), "dual": (2400, 1700), "lasso": (1300, 3000), "iterative": (12_000, 300)}
"""Components and masks."""
EXAMPLES, GRADIENT_MASKS = 4, 20


def run_for(root: Path, solver: str, num_components: int, num_masks: int) -> RunDirectory:
    masks, margins = problem(num_masks, num_components, EXAMPLES)
    run = run_of(root, masks, margins)
    if solver.endswith("gradients"):
        design = Balanced(num_components, GRADIENT_MASKS, 0.2, 7)
        run.set_designs({**run.designs, "gradients": RunDesign("gradients", design)})
        (store,) = run.gradients("gradients")
        masks, random = design.masks(0, GRADIENT_MASKS), np.random.default_rng(0)
        sums = [random.normal(size=(EXAMPLES, num_components)).astype(np.float32) for _ in range(2)]
        squares = [random.uniform(1, 2, num_components) * 100 for _ in range(2)]
        margins = random.normal(size=(GRADIENT_MASKS, EXAMPLES)).astype(np.float32)
        store.write(0, masks, GateGradients(margins, *sums, *squares, np.ones(num_components, np.bool_)), {})
    return run


def config_for(solver: str) -> RegressionConfig:
    if solver == "lasso":
        return RegressionConfig(method="lasso", num_penalties=3)
    return RegressionConfig(memory_gb=1e-6) if solver == "iterative" else RegressionConfig()


def status(name: str) -> int:
    """A number of this process, in bytes: ``VmRSS``, ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak_of(root: Path, solver: str, num_components: int, num_masks: int) -> dict[str, Any]:
    run, config = run_for(root, solver, num_components, num_masks), config_for(solver)
    gc.collect()
    pa.default_memory_pool().release_unused()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    fit(run, config, lambda _: None)
    kind, plus, _ = solver.partition("+")
    estimate = factor_bytes(kind, num_masks + bool(plus) * GRADIENT_MASKS, num_components, bool(plus))
    return {"measured": status("VmHWM") - before, "estimated": estimate}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for solver in sys.argv[1:]:
            sizes = SIZES[solver.partition("+")[0]]
            # The libraries' own work space comes with the first products that are not small.
            peak_of(Path(folder) / f"{solver} warm", solver, 600, 500 if solver.startswith("dual") else 1800)
            found[solver] = peak_of(Path(folder) / solver, solver, *sizes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
