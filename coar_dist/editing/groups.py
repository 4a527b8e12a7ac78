"""Which examples a group of the configuration means: targets, references and the measured groups.

A group's conditions are applied in the order of their fields in ``ExampleGroup``, and an example has to meet every one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.functions import resolve
from coar_dist.config.python_arguments import MAPPING, check, is_whole, shown
from coar_dist.config.schema import EditConfig, ExampleGroup
from coar_dist.errors import ConfigError, TaskError, counted

Columns = Mapping[str, NDArray[Any]]
Examples = ExampleGroup | Mapping[str, Any] | int | Sequence[int] | NDArray[Any] | Callable[[dict[str, Any]], Any]
"""A group of examples in Python: its conditions, example ids or one, a bool for each example, or a function of the
examples' columns."""
_SAMPLE_COUNTER = 2**64 - 2
"""The second word of the sample's Philox key; mask designs use the masks' ids there."""
_RANGE = ("min", "max")
_OUTPUTS = ("prediction", "margin")
"""Columns that take the model to fill."""
_KINDS = {"b": "b", "i": "iuf", "u": "iuf", "f": "iuf", "U": "U"}
"""By the kind of a column's dtype: the kinds of values that can equal one of its own."""
_NAMES = {"b": "true or false", "i": "numbers", "u": "numbers", "f": "numbers", "U": "strings"}


def group_of(examples: Examples) -> ExampleGroup:
    """A group of examples that Python code may write in several ways.

    Raises:
        ConfigError: a condition is unknown.

    Example:
        >>> group_of([3, 5]).ids, group_of({"classes": [1]}).classes
        ([3, 5], [1])
    """
    if isinstance(examples, ExampleGroup):
        return examples
    if callable(examples):
        return ExampleGroup(predicate=examples)
    if isinstance(examples, int | np.integer) and not isinstance(examples, bool):
        return ExampleGroup(ids=[int(examples)])
    if isinstance(examples, str) or not isinstance(examples, Iterable):
        raise ConfigError(
            f"{examples!r} is no group of examples: give ids, conditions as {{'classes': [3]}}, or a function."
        )
    if not isinstance(examples, Mapping):
        chosen = np.asarray(examples)
        if chosen.dtype == np.bool_ and chosen.ndim == 1:
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or not all(is_whole(i) for i in chosen.tolist()):
            raise ConfigError(f"{shown(examples)} is no group of examples: ids are whole numbers, in a list.")
        return ExampleGroup(ids=chosen.tolist())
    known = [entry.name for entry in fields(ExampleGroup)]
    for name in examples:
        if name not in known:
            raise ConfigError(f"a group of examples has no condition {name!r}; the conditions are {', '.join(known)}.")
    return ExampleGroup(**examples)


def edit_of(settings: EditConfig, options: Mapping[str, Any]) -> EditConfig:
    """The settings with some options replaced, whose groups may be written as ``group_of`` takes them.

    Raises:
        ConfigError: an option, or a condition of a group, is unknown.
    """
    known = [entry.name for entry in fields(EditConfig)]
    for name in options:
        if name not in known:
            raise ConfigError(f"edit: unknown option {name!r}; the options are {', '.join(known)}.")
    chosen: dict[str, Any] = dict(options)
    chosen |= {name: group_of(options[name]) for name in ("target", "reference") if name in options}
    if "groups" in options:
        check("groups", options["groups"], MAPPING)
        chosen["groups"] = {name: group_of(group) for name, group in options["groups"].items()}
    return replace(settings, **chosen)


def members(
    group: ExampleGroup,
    columns: Columns,
    key: str,
    targets: NDArray[np.int64] | None = None,
    among: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The examples that meet every condition of a group that is set.

    Args:
        group: the conditions; without any, all examples are meant.
        columns: of ``examples.parquet``, (num_examples,) each: ``example_id``, ``label`` and ``prediction`` (NaN where
            targets are not classes), ``margin``, and the example set's own.
        key: the config key of ``group``, e.g. ``edit.target``, for messages.
        targets: (num_targets,) int64 ids, for ``matching``; None where there are none among these examples.
        among: (num_eligible,) int64 ids; others are no members. None: all are eligible.

    Returns:
        (num_members,) int64 ids, ascending, one at least.

    Raises:
        ConfigError: a condition cannot be met or judged, or no example meets all of them.
        TaskError: the predicate raises.

    Example:
        >>> columns = {"example_id": np.arange(4), "label": np.array([0, 1, 1, 1])}
        >>> members(ExampleGroup(classes=[1], where={"example_id": {"max": 2}}), columns, "edit.target")
        array([1, 2])
    """
    example_ids = np.asarray(columns["example_id"])
    is_member = np.ones(len(example_ids), dtype=np.bool_) if among is None else np.isin(example_ids, among)
    counts = counted(int(is_member.sum()), "example")
    if not is_member.any():
        raise ConfigError(f"{key}: there are no examples left for it: all {len(example_ids)} are targets or like them.")
    for condition, meets in _conditions(group, columns, key, targets):
        is_member &= meets
        counts += f", {is_member.sum()} of them after {condition}"
        if not is_member.any():
            raise ConfigError(f"{key}.{condition} leaves no example: {counts}. Loosen or leave out one of them.")
    if group.sample is not None:
        if not 1 <= group.sample <= is_member.sum():
            raise ConfigError(
                f"{key}.sample={group.sample}: must be 1 to {is_member.sum()}, the examples that meet the other "
                f"conditions ({counts})."
            )
        words = np.random.Philox(key=np.array([group.seed, _SAMPLE_COUNTER], dtype=np.uint64))
        word_of = words.random_raw(int(example_ids.max()) + 1)[example_ids]
        rows = np.flatnonzero(is_member)
        is_member[rows[np.argsort(word_of[rows], kind="stable")[group.sample :]]] = False
    return np.sort(example_ids[is_member]).astype(np.int64)


def check_group(group: ExampleGroup, columns: Columns, key: str) -> None:
    """Check the conditions that can be judged without the model's outputs.

    Args:
        group: of whose conditions ``correct``, ``predicate`` and those on ``margin`` and ``prediction`` wait.
        columns: of the examples, as of ``members``; some may be missing.
        key: the config key of ``group``, for messages.

    Raises:
        ConfigError: a condition cannot be met or judged, or no example meets all of them.
    """
    if isinstance(group.predicate, str):
        resolve(f"{key}.predicate", group.predicate, {})
    where = {name: value for name, value in group.where.items() if name in columns or name not in _OUTPUTS}
    known = ExampleGroup(ids=group.ids, classes=group.classes, where=where)
    if known != ExampleGroup():
        members(known, columns, key)


def without_draws(group: ExampleGroup) -> ExampleGroup:
    """The conditions that also make sense for examples that are not the run's: all but ids, matching and sample."""
    return ExampleGroup(classes=group.classes, correct=group.correct, where=group.where, predicate=group.predicate)


def check_disjoint(targets: NDArray[np.int64], references: NDArray[np.int64], key: str = "edit") -> None:
    """Check that no example is to change and to stay at once.

    Args:
        targets: (num_targets,) int64 ids.
        references: (num_references,) int64 ids.
        key: the config key of the edit, for the message.

    Raises:
        ConfigError: an example is both.
    """
    both = np.intersect1d(targets, references)
    if both.size:
        raise ConfigError(
            f"{key}.reference: {both.size} of its {len(references)} examples are targets too, first "
            f"{both[:10].tolist()}. Part them by a condition, e.g. {key}.target.correct=false and "
            f"{key}.reference.correct=true, or leave {key}.reference without conditions: then all that are no targets "
            f"are references."
        )


def _conditions(
    group: ExampleGroup, columns: Columns, key: str, targets: NDArray[np.int64] | None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Every condition as it is written, but the sample, and which examples meet it (num_examples,) bool."""
    example_ids = np.asarray(columns["example_id"])
    if group.ids is not None:
        outside = sorted(set(group.ids) - set(example_ids.tolist()))
        if outside:
            raise ConfigError(
                f"{key}.ids: {outside[:10]} are no examples; there are {len(example_ids)}, with ids "
                f"{example_ids.min()} to {example_ids.max()}."
            )
        yield f"ids={_shortened(group.ids)}", np.isin(example_ids, group.ids)
    if group.classes is not None:
        condition = f"classes={group.classes}"
        yield condition, np.isin(_classes("label", columns, f"{key}.{condition}"), group.classes)
    if group.correct is not None:
        condition = f"correct={str(group.correct).lower()}"
        labels, predictions = (_classes(name, columns, f"{key}.{condition}") for name in ("label", "prediction"))
        yield condition, (labels == predictions) == group.correct
    for name, value in group.where.items():
        column = _column(name, columns, f"{key}.where.{name}")
        yield f"where.{name}={_shortened(value)}", _meets(column, value, f"{key}.where.{name}")
    if group.predicate is not None:
        named = isinstance(group.predicate, str)
        function = resolve(f"{key}.predicate", group.predicate, {}) if named else group.predicate
        name = group.predicate if named else getattr(function, "__qualname__", type(function).__name__)
        yield f"predicate={name}", _judged(function, columns, f"{key}.predicate={name!r}")
    if group.matching is not None:
        column = _column(group.matching, columns, f"{key}.matching={group.matching}")
        if targets is None:
            raise ConfigError(
                f"{key}.matching={group.matching!r}: there are no targets to match here. Leave it out; it is for "
                f"references among the examples of the run."
            )
        values = column[np.isin(example_ids, targets)]
        yield f"matching={group.matching}", np.isin(column, values)


def _column(name: str, columns: Columns, key: str) -> NDArray[Any]:
    if name not in columns:
        raise ConfigError(f"{key}: there is no column {name!r}; the examples have {', '.join(columns)}.")
    return np.asarray(columns[name])


def _classes(name: str, columns: Columns, key: str) -> NDArray[Any]:
    values = np.asarray(columns[name])
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ConfigError(
            f"{key}: the examples have no class {name}s. Leave it out, or use {key.rpartition('.')[0]}.where."
        )
    return values


def _meets(column: NDArray[Any], value: Any, key: str) -> NDArray[np.bool_]:
    """Which values of a column equal a value or one of a list, or lie within {min, max}: (num_examples,) bool."""
    if not isinstance(value, Mapping):
        candidates = list(value) if isinstance(value, list | tuple) else [value]
        if not candidates:
            raise ConfigError(f"{key}=[]: no value can be among none. Name one, or leave it out.")
        is_equal = [column == _comparable(candidate, column, key) for candidate in candidates]
        return np.asarray(np.any(is_equal, axis=0))
    if not value or set(value) - set(_RANGE):
        raise ConfigError(f"{key}={dict(value)}: a range is {{min: ..., max: ...}}, of which one may be left out.")
    if column.dtype.kind not in "iuf":
        raise ConfigError(
            f"{key}={dict(value)}: a range takes numbers, and the column has {_NAMES[column.dtype.kind]}."
        )
    low, high = (_comparable(value[end], column, f"{key}.{end}") if end in value else None for end in _RANGE)
    if low is not None and high is not None and low > high:
        raise ConfigError(f"{key}={dict(value)}: min must not be above max.")
    meets = np.ones(len(column), dtype=np.bool_)
    if low is not None:
        meets &= column >= low
    if high is not None:
        meets &= column <= high
    return meets


def _comparable(value: Any, column: NDArray[Any], key: str) -> Any:
    """``value`` as a plain Python value, if one of the column's can equal it."""
    found, there = np.asarray(value), column.dtype.kind
    if found.ndim or found.dtype.kind not in _KINDS[there] or (found.dtype.kind == "f" and np.isnan(found)):
        raise ConfigError(f"{key}={value!r}: cannot be compared with the column, which has {_NAMES[there]}.")
    return found.item()


def _judged(function: Callable[..., Any], columns: Columns, key: str) -> NDArray[np.bool_]:
    """What a predicate says of every example: (num_examples,) bool."""
    num_examples = len(columns["example_id"])
    try:
        result = function(dict(columns))
    except Exception as error:  # the user's own code may raise anything
        raise TaskError(f"{key} raises {type(error).__name__}: {error}") from error
    meets = np.asarray(result)
    if meets.dtype != np.bool_ or meets.shape != (num_examples,):
        raise ConfigError(
            f"{key} gives {meets.dtype} of shape {meets.shape}: must be bool of shape ({num_examples},), one value per "
            f"example."
        )
    return meets


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
