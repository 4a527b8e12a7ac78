"""Which run directory the jobs of a sweep have."""

from __future__ import annotations

import pytest

from coar_dist.config.schema import Config, RunConfig
from coar_dist.config.sweeps import run_dir_of_job, swept_by


@pytest.mark.parametrize(
    ("command", "job", "stages", "expected"),
    [
        (["design.seed=0,1"], ["design.seed=1"], ["ablate"], "base/design.seed=1"),
        (["design.seed=0,1", "a.b=x"], ["design.seed=1", "a.b=x"], ["ablate"], "base/design.seed=1"),
        (["a=0,1", "b=range(0,2)"], ["a=1", "b=0"], ["plan"], "base/a=1+b=0"),
        (["a='x/y z',[1,2]"], ["a='x/y z'"], ["train"], "base/a=_x_y_z_"),
        (["experiment=a,b"], ["experiment=b"], ["train"], "base"),  # runs/<experiment>
        (["run.dir=base", "experiment=a,b"], ["run.dir=base", "experiment=b"], ["train"], "base/experiment=b"),
        (["run.dir=base,other"], ["run.dir=base"], ["ablate"], "base"),
        (["run.dir=x/${design.seed}", "design.seed=0,1"], ["run.dir=x/${design.seed}"], ["ablate"], "base"),
        (["regression=ridge,lasso"], ["regression=lasso"], ["fit", "evaluate"], "base"),  # two fits of one run
    ],
)
def test_a_job_that_makes_a_run_has_a_directory_of_its_own(
    command: list[str], job: list[str], stages: list[str], expected: str
) -> None:
    config = Config(stages=stages, run=RunConfig("base"))
    assert run_dir_of_job(config, job, ["-m", "--config-dir=x,y", *command]) == expected


def test_an_object_store_s_jobs_are_below_its_prefix() -> None:
    config = Config(stages=["ablate"], run=RunConfig("s3://bucket/runs/"))
    assert run_dir_of_job(config, ["a=1"], ["a=1,2"]) == "s3://bucket/runs/a=1"


def test_lists_and_single_values_are_no_sweeps() -> None:
    assert swept_by(["stages=[fit,report]", "a=1"], ["-m", "stages=[fit,report]", "a=1"]) == []
