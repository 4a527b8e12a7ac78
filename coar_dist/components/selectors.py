"""Selectors: from a model to the groups of components that people name, such as heads, neurons and layers.

To add one, write a function from a model to its component groups and put it into ``SELECTORS``:

    def norm_scales(model):
        return [
            ComponentGroup.of(f"{name}.weight", 0, module.num_features)
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from coar_dist.components.attention_sites import AttentionSite
from coar_dist.components.expert_sites import ExpertSite
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.head_slices import Rules
from coar_dist.components.left_out import (
    has_overlapping_windows,
    has_state_space_mixers,
    output_convolution,
    passed_over,
)
from coar_dist.components.mlp_sites import MlpSite
from coar_dist.components.named_sites import NamedSites, Site
from coar_dist.components.places import Place
from coar_dist.components.projections import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, dotted, is_transposed_linear

Selector = Callable[[nn.Module], list[ComponentGroup]]


def heads(model: nn.Module) -> list[ComponentGroup]:
    """Attention heads: the block of the output projection that reads each; zeroing it removes what the head says."""
    sites = NamedSites(model)
    return [
        sites.group([_blocks(site, site.num_heads)], site.num_heads, sites.place(site), "H", "head")
        for site in sites.attention
    ]


def key_value_groups(model: nn.Module) -> list[ComponentGroup]:
    """The heads that share a key and a value, together: zeroing them does what zeroing the value does."""
    sites = NamedSites(model)
    return [
        sites.group(
            [_blocks(site, site.num_key_value_heads)],
            site.num_key_value_heads,
            sites.place(site),
            "KV",
            "key-value group",
        )
        for site in sites.attention
        if site.num_heads % site.num_key_value_heads == 0
    ]


def query_heads(model: nn.Module) -> list[ComponentGroup]:
    """The rows of each head's query, with their bias: zeroing them makes the head attend alike to all it may."""
    sites = NamedSites(model)
    return [
        sites.group(_slices(site.query, site.num_heads), site.num_heads, sites.place(site), "Q", "query head")
        for site in sites.attention
        if site.query is not None
    ]


def neurons(model: nn.Module) -> list[ComponentGroup]:
    """Hidden units of MLPs: the column of the last projection that reads each, however many matrices feed it."""
    sites = NamedSites(model)
    return [
        sites.group(
            [Slices(site.parameter, site.axis, 1, range(site.num_neurons))],
            site.num_neurons,
            sites.place(site),
            "N",
            "neuron",
            sites.units_of(site),
        )
        for site in sites.mlps
    ]


def experts(model: nn.Module) -> list[ComponentGroup]:
    """Experts of mixtures: the output projection of each, with its bias."""
    sites = NamedSites(model)
    return [group for site in sites.experts for group in _experts(sites, site)]


def _experts(sites: NamedSites, site: ExpertSite) -> list[ComponentGroup]:
    by_part = list(zip(*site.slices, strict=True))
    parameters = [{parameter for parameter, *_ in part} for part in by_part]
    place = sites.place(site)
    if all(len(names) == 1 for names in parameters):  # all experts are in the same parameters
        slices = [
            Slices(part[0][0], part[0][1], part[0][3], tuple(start for _, _, start, _ in part)) for part in by_part
        ]
        return [sites.group(slices, site.num_experts, place, "E", "expert")]
    name = place.named("E", "{}")
    return [
        ComponentGroup(
            tuple(Slices(parameter, axis, size, (start,)) for parameter, axis, start, size in slices),
            (number,),
            name,
            "expert",
            sites.layer(place),
        )
        for number, slices in enumerate(site.slices)
    ]


def attention_blocks(model: nn.Module) -> list[ComponentGroup]:
    """Whole attention modules: all that each adds, the output projection and its bias."""
    sites = NamedSites(model)
    return [_whole(sites, sites.place(site), "attention", "attention block", [site]) for site in sites.attention]


def mlp_blocks(model: nn.Module) -> list[ComponentGroup]:
    """Whole MLPs of layers, mixtures of experts with their shared experts: all that each adds."""
    sites = NamedSites(model)
    by_layer = _by_layer(sites, [*sites.mlps, *sites.experts])
    return [_whole(sites, place, "mlp", "MLP block", found) for place, found in by_layer.items()]


def layers(model: nn.Module) -> list[ComponentGroup]:
    """Whole layers: all that the attention and the MLP of each add to the residual stream."""
    sites = NamedSites(model)
    by_layer = _by_layer(sites, [*sites.attention, *sites.mlps, *sites.experts])
    return [_whole(sites, place, "", "layer", found) for place, found in by_layer.items()]


def _whole(sites: NamedSites, place: Place, part: str, kind: str, found: Sequence[Site]) -> ComponentGroup:
    """One component: all that some sites of one place add."""
    return ComponentGroup(tuple(_added(sites, found)), (0,), dotted(str(place), part), kind, sites.layer(place))


def _by_layer(sites: NamedSites, found: Sequence[Site]) -> dict[Place, list[Site]]:
    """What is in each layer; nothing of what is in none."""
    by_layer: dict[Place, list[Site]] = {}
    mixtures = tuple(f"{site.module}." for site in sites.experts)
    for site in found:
        if isinstance(site, MlpSite) and site.module.startswith(mixtures):
            continue  # an expert, which its mixture has already
        place = sites.place(site)
        in_stack = not isinstance(site, MlpSite) or any(part.isdecimal() for part in site.module.split("."))
        if place.layer and in_stack:  # the linear maps of a plain net are no MLPs of layers
            by_layer.setdefault(Place(place.tower, place.layer), []).append(site)
    return {place: by_layer[place] for place in sorted(by_layer, key=lambda place: place.order)}


def _added(sites: NamedSites, found: Sequence[Site]) -> list[Slices]:
    slices: list[Slices] = []
    for site in found:
        if isinstance(site, ExpertSite):
            parts = dict.fromkeys((parameter, axis) for of_expert in site.slices for parameter, axis, *_ in of_expert)
            for parameter, axis in parts:
                slices.append(Slices(parameter, axis, sites.length(parameter, axis), (0,)))
        else:
            slices += sites.output(site.parameter, site.axis)
    return slices


def _blocks(site: AttentionSite, num: int) -> Slices:
    size = site.num_heads * site.head_size // num
    return Slices(site.parameter, site.axis, size, range(0, num * size, size))


def _slices(rules: Rules, num: int) -> list[Slices]:
    return [
        Slices(rule.parameter, rule.axis, rule.size, tuple(rule.at(head)[2] for head in range(num))) for rule in rules
    ]


def conv_filters(model: nn.Module) -> list[ComponentGroup]:
    """Output filters of every convolution, grouped and transposed ones too; not of transposed ones in groups."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            found.append(ComponentGroup.of(dotted(name, "weight"), 0, module.out_channels, kind="filter"))
        elif isinstance(module, TRANSPOSED_CONVOLUTIONS) and module.groups == 1:
            found.append(ComponentGroup.of(dotted(name, "weight"), 1, module.out_channels, kind="filter"))
    return found


def linear_rows(model: nn.Module) -> list[ComponentGroup]:
    """Output neurons of every linear map, and q, k, v rows of ``nn.MultiheadAttention``; none of a tied embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            parameter = dotted(name, "in_proj_weight")
            found.append(ComponentGroup.of(parameter, 0, len(module.in_proj_weight), kind="row"))
        elif isinstance(module, nn.Linear) and id(module.weight) not in embeddings and len(module.weight):
            found.append(ComponentGroup.of(dotted(name, "weight"), 0, len(module.weight), kind="row"))
        elif is_transposed_linear(module):
            num_outputs = module.get_parameter("weight").shape[1]
            found.append(ComponentGroup.of(dotted(name, "weight"), 1, num_outputs, kind="row"))
    return found


def transposed_linear_inputs(model: nn.Module) -> list[ComponentGroup]:
    """Input features (axis 0) of every Hugging Face Conv1D, whose weight is [in, out]: the research code's rows."""
    return [
        ComponentGroup.of(dotted(name, "weight"), 0, len(module.get_parameter("weight")), kind="input")
        for name, module in model.named_modules()
        if is_transposed_linear(module)
    ]


def transposed_linear_outputs(model: nn.Module) -> list[ComponentGroup]:
    """Output neurons (axis 1) of every Hugging Face Conv1D, whose weight is [in, out]."""
    return [
        ComponentGroup.of(dotted(name, "weight"), 1, module.get_parameter("weight").shape[1], kind="row")
        for name, module in model.named_modules()
        if is_transposed_linear(module)
    ]


def embedding_rows(model: nn.Module) -> list[ComponentGroup]:
    """Rows (one per token, or per position) of every Embedding."""
    return [
        ComponentGroup.of(dotted(name, "weight"), 0, module.num_embeddings, kind="embedding")
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    ]


def recurrent_units(model: nn.Module) -> list[ComponentGroup]:
    """Hidden units of LSTM, GRU and RNN: the rows of all of a unit's gates, with their biases. The unit stays 0."""
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase) or module.proj_size:
            continue
        size = module.hidden_size
        for layer in range(module.num_layers):
            for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
                kinds = [f"{kind}_l{layer}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                parameters = {kind: module._parameters.get(kind) for kind in kinds}
                slices = tuple(
                    Slices(dotted(name, kind), 0, 1, range(gate, gate + size))
                    for kind, parameter in parameters.items()
                    if parameter is not None
                    for gate in range(0, len(parameter), size)
                )
                where = dotted(name, f"l{layer}{suffix}")
                found.append(ComponentGroup(slices, range(size), f"{where}[{{}}]", "recurrent unit", layer))
    return found


def auto(model: nn.Module) -> list[ComponentGroup]:
    """Heads and neurons of transformers, filters of convolutional nets, units of recurrent nets and of MLPs.

    Convolutions inside state-space mixers, and those that cut an image into patches, make no convolutional net. The
    output layer is never taken.
    """
    transformer = heads(model)
    if transformer or has_state_space_mixers(model):
        return [*transformer, *neurons(model)]
    output = output_convolution(model)
    filters = [group for group in conv_filters(model) if group.module != output]
    if filters and has_overlapping_windows(model):
        return filters
    return recurrent_units(model) or neurons(model) or ([] if passed_over(model, "heads") else filters)


SELECTORS: dict[str, Selector] = {
    "auto": auto,
    "heads": heads,
    "query_heads": query_heads,
    "key_value_groups": key_value_groups,
    "neurons": neurons,
    "experts": experts,
    "attention_blocks": attention_blocks,
    "mlp_blocks": mlp_blocks,
    "layers": layers,
    "conv_filters": conv_filters,
    "linear_rows": linear_rows,
    "recurrent_units": recurrent_units,
    "embedding_rows": embedding_rows,
    "transposed_linear_inputs": transposed_linear_inputs,
    "transposed_linear_outputs": transposed_linear_outputs,
}
FORMER_NAMES = {"attention_heads": "heads"}
"""Names of earlier versions, which are understood for one more."""
