"""Whether the values of an edit make sense: everything that can be said without a run directory."""

from __future__ import annotations

import re

from coar_dist.config.schema import (
    ALL,
    DIRECTIONS,
    EDIT_METRICS,
    OTHERS,
    TARGETS,
    EditConfig,
    ExampleGroup,
    kept_groups,
)
from coar_dist.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OWN_GROUPS = (ALL, TARGETS, OTHERS)


def check_edit(edit: EditConfig) -> None:
    """Check what can be said of an edit alone.

    Raises:
        ConfigError: naming the key, the value and the valid range.
    """

    def require(condition: bool, key: str, rule: str) -> None:
        if not condition:
            raise ConfigError(f"edit.{key}={getattr(edit, key)!r}: must be {rule}.")

    require(_NAME.fullmatch(edit.name) is not None, "name", "a name of a folder: letters, digits, _ . -")
    require(edit.direction in DIRECTIONS, "direction", " or ".join(DIRECTIONS))
    require(edit.metric is None or edit.metric in EDIT_METRICS, "metric", f"null or {' or '.join(EDIT_METRICS)}")
    require(0.0 < edit.choice_fraction < 1.0, "choice_fraction", "strictly between 0 and 1")
    require(edit.max_components is None or edit.max_components >= 1, "max_components", "null or at least 1")
    require(0 <= edit.seed < 2**64, "seed", "in 0..2**64-1")
    repeated = len(set(edit.compare)) < len(edit.compare) or edit.method in edit.compare
    require(not repeated, "compare", f"names, none of them twice and none edit.method={edit.method}")
    require(all(0.0 <= limit < float("inf") for limit in edit.keep.values()), "keep", "limits >= 0 and finite")
    _check_conditions(edit.target, "edit.target")
    _check_conditions(edit.reference, "edit.reference")
    if edit.target == ExampleGroup():
        raise ConfigError(
            "edit.target has no condition: say which examples are to change, e.g. edit.target.classes=[3], "
            "edit.target.ids=[17] or edit.target.correct=false."
        )
    if edit.target.matching is not None:
        raise ConfigError(f"edit.target.matching={edit.target.matching!r}: only edit.reference can match the targets.")
    taken = sorted(set(edit.groups) & set(_OWN_GROUPS))
    if taken:
        raise ConfigError(f"edit.groups.{taken[0]}: an edit has a group of that name of itself. Use another name.")
    for name, group in edit.groups.items():
        _check_conditions(group, f"edit.groups.{name}")
        if group.matching is not None:
            raise ConfigError(f"edit.groups.{name}.matching={group.matching!r}: only edit.reference can match targets.")
    for key, names in (("improve", edit.improve), ("keep", list(edit.keep))):
        unknown = sorted(set(names) - {*edit.groups, *_OWN_GROUPS})
        if unknown:
            known = ", ".join([*edit.groups, *_OWN_GROUPS])
            raise ConfigError(f"edit.{key}: there is no group {unknown[0]!r}. Add it to edit.groups, or use: {known}.")
    require(len(edit.improve) > 0 or edit.each, "improve", "at least one group")
    if edit.each:
        _check_each(edit)
    elif edit.direction == "lower" and edit.metric == "accuracy" and set(edit.improve) & set(edit.keep):
        both = sorted(set(edit.improve) & set(edit.keep))
        raise ConfigError(
            f"edit.keep: {both[0]!r} is to fall (edit.improve, edit.direction=lower). Leave it out there."
        )


def _check_each(edit: EditConfig) -> None:
    """One edit per target: what is improved is the target itself."""
    default = EditConfig()
    for key in ("improve", "groups", "pairs", "metric", "examples"):
        value = getattr(edit, key)
        if value != getattr(default, key):
            raise ConfigError(
                f"edit.{key}={value!r} has no effect with edit.each: every target is to become right at the least loss "
                f"of accuracy on the run's other examples. Leave it out."
            )
    if set(kept_groups(edit)) != {ALL}:
        raise ConfigError(f"edit.keep={dict(edit.keep)}: with edit.each it is the accuracy on {ALL} that is kept.")
    if edit.direction != "raise":
        raise ConfigError("edit.direction=lower: edit.each makes wrong predictions right. Use edit.direction=raise.")


def _check_conditions(group: ExampleGroup, key: str) -> None:
    if group.ids is not None and (not group.ids or len(set(group.ids)) < len(group.ids)):
        raise ConfigError(f"{key}.ids={group.ids}: must be null or example ids, none of them twice.")
    if group.classes is not None and not group.classes:
        raise ConfigError(f"{key}.classes=[]: must be null or class labels.")
    if group.sample is not None and group.sample < 1:
        raise ConfigError(f"{key}.sample={group.sample}: must be null or at least 1.")
    if group.seed != 0 and group.sample is None:
        raise ConfigError(f"{key}.seed={group.seed} has no effect without {key}.sample. Leave it out.")
    if not (group.predicate is None or isinstance(group.predicate, str) or callable(group.predicate)):
        raise ConfigError(f"{key}.predicate={group.predicate!r}: must be null, module:function, or a function.")
    if not 0 <= group.seed < 2**64:
        raise ConfigError(f"{key}.seed={group.seed}: must be in 0..2**64-1.")


def code_of(edit: EditConfig) -> dict[str, str]:
    """The keys of an edit that name code, ``module:function``, and their values."""
    groups = {"edit.target": edit.target, "edit.reference": edit.reference}
    groups |= {f"edit.groups.{name}": group for name, group in edit.groups.items()}
    named = {f"{key}.predicate": group.predicate for key, group in groups.items() if isinstance(group.predicate, str)}
    return named | ({"edit.examples.source": edit.examples.source} if edit.examples is not None else {})
