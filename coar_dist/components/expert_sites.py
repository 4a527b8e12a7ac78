"""Where a mixture's experts are: what the output projection of each holds, so that zeroes there silence the expert.

Experts share one parameter, whose first axis counts them or whose rows are cut into them, or are modules in a list.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from coar_dist.components.mlp_sites import mlp_sites
from coar_dist.components.projections import Slice, bare, dotted, projection_of

_OUTPUTS = ("downproj", "down", "w2", "wdown", "wo", "fc2", "outputlinear", "mlp2weight", "linear2", "cproj")
"""Names of the parameter that holds the experts' output projections, as ``bare`` gives them."""
_INPUTS = ("gateupproj", "upproj", "up", "w1", "w13", "wup", "wi", "fc1", "inputlinear", "mlp1weight", "linear1", "cfc")
_NUM_EXPERTS = ("num_experts", "moe_num_experts", "num_local_experts", "n_routed_experts", "n_experts")


@dataclass(frozen=True)
class ExpertSite:
    """The experts of one layer.

    Attributes:
        module: dotted name of the module that holds them.
        num_experts: how many.
        slices: by expert, the slices that silence it when they are zero: of its output projection, and of its bias.
        width: of what each gives; None where shapes do not tell.
    """

    module: str
    num_experts: int
    slices: tuple[tuple[Slice, ...], ...]
    width: int | None


def expert_sites(model: nn.Module) -> list[ExpertSite]:
    """The mixtures of experts in ``model``, in ``named_modules`` order; on any device, "meta" included.

    Shared experts, which see every token, are MLPs like others and not among them.
    """
    sites = []
    for name, module in model.named_modules():
        found = (
            _of_list(name, module, model)
            if isinstance(module, nn.ModuleList | nn.ModuleDict)
            else _of_parameters(name, module, model)
        )
        if found is not None:
            sites.append(found)
    return sites


def _of_parameters(name: str, module: nn.Module, model: nn.Module) -> ExpertSite | None:
    """Experts in parameters of the module, or of children whose own weight has an axis of experts (IBM Granite)."""
    own = {bare(path): (path, value) for path, value in module._parameters.items() if value is not None}
    for child, value in module.named_children():
        weight = value._parameters.get("weight")
        if weight is not None and weight.ndim == 3 and not isinstance(value, nn.Conv1d):
            own[bare(child)] = (dotted(child, "weight"), weight)
    last, first = _first(own, _OUTPUTS), _first(own, _INPUTS)
    if last is None or first is None:
        return None
    path, weight = last
    if weight.ndim == 3 and first[1].ndim == 3 and len(weight) == len(first[1]):
        biases = [(bias, value) for bias, value in own.values() if _is_bias_of(path, bias, value, weight)]
        held = [path, *(bias for bias, _ in biases)]
        slices = tuple(tuple((dotted(name, each), 0, expert, 1) for each in held) for expert in range(len(weight)))
        width = biases[0][1].shape[1] if biases else _width(name, model, weight, first[1])
        return ExpertSite(name, len(weight), slices, width)
    if weight.ndim == 2 and weight.shape == first[1].shape:  # DBRX: rows of all experts, one after another
        number = num_experts_of(module)
        if number > 0 and len(weight) % number == 0:
            size = len(weight) // number
            rows = tuple(((dotted(name, path), 0, expert * size, size),) for expert in range(number))
            return ExpertSite(name, number, rows, weight.shape[1])
    return None


def num_experts_of(module: nn.Module) -> int:
    """How many experts a module says it has; 0 where it says nothing."""
    return next((getattr(module, each) for each in _NUM_EXPERTS if isinstance(getattr(module, each, None), int)), 0)


def _width(name: str, model: nn.Module, last: Tensor, first: Tensor) -> int | None:
    """The axis that the experts' projections have in common, or that the router beside them has too."""
    common = {*last.shape[1:]} & {*first.shape[1:]}
    if len(common) > 1:
        beside = model.get_submodule(name.rpartition(".")[0]).parameters()
        of_router = {size for value in beside if value.ndim == 2 and len(value) == len(last) for size in value.shape}
        common &= of_router - {len(last)} or of_router
    return common.pop() if len(common) == 1 else None


def _is_bias_of(path: str, other: str, value: Tensor, weight: Tensor) -> bool:
    """Whether a parameter is the bias of the experts' output projections: one row per expert, and the name follows."""
    is_named = bare(other).startswith(bare(path.removesuffix("weight"))) and bare(other).endswith("bias")
    return is_named and value.ndim == 2 and len(value) == len(weight)


def _of_list(name: str, holder: nn.Module, model: nn.Module) -> ExpertSite | None:
    """MLPs of one shape, in a ModuleList or ModuleDict that is called experts or stands beside a router."""
    above, _, own = name.rpartition(".")
    children = [(key, child) for key, child in holder.named_children() if next(child.parameters(), None) is not None]
    keys, experts = zip(*children, strict=True) if len(children) > 1 else ((), ())
    beside = {bare(child) for child, _ in model.get_submodule(above).named_children()} if name else set()
    if not bare(own).endswith("experts") and not beside & {"gate", "router", "gating"}:
        return None
    shapes = {tuple((path, value.shape) for path, value in expert.named_parameters()) for expert in experts}
    sites = mlp_sites(experts[0]) if len(shapes) == 1 else []
    if not sites:
        return None
    path = sites[-1].parameter.rpartition(".")[0]
    last = projection_of(path, experts[0].get_submodule(path))
    assert last is not None
    held = [(last.weight, last.output_axis)] if last.bias is None else [(last.weight, last.output_axis), (last.bias, 0)]
    slices = tuple(tuple((dotted(name, key, each), axis, 0, last.num_outputs) for each, axis in held) for key in keys)
    return ExpertSite(name, len(experts), slices, last.num_outputs)


def _first(own: dict[str, tuple[str, nn.Parameter]], names: tuple[str, ...]) -> tuple[str, nn.Parameter] | None:
    return next((own[name] for name in names if name in own), None)
