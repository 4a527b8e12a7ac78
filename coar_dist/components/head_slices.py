"""Where the query, key and value rows of each head are: the layouts of separate and fused projections."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from coar_dist.components.projections import Projection, Slice, bare, dotted, only_projection, own_parameter

QUERIES = (
    *("qproj", "query", "q", "qlin", "queryproj", "qbproj", "linearq", "wq", "toq", "qhead", "queries"),
    *("projectionquery", "projectq"),
    *("qk", "qkv", "qkvproj", "querykeyvalue", "wqkv", "cattn", "attproj", "toqkv", "inproj"),
)
"""Names of a query projection, separate or fused, as ``bare`` gives them."""
_KEYS = (
    *("kproj", "key", "k", "klin", "keyproj", "lineark", "wk", "tok", "khead", "keys"),
    *("projectionkey", "projectk"),
)
_VALUES = (
    *("vproj", "value", "v", "vlin", "valueproj", "linearv", "wv", "tov", "vhead", "values"),
    *("projectionvalue", "projectv"),
)
_KEYS_AND_VALUES = ("kv", "tokv", "wkv")
_FUSED = QUERIES[QUERIES.index("qkv") :]


@dataclass(frozen=True)
class SliceRule:
    """The slices of one parameter that belong to the heads, or key-value heads, of a module.

    Attributes:
        parameter: dotted name.
        axis: along which the slices are cut.
        first: where the first head's slice starts.
        step: from one run of heads to the next.
        size: indices per head.
        run: heads that lie side by side; 1 where every head is one step after the last.

    Example:
        >>> SliceRule("qkv.weight", 0, 4, 12, 4).at(2)
        ('qkv.weight', 0, 28, 4)
    """

    parameter: str
    axis: int
    first: int
    step: int
    size: int
    run: int = 1

    def at(self, head: int) -> Slice:
        """Parameter, axis, start and size of one head."""
        start = self.first + head // self.run * self.step + head % self.run * self.size
        return self.parameter, self.axis, start, self.size


Rules = tuple[SliceRule, ...]
"""The slices of a weight and, where there is one, of its bias."""


@dataclass(frozen=True)
class HeadSlices:
    """Slices of a module's query heads, and of its keys and values; None where they are not known."""

    query: Rules | None = None
    key: Rules | None = None
    value: Rules | None = None


@dataclass(frozen=True)
class HeadCounts:
    """Heads, key-value heads, and the size of a head as the output projection reads it."""

    num_heads: int
    num_key_value_heads: int
    head_size: int


def num_value_heads(name: str, module: nn.Module, num_heads: int, head_size: int) -> int | None:
    """Key-value heads by the rows of the value projection; None where they do not say."""
    children = _children(name, module)
    value, both = _first(children, _VALUES), _first(children, _KEYS_AND_VALUES)
    if value is not None and value.num_outputs % head_size == 0:
        return value.num_outputs // head_size
    if both is not None and both.num_outputs % (2 * head_size) == 0:
        return both.num_outputs // (2 * head_size)
    fused = _first(children, _FUSED)
    if fused is not None and fused.num_outputs % head_size == 0:
        others = fused.num_outputs // head_size - num_heads
        return others // 2 if others > 0 and others % 2 == 0 else None
    return None


def head_slices(name: str, module: nn.Module, counts: HeadCounts) -> HeadSlices:
    """Query, key and value slices of an attention module, as far as its children's names and sizes tell them."""
    children = _children(name, module)
    fused = _first(children, _FUSED)
    if any(child.endswith("global") for child in children):  # Longformer: some tokens are read by other projections
        return HeadSlices()
    if isinstance(module, nn.MultiheadAttention):
        found = _packed(name, module, counts)
    elif fused is not None:
        found = _fused(name, module, fused, counts)
    else:
        found = _separate(name, module, children, counts)
    mixed = {letter for letter in "qk" if _normalises_all_heads(module, letter, counts)}
    return HeadSlices(None if "q" in mixed else found.query, None if "k" in mixed else found.key, found.value)


def _separate(name: str, module: nn.Module, children: dict[str, Projection], counts: HeadCounts) -> HeadSlices:
    heads, groups, size = counts.num_heads, counts.num_key_value_heads, counts.head_size
    query, key, value = (_first(children, names) for names in (QUERIES, _KEYS, _VALUES))
    both, key_rules, value_rules, key_size = _first(children, _KEYS_AND_VALUES), None, None, None
    if key is not None and key.num_outputs % groups == 0:
        key_size = key.num_outputs // groups
        key_rules = _rules(name, module, key, "k", groups, 0, key_size, key_size)
    if value is not None and value.num_outputs == groups * size:
        value_rules = _rules(name, module, value, "v", groups, 0, size, size)
    if both is not None and both.num_outputs == 2 * groups * size:
        key_size = size
        key_rules = _rules(name, module, both, "k", groups, 0, size, size)
        value_rules = _rules(name, module, both, "v", groups, groups * size, size, size)
    latent = children.get("kvbproj")
    without_positions = getattr(module, "qk_nope_head_dim", None)
    if latent is not None and isinstance(without_positions, int):
        step = without_positions + size
        if latent.num_outputs == heads * step:
            value_rules = _rules(name, module, latent, "v", heads, without_positions, step, size)
    if query is None:
        return HeadSlices(None, key_rules, value_rules)
    if "qk" in children:
        if query.num_outputs != 2 * heads * size:
            return HeadSlices(None, None, value_rules)
        queries = _rules(name, module, query, "q", heads, 0, size, size)
        return HeadSlices(queries, _rules(name, module, query, "k", heads, heads * size, size, size), value_rules)
    step = query.num_outputs // heads
    key_size = key_size or step
    if query.num_outputs % heads or step not in (key_size, 2 * key_size):  # twice where each head has a gate as well
        return HeadSlices(None, key_rules, value_rules)
    return HeadSlices(_rules(name, module, query, "q", heads, 0, step, key_size), key_rules, value_rules)


def _fused(name: str, module: nn.Module, fused: Projection, counts: HeadCounts) -> HeadSlices:
    heads, groups, size = counts.num_heads, counts.num_key_value_heads, counts.head_size
    child = next(path for path, _ in module.named_children() if bare(path) in _FUSED)
    key_size = getattr(module, "key_dim", None)
    if child == "query_key_value" or bare(child) == "inproj" or _is_cut_by_heads(module, child):
        # Each group has its query heads, its key and its value side by side; without shared keys, a group is a head.
        key_size = key_size if isinstance(key_size, int) else size
        run = heads // groups
        step = (run + 1) * key_size + size
        if fused.num_outputs != groups * step:
            return HeadSlices()
        return HeadSlices(
            _rules(name, module, fused, "q", heads, 0, step, key_size, run),
            _rules(name, module, fused, "k", groups, run * key_size, step, key_size),
            _rules(name, module, fused, "v", groups, (run + 1) * key_size, step, size),
        )
    knows_groups = hasattr(module, "num_key_value_heads") or hasattr(module, "num_key_value_groups")
    if child not in ("qkv", "Wqkv", "c_attn", "to_qkv") and not (child == "qkv_proj" and knows_groups):
        return HeadSlices()  # CodeGen has four blocks of q, v and k; other models cut by heads
    if fused.num_outputs != (heads + 2 * groups) * size:
        return HeadSlices()
    return HeadSlices(
        _rules(name, module, fused, "q", heads, 0, size, size),
        _rules(name, module, fused, "k", groups, heads * size, size, size),
        _rules(name, module, fused, "v", groups, (heads + groups) * size, size, size),
    )


def _is_cut_by_heads(module: nn.Module, child: str) -> bool:
    """Whether a fused projection is read head by head, as the module's other attributes tell."""
    if child == "c_attn":
        return hasattr(module, "kv_heads")
    has_sizes = isinstance(getattr(module, "key_dim", None), int) and isinstance(getattr(module, "val_dim", None), int)
    return child == "qkv" and (getattr(module, "head_first", False) is True or has_sizes)


def _packed(name: str, module: nn.MultiheadAttention, counts: HeadCounts) -> HeadSlices:
    """``nn.MultiheadAttention`` holds q, k and v in one parameter, or in three where their inputs differ in width."""
    heads, size = counts.num_heads, counts.head_size
    is_one = module.in_proj_weight is not None
    found = []
    for block, letter in enumerate("qkv"):
        first, weight = (block * heads * size, "in_proj_weight") if is_one else (0, f"{letter}_proj_weight")
        rules = [SliceRule(dotted(name, weight), 0, first, size, size)]
        if module.in_proj_bias is not None:
            rules.append(SliceRule(dotted(name, "in_proj_bias"), 0, block * heads * size, size, size))
        found.append(tuple(rules))
    return HeadSlices(*found)


def _rules(
    name: str,
    module: nn.Module,
    projection: Projection,
    letter: str,
    count: int,
    first: int,
    step: int,
    size: int,
    run: int = 1,
) -> Rules:
    weight = SliceRule(projection.weight, projection.output_axis, first, step, size, run)
    if projection.bias is not None:
        return weight, SliceRule(projection.bias, 0, first, step, size, run)
    bias = own_parameter(module, f"{letter}_bias")
    if bias is not None and tuple(bias.shape) == (count * size,):
        return weight, SliceRule(dotted(name, f"{letter}_bias"), 0, 0, size, size)
    return (weight,)


def _normalises_all_heads(module: nn.Module, letter: str, counts: HeadCounts) -> bool:
    """Whether a norm over all heads at once follows: a head set to zero would change the others (OLMo2)."""
    heads = counts.num_heads if letter == "q" else counts.num_key_value_heads
    for child, norm in module.named_children():
        weight = own_parameter(norm, "weight")
        if re.fullmatch(rf"{letter}(uery|ey)?(layer)?(norm|ln)", bare(child)) and weight is not None:
            return heads > 1 and weight.ndim == 1 and weight.numel() >= heads * counts.head_size
    return False


def _children(name: str, module: nn.Module) -> dict[str, Projection]:
    """Linear maps among the children, and those that stand in a child without other parameters."""
    found = {}
    for child, value in module.named_children():
        projection = only_projection(dotted(name, child), value)
        if projection is not None and sum(1 for _ in value.parameters()) == 1 + (projection.bias is not None):
            found[bare(child)] = projection
    return found


def _first(children: dict[str, Projection], names: tuple[str, ...]) -> Projection | None:
    return next((children[name] for name in names if name in children), None)
