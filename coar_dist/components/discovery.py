"""Finding components in a model by a selector, or by rules of the user's own.

To add a selector, write a function from a model to its component groups and put it into ``SELECTORS``:

    def norm_scales(model):
        return [
            ComponentGroup.of(f"{name}.weight", 0, module.num_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.components.plain_model import plain_model
from coar_dist.config.schema import ComponentRule
from coar_dist.errors import ComponentMismatchError, ConfigError, NoComponentsError, counted

Selector = Callable[[nn.Module], list[ComponentGroup]]


def conv_filters(model: nn.Module) -> list[ComponentGroup]:
    """Output filters (axis 0 of the weight) of every Conv1d, Conv2d and Conv3d, grouped ones too."""
    return _slices(model, "weight", 0, lambda module: isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))


def linear_rows(model: nn.Module) -> list[ComponentGroup]:
    """Output neurons (axis 0) of every Linear, and the q, k, v rows of every MultiheadAttention's in_proj_weight."""
    groups = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            groups.append(_group(name, "in_proj_weight", module.in_proj_weight.shape, 0, 1))
        elif isinstance(module, nn.Linear):
            groups.append(_group(name, "weight", module.weight.shape, 0, 1))
    return groups


def transposed_linear_inputs(model: nn.Module) -> list[ComponentGroup]:
    """Input features (axis 0) of every Hugging Face Conv1D, whose weight is [in, out]: the research code's rows."""
    return _slices(model, "weight", 0, is_transposed_linear)


def transposed_linear_outputs(model: nn.Module) -> list[ComponentGroup]:
    """Output neurons (axis 1) of every Hugging Face Conv1D, whose weight is [in, out]."""
    return _slices(model, "weight", 1, is_transposed_linear)


def embedding_rows(model: nn.Module) -> list[ComponentGroup]:
    """Rows (one per token, or per position) of every Embedding."""
    return _slices(model, "weight", 0, lambda module: isinstance(module, nn.Embedding))


def attention_heads(model: nn.Module) -> list[ComponentGroup]:
    """Attention heads, as the blocks of the output projection that read them: zeroing one removes what the head says.

    Found in ``nn.MultiheadAttention``, and in any module that has ``num_heads`` and ``head_dim`` and an output
    projection named as in timm or Hugging Face transformers. Elsewhere a rule gives the block size:
    ``components.rules=[{parameter: "*.o_proj.weight", axis: 1, block_size: 64}]``.
    """
    groups = []
    for name, module in model.named_modules():
        head_size = getattr(module, "head_dim", None)
        if not isinstance(head_size, int) or not isinstance(getattr(module, "num_heads", None), int):
            continue
        for child in ("out_proj", "o_proj", "c_proj", "proj"):
            projection = getattr(module, child, None)
            if isinstance(projection, nn.Linear):
                groups.append(_group(f"{name}.{child}", "weight", projection.weight.shape, 1, head_size))
            elif isinstance(projection, nn.Module) and is_transposed_linear(projection):
                shape = projection.get_parameter("weight").shape
                groups.append(_group(f"{name}.{child}", "weight", shape, 0, head_size))
    return groups


SELECTORS: dict[str, Selector] = {
    "conv_filters": conv_filters,
    "linear_rows": linear_rows,
    "transposed_linear_inputs": transposed_linear_inputs,
    "transposed_linear_outputs": transposed_linear_outputs,
    "embedding_rows": embedding_rows,
    "attention_heads": attention_heads,
}


def by_rules(model: nn.Module, rules: Sequence[ComponentRule]) -> list[ComponentGroup]:
    """Slices of every parameter whose name matches a rule's shell pattern, in the model's parameter order.

    Raises:
        NoComponentsError: a rule matches no parameter; the message lists some.
        ComponentMismatchError: the axis does not exist, or its length is not a multiple of the block size.
    """
    groups: list[tuple[int, ComponentGroup]] = []
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for rule in rules:
        matches = [(i, name) for i, name in enumerate(shapes) if fnmatchcase(name, rule.parameter)]
        if not matches:
            raise NoComponentsError(
                f"components.rules: {rule.parameter!r} matches no parameter; there are {', '.join(list(shapes)[:20])}"
                f"{', ...' if len(shapes) > 20 else ''}."
            )
        for i, name in matches:
            module, _, parameter = name.rpartition(".")
            groups.append((i, _group(module, parameter, shapes[name], rule.axis, rule.block_size)))
    return [group for _, group in sorted(groups, key=lambda entry: entry[0])]


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether the module is Hugging Face's ``Conv1D``: a linear map whose weight is [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _slices(model: nn.Module, parameter: str, axis: int, matches: Callable[[nn.Module], bool]) -> list[ComponentGroup]:
    return [
        _group(name, parameter, module.get_parameter(parameter).shape, axis, 1)
        for name, module in model.named_modules()
        if matches(module)
    ]


def _group(module: str, parameter: str, shape: Sequence[int], axis: int, block_size: int) -> ComponentGroup:
    name = f"{module}.{parameter}" if module else parameter
    if not 0 <= axis < len(shape) or shape[axis] % block_size:
        raise ComponentMismatchError(
            f"{name} of shape {tuple(shape)} cannot be cut along axis {axis} into blocks of {block_size}."
        )
    return ComponentGroup.of(name, axis, shape[axis] // block_size, block_size)


def discover(
    model: nn.Module,
    selector: str,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    rules: Sequence[ComponentRule] = (),
) -> ComponentIndex:
    """The components of ``model`` that ``selector`` names, in ``named_modules`` order.

    Args:
        model: any module; on any device, "meta" included.
        selector: a key of ``SELECTORS``, or ``rules``.
        include: shell patterns; a group is taken if its parameter's name matches one of them.
        exclude: shell patterns; a group is left out if its parameter's name matches one of them.
        rules: for the selector ``rules``: see ``by_rules``.

    Raises:
        ConfigError: the selector is unknown.
        NoComponentsError: nothing is left; the message lists what the model has.
    """
    model = plain_model(model)
    if selector != "rules" and selector not in SELECTORS:
        raise ConfigError(f"components.selector={selector!r}: must be one of {', '.join(SELECTORS)}, rules.")
    found = by_rules(model, rules) if selector == "rules" else SELECTORS[selector](model)
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
            f"{counted(len(found), 'parameter')} that {selector!r} finds: {names}{', ...' if len(found) > 20 else ''}."
        )
    kinds = Counter(type(module).__name__ for module in model.modules() if not list(module.children()))
    counts = {name: len(select(model)) for name, select in SELECTORS.items()}
    raise NoComponentsError(
        f"components.selector={selector!r} matches nothing in {type(model).__name__}, whose layers are "
        f"{dict(kinds)}. Parameters found per selector: {counts}."
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
    whole: dict[str, tuple[str, int]] = {}
    for group in components.groups:
        for part in group.slices:
            axes.setdefault(part.parameter, set()).add(part.axis)
            if part.size == shapes[part.parameter][part.axis] and len(shapes[part.parameter]) > 1:
                whole[part.parameter] = group.name.format(group.numbers[0]), part.axis
    for parameter, (name, _) in whole.items():
        if len(axes[parameter]) > 1:
            others = [g.name.format(g.numbers[0]) for g in components.groups if parameter in g.parameters]
            other = next(each for each in others if each != name)
            raise ComponentMismatchError(
                f"components overlap: {name} is all of {parameter}, and {other} a part of it. Leave one of the two out."
            )
