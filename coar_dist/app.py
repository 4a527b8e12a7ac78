"""The Hydra entry: YAML groups and overrides into the typed config, then the pipeline; errors into exit codes."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from coar_dist.config.composition import check_code, typed_config
from coar_dist.config.hydra_errors import explained
from coar_dist.config.schema import Config
from coar_dist.config.secrets import check_no_secrets, without_secrets
from coar_dist.config.sweeps import run_dir_of_job, swept_by
from coar_dist.errors import CoarDistError, CoarWarning, ConfigError, counted
from coar_dist.version import VERSION

_INTERRUPTED = 130
_TRACEBACKS = "HYDRA_FULL_ERROR"
"""The environment variable with which a user asks for tracebacks."""
_INTERRUPTED_TEXT = "Interrupted. What is finished is kept; the same command continues."
_STOP_WITHIN_S = 2.0
_PRINTING = {"--version", "--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
"""Options that print something and run nothing."""
_has_said_so = threading.Event()
_failed_jobs: list[str] = []
"""Names of a sweep's jobs."""


def main() -> None:
    """The command ``coar-dist``."""
    if _PRINTING & {argument.partition("=")[0] for argument in sys.argv[1:]}:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that goes away, as head does, ends the process
    try:
        if "--version" in sys.argv[1:]:
            print(f"coar-dist {VERSION}")
            return
        if sys.argv[1:2] == ["inspect"]:
            sys.exit(_inspect(sys.argv[2:]))
        if sys.argv[1:2] in (["import-research"], ["export-research"]):
            sys.exit(_interchange(sys.argv[1], sys.argv[2:]))
        for argument in sys.argv[1:]:  # before Hydra keeps them
            key, _, value = argument.lstrip("+").partition("=")
            parent, dot, name = key.rpartition(".")
            check_no_secrets({name: value}, parent + dot)
    except ConfigError as error:
        sys.exit(_show_error(error))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    ConfigStore.instance().store(name="schema", node=Config)
    _prepare_process()
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
        Console(stderr=True).print(_INTERRUPTED_TEXT)
        _has_said_so.set()
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if wants_traceback or not is_composing:
            raise
        sys.exit(_show_error(explained(error, sys.argv[1:])))
    if _failed_jobs:
        print(f"{counted(len(_failed_jobs), 'job')} failed: {'; '.join(_failed_jobs)}", file=sys.stderr)
        sys.exit(1)


def _config_path() -> str:
    """The installed ``coar_dist.conf``, or ``conf/`` beside the package in a checkout that is not installed."""
    if importlib.util.find_spec("coar_dist.conf") is not None:
        return "pkg://coar_dist.conf"
    return str(Path(__file__).resolve().parent.parent / "conf")


def _prepare_process() -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # what `ray job stop` sends
    _stop_in_time()
    warnings.showwarning = _show_warning
    sys.path.insert(0, os.getcwd())  # a user's own module:function


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
        Console(stderr=True).print(_INTERRUPTED_TEXT)
        _has_said_so.set()
        sys.exit(_INTERRUPTED)
    except Exception as error:
        if isinstance(error, CoarDistError) and not wants_traceback:
            _show_error(error)
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
    values = dict(argument.partition("=")[::2] for argument in arguments)
    verify = values.pop("verify", "false").lower()
    if set(values) != {"run.dir"} or verify not in ("true", "false"):
        print(usage, file=sys.stderr)
        return 2
    try:
        is_sound = inspect_run(storage_at(values["run.dir"]), verify == "true", Terminal())
    except CoarDistError as error:
        return _show_error(error)
    return 0 if is_sound else 1


def _interchange(command: str, arguments: list[str]) -> int:
    """``coar-dist import-research ...`` and ``coar-dist export-research ...``: files of the research code."""
    from coar_dist.console.saying import Terminal
    from coar_dist.interchange.command import run_command

    try:
        return run_command(command, arguments, Terminal())
    except CoarDistError as error:
        return _show_error(error)


def _show_error(error: CoarDistError) -> int:
    text = Text.assemble((type(error).__name__, "bold red"), f": {without_secrets(str(error))}")
    Console(stderr=True).print(text, soft_wrap=True)
    return 1


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


def _stop_in_time() -> None:
    """End the process some seconds after SIGINT or SIGTERM, even where it is deep in a long computation.

    Every file appears whole or not at all, so there is nothing that an orderly end would save. The operating system
    wakes a thread through a socket, because Python's own handlers wait for the main thread.
    """
    sockets = socket.socketpair()
    sockets[1].setblocking(False)
    signal.set_wakeup_fd(sockets[1].fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch_signals, args=sockets, name="stop in time", daemon=True).start()


def _watch_signals(numbers: socket.socket, _kept_open: socket.socket) -> None:
    while numbers.recv(1) not in (bytes([signal.SIGINT]), bytes([signal.SIGTERM])):
        pass
    time.sleep(_STOP_WITHIN_S)
    if not _has_said_so.is_set():
        print(_INTERRUPTED_TEXT, file=sys.stderr, flush=True)
    os._exit(_INTERRUPTED)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    del filename, lineno, file, line  # the standard library's signature
    if issubclass(category, CoarWarning):
        Console(stderr=True).print(Text.assemble(("Warning:", "yellow"), f" {message}"), soft_wrap=True)
