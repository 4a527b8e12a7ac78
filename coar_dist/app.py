"""The Hydra entry: YAML groups and overrides into the typed config, then the pipeline; errors into exit codes."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from coar_dist.config import Config
from coar_dist.errors import CoarDistError, CoarWarning, ConfigError

_INTERRUPTED = 130
_KEYS_OF_STAGE = {
    "train": ("train",),
    "ablate": ("task", "components", "design", "ablation", "cluster", "baselines", "evaluation"),
    "fit": ("regression", "cluster"),
}


def main() -> None:
    """The command ``coar-dist``."""
    ConfigStore.instance().store(name="schema", node=Config)
    hydra.main(version_base="1.3", config_path=_config_path(), config_name="config")(_run)()


def _config_path() -> str:
    """The installed ``coar_dist.conf``, or ``conf/`` beside the package in a checkout that is not installed."""
    if importlib.util.find_spec("coar_dist.conf") is not None:
        return "pkg://coar_dist.conf"
    return str(Path(__file__).resolve().parent.parent / "conf")


def _run(hydra_config: DictConfig) -> None:
    from coar_dist.pipeline import run_stages

    errors = Console(stderr=True)
    signal.signal(signal.SIGTERM, _interrupt)  # what `ray job stop` sends
    warnings.showwarning = _show_warning
    sys.path.insert(0, os.getcwd())  # a user's own module:function
    try:
        config = typed_config(hydra_config)
        _check_overrides(config, list(HydraConfig.get().overrides.task))
        run_stages(config, Console())
    except KeyboardInterrupt:
        errors.print("Interrupted. What is finished is kept; the same command continues.")
        sys.exit(_INTERRUPTED)
    except CoarDistError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        errors.print(f"[bold red]{type(error).__name__}[/bold red]: ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def typed_config(hydra_config: DictConfig) -> Config:
    """The composed configuration as dataclasses.

    Raises:
        ConfigError: a value that the preset leaves to the user is missing, or a key is unknown (Hydra itself lets
            ``+key=value`` pass).
    """
    missing = sorted(OmegaConf.missing_keys(hydra_config))
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be set, e.g. {missing[0]}=...")
    _check_keys(OmegaConf.to_container(hydra_config, resolve=True), Config, "")
    config = OmegaConf.to_object(hydra_config)
    assert isinstance(config, Config)
    return config


def _check_keys(values: Any, schema: Any, prefix: str) -> None:
    kinds = [kind for kind in (schema, *get_args(schema)) if dataclasses.is_dataclass(kind)]
    if not kinds or not isinstance(values, dict):
        return
    hints = get_type_hints(kinds[0])
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: unknown key; {prefix or 'the configuration'} has {', '.join(hints)}.")
        _check_keys(value, hints[key], f"{prefix}{key}.")


def _check_overrides(config: Config, overrides: list[str]) -> None:
    """Options of a stage have no effect without it: what later stages read is what the run was made with."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0]
        part = key.partition(".")[0].partition("/")[0]
        owners = [stage for stage, keys in _KEYS_OF_STAGE.items() if part in keys]
        if owners and not set(owners) & set(config.stages):
            raise ConfigError(
                f"{override} has no effect: stages={config.stages} has no {owners[0]} stage, and the other stages read "
                f"from the run directory what it made. Leave it out, or add the {owners[0]} stage."
            )


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
        Console(stderr=True).print(f"[yellow]Warning:[/yellow] {message}", soft_wrap=True, highlight=False)
