"""What classes are called, as a command line or a Python caller gives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coar_dist.errors import ConfigError, listed

KEY = "task.class_names"


def names_by_class(given: Any) -> dict[int, str]:
    """Names by class label.

    Args:
        given: a list of names, the first of class 0, or names by class.

    Raises:
        ConfigError: a name is no text, or stands for two classes, or what is to be a class is none.

    Example:
        >>> names_by_class(["cat", "dog"]), names_by_class({5: "dog"})
        ({0: 'cat', 1: 'dog'}, {5: 'dog'})
    """
    if isinstance(given, str) or not isinstance(given, Iterable) or not given:
        raise ConfigError(f"{KEY}={given!r}: must be a list of names, the first of class 0, or {{0: 'cat', 5: 'dog'}}.")
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
    names: dict[int, str] = {}
    classes: dict[str, int] = {}
    for label, name in pairs:
        if isinstance(label, bool) or not str(label).isdecimal():
            raise ConfigError(
                f"{KEY}: {label!r} is no class. A mapping has names by class, as in {{0: 'cat', 5: 'dog'}}."
            )
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{KEY}: class {label} is called {name!r}, which is no name. Give a text.")
        if name in classes:
            raise ConfigError(
                f"{KEY}: classes {classes[name]} and {label} are both called {name!r}. Give each a name of its own."
            )
        names[int(label)], classes[name] = name, int(label)
    return names


def names_of(given: Any) -> Any:
    """What a Python caller gives, in the configuration's form: sequences of any kind, arrays among them, as lists."""
    is_one = given is None or isinstance(given, str | Mapping) or not isinstance(given, Iterable)
    return given if is_one else [name.item() if getattr(name, "shape", None) == () else name for name in given]


def check_every_class(names: Mapping[int, str], labels: Sequence[int]) -> None:
    """Check that every class has a name.

    Args:
        names: by class.
        labels: the classes; none where targets and output are of no classes.

    Raises:
        ConfigError: one has none, or there are no classes.
    """
    if not labels:
        raise ConfigError(
            f"{KEY} has no effect: the targets are not class labels, one integer an example. Leave it out."
        )
    nameless = sorted(set(labels) - set(names))
    if nameless:
        raise ConfigError(
            f"{KEY} names {listed(list(names), 5)}, but the labels have {listed(nameless, 5)} too. Name every class of "
            f"the labels."
        )
