"""Dotted keys of the configuration, and what was probably meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from coar_dist.config.schema import Config
from coar_dist.errors import ConfigError

_CHOICES = ("experiment", "estimator")
"""Groups of ``conf/`` whose names are no keys of the configuration."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def all_keys() -> Mapping[str, type]:
    """Every option of the configuration, and every part, by its dotted key: the dataclass that it is a field of."""
    return dict(_keys_of(Config, ""))


def _keys_of(part: Any, prefix: str) -> Iterator[tuple[str, type]]:
    for name, hint in get_type_hints(part).items():
        if get_origin(hint) is ClassVar:
            continue
        yield f"{prefix}{name}", part
        for kind in (hint, *get_args(hint)):  # a part; one or None; a list or a mapping of them
            if is_dataclass(kind):
                yield from _keys_of(kind, f"{prefix}{name}.")


def near(name: str, names: Iterable[str], num: int = 3) -> list[str]:
    """The names most like ``name``, the best first; empty where none is like it."""
    return get_close_matches(name, list(names), num, cutoff=0.7)


def meant(name: object, names: Iterable[str]) -> str:
    """A sentence with what was probably meant, to follow another; empty where no name is like it.

    Example:
        >>> meant("conv_filter", ["heads", "conv_filters"])
        ' Did you mean conv_filters?'
    """
    found = near(str(name), names)
    return f" Did you mean {either(found)}?" if found else ""


def either(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def unknown_key(key: str) -> ConfigError:
    """The error for a key that the configuration does not have, with what was probably meant."""
    parent, _, name = key.rpartition(".")
    by_name: dict[str, list[str]] = {}
    options = [] if parent else [*_CHOICES]
    for known in all_keys():
        its_parent, _, its_name = known.rpartition(".")
        by_name.setdefault(its_name, []).append(known)
        options += [its_name] if its_parent == parent else []
    meant = [f"{parent}.{known}".removeprefix(".") for known in near(name, options)] or by_name.get(name, [])
    if not meant:
        meant = [known for alike in near(name, by_name, num=1) for known in by_name[alike]]
    if meant:
        return ConfigError(f"{key}: unknown key. Did you mean {either(meant[:4])}?")
    if not options:
        parent, options = "the configuration", [known for known in all_keys() if "." not in known]
    return ConfigError(f"{key}: unknown key; {parent or 'the configuration'} has {', '.join(options)}.")
