"""Where gates may stand: at a module's output or input, on its tokens or routing weights, or where a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from torch import nn

from coar_dist.components.attention import PLACEMENTS, can_be_gated
from coar_dist.components.expert_sites import num_experts_of
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.components.projections import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, is_transposed_linear
from coar_dist.components.read_weights import read_directly


@dataclass(frozen=True)
class GatePlace:
    """Where a gate stands.

    Attributes:
        module: name of the module.
        kind: ``output``, ``input``, embedding ``rows``, ``routing`` weights of experts, one of ``PLACEMENTS`` within an
            attention module, or ``read``: wherever a function reads the parameter. A site may be a ``block`` too: what
            the module of a mixture gives.
        channel_axis: of the module's input or output, along which the components lie.
        parameter: its name in the module that owns it.
        slices: what is gated.
        length: of the axis that is cut.
        with_bias: whether an output is gated with its bias, which is a part of the components too.
        width: of what each expert gives, at a site of experts.
    """

    module: str
    kind: str
    channel_axis: int
    parameter: str
    slices: Slices
    length: int
    with_bias: bool = False
    width: int = 0


def owners_of(model: nn.Module) -> dict[int, list[tuple[str, str]]]:
    """Every module that holds a parameter, and its name there, by the parameter's ``id``: a tied one has several."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((module_name, name))
    return owners


def places_of(model: nn.Module, components: ComponentIndex, read: Collection[str] = ()) -> list[list[GatePlace]]:
    """Per group the places of its gates: one in every module that owns the parameter. [] is no gated form.

    A place says where a gate may stand, by axes alone and whatever the module's class. Whether a gate there does what
    zeroed weights do is for a probe to find out.

    Args:
        model: whose modules own the parameters.
        components: the component index.
        read: parameters that are gated where a function reads them, as from ``weights_read``.
    """
    modules = dict(model.named_modules())
    owners = owners_of(model)
    return [_places_of_group(model, modules, owners, group, read) for group in components.groups]


def _places_of_group(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    owners: Mapping[int, list[tuple[str, str]]],
    group: ComponentGroup,
    read: Collection[str],
) -> list[GatePlace]:
    """A group's places for all of its slices: the components' gates stand at each; [] where one has none."""
    places: list[GatePlace] = []
    biases: list[tuple[str, Slices]] = []
    for part in group.slices:
        parameter = model.get_parameter(part.parameter)
        for module, name in owners[id(parameter)]:
            if _is_bias(modules[module], name):
                biases.append((module, part))
                continue
            length = parameter.shape[part.axis]
            if part.parameter in read:
                place: GatePlace | None = GatePlace(module, "read", -1, name, part, length)
            else:
                place = _place(modules, module, name, part, length)
            if place is None:
                return []
            if place.kind != "routing" or not any(_same(place, other) for other in places):
                places.append(place)
    for module, part in biases:
        number = next((number for number, place in enumerate(places) if _adds_bias(place, module, part)), None)
        if number is None:
            return []
        if places[number].kind in ("output", "routing"):
            places[number] = replace(places[number], with_bias=True)
    return places


def _is_bias(module: nn.Module, name: str) -> bool:
    parameter = module._parameters[name]
    assert parameter is not None
    return name == "bias" or (parameter.ndim == 2 and name.endswith("_bias"))


def _same(place: GatePlace, other: GatePlace) -> bool:
    return (place.module, place.kind) == (other.module, other.kind)


def _adds_bias(place: GatePlace, module: str, bias: Slices) -> bool:
    """Whether the gates at ``place`` are those of a bias that ``module`` adds there."""
    cut = place.slices.starts, place.slices.size
    return (place.module, cut) == (module, (bias.starts, bias.size)) and place.kind in ("output", "routing")


def weights_read(model: nn.Module, components: ComponentIndex, run: Callable[[], object]) -> frozenset[str]:
    """The parameters of ``components`` that a forward method reads itself, so that hooks on modules may miss it.

    Args:
        model: is as before on every exit.
        components: the component index.
        run: a forward pass of ``model``.
    """
    modules, owners, kinds = dict(model.named_modules()), owners_of(model), dict[str, set[str]]()
    for part in (part for group in components.groups for part in group.slices):
        parameter = model.get_parameter(part.parameter)
        for module, name in owners[id(parameter)]:
            if not _is_bias(modules[module], name):
                place = _place(modules, module, name, part, parameter.shape[part.axis])
                kinds.setdefault(part.parameter, set()).update([place.kind] if place is not None else [])
    hooked = {name: bool(found - {"routing"}) for name, found in kinds.items() if not found & {*PLACEMENTS}}
    return read_directly(model, hooked, run)


def _place(
    modules: Mapping[str, nn.Module], module_name: str, name: str, part: Slices, length: int
) -> GatePlace | None:
    module, axis = modules[module_name], part.axis

    def at(kind: str, channel_axis: int, where: str = module_name) -> GatePlace:
        return GatePlace(where, kind, channel_axis, name, part, length)

    parent_name = module_name.rpartition(".")[0]
    parent = modules.get(parent_name) if module_name else None
    if isinstance(module, nn.MultiheadAttention):
        # An instance's own forward is somebody's wrapper (accelerate's, say) that must not be replaced.
        fits = name == "in_proj_weight" and axis == 0 and can_be_gated(module) and "forward" not in vars(module)
        return at("projections", -1) if fits else None
    if isinstance(parent, nn.MultiheadAttention):  # it reads its child's weight without calling the child
        fits = name == "weight" and can_be_gated(parent) and "forward" not in vars(parent)
        return at(("attention_output", "attention_input")[axis], -1, parent_name) if fits else None
    weight = module._parameters[name]
    if (
        weight is not None
        and weight.ndim == 3
        and axis == 0
        and not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS))
    ):
        return at("routing", 0)  # experts: their outputs are weighed and added up
    if weight is not None and weight.ndim == 2 and axis == 0 and name != "weight" and parent is not None:
        return _stacked_experts(parent_name, module, name, part, length)
    if name != "weight" or weight is None or weight.ndim < 2:
        return None
    if isinstance(module, nn.Embedding):
        return at(("rows", "output")[axis], -1) if module.max_norm is None else None
    is_grouped = getattr(module, "groups", 1) != 1
    transposed = is_transposed_linear(module) or isinstance(module, TRANSPOSED_CONVOLUTIONS)
    output_axis, input_axis = (1, 0) if transposed else (0, 1)
    channel_axis = 1 if weight.ndim > 2 else -1
    if axis == output_axis and not (transposed and is_grouped):
        return at("output", channel_axis)
    return at("input", channel_axis) if axis == input_axis and not is_grouped else None


def _stacked_experts(parent: str, module: nn.Module, name: str, part: Slices, length: int) -> GatePlace | None:
    """Experts whose rows stand one after another in one matrix, which the module's parent calls it with (DBRX)."""
    num = num_experts_of(module)
    size = length // num if num else 0
    if not size or length % num or part.size % size or any(start % size for start in part.starts):
        return None
    experts = Slices(part.parameter, 0, part.size // size, tuple(start // size for start in part.starts))
    return GatePlace(parent, "routing", 0, name, experts, num)
