"""What looks as if a selector meant it and has no components is named, with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from coar_dist.components.discovery import discover
from coar_dist.components.left_out import passed_over
from coar_dist.components.mlp_sites import mlp_sites


class Attention(nn.Module):
    """Heads of a usual form, with further projections to choose."""

    def __init__(self, width: int = 12, **more: nn.Module) -> None:
        super().__init__()
        self.num_heads = 3
        self.query, self.key, self.value, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        for name, module in more.items():
            setattr(self, name, module)


class Mixture(nn.Module):
    """Experts in shared parameters, of names to choose."""

    def __init__(self, up: str, down: str) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.Module()
        setattr(self.experts, up, nn.Parameter(torch.zeros(4, 16, 6)))
        setattr(self.experts, down, nn.Parameter(torch.zeros(4, 6, 8)))


def in_layers(name: str, *modules: nn.Module) -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({name: module}) for module in modules)
    return model


def test_second_queries_of_an_attention_are_named() -> None:
    model = in_layers("attn", Attention(layout_query=nn.Linear(4, 12)), Attention(query_global=nn.Linear(12, 12)))
    assert discover(model, "heads").num_components == 6
    assert passed_over(model, "heads") == {
        "layers.0.attn.layout_query": "heads of their own beside those that were found"
    }


def test_what_has_a_number_of_heads_and_no_known_query_is_named_once() -> None:
    odd = nn.Module()
    odd.num_heads = 3
    odd.pwise, odd.o_proj = nn.Conv2d(12, 36, 1), nn.Conv2d(12, 12, 1)
    block = nn.Module()
    block.num_heads, block.main = 3, odd
    model = in_layers("context", block, nn.ModuleDict({"attn": Attention()}))
    assert passed_over(model, "heads") == {
        "layers.0.context.main": "a number of heads, and no query projection of a known name"
    }
    assert not passed_over(model, "neurons")


def test_neurons_of_experts_in_shared_parameters_are_passed_over_and_the_experts_are_not() -> None:
    shared = Mixture("gate_up_proj", "down_proj")
    shared.shared_expert = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    model = in_layers("block_sparse_moe", shared, Mixture("gate_up_proj", "down_proj"))
    for selector in ("neurons", "auto"):
        reasons = passed_over(model, selector)
        assert list(reasons) == ["layers.0.block_sparse_moe.experts", "layers.1.block_sparse_moe.experts"]
        assert all("two indices" in why and "components=experts" in why for why in reasons.values())
    assert discover(model, "neurons").num_components == 8
    assert discover(model, "experts").num_components == 8
    for selector in ("experts", "mlp_blocks", "layers"):
        assert not passed_over(model, selector)


def test_mixtures_of_unknown_form_are_passed_over_by_experts_and_blocks() -> None:
    model = in_layers("mlp", Mixture("theta", "phi"), nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)))
    for selector in ("neurons", "experts", "mlp_blocks", "layers"):
        assert passed_over(model, selector) == {"layers.0.mlp": "a mixture of experts of unknown form"}


@pytest.mark.parametrize(
    ("selector", "names_attention", "names_mlps"),
    [
        *((selector, True, False) for selector in ("heads", "query_heads", "key_value_groups", "attention_blocks")),
        *((selector, False, True) for selector in ("neurons", "mlp_blocks")),
        *((selector, True, True) for selector in ("layers", "auto")),
        *((selector, False, False) for selector in ("experts", "linear_rows", "conv_filters", "recurrent_units")),
    ],
)
def test_every_selector_names_what_is_of_its_kind(selector: str, names_attention: bool, names_mlps: bool) -> None:
    odd = Attention()
    odd.num_heads = 5
    mlp = nn.Sequential(nn.Linear(12, 30), nn.Linear(20, 12))
    model = nn.ModuleDict({"attn": odd, "mlp": mlp, "more": Attention()})
    expected = {"attn": "the 12 inputs of attn.out_proj are not whole heads"} if names_attention else {}
    expected |= {"mlp": "no linear maps from d to N and back"} if names_mlps else {}
    assert passed_over(model, selector) == expected


def test_query_heads_of_an_unknown_layout_are_named() -> None:
    halves = Attention()
    halves.lambda_q1 = nn.Parameter(torch.zeros(3))
    halves.num_heads = 4  # two of differential attention, each of two softmaxes
    model = in_layers("attn", halves, Attention())
    why = "how its query's rows belong to heads is not known"
    assert passed_over(model, "query_heads") == {"layers.0.attn": why}
    assert passed_over(model, "heads") == {}


class Half(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.dense = kind(6, 6)


class Quantised(nn.Module):
    """A linear map of a class of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))


@pytest.mark.parametrize(("kind", "num"), [(nn.Linear, 0), (Quantised, 2)])
def test_an_intermediate_without_neurons_is_named(kind: type[nn.Module], num: int) -> None:
    layers = nn.ModuleList(nn.Module() for _ in range(2))
    for layer in layers:
        layer.attention, layer.intermediate, layer.output = Attention(6), Half(kind), Half(kind)
    assert list(passed_over(layers, "neurons")) == [f"{layer}.intermediate" for layer in range(num)]


def test_an_output_of_two_maps_is_half_of_an_mlp() -> None:
    """MobileBERT's layers: the second map of ``output`` leads out of the bottleneck."""
    layer = nn.Module()
    layer.attention, layer.intermediate, layer.output = Attention(6), Half(nn.Linear), Half(nn.Linear)
    layer.output.bottleneck = nn.Linear(6, 6)
    assert not mlp_sites(layer)
    assert list(passed_over(layer, "neurons")) == ["intermediate"]


def test_what_embeds_an_input_and_predicts_it_beside_attention_is_no_mlp() -> None:
    class Decisions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            mlp = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12))
            self.encoder = nn.ModuleDict({"attention": Attention(), "mlp": mlp})
            self.embed_state, self.predict_state = nn.Linear(5, 12), nn.Linear(12, 5)

    assert [(site.module, site.num_neurons) for site in mlp_sites(Decisions())] == [("encoder.mlp", 20)]


def test_an_mlp_of_a_norm_or_of_a_head_is_no_mlp_of_the_body() -> None:
    parts = {
        name: nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 12)) for name in ("mlp", "mask_head", "input_layernorm")
    }
    parts["input_layernorm"] = nn.ModuleDict({"mlp": parts["input_layernorm"]})
    model = nn.Module()
    model.layer = nn.ModuleDict({"attention": Attention(), **parts})
    assert [site.module for site in mlp_sites(model)] == ["layer.mlp"]


@pytest.mark.parametrize(("stride", "kind"), [(4, "neuron"), (2, "filter")])
def test_auto_takes_a_net_for_a_convolutional_one_where_windows_overlap(stride: int, kind: str) -> None:
    mlp = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=stride), nn.Flatten(2), nn.ModuleDict({"mlp": mlp}), nn.Linear(8, 2)
    )
    assert {group.kind for group in discover(model).groups} == {kind}


def test_auto_takes_no_projection_of_an_attention_for_a_filter() -> None:
    model = in_layers("attention", Attention())
    for name in ("query", "key", "value", "out_proj"):
        setattr(model.layers[0]["attention"], name, nn.Conv1d(12, 12, 1, groups=3))
    assert discover(model, "conv_filters").num_components == 48
    with pytest.raises(Exception, match=r"Passed over: layers\.0\.attention: no output projection"):
        discover(model)
