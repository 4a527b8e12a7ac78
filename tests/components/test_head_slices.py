"""Layouts of queries, keys and values by hand-calculated rows, under every name that models give their projections."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coar_dist.components.attention_sites import AttentionSite, attention_sites, passed_over_attention

WIDTH, HEADS, GROUPS, SIZE = 12, 4, 2, 3
"""Four heads of three; where keys and values are shared, two heads share one."""


def attention(rows: dict[str, int], biases: dict[str, int] | None = None, **numbers: object) -> nn.Module:
    """A module with projections of so many rows, biases of its own instead of theirs, and numbers."""
    module = nn.Module()
    for name, num_rows in rows.items():
        setattr(module, name, nn.Linear(WIDTH, num_rows, bias=biases is None))
    for name, size in (biases or {}).items():
        setattr(module, name, nn.Parameter(torch.zeros(size)))
    for name, value in numbers.items():
        setattr(module, name, value)
    return module


def site_of(module: nn.Module) -> AttentionSite:
    (site,) = attention_sites(nn.ModuleDict({"block": nn.ModuleDict({"attn": module})}))
    assert (site.module, site.axis) == ("block.attn", 1)
    return site


def at(site: AttentionSite, head: int) -> list[list[tuple[str, int, int]]]:
    """Parameter, start and size of a head's query, key and value; all are cut along the first axis."""
    slices = [[rule.at(head) for rule in rules or ()] for rules in (site.query, site.key, site.value)]
    assert all(name.startswith("block.attn.") and axis == 0 for role in slices for name, axis, _, _ in role)
    return [[(name.removeprefix("block.attn."), start, size) for name, _, start, size in role] for role in slices]


@pytest.mark.parametrize(
    ("query", "key", "value", "output"),
    [
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        ("query", "key", "value", "dense"),
        ("q", "k", "v", "o"),
        ("q_lin", "k_lin", "v_lin", "out_lin"),
        ("query_proj", "key_proj", "value_proj", "proj"),
        ("linear_q", "linear_k", "linear_v", "linear_out"),
        ("W_q", "W_k", "W_v", "W_o"),
        ("to_q", "to_k", "to_v", "to_out"),
        ("q_head", "k_head", "v_head", "post_proj"),
        ("queries", "keys", "values", "fc_out"),
        ("projection_query", "projection_key", "projection_value", "projection"),
        ("project_q", "project_k", "project_v", "projection_layer"),
        ("q_b_proj", "k_proj", "v_proj", "c_proj"),
        ("q_proj", "k_proj", "v_proj", "out_proj"),
        ("q_proj", "k_proj", "v_proj", "output_proj"),
        ("q_proj", "k_proj", "v_proj", "attention_out"),
        ("query", "key", "value", "output"),
        ("query", "key", "value", "post"),
        ("query", "key", "value", "out"),
    ],
)
def test_separate_projections_by_every_name(query: str, key: str, value: str, output: str) -> None:
    site = site_of(attention({query: 12, key: 6, value: 6, output: 12}, num_heads=HEADS))
    assert site.parameter == f"block.attn.{output}.weight"
    assert (site.num_heads, site.head_size, site.num_key_value_heads) == (HEADS, SIZE, GROUPS)
    kinds = ("weight", "bias")
    assert at(site, 1) == [[(f"{name}.{kind}", 3, 3) for kind in kinds] for name in (query, key, value)]
    assert at(site, 3)[0] == [(f"{query}.{kind}", 9, 3) for kind in kinds]


BLOCKS = [3, 12 + 3, 12 + 6 + 3]  # of query, key and value of head or group 1: all queries, all keys, all values
GROUPED = [3, 2 * 3 + 12, 3 * 3 + 12]  # 12 rows a group: two queries, a key, a value


@pytest.mark.parametrize(
    ("name", "numbers", "starts"),
    [
        ("qkv", {}, BLOCKS),
        ("Wqkv", {}, BLOCKS),
        ("c_attn", {}, BLOCKS),
        ("to_qkv", {}, BLOCKS),
        ("qkv_proj", {"num_key_value_heads": GROUPS}, BLOCKS),
        ("qkv_proj", {"num_key_value_groups": 2}, BLOCKS),
        ("query_key_value", {}, GROUPED),
        ("c_attn", {"kv_heads": GROUPS}, GROUPED),
        ("qkv", {"head_first": True}, GROUPED),
        ("qkv", {"head_first": False}, BLOCKS),
        ("qkv", {"key_dim": 3}, BLOCKS),
        ("qkv", {"key_dim": 3, "val_dim": 3}, GROUPED),
    ],
)
def test_fused_projections_by_every_name(name: str, numbers: dict[str, object], starts: list[int]) -> None:
    site = site_of(attention({name: 24, "proj": 12}, num_heads=HEADS, **numbers))
    assert site.num_key_value_heads == GROUPS
    kinds = ("weight", "bias")
    assert at(site, 1) == [[(f"{name}.{kind}", start, 3) for kind in kinds] for start in starts]


@pytest.mark.parametrize("name", ["qkv", "query_key_value"])
def test_rows_of_a_fused_query_that_come_after_the_first_group(name: str) -> None:
    """Head 3 is the second of the second group."""
    query = at(site_of(attention({name: 24, "proj": 12}, num_heads=HEADS)), 3)[0]
    assert [start for _, start, _ in query] == [9, 9] if name == "qkv" else [12 + 3, 12 + 3]


@pytest.mark.parametrize(
    ("rows", "numbers"),
    [
        ({"att_proj": 24}, {}),
        ({"qkv_proj": 24}, {}),  # four blocks of q, v and k in CodeGen, and no way to tell
        ({"qkv": 27}, {}),
        ({"query_key_value": 27}, {}),
        ({"q_proj": 12, "k_proj": 6, "v_proj": 6, "query_global": 12}, {}),  # Longformer
        ({"qk": 18}, {}),
        ({"q_proj": 14}, {}),
        ({"q_proj": 12, "kv": 14}, {"num_key_value_heads": 4}),
    ],
)
def test_what_is_in_no_known_layout(rows: dict[str, int], numbers: dict[str, object]) -> None:
    site = site_of(attention({**rows, "proj": 12}, num_heads=HEADS, **numbers))
    assert (site.num_heads, site.key, site.value) == (HEADS, None, None)
    assert (site.query is None) == ("kv" not in rows)


def role(name: str, start: int, bias: str, bias_start: int, size: int = 3) -> list[tuple[str, int, int]]:
    return [(f"{name}.weight", start, size), *([(bias, bias_start, size)] if bias else [])]


@pytest.mark.parametrize(
    ("rows", "biases", "numbers", "head_1"),
    [
        (
            {"q_proj": 12, "k_proj": 6, "v_proj": 6},
            {"q_bias": 12, "k_bias": 6, "v_bias": 6},
            {},
            [role("q_proj", 3, "q_bias", 3), role("k_proj", 3, "k_bias", 3), role("v_proj", 3, "v_bias", 3)],
        ),
        *(
            (
                {"q": 12, name: 12},  # keys, then values
                {"q_bias": 12, "k_bias": 6, "v_bias": 6},
                {},
                [role("q", 3, "q_bias", 3), role(name, 3, "k_bias", 3), role(name, 6 + 3, "v_bias", 3)],
            )
            for name in ("kv", "to_kv", "Wkv")
        ),
        (
            {"qk": 24, "v": 12},  # queries, then keys
            {"q_bias": 12, "k_bias": 12, "v_bias": 12},
            {},
            [role("qk", 3, "q_bias", 3), role("qk", 12 + 3, "k_bias", 3), role("v", 3, "v_bias", 3)],
        ),
        (
            {"q_proj": 20, "kv_b_proj": 20},  # per head: two of the key without positions, three of the value
            {"v_bias": 12},
            {"qk_nope_head_dim": 2},
            [role("q_proj", 5, "", 0, 5), [], role("kv_b_proj", 2 + 5, "v_bias", 3)],
        ),
        (
            {"q_proj": 24, "k_proj": 6, "v_proj": 6},  # per head: a query, then its gate
            {},
            {},
            [role("q_proj", 6, "", 0), role("k_proj", 3, "", 0), role("v_proj", 3, "", 0)],
        ),
        (
            {"in_proj": 36},  # per head: a query, a key and a value, as in DeBERTa
            {"q_bias": 12, "v_bias": 12},
            {},
            [role("in_proj", 9, "q_bias", 3), role("in_proj", 3 + 9, "", 0), role("in_proj", 6 + 9, "v_bias", 3)],
        ),
        (
            {"in_proj": 36},
            {"q_bias": 12, "k_bias": 12, "v_bias": 13},  # not one value per row
            {},
            [role("in_proj", 9, "q_bias", 3), role("in_proj", 3 + 9, "k_bias", 3), role("in_proj", 6 + 9, "", 0)],
        ),
        (
            {"qkv": 24},
            {"q_bias": 12, "k_bias": 6, "v_bias": 6},
            {},
            [role("qkv", 3, "q_bias", 3), role("qkv", 15, "k_bias", 3), role("qkv", 21, "v_bias", 3)],
        ),
        (
            {"qkv": 28},  # per head: two of the query, two of the key, three of the value
            {"q_bias": 8},
            {"key_dim": 2, "val_dim": 3},
            [role("qkv", 7, "q_bias", 2, 2), role("qkv", 2 + 7, "", 0, 2), role("qkv", 4 + 7, "", 0)],
        ),
    ],
)
def test_layouts_with_biases_of_the_attention_module(
    rows: dict[str, int], biases: dict[str, int], numbers: dict[str, object], head_1: list[list[tuple[str, int, int]]]
) -> None:
    assert at(site_of(attention({**rows, "proj": 12}, biases, num_heads=HEADS, **numbers)), 1) == head_1


@pytest.mark.parametrize("width", [WIDTH, 10])
@pytest.mark.parametrize("bias", [True, False])
def test_multihead_attention_holds_one_parameter_or_three(width: int, bias: bool) -> None:
    site = site_of(nn.MultiheadAttention(WIDTH, HEADS, bias=bias, kdim=width))
    starts = [3, 12 + 3, 24 + 3]
    weights = [("in_proj_weight", start, 3) for start in starts]
    if width != WIDTH:
        weights = [(f"{letter}_proj_weight", 3, 3) for letter in "qkv"]
    of_bias = [[("in_proj_bias", start, 3)] if bias else [] for start in starts]
    assert at(site, 1) == [[weight, *rest] for weight, rest in zip(weights, of_bias, strict=True)]


@pytest.mark.parametrize(
    ("norm", "width", "unknown"),
    [
        *((name, 12, "q") for name in ("q_norm", "query_norm", "q_ln", "q_layernorm", "query_layer_norm", "queryln")),
        *((name, 6, "k") for name in ("k_norm", "key_norm", "k_ln", "k_layernorm", "key_layer_norm")),
        ("q_norm", 3, ""),  # of each head by itself
        ("k_norm", 5, ""),
        ("v_norm", 12, ""),
        ("pre_q_norm", 12, ""),
    ],
)
def test_a_norm_over_all_heads_hides_queries_or_keys(norm: str, width: int, unknown: str) -> None:
    module = attention({"q_proj": 12, "k_proj": 6, "v_proj": 6, "o_proj": 12}, num_heads=HEADS)
    setattr(module, norm, nn.LayerNorm(width))
    site = site_of(module)
    assert [letter for letter in "qkv" if not at(site, 1)["qkv".index(letter)]] == list(unknown)


def test_a_norm_over_the_only_head_is_its_own() -> None:
    module = attention({"q_proj": 12, "k_proj": 12, "v_proj": 12, "o_proj": 12}, num_heads=1)
    module.q_norm = nn.LayerNorm(12)
    assert site_of(module).query is not None


@pytest.mark.parametrize(
    "name", ["num_heads", "num_attention_heads", "n_heads", "n_head", "num_q_heads", "heads", "nhead"]
)
def test_numbers_of_heads_by_every_name(name: str) -> None:
    site = site_of(attention({"q": 12, "k": 12, "v": 12, "o": 12}, **{name: 6}))
    assert (site.num_heads, site.head_size, site.num_key_value_heads) == (6, 2, 6)


@pytest.mark.parametrize(
    "name", ["v_head_dim", "head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "dim_head"]
)
def test_sizes_of_heads_by_every_name(name: str) -> None:
    site = site_of(attention({"q": 12, "k": 12, "v": 12, "o": 12}, **{name: 2}))
    assert (site.num_heads, site.head_size) == (6, 2)


@pytest.mark.parametrize(
    ("name", "number", "groups"),
    [
        *((name, 2, 2) for name in ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads", "n_kv_head")),
        ("num_key_value_groups", 4, 1),  # heads that share one
        ("num_key_value_heads", 3, 4),  # of four heads: cannot be
        ("num_key_value_heads", 0, 4),
        ("num_key_value_heads", 2.0, 4),
    ],
)
def test_numbers_of_key_value_heads_where_no_projection_tells_them(name: str, number: object, groups: int) -> None:
    site = site_of(attention({"q": 12, "o": 12}, num_heads=HEADS, **{name: number}))
    assert site.num_key_value_heads == groups


@pytest.mark.parametrize(
    ("rows", "groups"),
    [({"v": 3}, 1), ({"kv": 12}, 2), ({"kv": 9}, 4), ({"qkv": 18}, 1), ({"qkv": 21}, 4), ({"qkv": 12}, 4)],
)
def test_numbers_of_key_value_heads_by_rows(rows: dict[str, int], groups: int) -> None:
    query = {} if "qkv" in rows else {"q": 12}
    assert site_of(attention({**query, **rows, "o": 12}, num_heads=HEADS)).num_key_value_heads == groups


@pytest.mark.parametrize(("heads", "counts"), [(4, (2, 6, 1)), (6, (3, 4, 3)), (3, (3, 4, 3))])
def test_two_heads_of_differential_attention_are_one(heads: int, counts: tuple[int, int, int]) -> None:
    rows = {"q": 12, "k": 6, "v": 6, "o": 12} if heads == 4 else {"q": 12, "k": 12, "v": 12, "o": 12}
    site = site_of(attention(rows, {"lambda_q1": 3}, num_heads=heads))
    assert (site.num_heads, site.head_size, site.num_key_value_heads) == counts
    assert (site.query is None) == (heads % 2 == 0)


@pytest.mark.parametrize(("name", "is_said"), [("attn", True), ("self_attention", True), ("post_attention", False)])
def test_what_is_called_attention(name: str, is_said: bool) -> None:
    model = nn.ModuleDict({"layer": nn.ModuleDict({name: nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))})})
    reasons = {f"layer.{name}": "no query projection of a known name"} if is_said else {}
    assert passed_over_attention(model) == reasons


def test_an_adapter_is_said() -> None:
    module = attention({"q_proj": 12, "v_proj": 12, "o_proj": 12}, num_heads=HEADS)
    adapter = nn.Module()
    adapter.base_layer, adapter.lora_A, adapter.lora_B = nn.Linear(12, 12), nn.Linear(12, 2), nn.Linear(2, 12)
    module.o_proj = adapter
    model = nn.ModuleDict({"attn": module})
    assert attention_sites(model) == []
    assert passed_over_attention(model) == {"attn": "attn.o_proj has an adapter that is not merged"}
