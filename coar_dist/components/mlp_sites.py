"""Where a model's MLP neurons are: the inputs of the last linear map of each MLP.

An MLP is a pair of linear maps, d -> N (or 2 N where half is a gate) and N -> d, in one module. In a Sequential, whose
data flow is known, every width between two linear maps is a layer of neurons. A plain net, with neither attention nor
such pairs, is one chain of linear maps. The model's inputs and outputs are no neurons.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from torch import nn

from coar_dist.components.attention_sites import attention_sites, passed_over_attention
from coar_dist.components.projections import (
    CONVOLUTIONS,
    Projection,
    bare,
    dotted,
    is_state_space,
    only_projection,
    projection_of,
    with_those_above,
)

_MLPS = ("mlp", "ffn", "ff", "feedforward", "densereludense", "mlpblock")
_NO_MLPS = {
    *("classifier", "headdist", "score", "pooler", "prelogits", "preclassifier", "summary"),
    *("adapter", "laurel", "se", "squeezeexcite", "router", "gate", "perlayerinputgate"),
}
_BRIDGES = ("projector", "merger", "connector", "projection")
"""Names, as ``bare`` gives them, of modules whose pairs of linear maps are no MLPs of the body."""
A_MIXTURE = "a mixture of experts of unknown form"
"""Why a mixture is passed over that holds its experts in shared parameters and is not among ``expert_sites``."""


@dataclass(frozen=True)
class MlpSite:
    """One layer of neurons: neuron ``j`` is index ``j`` of ``parameter`` along ``axis``.

    Attributes:
        module: dotted name of the MLP; of the whole block where its linear maps are children of the block itself.
        parameter: dotted name of the weight of the linear map that reads the neurons.
        axis: its axis of inputs.
        num_neurons: its inputs.
        inputs: dotted names of the linear maps that give the neurons: one, or a gate and another.
    """

    module: str
    parameter: str
    axis: int
    num_neurons: int
    inputs: tuple[str, ...]


def mlp_sites(model: nn.Module) -> list[MlpSite]:
    """The layers of neurons of ``model`` in ``named_modules`` order; on any device, "meta" included.

    Experts that are modules of their own are among them; experts that share one parameter are not.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [(site.parameter, site.axis, site.num_neurons) for site in mlp_sites(net)]
        [('2.weight', 1, 8)]
    """
    attention = {site.module: site.parameter for site in attention_sites(model)}
    mixers = {*attention, *passed_over_attention(model)}
    around = {path for mixer in mixers for path in with_those_above(mixer)}
    modules = dict(model.named_modules())
    sites: list[MlpSite] = []
    has_blocks = bool(mixers)
    for name, module in modules.items():
        is_half = name.endswith("output") and f"{name.removesuffix('output')}intermediate" in modules
        found = [] if is_half or _is_no_mlp(name, module) else _sites_in(name, module, is_plain=not mixers)
        inside = next((path for path in with_those_above(name) if path in mixers), None)
        if found and inside is not None:  # an MLP as wide as the attention's output is one, a position bias is none
            width = _num_outputs(attention.get(inside), modules)
            found = [site for site in found if name != inside and _num_outputs(site.parameter, modules) == width]
        elif found and name in around:  # beside attention: what reads an input of the model and predicts it is no MLP
            widths = _widths_of_attention(name, module, around)
            found = [site for site in found if _num_outputs(site.parameter, modules) in widths]
        has_blocks = has_blocks or _comes_back(found, modules)
        sites += found
    return sites if has_blocks else _chain("", _all_linear(modules))


def passed_over_mlps(model: nn.Module) -> dict[str, str]:
    """Modules that are called an MLP and hold none of ``mlp_sites``, by dotted name, with the reason."""
    holders = {site.module for site in mlp_sites(model)}
    around = {path for holder in holders for path in with_those_above(holder)}
    passed_over: dict[str, str] = {}
    for name, module in model.named_modules():
        parent, _, own = name.rpartition(".")
        is_half = own == "intermediate" and parent not in holders  # the other half is called output
        is_known = name in around or any(path in passed_over for path in with_those_above(name))
        num_needed = 1 if is_half else 2
        if not (is_half or bare(own) in _MLPS) or is_known:
            continue
        if sum(value.ndim > 1 for value in module.parameters()) >= num_needed:
            inside = (each for each in module.modules() if not isinstance(each, CONVOLUTIONS))
            has_experts = any(value.ndim == 3 for each in inside for value in each.parameters(recurse=False))
            passed_over[name] = A_MIXTURE if has_experts else "no linear maps from d to N and back"
    return passed_over


def _is_no_mlp(name: str, module: nn.Module) -> bool:
    parts = [bare(part) for part in name.split(".")[-2:]]
    is_list = isinstance(module, nn.ModuleList) or (isinstance(module, nn.ModuleDict) and parts[-1] not in _MLPS)
    if is_list or is_state_space(module) or any(part.endswith(_BRIDGES) for part in parts):
        return True
    if parts[0].endswith("norm"):  # what a norm makes its scales of
        return True
    return _is_head(parts[-1]) or (_is_head(parts[0]) and parts[-1] not in _MLPS)


def _is_head(name: str) -> bool:
    return name in _NO_MLPS or name.endswith("head")


def _sites_in(name: str, module: nn.Module, is_plain: bool) -> list[MlpSite]:
    """The MLPs whose linear maps are children of ``module``, or stand alone in such a child."""
    children = _projections(name, module)
    if len(children) < 2 or _is_excitation(module, children):
        return []
    if not any(child.is_convolution for child in children):
        chain = _chain(name, children)
        if isinstance(module, nn.Sequential):
            return chain
        if is_plain and 1 < len(chain) == len(children) - 1 and len({child.num_outputs for child in children}) > 1:
            return chain
    if any(isinstance(child, nn.Conv1d) and child.kernel_size != (1,) for child in module.children()):
        return []  # a mixer of positions, such as a gated recurrent block
    return list(_pairs(name, module, children))


def _pairs(name: str, module: nn.Module, children: Sequence[Projection]) -> Iterator[MlpSite]:
    used: set[str] = set()
    for place, last in enumerate(children):
        width = last.num_inputs
        before = [
            first
            for first in children[:place]
            if first.num_inputs == last.num_outputs
            and first.num_outputs in (width, 2 * width)
            and first.is_convolution == last.is_convolution
            and first.name not in used
        ]
        if before and (not last.is_convolution or _is_conv_mlp(name, module, last)):
            used |= {last.name, *(first.name for first in before)}
            yield MlpSite(name, last.weight, last.input_axis, width, tuple(first.name for first in before))


def _chain(name: str, projections: Sequence[Projection]) -> list[MlpSite]:
    """The widths between consecutive linear maps."""
    return [
        MlpSite(name or last.name.rpartition(".")[0], last.weight, last.input_axis, last.num_inputs, (first.name,))
        for first, last in pairwise(projections)
        if first.num_outputs == last.num_inputs
    ]


def _projections(name: str, module: nn.Module) -> list[Projection]:
    """The module's linear maps in order, those that stand in a child beside a norm or an activation among them.

    Nothing else that has several of them, such as attention, may stand between two; in a Sequential none at all.
    """
    found: list[Projection] = []
    for child, value in module.named_children():
        path, own = dotted(name, child), bare(child)
        is_around_one = child.startswith(("intermediate", "output")) or _is_normed(value)
        projection = only_projection(path, value) if is_around_one else projection_of(path, value)
        if projection is not None and not _is_head(own) and not own.endswith(_BRIDGES):
            found.append(projection)
        elif _is_between(value, most=0 if isinstance(module, nn.Sequential) else 1):
            if len(found) > 1:
                return found
            found = []
    return found


def _is_between(module: nn.Module, most: int) -> bool:
    """Whether the module holds more than ``most`` matrices of linear maps."""
    inside = (each for each in module.modules() if projection_of("", each) is not None)
    return sum(1 for _ in islice(inside, most + 1)) > most


def _is_normed(module: nn.Module) -> bool:
    """Whether the module may be a linear map with no more than a norm and an activation around it."""
    return not isinstance(module, nn.ModuleList) and 0 < sum(1 for _ in module.children()) < 4


def _is_excitation(module: nn.Module, children: Sequence[Projection]) -> bool:
    """Whether the module is a squeeze-excite gate: a bottleneck of channels that ends in a sigmoid."""
    has_sigmoid = any(isinstance(child, nn.Sigmoid | nn.Hardsigmoid) for child in module.children())
    first, last = children[0], children[-1]
    return has_sigmoid and first.num_inputs == last.num_outputs and first.num_outputs < first.num_inputs


def _is_conv_mlp(name: str, module: nn.Module, last: Projection) -> bool:
    """Whether 1x1 convolutions are an MLP: they widen, and no other convolution mixes places between them."""
    if last.num_inputs < last.num_outputs:
        return False
    kernels = {size for child in module.modules() if isinstance(child, CONVOLUTIONS) for size in child.kernel_size}
    return kernels == {1} or bare(name.rpartition(".")[2]) in _MLPS


def _all_linear(modules: dict[str, nn.Module]) -> list[Projection]:
    found = [projection_of(name, module) for name, module in modules.items()]
    return [projection for projection in found if projection is not None and not projection.is_convolution]


def _widths_of_attention(name: str, module: nn.Module, around: set[str]) -> set[int]:
    """What the linear maps give in those children of a module that hold its attention."""
    holders = [child for path, child in module.named_children() if dotted(name, path) in around]
    found = (projection_of("", each) for holder in holders for each in holder.modules())
    return {projection.num_outputs for projection in found if projection is not None}


def _comes_back(sites: Sequence[MlpSite], modules: dict[str, nn.Module]) -> bool:
    """Whether the last of a module's linear maps is as wide as what the first reads, as in a residual block."""
    if not sites:
        return False
    first = projection_of("", modules[sites[0].inputs[0]])
    return first is not None and first.num_inputs == _num_outputs(sites[-1].parameter, modules)


def _num_outputs(parameter: str | None, modules: dict[str, nn.Module]) -> int | None:
    if parameter is None:
        return None
    name = parameter.rpartition(".")[0]
    projection = projection_of(name, modules[name])
    return None if projection is None else projection.num_outputs
