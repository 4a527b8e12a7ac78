"""From what Hydra composes of YAML files and overrides to the typed configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from coar_dist.config.edit_combinations import code_of
from coar_dist.config.fields import checked
from coar_dist.config.keys import leaves
from coar_dist.config.schema import Config
from coar_dist.errors import ConfigError

CODE_KEYS = (
    "task.model.source",
    "task.examples.source",
    "task.output_function",
    "train.examples.source",
    "ablation.reference.source",
    "design.kind",
    "gradients.kind",
    "evaluation.kind",
    "regression.backend",
)
"""Options that can name code, besides those of an edit (``code_of``)."""


def typed_config(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, its types and ranges checked.

    Raises:
        ConfigError: a value that the preset leaves to the user is missing, a reference leads nowhere, a key is unknown
            (Hydra itself accepts ``+key=value``), or a value is not of its option's type or range.
    """
    unresolved: Any = OmegaConf.to_container(composed)  # omegaconf's missing_keys fails on what refers to them
    missing = sorted(key for key, value in leaves(unresolved) if value == "???")
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be set, e.g. {missing[0]}=...")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error.msg).splitlines()[0]}.") from error
    assert isinstance(config, Config)
    return checked(config)


def check_code(config: Config, overrides: Sequence[str]) -> None:
    """Check that no configuration file runs code without permission: a file may come from anywhere.

    Args:
        config: what was composed.
        overrides: what the command line says; what it names itself needs no permission.

    Raises:
        ConfigError: a file names a function that neither is registered nor was allowed on the command line.
    """
    values = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    if config.allow_code and "allow_code" not in values:
        raise ConfigError(
            f"allow_code={config.allow_code} stands in a configuration file: only the command line can allow code."
        )
    code_keys = {*CODE_KEYS, *({} if config.edit is None else code_of(config.edit))}
    for key, value in leaves(asdict(config)):
        if key.rpartition(".")[2] == "_target_":
            raise ConfigError(
                f"{key}={value!r}: objects cannot be made by _target_ here. Name a function, as in "
                f"task.model.source=module:function."
            )
        if key not in code_keys or not isinstance(value, str) or ":" not in value:
            continue
        module = value.partition(":")[0]
        if module not in config.allow_code and values.get(key, "").strip("'\"") != value:
            raise ConfigError(
                f"{key}={value!r} runs code of the module {module!r}, and stands in a configuration file. If you trust "
                f"it, add 'allow_code=[{module}]' to the command line."
            )
