"""Names in the config that stand for functions: registered ones, or the user's ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from coar_dist.config.keys import meant
from coar_dist.errors import CoarDistError, ConfigError, TaskError

T = TypeVar("T")


def resolve(key: str, source: str, registry: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that ``source`` names.

    Args:
        key: the config key, for the message.
        source: a key of ``registry``, or ``module:function`` of an importable module.
        registry: the registered functions.

    Raises:
        ConfigError: unknown name, module that cannot be imported, or no such callable in it.
    """
    if source in registry:
        return registry[source]  # type: ignore[no-any-return]
    module_name, colon, attribute = source.partition(":")
    if not colon or not module_name or not attribute:
        registered = f"one of {', '.join(registry)}, or " if registry else ""
        raise ConfigError(
            f"{key}={source!r}: must be {registered}module:function of your own.{meant(source, registry)}"
        )
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}={source!r} cannot be imported: {error}. Start the command in the folder of {module_name}.py, or "
            f"put that folder on PYTHONPATH, on every node."
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={source!r} is a {type(function).__name__}, not a function.")
    return function  # type: ignore[no-any-return]


def look_up(key: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry of a registry that holds more than functions, and takes none of a user's own.

    Args:
        key: the config key, for the message.
        name: a key of ``registry``.
        registry: what there is, by name.

    Raises:
        ConfigError: unknown name.
    """
    if not isinstance(name, str) or name not in registry:
        raise ConfigError(f"{key}={name!r}: must be one of {', '.join(registry)}.{meant(name, registry)}")
    return registry[name]


def name_of(function: Callable[..., Any]) -> str:
    """``module:function``, as a configuration would name it."""
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"


def call(key: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """``function(**arguments)`` after a check of names and simple types.

    Raises:
        ConfigError: an argument is unknown, missing, or of another type than the function's annotation; the
            message names the key.
    """
    signature = inspect.signature(function)
    names = [name for name, p in signature.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    takes_any = len(names) < len(signature.parameters)
    hints = typing.get_type_hints(function)
    for name, value in arguments.items():
        if name not in names and not takes_any:
            raise ConfigError(f"{key}.{name}: unknown; the arguments are {', '.join(names) or 'none'}.")
        allowed = _plain_types(hints.get(name))
        if allowed and not isinstance(value, allowed):
            expected = " or ".join(kind.__name__ for kind in allowed)
            raise ConfigError(f"{key}.{name}={value!r}: must be {expected}, not {type(value).__name__}.")
    for name in names:
        if name not in arguments and signature.parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"{key}.{name} is missing: set it, e.g. {key}.{name}=...")
    try:
        return function(**arguments)
    except CoarDistError:
        raise
    except Exception as error:  # the user's own code may raise anything
        name = getattr(function, "__qualname__", repr(function))
        raise TaskError(f"{key}: {name}(**{dict(arguments)}) raises {type(error).__name__}: {error}") from error


def _plain_types(hint: Any) -> tuple[type, ...]:
    """The plain types that ``hint`` allows; empty where it is not a union of plain types."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | str)) else (hint,)
    kinds = tuple(typing.get_origin(part) or part for part in parts)
    if not all(kind in (int, float, str, bool, list, dict, type(None)) for kind in kinds):
        return ()
    return (*kinds, int) if float in kinds else kinds
