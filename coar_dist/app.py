"""The commands: Hydra's, from YAML groups and overrides to the pipeline, and those that need no configuration."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from coar_dist.config.arguments import parsed
from coar_dist.config.composition import check_code, typed_config
from coar_dist.config.help_text import ALL, help_body
from coar_dist.config.hydra_errors import explained
from coar_dist.config.schema import Config
from coar_dist.config.secrets import check_no_secrets
from coar_dist.config.sweeps import run_dir_of_job, swept_by
from coar_dist.errors import CoarDistError, UsageError, counted
from coar_dist.process import INTERRUPTED, end_interrupted, end_when_nobody_reads, prepare_process, show_error
from coar_dist.version import VERSION

_TRACEBACKS = "HYDRA_FULL_ERROR"
"""The environment variable with which a user asks for tracebacks."""
_LISTED_COMPONENTS = re.compile(r"^components=(\[.*\])$")
"""Several selectors at once, which Hydra would take for files whose last one wins."""
_PRINTING = {"--version", "--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
"""Options that print something and run nothing."""
_failed_jobs: list[str] = []
"""Names of a sweep's jobs."""


def main() -> None:
    """The command ``coar-dist``."""
    if _PRINTING & {argument.partition("=")[0] for argument in sys.argv[1:]}:
        end_when_nobody_reads()
    try:
        if "--version" in sys.argv[1:]:
            print(f"coar-dist {VERSION}")
            return
        if sys.argv[1:2] == ["inspect"]:
            sys.exit(_inspect(sys.argv[2:]))
        if sys.argv[1:2] == ["compare"]:
            sys.exit(_compare(sys.argv[2:]))
        if sys.argv[1:2] in (["import-research"], ["export-research"]):
            sys.exit(_interchange(sys.argv[1], sys.argv[2:]))
        sys.argv[1:] = [_LISTED_COMPONENTS.sub(r"components.selector=\1", argument) for argument in sys.argv[1:]]
        for argument in sys.argv[1:]:  # before Hydra keeps them
            key, _, value = argument.lstrip("+").partition("=")
            parent, dot, name = key.rpartition(".")
            check_no_secrets({name: value}, parent + dot)
    except CoarDistError as error:
        sys.exit(show_error(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    in_full = ALL in sys.argv[1:]
    sys.argv[1:] = ["--help" if argument == ALL else argument for argument in sys.argv[1:]]
    OmegaConf.register_new_resolver("help_body", lambda: help_body(in_full), replace=True)
    ConfigStore.instance().store(name="schema", node=Config)
    prepare_process()
    wants_traceback = os.environ.get(_TRACEBACKS) == "1"
    os.environ[_TRACEBACKS] = "1"  # Hydra then raises its errors and prints none
    is_composing = True

    def run(composed: DictConfig) -> None:
        nonlocal is_composing
        is_composing = False
        _run(composed, wants_traceback)
        is_composing = True  # the next one of a sweep

    try:
        hydra.main(version_base="1.3", config_path=_config_path(), config_name="config")(run)()
    except KeyboardInterrupt:  # while the configuration is composed
        end_interrupted()
    except Exception as error:
        if wants_traceback or not is_composing:
            raise
        sys.exit(show_error(explained(error, sys.argv[1:])))
    if _failed_jobs:
        print(f"{counted(len(_failed_jobs), 'job')} failed: {'; '.join(_failed_jobs)}", file=sys.stderr)
        sys.exit(1)


def _config_path() -> str:
    """The installed ``coar_dist.conf``, or ``conf/`` beside the package in a checkout that is not installed."""
    if importlib.util.find_spec("coar_dist.conf") is not None:
        return "pkg://coar_dist.conf"
    return str(Path(__file__).resolve().parent.parent / "conf")


def _run(composed: DictConfig, wants_traceback: bool) -> None:
    overrides, is_job = _overrides(), HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        config = checked_config(composed, overrides)
        if is_job:
            config.run.dir = run_dir_of_job(config, overrides, sys.argv[1:])
            print(f"\n{_job_name(overrides)} in {config.run.dir}", flush=True)
        from coar_dist.stages.pipeline import run_stages  # seconds of imports, which a wrong option need not wait for

        run_stages(config)
    except KeyboardInterrupt:
        end_interrupted()
    except Exception as error:
        if isinstance(error, CoarDistError) and not wants_traceback:
            show_error(error)
        elif is_job:
            traceback.print_exc()
        else:
            raise
        if not is_job:
            sys.exit(1)
        _failed_jobs.append(_job_name(overrides))  # the others are run


def _job_name(overrides: list[str]) -> str:
    return f"job {HydraConfig.get().job.num} ({', '.join(swept_by(overrides, sys.argv[1:]))})"


def _overrides() -> list[str]:
    """What the command line says, its ${...} as they stand."""
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return list(overrides)


def _inspect(arguments: list[str]) -> int:
    """``coar-dist inspect run.dir=... [verify=true]``: no model, no Ray, nothing is changed."""
    from coar_dist.console.saying import Terminal
    from coar_dist.report.inspection import inspect_run
    from coar_dist.store.locations import storage_at

    usage = "usage: coar-dist inspect run.dir=... [verify=true]   (verify: read every byte of a large run, too)"
    values = parsed(arguments, ["run.dir", "verify"], usage)
    verify = values.get("verify", "false").lower()
    if verify not in ("true", "false"):
        raise UsageError(f"verify={values['verify']}: must be true or false.\n{usage}")
    if "run.dir" not in values:
        raise UsageError(f"run.dir=... is missing: which run to inspect.\n{usage}")
    return 0 if inspect_run(storage_at(values["run.dir"]), verify == "true", Terminal()) else 1


def _compare(arguments: list[str]) -> int:
    """``coar-dist compare run.dir=... other=...``: no model, no Ray, no run is changed."""
    from coar_dist.console.saying import Terminal
    from coar_dist.report.comparison.command import run_compare

    return run_compare(arguments, Terminal())


def _interchange(command: str, arguments: list[str]) -> int:
    """``coar-dist import-research ...`` and ``coar-dist export-research ...``: files of the research code."""
    from coar_dist.console.saying import Terminal
    from coar_dist.interchange.command import run_command

    return run_command(command, arguments, Terminal())


def checked_config(hydra_config: DictConfig, overrides: list[str]) -> Config:
    """The composed configuration as dataclasses, where the command line may have it so.

    Args:
        hydra_config: composed of files and ``overrides``.
        overrides: what the command line says.

    Raises:
        ConfigError: as ``typed_config``; a file names code without leave; or an override has no effect.
    """
    from coar_dist.stages.overrides import check_overrides

    config = typed_config(hydra_config)
    check_code(config, overrides)
    check_overrides(config, overrides)
    return config
