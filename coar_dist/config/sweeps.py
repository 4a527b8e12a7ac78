"""Hydra's sweeps, ``coar-dist -m design.seed=0,1``: what a job of one is called, and which run directory it has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from coar_dist.config.schema import PLAN, Config

_MAKES_A_RUN = {"train", "ablate", PLAN}
_NO_FILE_NAME = re.compile(r"[^\w.=-]+")


def swept_by(job: Sequence[str], command: Sequence[str]) -> list[str]:
    """The overrides of a job that the command varies.

    Args:
        job: the overrides of one job, ``key=value`` each.
        command: the arguments of the whole command.

    Example:
        >>> swept_by(["design.seed=1", "run.dir=x"], ["-m", "design.seed=0,1", "run.dir=x"])
        ['design.seed=1']
    """
    overrides = [argument for argument in command if "=" in argument and not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    keys = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    return [override for override in job if override.partition("=")[0] in keys]


def run_dir_of_job(config: Config, job: Sequence[str], command: Sequence[str]) -> str:
    """The run directory of a sweep's job.

    A job that makes a run has a directory of its own, named by what the sweep varies, in ``config.run.dir``. Where the
    sweep varies ``run.dir``, or it follows from other options, jobs have their own already; those that only read and
    extend a run all work on the one that is named.

    Args:
        config: of the job.
        job: its overrides.
        command: the arguments of the whole command.
    """
    swept = swept_by(job, command)
    given = [override for override in job if override.startswith("run.dir=")]
    if not _MAKES_A_RUN & set(config.stages) or set(given) & set(swept) or any("${" in value for value in given):
        return config.run.dir
    if not given:  # runs/<experiment>
        swept = [override for override in swept if not override.startswith("experiment=")]
    names = [_NO_FILE_NAME.sub("_", override.lstrip("+")) for override in swept]
    return "/".join([config.run.dir.rstrip("/"), *(["+".join(names)] if names else [])])
