"""Finding components in a model by a selector.

To add a selector, write a function from a model to its component groups and put it into ``SELECTORS``:

    def embedding_rows(model):
        return [
            ComponentGroup(f"{name}.weight", 0, module.num_embeddings)
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding)
        ]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from coar_dist.components.index import ComponentGroup, ComponentIndex
from coar_dist.errors import ComponentMismatchError, ConfigError, NoComponentsError

Selector = Callable[[nn.Module], list[ComponentGroup]]


def conv_filters(model: nn.Module) -> list[ComponentGroup]:
    """Output filters (axis 0 of the weight) of every Conv1d, Conv2d and Conv3d."""
    return _output_slices(model, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def linear_rows(model: nn.Module) -> list[ComponentGroup]:
    """Output neurons (axis 0 of the weight) of every Linear."""
    return _output_slices(model, (nn.Linear,))


SELECTORS: dict[str, Selector] = {"conv_filters": conv_filters, "linear_rows": linear_rows}


def _output_slices(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[ComponentGroup]:
    return [
        ComponentGroup(f"{name}.weight" if name else "weight", 0, module.get_parameter("weight").shape[0])
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]


def discover(
    model: nn.Module, selector: str, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> ComponentIndex:
    """The components of ``model`` that ``selector`` names, in ``named_modules`` order.

    Args:
        model: any module; on any device, "meta" included.
        selector: a key of ``SELECTORS``.
        include: shell patterns; a group is taken if its parameter's name matches one of them.
        exclude: shell patterns; a group is left out if its parameter's name matches one of them.

    Raises:
        ConfigError: the selector is unknown.
        NoComponentsError: nothing is left; the message lists what the model has.
    """
    if selector not in SELECTORS:
        raise ConfigError(f"components.selector={selector!r}: must be one of {', '.join(SELECTORS)}.")
    found = SELECTORS[selector](model)
    groups = [
        group
        for group in found
        if any(fnmatchcase(group.parameter, pattern) for pattern in include)
        and not any(fnmatchcase(group.parameter, pattern) for pattern in exclude)
    ]
    if groups:
        return ComponentIndex(tuple(groups))
    if found:
        names = ", ".join(group.parameter for group in found[:20])
        raise NoComponentsError(
            f"components.include={list(include)} and components.exclude={list(exclude)} leave none of the "
            f"{len(found)} parameters that {selector!r} finds: {names}{', ...' if len(found) > 20 else ''}."
        )
    kinds = Counter(type(module).__name__ for module in model.modules() if not list(module.children()))
    counts = {name: len(select(model)) for name, select in SELECTORS.items()}
    raise NoComponentsError(
        f"components.selector={selector!r} matches nothing in {type(model).__name__}, whose layers are "
        f"{dict(kinds)}. Parameters found per selector: {counts}."
    )


def check_components(model: nn.Module, components: ComponentIndex) -> None:
    """Check that every component is a slice of a parameter of ``model`` and that slices do not share memory.

    Raises:
        ComponentMismatchError: naming the parameter, its shape, and what the index says of it.
    """
    if not components.groups:
        raise NoComponentsError("the component index is empty: there is nothing to ablate.")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[int, str] = {}
    for group in components.groups:
        parameter = parameters.get(group.parameter)
        if parameter is None:
            raise ComponentMismatchError(
                f"the model has no parameter {group.parameter!r} (component group {group}). "
                f"Names are those of model.named_parameters()."
            )
        size = group.num_components * group.block_size
        if group.axis >= parameter.ndim or parameter.shape[group.axis] != size:
            raise ComponentMismatchError(
                f"{group.parameter} has shape {tuple(parameter.shape)}, but its components need "
                f"{size} indices along axis {group.axis} ({group})."
            )
        other = owners.setdefault(id(parameter), group.parameter)
        if other != group.parameter:
            raise ComponentMismatchError(
                f"{group.parameter} and {other} are one tied parameter: ablating one would ablate the other. "
                f"Exclude one of the two (components.exclude)."
            )
