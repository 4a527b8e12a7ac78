"""The evaluate stage on a cluster's workers: the bytes of this process."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from coar_dist.config.schema import ClusterConfig, Config, EvaluationConfig, RegressionConfig, RunConfig
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.reader import RunReader
from tests.small_run import files_of


def test_the_same_bytes_on_a_cluster(small_run: RunReader, tmp_path: Path, quiet: Console, ray_cluster: None) -> None:
    """Of tables, ceilings and budget curve."""
    here = Path(small_run.directory.storage.location)
    there = tmp_path / "there"
    shutil.copytree(here, there, ignore=shutil.ignore_patterns("evaluation"))
    config = Config(
        stages=["evaluate"],
        run=RunConfig(str(there)),
        evaluation=EvaluationConfig(num_masks=40, ablation_fractions=[0.2, 0.1], seed=7),
        regression=RegressionConfig(distributed=True),
        cluster=ClusterConfig(cpus_per_actor=2),  # two workers
    )
    run_stages(config, quiet)
    found = files_of(there)
    kinds = {name.split("/")[1].partition(".")[0] for name in found if name.startswith("evaluation")}
    assert kinds == {"coar", "leave_one_out", "components", "layers", "ceiling", "budget_curve"}
    assert found == files_of(here)
