"""Finding components in a model by selectors, or by rules of the user's own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor, nn

from coar_dist.components.attention_sites import AttentionSite, attention_sites
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.components.left_out import passed_over
from coar_dist.components.name_patterns import matches
from coar_dist.components.plain_model import plain_model
from coar_dist.components.selectors import FORMER_NAMES, SELECTORS
from coar_dist.config.fields import checked
from coar_dist.config.keys import meant
from coar_dist.config.python_arguments import NAMES, check, shown
from coar_dist.config.schema import ComponentRule, ComponentsConfig
from coar_dist.errors import (
    CoarDistError,
    ComponentMismatchError,
    ConfigError,
    NoComponentsError,
    counted,
    listed,
    warn,
)

Components: TypeAlias = (
    str | ComponentRule | Sequence[str | ComponentRule] | ComponentIndex | Callable[[nn.Module], ComponentIndex]
)
"""What a Python caller may give for components: see ``chosen_components``."""
_RULES = "rules"
_NOT_ALWAYS_IN_AUTO = ("neurons", "experts", "conv_filters", "recurrent_units")
_log = logging.getLogger(__name__)


def by_rules(model: nn.Module, rules: Sequence[ComponentRule]) -> list[ComponentGroup]:
    """Slices of every parameter whose name matches a rule's shell pattern, in the model's parameter order.

    Raises:
        NoComponentsError: a rule matches no parameter; the message lists some.
        ComponentMismatchError: the axis does not exist, its length is not a multiple of the block size, or blocks cut
            through attention heads.
    """
    groups: list[tuple[int, ComponentGroup]] = []
    cuts_blocks = any(rule.block_size > 1 for rule in rules)
    heads = {(site.parameter, site.axis): site for site in attention_sites(model)} if cuts_blocks else {}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for rule in rules:
        matching = [(i, name) for i, name in enumerate(shapes) if matches(name, [rule.parameter])]
        if not matching:
            raise NoComponentsError(
                f"components.rules: {rule.parameter!r} matches no parameter; there are {', '.join(list(shapes)[:20])}"
                f"{', ...' if len(shapes) > 20 else ''}."
            )
        for i, name in matching:
            _check_heads(heads.get((name, rule.axis)), rule.block_size)
            groups.append((i, _group(name, shapes[name], rule.axis, rule.block_size)))
    return [group for _, group in sorted(groups, key=lambda entry: entry[0])]


def _check_heads(site: AttentionSite | None, block_size: int) -> None:
    """A block of an output projection is a head, several, or an equal part of one."""
    if site is not None and site.head_size % block_size and block_size % site.head_size:
        raise ComponentMismatchError(
            f"components.rules: blocks of {block_size} cut through the heads of {site.parameter}, which are "
            f"{site.num_heads} of {site.head_size}. Use block_size={site.head_size}, or components=heads."
        )


def _group(name: str, shape: Sequence[int], axis: int, block_size: int) -> ComponentGroup:
    if not 0 <= axis < len(shape) or shape[axis] % block_size:
        raise ComponentMismatchError(
            f"{name} of shape {tuple(shape)} cannot be cut along axis {axis} into blocks of {block_size}."
        )
    return ComponentGroup.of(name, axis, shape[axis] // block_size, block_size)


def discover(
    model: nn.Module,
    selector: str | Sequence[str] = "auto",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    rules: Sequence[ComponentRule] = (),
) -> ComponentIndex:
    """The components of ``model`` that the selectors name.

    Args:
        model: any module; on any device, "meta" included.
        selector: a key of ``SELECTORS``, ``rules``, or several of them.
        include: shell patterns; a component is taken if its name, or its first parameter's, matches one of them.
        exclude: shell patterns; a component is left out if its name, or its first parameter's, matches one of them.
        rules: for the selector ``rules``: see ``by_rules``.

    Raises:
        ConfigError: a selector is unknown.
        ComponentMismatchError: components overlap.
        NoComponentsError: nothing is left; the message lists what the model has.

    Example:
        >>> discover(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), "neurons").names()
        ['N0', 'N1', 'N2', 'N3', 'N4']
    """
    model = plain_model(model)
    names = [selector] if isinstance(selector, str) else list(selector)
    unknown = [name for name in names if name not in {*SELECTORS, *FORMER_NAMES, _RULES}]
    if unknown or not names:
        given = names[0] if len(names) == 1 else selector
        raise ConfigError(
            f"components.selector={given!r}: must be one of {', '.join(SELECTORS)}, rules."
            f"{meant(next(iter(unknown), ''), SELECTORS)}"
        )
    found: list[ComponentGroup] = []
    for name in names:
        if name in FORMER_NAMES:
            _log.warning("components.selector=%s is called %s now", name, FORMER_NAMES[name])
        selected = by_rules(model, rules) if name == _RULES else SELECTORS[FORMER_NAMES.get(name, name)](model)
        if not selected:
            raise _nothing_found(model, name, (), include, exclude)
        found += selected
    named = told_apart(found)
    groups = [kept for group in named if (kept := _chosen(group, include, exclude)) is not None]
    if not groups:
        raise _nothing_found(model, selector, found, include, exclude)
    for key, patterns in (("include", include), ("exclude", exclude)):
        _warn_of_no_effect(named, key, patterns)
    _say(model, names, groups)
    try:
        return ComponentIndex(tuple(groups))
    except ValueError as error:
        raise ComponentMismatchError(f"{error}. Leave one of the two out (components.exclude).") from error


def _say(model: nn.Module, names: Sequence[str], groups: Sequence[ComponentGroup]) -> None:
    """One line in the log per kind that was found, and per reason why modules were passed over."""
    kinds = Counter({group.kind: 0 for group in groups})
    for group in groups:
        kinds[group.kind] += group.num_components
    for kind, num in kinds.items():
        _log.info("%s: %s in %s", kind, f"{num:,}", counted(sum(group.kind == kind for group in groups), "group"))
    for name in names:
        for why, modules in _by_reason(passed_over(model, name)).items():
            _log.info("%s: none in %s: %s", name, listed(modules), why)
    if "auto" in names:
        others = {name: Counter(group.kind for group in SELECTORS[name](model)) for name in _NOT_ALWAYS_IN_AUTO}
        left_out = [name for name, found in others.items() if found and not found.keys() & kinds.keys()]
        if left_out:
            _log.info("auto: leaves out %s, which are to be asked for by name", ", ".join(left_out))


def _by_reason(passed_over: Mapping[str, str]) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for module, why in passed_over.items():
        by_reason.setdefault(why, []).append(module)
    return by_reason


def chosen_components(
    model: nn.Module, components: Components, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> ComponentIndex:
    """The components that a Python caller asks for.

    Args:
        model: whose they are.
        components: selectors, rules, several of these, an index, or a function of the model that gives an index.
        include: shell patterns, as ``discover``.
        exclude: shell patterns, as ``discover``.

    Raises:
        ConfigError: a selector is unknown, or the function gives something else.
        NoComponentsError, ComponentMismatchError: as ``discover``.
    """
    check_patterns(include, exclude)
    if not isinstance(components, ComponentIndex) and callable(components):
        try:
            components = components(plain_model(model))
        except CoarDistError:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise ConfigError(f"components: {shown(components)} raises {type(error).__name__}: {error}.") from error
        if not isinstance(components, ComponentIndex):
            raise ConfigError(f"components: the function gives a {type(components).__name__}, not a ComponentIndex.")
    if isinstance(components, ComponentIndex):
        groups = [kept for group in components.groups if (kept := _chosen(group, include, exclude)) is not None]
        if not groups:
            raise _nothing_found(model, "components", components.groups, include, exclude)
        return components if groups == list(components.groups) else ComponentIndex(tuple(groups))
    _, asked = asked_components(model, components, include, exclude)
    return discover(model, asked.selectors, include, exclude, asked.rules)


def check_patterns(include: object, exclude: object) -> None:
    """Check that a Python caller gives lists: a string's letters would be patterns.

    Raises:
        ConfigError: one is a string.
    """
    for key, given in (("components.include", include), ("components.exclude", exclude)):
        if isinstance(given, str):
            raise ConfigError(f"{key}={given!r}: must be a list, e.g. [{given!r}].")
        check(key, given, NAMES)


def asked_components(
    model: nn.Module, components: Components, include: Sequence[str], exclude: Sequence[str]
) -> tuple[ComponentIndex | None, ComponentsConfig]:
    """What a Python caller asks for as an index, or as the configuration that says the same; the other is of no use."""
    check_patterns(include, exclude)
    if isinstance(components, ComponentIndex) or callable(components):
        return chosen_components(model, components, include, exclude), ComponentsConfig()
    listed = [components] if isinstance(components, str | ComponentRule) else components
    if not isinstance(listed, list | tuple) or not all(isinstance(entry, str | ComponentRule) for entry in listed):
        raise ConfigError(
            f"components.selector={shown(components)}: must be a selector, a ComponentRule, a list of these, a "
            f"ComponentIndex, or a function of the model."
        )
    rules = [checked(entry, "components.rules.") for entry in listed if isinstance(entry, ComponentRule)]
    names = list(dict.fromkeys(_RULES if isinstance(entry, ComponentRule) else entry for entry in listed))
    return None, ComponentsConfig(names if len(names) != 1 else names[0], rules, list(include), list(exclude))


def told_apart(groups: Sequence[ComponentGroup]) -> list[ComponentGroup]:
    """The groups; where two have a component of one name, they are called by their first parameter as well."""
    alike: dict[str, list[ComponentGroup]] = {}
    for group in groups:
        alike.setdefault(group.name, []).append(group)
    repeated = set()
    for name, members in alike.items():
        numbers = [number for group in members for number in group.numbers] if len(members) > 1 else []
        if len(set(numbers)) < len(numbers):
            repeated.add(name)
    return [
        replace(group, name=f"{group.parameter}:{group.name}") if group.name in repeated else group for group in groups
    ]


def _chosen(group: ComponentGroup, include: Sequence[str], exclude: Sequence[str]) -> ComponentGroup | None:
    """The group without the components that are not included, or excluded; None where none is left."""

    if matches(group.parameter, exclude):
        return None
    is_included = matches(group.parameter, include)
    if is_included and not exclude:
        return group
    names = group.names()
    places = [
        place
        for place, name in enumerate(names)
        if (is_included or matches(name, include)) and not matches(name, exclude)
    ]
    if not places:
        return None
    return group if len(places) == len(names) else group.only(places)


def _warn_of_no_effect(groups: Sequence[ComponentGroup], key: str, patterns: Sequence[str]) -> None:
    """Say which patterns match nothing: a slip in one of them ablates what was to be left out."""
    for pattern in patterns:
        if not any(matches(name, [pattern]) for group in groups for name in (group.parameter, *group.names())):
            names = f"{groups[0].name_of(0)} to {groups[-1].name_of(groups[-1].num_components - 1)}"
            warn(
                f"components.{key}: {pattern!r} matches none of the components, {names}, and none of their parameters."
            )


def _nothing_found(
    model: nn.Module,
    selector: str | Sequence[str],
    found: Sequence[ComponentGroup],
    include: Sequence[str],
    exclude: Sequence[str],
) -> NoComponentsError:
    if found:
        names = ", ".join(group.parameter for group in found[:20])
        return NoComponentsError(
            f"components.include={list(include)} and components.exclude={list(exclude)} leave none of the "
            f"{counted(len(found), 'parameter')} that {selector!r} finds: {names}{', ...' if len(found) > 20 else ''}."
        )
    kinds = Counter(type(module).__name__ for module in model.modules() if not list(module.children()))
    counts = {name: sum(group.num_components for group in select(model)) for name, select in SELECTORS.items()}
    asked = [selector] if isinstance(selector, str) else selector
    reasons = _by_reason({module: why for name in asked for module, why in passed_over(model, name).items()})
    said = "".join(f" Passed over: {listed(modules, most=2)}: {why}." for why, modules in list(reasons.items())[:3])
    return NoComponentsError(
        f"components.selector={selector!r} matches nothing in {type(model).__name__}, whose layers are "
        f"{dict(kinds)}. Components found per selector: { ({name: num for name, num in counts.items() if num}) }.{said}"
    )


def check_components(model: nn.Module, components: ComponentIndex) -> None:
    """Check that components are slices of parameters of ``model`` and that no two of them share memory.

    Raises:
        ComponentMismatchError: naming the parameter, its shape, and what the index says of it.
    """
    if not components.groups:
        raise NoComponentsError("the component index is empty: there is nothing to ablate.")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[int, str] = {}
    for part in (part for group in components.groups for part in group.slices):
        name, parameter = part.parameter, parameters.get(part.parameter)
        if parameter is None:
            raise ComponentMismatchError(
                f"the model has no parameter {name!r}, of which components are slices. "
                f"Names are those of model.named_parameters()."
            )
        if not parameter.is_floating_point() or type(parameter.data) is not Tensor:
            raise ComponentMismatchError(
                f"{name} is packed or quantised ({type(parameter).__name__}, {parameter.dtype}): zeros in "
                f"it are not zeros in the weight. Load the model unquantised, or leave it out (components.exclude)."
            )
        end = max(part.starts[0], part.starts[-1]) + part.size
        if part.axis >= parameter.ndim or parameter.shape[part.axis] < end:
            raise ComponentMismatchError(
                f"{name} has shape {tuple(parameter.shape)}, but its components need {end} indices along axis "
                f"{part.axis}."
            )
        other = owners.setdefault(id(parameter), name)
        if other != name:
            raise ComponentMismatchError(
                f"{name} and {other} are one tied parameter: ablating one would ablate the other. "
                f"Exclude one of the two (components.exclude)."
            )
    _refuse_whole_beside_slices(components, {name: parameters[name].shape for name in components.parameters})


def _refuse_whole_beside_slices(components: ComponentIndex, shapes: Mapping[str, Sequence[int]]) -> None:
    """Rows and columns of one weight may cross; a component that is all of it contains the others."""
    axes: dict[str, set[int]] = {}
    whole: dict[str, ComponentGroup] = {}
    for group in components.groups:
        for part in group.slices:
            axes.setdefault(part.parameter, set()).add(part.axis)
            if part.size == shapes[part.parameter][part.axis] and len(shapes[part.parameter]) > 1:
                whole[part.parameter] = group
    for parameter, group in whole.items():
        if len(axes[parameter]) > 1:
            others = [each for each in components.groups if parameter in each.parameters and each is not group]
            other = (others or [group])[0].name_of(0)
            raise ComponentMismatchError(
                f"components overlap: {group.name_of(0)} is all of {parameter}, and {other} a part of it. Leave one of "
                f"the two out."
            )
