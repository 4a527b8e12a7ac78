"""Selectors: what they find and call it, and that a zeroed component does what its name says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import coar_dist
from coar_dist.components.discovery import asked_components, chosen_components, discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import Component, ComponentIndex
from coar_dist.components.masking import WeightMasker
from coar_dist.components.overview import find_components
from coar_dist.config.schema import ComponentRule
from coar_dist.errors import ComponentMismatchError, ConfigError, NoComponentsError
from tests.models import SmallResNet, randomise

TOKENS = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return randomise(LlamaForCausalLM(LlamaConfig(vocab_size=20, attention_bias=True, **sizes, **heads)))


def gpt2() -> nn.Module:
    return randomise(GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=4)))


def mixtral() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_local_experts": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return randomise(MixtralForCausalLM(MixtralConfig(vocab_size=20, **sizes, **heads)))


def outputs_of(model: nn.Module, name: str, component: Component | None, components: ComponentIndex) -> Any:
    """What the module ``name`` gives with one component ablated."""
    found: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: found.append(output))
    mask = torch.ones(len(components), dtype=torch.bool).numpy()
    if component is not None:
        mask[component.id] = False
    with WeightMasker(model, components).ablated(mask):
        model(TOKENS)
    handle.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


@pytest.mark.parametrize(
    ("selector", "num", "last"),
    [
        ("heads", 8, "L1H3"),
        ("query_heads", 8, "L1Q3"),
        ("key_value_groups", 4, "L1KV1"),
        ("neurons", 48, "L1N23"),
        ("attention_blocks", 2, "L1.attention"),
        ("mlp_blocks", 2, "L1.mlp"),
        ("layers", 2, "L1"),
        ("auto", 56, "L1N23"),
        ("attention_heads", 8, "L1H3"),
        (["heads", "neurons"], 56, "L1N23"),
        (["neurons", "attention_blocks"], 50, "L1.attention"),
    ],
)
def test_names_and_numbers(selector: Any, num: int, last: str) -> None:
    index = discover(llama(), selector)
    assert (len(index), index.name_of(num - 1)) == (num, last)
    assert len(set(index.names())) == num
    assert set(index.to_frame().layer) == {0, 1}


def test_a_head_is_the_columns_that_read_it_and_a_group_the_heads_that_share_a_value() -> None:
    model = llama()
    heads, groups = discover(model, "heads"), discover(model, "key_value_groups")
    assert heads["L1H2"].slices == (("model.layers.1.self_attn.o_proj.weight", 1, 8, 4),)
    assert groups["L1KV1"].slices == (("model.layers.1.self_attn.o_proj.weight", 1, 8, 8),)
    values = tuple(Slices(f"model.layers.1.self_attn.v_proj.{kind}", 0, 4, (4,)) for kind in ("weight", "bias"))
    silenced = ComponentIndex((ComponentGroup(values, (1,), "V{}"),))
    one = outputs_of(model, "lm_head", groups["L1KV1"], groups)
    other = outputs_of(model, "lm_head", silenced["V1"], silenced)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert (one - outputs_of(model, "lm_head", None, groups)).abs().max() > 1e-3


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(
    ("selector", "name", "module"),
    [("attention_blocks", "L0.attention", "attn"), ("mlp_blocks", "L1.mlp", "mlp"), ("layers", "L1", "mlp")],
)
def test_a_block_adds_nothing(make: Callable[[], nn.Module], selector: str, name: str, module: str) -> None:
    model = make()
    components = discover(model, selector)
    layer = f"model.layers.{name[1]}" if make is llama else f"transformer.h.{name[1]}"
    path = f"{layer}.{'self_attn' if (module, make) == ('attn', llama) else module}"
    assert not outputs_of(model, path, components[name], components).any()
    assert outputs_of(model, path, None, components).any()


def test_an_expert_adds_nothing_and_a_block_of_experts_is_all_of_them() -> None:
    model = mixtral()
    experts, blocks = discover(model, "experts"), discover(model, "mlp_blocks")
    assert experts.names() == [f"L{layer}E{expert}" for layer in range(2) for expert in range(3)]
    assert not outputs_of(model, "model.layers.1.mlp", blocks["L1.mlp"], blocks).any()
    every = discover(model, "experts").where(layer=1)
    mask = torch.zeros(3, dtype=torch.bool).numpy()
    with WeightMasker(model, every).ablated(mask):
        assert not outputs_of(model, "model.layers.1.mlp", None, blocks).any()


def test_experts_in_a_list_are_in_their_mixture_once() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2))

    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"mlp": Mixture()}) for _ in range(2))})
    blocks = discover(model, "mlp_blocks")
    assert blocks.names() == ["L0.mlp", "L1.mlp"]
    assert {part[0] for part in blocks["L1.mlp"].slices} == {
        f"layers.1.mlp.experts.{expert}.2.{kind}" for expert in range(2) for kind in ("weight", "bias")
    }
    assert discover(model, "experts").names() == [f"L{layer}E{expert}" for layer in range(2) for expert in range(2)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_an_ablated_recurrent_unit_stays_zero(kind: type[nn.RNNBase]) -> None:
    model = randomise(nn.ModuleDict({"net": kind(4, 5, num_layers=2, bidirectional=True, batch_first=True)}))
    components = discover(model, "recurrent_units")
    assert components.num_components == 20
    mask = torch.ones(20, dtype=torch.bool).numpy()
    mask[components["net.l1_reverse[3]"].id] = False
    inputs = torch.randn(2, 6, 4)
    with WeightMasker(model, components).ablated(mask):
        outputs: Tensor = model["net"](inputs)[0]
    assert [channel for channel in range(10) if not outputs[..., channel].any()] == [5 + 3]


def test_auto_takes_what_the_kind_of_net_is_made_of() -> None:
    mlp = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    assert discover(mlp).names() == [*(f"L0N{unit}" for unit in range(5)), *(f"L2N{unit}" for unit in range(4))]
    convolutions = SmallResNet()
    assert discover(convolutions).fingerprint == discover(convolutions, "conv_filters").fingerprint
    assert {group.kind for group in discover(gpt2()).groups} == {"head", "neuron"}
    upwards = nn.Sequential(nn.ConvTranspose2d(3, 6, 2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert discover(upwards).names()[:2] == ["0[:, 0]", "0[:, 1]"]
    with pytest.raises(NoComponentsError, match=r"'auto' matches nothing in Linear.*\{'linear_rows': 5\}"):
        discover(nn.Linear(3, 5))


def test_rows_of_gpt2_are_those_of_all_maps_and_not_of_the_tied_unembedding() -> None:
    rows = discover(gpt2(), "linear_rows")
    assert rows.num_components == 2 * (48 + 16 + 64 + 16)
    assert not [name for name in rows.names() if "lm_head" in name]


def test_patterns_are_of_components_or_parameters() -> None:
    model = llama()
    names = discover(model, ["heads", "neurons"], include=["L1*"], exclude=["L1H2", "*N1?"]).names()
    assert names == ["L1H0", "L1H1", "L1H3", *(f"L1N{n}" for n in range(24) if not 10 <= n < 20)]
    assert discover(model, "heads", exclude=["*layers.0*"]).names() == [f"L1H{head}" for head in range(4)]
    with pytest.raises(NoComponentsError, match=r"components\.exclude=\['L\*'\] leave none"):
        discover(model, "heads", exclude=["L*"])


def test_what_cannot_go_together_is_refused_by_name() -> None:
    model = llama()
    with pytest.raises(ComponentMismatchError, match=r"overlap: L0H0 and L0KV0.*o_proj\.weight.*components\.exclude"):
        discover(model, ["heads", "key_value_groups"])
    index = discover(model, ["heads", "attention_blocks"])
    with pytest.raises(ComponentMismatchError, match=r"overlap: L0\.attention is all of .*and L0H0 a part of it"):
        WeightMasker(model, index)
    with pytest.raises(NoComponentsError, match=r"selector='experts' matches nothing in LlamaForCausalLM"):
        discover(model, ["heads", "experts"])
    with pytest.raises(ConfigError, match=r"selector=\['heads', 'hats'\]: must be one of auto, heads"):
        discover(model, ["heads", "hats"])


def test_blocks_that_cut_through_heads_are_refused() -> None:
    model = llama()
    for size, num in ((1, 32), (2, 16), (4, 8), (8, 4), (16, 2)):
        assert discover(model, "rules", rules=[ComponentRule("*.o_proj.weight", 1, size)]).num_components == num
    wide = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(ComponentMismatchError, match=r"blocks of 8 cut.*which are 4 of 6\. Use block_size=6"):
        discover(wide, "rules", rules=[ComponentRule("*.o_proj.weight", 1, 8)])
    assert discover(wide, "rules", rules=[ComponentRule("*.o_proj.weight", 0, 8)]).num_components == 3


def test_everything_that_python_may_give() -> None:
    model = llama()
    rule = ComponentRule("*.down_proj.weight", 1, 12)
    heads = discover(model, "heads")
    assert chosen_components(model, heads) is heads
    assert chosen_components(model, heads, include=["L0*"]).names() == heads[:4].names()
    assert chosen_components(model, lambda model: discover(model, "heads")[2:]).names() == heads[2:].names()
    assert chosen_components(model, rule).num_components == 4
    assert chosen_components(model, ["heads", rule]).num_components == 12
    with pytest.raises(ConfigError, match="gives a list, not a ComponentIndex"):
        chosen_components(model, lambda model: [])  # type: ignore[arg-type,return-value]
    given, asked = asked_components(model, ["heads", rule, "neurons"], ("*",), ())
    assert given is None
    assert (asked.selector, asked.rules) == (["heads", "rules", "neurons"], [rule])


def test_the_log_says_what_was_found_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        discover(llama(), ["heads", "neurons"])
        discover(llama(), "attention_heads")
    assert "head: 8 in 2 groups" in caplog.text
    assert "neuron: 48 in 2 groups" in caplog.text
    assert "components.selector=attention_heads is called heads now" in caplog.text


def test_a_table_of_what_every_selector_finds() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())
    table = coar_dist.find_components(model)
    assert table.components["heads"] == 144
    assert table.components["neurons"] == 36864
    assert table.components["transposed_linear_inputs"] == 64512
    assert table.loc["layers"].tolist() == [12, 12, 12 * (768 * 768 + 4 * 768 * 768 + 2 * 768), "L0", "L11", ""]
    assert "experts" not in table.index
    assert find_components(SmallResNet()).components["conv_filters"] > 0


class StateSpaceMixer(nn.Module):
    """The parameters of a Mamba's mixer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(width))
        self.in_proj = nn.Linear(width, 2 * width)
        self.conv1d = nn.Conv1d(width, width, 4, groups=width)
        self.out_proj = nn.Linear(width, width)


def test_auto_takes_no_convolution_of_a_state_space_model_for_a_filter(caplog: pytest.LogCaptureFixture) -> None:
    mixers = nn.Sequential(*(nn.Sequential(StateSpaceMixer(6)) for _ in range(3)))
    with pytest.raises(NoComponentsError, match=r"'conv_filters': 18.*Passed over: 0\.0, 1\.0 and 1 more: a state-sp"):
        discover(mixers)
    block = nn.ModuleDict({"mixer": StateSpaceMixer(6), "mlp": nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6))})
    with caplog.at_level(logging.INFO):
        assert discover(nn.Sequential(block)).names() == [f"L0N{unit}" for unit in range(9)]
    assert "auto: leaves out conv_filters, which are to be asked for by name" in caplog.text


def test_auto_leaves_out_a_convolution_that_gives_the_outputs(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1))
    with caplog.at_level(logging.INFO):
        assert discover(net).names() == [f"0[{number}]" for number in range(4)]
    assert "auto: none in 2: the output layer" in caplog.text
    assert find_components(net).loc["auto", "passed_over"] == "2"
    assert discover(net, "conv_filters").num_components == 6
