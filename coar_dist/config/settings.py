"""Parts of the configuration as the Python face takes them: whole, or as options by name, or one option alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from coar_dist.config.keys import unknown_key
from coar_dist.config.schema import ClusterConfig
from coar_dist.config.schema.values import Part
from coar_dist.errors import ConfigError

P = TypeVar("P", bound=Part)
ClusterSettings = ClusterConfig | Mapping[str, Any] | str
"""What ``cluster`` may be; a string is its option ``where``."""


def cluster_of(given: ClusterSettings | None) -> ClusterConfig:
    """The cluster's part of the configuration, as ``settings_of``."""
    return settings_of(ClusterConfig, given, "cluster", "where")


def settings_of(kind: type[P], given: P | Mapping[str, Any] | str | None, key: str, main: str) -> P:
    """A part of the configuration.

    Args:
        kind: the part's dataclass.
        given: the part itself, its options by name, the value of ``main`` alone, or None for the default.
        key: of the part, in messages.
        main: the option that a string stands for.

    Raises:
        ConfigError: it is none of these, or there is no such option.

    Example:
        >>> settings_of(ClusterConfig, "process", "cluster", "where").where
        'process'
        >>> settings_of(ClusterConfig, {"max_actors": 2}, "cluster", "where").max_actors
        2
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping | str | None):
        part = f"{'an' if kind.__name__[0] in 'AE' else 'a'} {kind.__name__}"
        raise ConfigError(f"{key}={given!r}: must be {part}, a dict of its options, or a value of {main!r}.")
    options = {main: given} if isinstance(given, str) else dict(given or {})
    known = {entry.name for entry in fields(cast(Any, kind))}
    for name in options:
        if name not in known:
            raise unknown_key(f"{key}.{name}")
    return kind(**options)
