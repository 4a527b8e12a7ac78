"""Where a model's attention heads are: the blocks of each output projection that read them.

A module is attention if a child of it projects queries and another projects what the heads give. Neither is known by
its class: the names of children, the numbers on the module and in configurations, and the shapes of weights decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from coar_dist.components.head_slices import QUERIES, HeadCounts, HeadSlices, Rules, head_slices, num_value_heads
from coar_dist.components.projections import (
    Projection,
    bare,
    dotted,
    has_adapter,
    is_state_space,
    only_projection,
    own_parameter,
    projection_of,
    with_those_above,
)

_OUTPUTS = (
    *("oproj", "outproj", "o", "dense", "cproj", "proj", "outlin", "wo", "projection", "projectionlayer"),
    *("outputproj", "linearout", "attentionout", "output", "toout", "fcout", "postproj", "post", "out"),
)
"""Names of an output projection as ``bare`` gives them, the surest first."""
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_q_heads", "heads", "nhead")
_HEAD_SIZES = ("v_head_dim", "head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "dim_head")
_NUM_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads", "n_kv_head")


@dataclass(frozen=True)
class AttentionSite:
    """One attention module: head ``h`` is the block ``[h * head_size, (h + 1) * head_size)`` of ``parameter``.

    Attributes:
        module: dotted name of the attention module.
        parameter: dotted name of the output projection's weight.
        axis: its axis of inputs.
        num_heads: heads that the output projection reads.
        head_size: its inputs per head.
        num_key_value_heads: keys and values; heads that share one are neighbours.
        query: slices of each head's query; None where the layout is not known.
        key: slices of each key-value head's key, as ``query``.
        value: slices of each key-value head's value, as ``query``.
    """

    module: str
    parameter: str
    axis: int
    num_heads: int
    head_size: int
    num_key_value_heads: int
    query: Rules | None = None
    key: Rules | None = None
    value: Rules | None = None


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The attention modules of ``model`` in ``named_modules`` order; on any device, "meta" included.

    Example:
        >>> [site.num_heads for site in attention_sites(nn.TransformerEncoderLayer(8, 2, 16))]
        [2]
    """
    return _survey(model)[0]


def passed_over_attention(model: nn.Module) -> dict[str, str]:
    """Modules that look like attention and are not among ``attention_sites``, by dotted name, with the reason."""
    return _survey(model)[1]


def _survey(model: nn.Module) -> tuple[list[AttentionSite], dict[str, str]]:
    sites, passed_over = [], {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if is_state_space(module):
            passed_over[name] = "a state-space mixer, which has no heads of attention"
        elif isinstance(module, nn.MultiheadAttention) or _has_query(module):
            found = _site(name, modules)
            if isinstance(found, AttentionSite):
                sites.append(found)
            else:
                passed_over[name] = found
    around = {above for site in sites for above in with_those_above(site.module)}
    inside = {site.module for site in sites}
    for name, module in modules.items():
        known = name in around or any(above in inside or above in passed_over for above in with_those_above(name))
        if not known and _is_called_attention(name) and _has_matrix(module) and projection_of(name, module) is None:
            passed_over[name] = "no query projection of a known name"
    return sites, passed_over


def _site(name: str, modules: dict[str, nn.Module]) -> AttentionSite | str:
    module = modules[name]
    projection = _output_projection(name, modules)
    if not isinstance(projection, Projection):
        return projection
    width = projection.num_inputs
    said, sizes = _num_heads(name, modules), _numbers(module, _HEAD_SIZES)
    if said is None and not sizes:
        return "no number of heads, neither its own nor in a configuration"
    num_heads, head_size = _heads_of_width(width, said, sizes)
    if num_heads == 0:
        return f"the {width} inputs of {projection.name} are not whole heads"
    if _number(module, NUM_HEADS) not in (None, num_heads):  # some of what is read is no attention (ConvBERT)
        return AttentionSite(name, projection.weight, projection.input_axis, num_heads, head_size, num_heads)
    groups = _num_key_value_heads(name, module, num_heads, head_size)
    counts = HeadCounts(num_heads, groups, head_size)
    slices = head_slices(name, module, counts)
    if own_parameter(module, "lambda_q1") is not None and num_heads % 2 == 0:
        # Differential attention: two softmaxes, over the halves of the heads, make one head of twice the size.
        counts, slices = HeadCounts(num_heads // 2, max(groups // 2, 1), 2 * head_size), HeadSlices()
    return AttentionSite(
        name,
        projection.weight,
        projection.input_axis,
        counts.num_heads,
        counts.head_size,
        counts.num_key_value_heads,
        slices.query,
        slices.key,
        slices.value,
    )


def _heads_of_width(width: int, num_heads: int | None, sizes: list[int]) -> tuple[int, int]:
    """Number and size of heads; where all sizes contradict the number, the first size counts. No heads: none fits."""
    if num_heads is not None and (not sizes or width in [num_heads * size for size in sizes]):
        size = width // num_heads
        return (num_heads, size) if num_heads * size == width else (0, 0)
    return (width // sizes[0], sizes[0]) if width % sizes[0] == 0 else (0, 0)


def _has_query(module: nn.Module) -> bool:
    is_split = own_parameter(module, "q_bias") is not None  # an in_proj alone has other uses
    return any(
        bare(child) in QUERIES and (bare(child) != "inproj" or is_split) and _has_matrix(value)
        for child, value in module.named_children()
        if not isinstance(value, nn.Embedding)
    )


def _has_matrix(module: nn.Module) -> bool:
    return any(value.ndim > 1 for value in module.parameters())


def _output_projection(name: str, modules: dict[str, nn.Module]) -> Projection | str:
    """The module's child that reads the heads, or ``output`` beside the module; else why there is none."""
    module = modules[name]
    children = {bare(child): child for child, _ in module.named_children()}
    paths = [dotted(name, children[output]) for output in _OUTPUTS if output in children]
    above = name.rpartition(".")[0]
    beside = dotted(above, "output")
    has_mlp_beside = dotted(above, "intermediate") in modules  # whose output it is then
    if name and beside in modules and not beside.startswith(f"{name}.") and not has_mlp_beside:
        paths.append(beside)
    for path in paths:
        projection = only_projection(path, modules[path])
        if projection is not None:
            return projection
        if has_adapter(modules[path]):
            return f"{path} has an adapter that is not merged"
    return "no output projection of a known name"


def _num_heads(name: str, modules: dict[str, nn.Module]) -> int | None:
    """The module's own number, else that of the configuration it holds, else of the nearest one above it."""
    own = _number(modules[name], NUM_HEADS)
    if own is not None:
        return own
    for above in with_those_above(name):
        found = _number(_attribute(modules[above], "config"), NUM_HEADS)
        if found is not None:
            return found
    return None


def _num_key_value_heads(name: str, module: nn.Module, num_heads: int, head_size: int) -> int:
    shared_by = _number(module, ("num_key_value_groups",))
    for found in (
        num_value_heads(name, module, num_heads, head_size),
        num_heads // shared_by if shared_by else None,
        _number(module, _NUM_KEY_VALUE_HEADS),
    ):
        if found and num_heads % found == 0:
            return found
    return num_heads


def _numbers(owner: object, names: tuple[str, ...]) -> list[int]:
    values = (_attribute(owner, name) for name in names)
    return [value for value in values if type(value) is int and value > 0]


def _number(owner: object, names: tuple[str, ...]) -> int | None:
    return next(iter(_numbers(owner, names)), None)


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name, None)
    except Exception:  # some configurations raise errors of their own where a value differs from layer to layer
        return None


def _is_called_attention(name: str) -> bool:
    own = bare(name.rpartition(".")[2])
    return own.endswith(("attn", "attention")) and not own.startswith("post")
