"""Whether the options of an edit make sense together: everything that can be said without a run directory."""

from __future__ import annotations

from coar_dist.config.schema import (
    ALL,
    OTHERS,
    TARGETS,
    EditConfig,
    ExampleGroup,
    kept_groups,
)
from coar_dist.errors import ConfigError

_OWN_GROUPS = (ALL, TARGETS, OTHERS)


def check_edit(edit: EditConfig) -> None:
    """Check the options of an edit against each other.

    Raises:
        ConfigError: naming the key, the value and the way out.
    """
    if edit.method in edit.compare:
        raise ConfigError(f"edit.compare={edit.compare}: {edit.method} is edit.method already. Leave it out.")
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
    if not edit.improve and not edit.each:
        raise ConfigError(f"edit.improve=[]: must be at least one group, e.g. [{TARGETS}].")
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
    if group.seed != 0 and group.sample is None:
        raise ConfigError(f"{key}.seed={group.seed} has no effect without {key}.sample. Leave it out.")


def code_of(edit: EditConfig) -> dict[str, str]:
    """The keys of an edit that name code, ``module:function``, and their values."""
    groups = {"edit.target": edit.target, "edit.reference": edit.reference}
    groups |= {f"edit.groups.{name}": group for name, group in edit.groups.items()}
    named = {f"{key}.predicate": group.predicate for key, group in groups.items() if isinstance(group.predicate, str)}
    return named | ({"edit.examples.source": edit.examples.source} if edit.examples is not None else {})
