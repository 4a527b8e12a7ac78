"""The Hydra entry: YAML groups and overrides into the typed config, then the pipeline; errors into exit codes."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text

from coar_dist.config.edit_checks import code_of
from coar_dist.config.schema import Config, leaves
from coar_dist.config.secrets import check_no_secrets, without_secrets
from coar_dist.config.sweeps import run_dir_of_job, swept_by
from coar_dist.errors import CoarDistError, CoarWarning, ConfigError, counted
from coar_dist.version import VERSION

_INTERRUPTED = 130
_INTERRUPTED_TEXT = "Interrupted. What is finished is kept; the same command continues."
_STOP_WITHIN_S = 2.0
_PRINTING = {"--version", "--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}
"""Options that print something and run nothing."""
_has_said_so = threading.Event()
_failed_jobs: list[str] = []
"""Of a sweep, by what the sweep varies."""
_CODE_KEYS = (
    "task.model.source",
    "task.examples.source",
    "task.output_function",
    "train.examples.source",
    "design.kind",
    "gradients.kind",
    "evaluation.kind",
    "regression.backend",
)
"""Besides those of an edit (``code_of``)."""


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
    try:
        hydra.main(version_base="1.3", config_path=_config_path(), config_name="config")(_run)()
    except KeyboardInterrupt:  # while the configuration is composed
        Console(stderr=True).print(_INTERRUPTED_TEXT)
        _has_said_so.set()
        sys.exit(_INTERRUPTED)
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


def _run(hydra_config: DictConfig) -> None:
    from coar_dist.stages.pipeline import run_stages

    overrides, is_job = list(HydraConfig.get().overrides.task), HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        config = checked_config(hydra_config, overrides)
        if is_job:
            config.run.dir = run_dir_of_job(config, overrides, sys.argv[1:])
            print(f"\n{_job_name(overrides)} in {config.run.dir}", flush=True)
        run_stages(config)
    except KeyboardInterrupt:
        Console(stderr=True).print(_INTERRUPTED_TEXT)
        _has_said_so.set()
        sys.exit(_INTERRUPTED)
    except CoarDistError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        code = _show_error(error)
        if not is_job:
            sys.exit(code)
        _failed_jobs.append(_job_name(overrides))  # the others are run


def _job_name(overrides: list[str]) -> str:
    return f"job {HydraConfig.get().job.num} ({', '.join(swept_by(overrides, sys.argv[1:]))})"


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
    _check_code(config, overrides)
    check_overrides(config, overrides)
    return config


def typed_config(hydra_config: DictConfig) -> Config:
    """The composed configuration as dataclasses.

    Raises:
        ConfigError: a value that the preset leaves to the user is missing, or a key is unknown (Hydra itself lets
            ``+key=value`` pass).
    """
    unresolved: Any = OmegaConf.to_container(hydra_config)  # omegaconf's missing_keys fails on what refers to them
    missing = sorted(key for key, value in leaves(unresolved) if value == "???")
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be set, e.g. {missing[0]}=...")
    _check_keys(OmegaConf.to_container(hydra_config, resolve=True), Config, "")
    config = OmegaConf.to_object(hydra_config)
    assert isinstance(config, Config)
    return config


def _check_keys(values: Any, schema: Any, prefix: str) -> None:
    if get_origin(schema) is dict and isinstance(values, dict):
        for key, value in values.items():
            _check_keys(value, get_args(schema)[1], f"{prefix}{key}.")
        return
    kinds = [kind for kind in (schema, *get_args(schema)) if dataclasses.is_dataclass(kind)]
    if not kinds or not isinstance(values, dict):
        return
    hints = get_type_hints(kinds[0])
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: unknown key; {prefix or 'the configuration'} has {', '.join(hints)}.")
        _check_keys(value, hints[key], f"{prefix}{key}.")


def _check_code(config: Config, overrides: list[str]) -> None:
    """A configuration file may come from anywhere: the code that it names runs only by the user's leave.

    Raises:
        ConfigError: a file names a function that neither is registered nor was allowed on the command line.
    """
    values = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    if config.allow_code and "allow_code" not in values:
        raise ConfigError(
            f"allow_code={config.allow_code} stands in a configuration file: only the command line can allow code."
        )
    for key, value in leaves(dataclasses.asdict(config)):
        if key.rpartition(".")[2] == "_target_":
            raise ConfigError(
                f"{key}={value!r}: objects cannot be made by _target_ here. Name a function, as in "
                f"task.model.source=module:function."
            )
        is_code = key in (*_CODE_KEYS, *({} if config.edit is None else code_of(config.edit)))
        if not is_code or not isinstance(value, str) or ":" not in value:
            continue
        module = value.partition(":")[0]
        if module not in config.allow_code and values.get(key, "").strip("'\"") != value:
            raise ConfigError(
                f"{key}={value!r} runs code of the module {module!r}, and stands in a configuration file. If you trust "
                f"it, add 'allow_code=[{module}]' to the command line."
            )


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
