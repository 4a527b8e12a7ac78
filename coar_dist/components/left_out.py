"""What a selector leaves out of a model although it looks as if it were meant, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from coar_dist.components.attention_sites import NUM_HEADS, attention_sites, passed_over_attention
from coar_dist.components.expert_sites import expert_sites
from coar_dist.components.head_slices import QUERIES
from coar_dist.components.mlp_sites import A_MIXTURE, passed_over_mlps
from coar_dist.components.projections import (
    CONVOLUTIONS,
    TRANSPOSED_CONVOLUTIONS,
    bare,
    dotted,
    is_state_space,
    projection_of,
    with_those_above,
)

_OF_ATTENTION = ("heads", "query_heads", "key_value_groups", "attention_blocks", "layers", "auto")
_OF_MLPS = ("neurons", "experts", "mlp_blocks", "layers", "auto")


def passed_over(model: nn.Module, selector: str) -> dict[str, str]:
    """Modules that look as if a selector should find components in them, and have none, with the reason."""
    without: dict[str, str] = {}
    if selector in _OF_ATTENTION:
        without |= passed_over_attention(model)
        without |= _further_queries(model) | _with_heads_of_unknown_form(model, without)
    if selector == "query_heads":
        missing = [site.module for site in attention_sites(model) if site.query is None]
        without |= dict.fromkeys(missing, "how its query's rows belong to heads is not known")
    if selector in _OF_MLPS:
        without |= _mixtures_and_mlps(model, selector)
    output = output_convolution(model) if selector == "auto" and not _is_of_tokens(model) else None
    return without if output is None else {**without, output: "the output layer"}


def _further_queries(model: nn.Module) -> dict[str, str]:
    """Second queries of attention whose heads are found by others, such as LiLT's of the layout."""
    modules = {site.module: model.get_submodule(site.module) for site in attention_sites(model)}
    return {
        dotted(name, child): "heads of their own beside those that were found"
        for name, module in modules.items()
        for child, _ in module.named_children()
        if bare(child).endswith(("query", "queryproj")) and bare(child) not in QUERIES
    }


def _with_heads_of_unknown_form(model: nn.Module, passed_over: Mapping[str, str]) -> dict[str, str]:
    """Modules that say how many heads they have, and have no projection whose heads are known."""
    inside = {*(site.module for site in attention_sites(model)), *passed_over}
    around = {above for name in inside for above in with_those_above(name)}
    found: dict[str, str] = {}
    for name, module in reversed(list(model.named_modules())):  # the innermost first
        has_number = any(type(vars(module).get(number)) is int for number in NUM_HEADS)
        if not has_number or name in around or inside.intersection(with_those_above(name)):
            continue
        if projection_of(name, module) is None and any(value.ndim > 1 for value in module.parameters()):
            found[name] = "a number of heads, and no query projection of a known name"
            around.update(with_those_above(name))
    return dict(reversed(found.items()))


def _mixtures_and_mlps(model: nn.Module, selector: str) -> dict[str, str]:
    mixtures = [site.module for site in expert_sites(model)]
    around = {above for name in mixtures for above in with_those_above(name)}
    without = {name: why for name, why in passed_over_mlps(model).items() if name not in around}
    if selector == "experts":
        return {name: why for name, why in without.items() if why == A_MIXTURE}
    shared = [name for name in mixtures if not isinstance(model.get_submodule(name), nn.ModuleList | nn.ModuleDict)]
    if selector in ("neurons", "auto"):
        why = "a neuron of an expert takes two indices of the parameter that all experts share: see components=experts"
        without |= dict.fromkeys(shared, why)
    return without


def has_state_space_mixers(model: nn.Module) -> bool:
    """Whether a module of the model is a state-space or delta-rule mixer."""
    return any(is_state_space(module) for module in model.modules())


def has_overlapping_windows(model: nn.Module) -> bool:
    """Whether some convolution mixes places, not only cuts its input into patches as the embedding of an MLP-Mixer."""
    convolutions = [each for each in model.modules() if isinstance(each, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS))]
    return any(size > step for each in convolutions for size, step in zip(each.kernel_size, each.stride, strict=True))


def output_convolution(model: nn.Module) -> str | None:
    """The convolution that gives the model's outputs: no other weight with several axes stands behind it."""
    last = None
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim > 1:
            last = name if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)) else None
    return last


def _is_of_tokens(model: nn.Module) -> bool:
    return bool(attention_sites(model)) or has_state_space_mixers(model)
