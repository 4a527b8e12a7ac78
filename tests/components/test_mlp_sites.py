"""Neurons are where they are said to be: by hand-written numbers, and by what zeroed slices do to the model."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from coar_dist.components.mlp_sites import MlpSite, mlp_sites, passed_over_mlps
from coar_dist.components.plain_model import plain_model
from coar_dist.components.projections import Slice, projection_of
from tests.components.families import FAMILIES, counted
from tests.components.test_attention_sites import ALL, TASKS, margins, zeroed

pytestmark = pytest.mark.filterwarnings("ignore")

MIXED = {
    "bitnet": "a norm over the neurons",
    "segformer": "a convolution over places, with a bias",
    "convnextv2": "a norm over the neurons",
    "timm convnextv2_atto": "a norm over the neurons",
    "timm eva02_base_patch14_448": "a norm over the neurons",
    "timm pvt_v2_b0": "a convolution over places, with a bias",
    "timm mambaout_femto": "half of the neurons go through a convolution",
    "timm gMLP": "a gate over tokens",
    "timm PoolFormer": "an activation with a bias",
    "timm CAFormer": "an activation with a bias",
    "timm levit_128": "batch norm",
    "timm visformer_tiny": "batch norm",
    "timm efficientformerv2_s0": "batch norm",
    "timm coatnet_nano_rw_224": "batch norm",
}
"""What stands between the linear maps of these: rows set to zero before it are no neurons set to zero."""


def rows(model: nn.Module, name: str, neuron: int) -> list[Slice]:
    projection = projection_of(name, model.get_submodule(name))
    assert projection is not None
    found = [(projection.weight, projection.output_axis, neuron, 1)]
    return found if projection.bias is None else [*found, (projection.bias, 0, neuron, 1)]


def without_neuron(model: nn.Module, site: MlpSite, neuron: int) -> torch.utils.hooks.RemovableHandle:
    axis = 1 if model.get_parameter(site.parameter).ndim > 2 else -1

    def zero(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        read = inputs[0].clone()
        read.select(axis, neuron).zero_()
        return read

    return model.get_submodule(site.parameter.rpartition(".")[0]).register_forward_pre_hook(zero)


@pytest.mark.parametrize("name", ALL)
def test_neurons_of_families(name: str) -> None:
    model = plain_model(TASKS[name]().model)
    sites = mlp_sites(model)
    assert counted([site.num_neurons for site in sites]) == FAMILIES[name].neurons
    assert len({site.parameter for site in sites}) == len(sites)
    for site in sites:
        assert model.get_parameter(site.parameter).shape[site.axis] == site.num_neurons


@pytest.mark.parametrize("name", ALL)
def test_a_neuron_is_what_the_last_projection_reads_and_the_first_gives(name: str) -> None:
    task = TASKS[name]()
    model = plain_model(task.model).eval()
    sites = mlp_sites(model)
    shapes = {(site.num_neurons, site.inputs[0].rpartition(".")[2]): site for site in sites}
    size = float(margins(model, task).abs().max())
    for site in shapes.values():
        neuron = site.num_neurons - 2
        with zeroed(model, [(site.parameter, site.axis, neuron, 1)]):
            by_weight = margins(model, task)
        handle = without_neuron(model, site, neuron)
        by_activation = margins(model, task)
        handle.remove()
        torch.testing.assert_close(by_weight, by_activation, rtol=1e-6, atol=1e-6 * size)
        if name not in MIXED:
            with zeroed(model, rows(model, site.inputs[0], neuron)):
                by_rows = margins(model, task)
            torch.testing.assert_close(by_rows, by_weight, rtol=1e-4, atol=1e-5 * size)


class Own(nn.Module):
    """Layers of one's own, in the order in which the forward calls them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            setattr(self, f"fc{i}", nn.Linear(inputs, outputs))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8)) for _ in range(2))
        self.head = nn.Linear(8, 3)


class BodyAndHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 6), nn.ReLU())
        self.head = nn.Linear(6, 3)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(9, 8), nn.Linear(8, 7)])
        self.last = nn.Linear(7, 3)


def excitation() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), {"2.weight": 8}),
        (
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
            {"2.weight": 4, "4.weight": 4},
        ),
        (
            nn.Sequential(OrderedDict(a=nn.Linear(6, 8), b=nn.BatchNorm1d(8), c=nn.ReLU(), d=nn.Linear(8, 3))),
            {"d.weight": 8},
        ),
        (nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3)), {"1.weight": 8}),
        (Own(6, 8, 3), {"fc1.weight": 8}),
        (Own(8, 16, 8, 3), {"fc1.weight": 16, "fc2.weight": 8}),
        (Own(6, 8, 6), {"fc1.weight": 8}),
        (Own(8, 16, 16, 8), {"fc1.weight": 16, "fc2.weight": 16}),  # a chain, though its ends are a pair
        (LeNet(), {"fc2.weight": 120, "fc3.weight": 84}),
        (Residual(), {"blocks.0.2.weight": 20, "blocks.1.2.weight": 20}),
        (BodyAndHead(), {"body.3.weight": 8, "head.weight": 6}),
        (Layers(), {"layers.1.weight": 8, "last.weight": 7}),
        (nn.Linear(6, 3), {}),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1)), {}),
        (nn.TransformerEncoderLayer(12, 4, 20), {"linear2.weight": 20}),
    ],
)
def test_plain_nets(model: nn.Module, found: dict[str, int]) -> None:
    assert {site.parameter: site.num_neurons for site in mlp_sites(model)} == found


def test_what_is_no_mlp_is_left_out() -> None:
    model = nn.ModuleDict(
        {
            "layer": nn.TransformerEncoderLayer(12, 4, 20),
            "classifier": nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)),
            "multi_modal_projector": nn.Sequential(nn.Linear(12, 30), nn.GELU(), nn.Linear(30, 12)),
            "excitation": excitation(),
            "merger": nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(12, 30), nn.GELU(), nn.Linear(30, 12))}),
            "embed": nn.Linear(3, 12),
            "body": nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 16), 1, enable_nested_tensor=False),
            "predict": nn.Linear(12, 3),
        }
    )
    wrapper = nn.Module()
    for name, module in model.items():
        setattr(wrapper, name, module)
    assert [site.module for site in mlp_sites(wrapper)] == ["layer", "body.layers.0"]


def pair(width: int = 12, neurons: int = 30) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, neurons), nn.GELU(), nn.Linear(neurons, width))


def beside_attention(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    model.layer = nn.TransformerEncoderLayer(12, 4, 20)
    for name, module in modules.items():
        setattr(model, name, module)
    return model


@pytest.mark.parametrize(
    "name",
    [
        *("classifier", "head", "head_dist", "lm_head", "score", "pooler", "pre_logits", "pre_classifier", "summary"),
        *("adapter", "laurel", "se", "squeeze_excite", "router", "gate", "per_layer_input_gate"),
    ],
)
def test_names_of_what_is_no_mlp(name: str) -> None:
    """Nor is what lies in it, unless it is called an MLP."""
    assert [site.module for site in mlp_sites(beside_attention(**{name: pair()}))] == ["layer"]
    holder = nn.Module()
    holder.layers, holder.feed_forward = pair(), pair()
    assert [site.module for site in mlp_sites(beside_attention(**{name: holder}))] == ["layer", f"{name}.feed_forward"]


@pytest.mark.parametrize("name", ["multi_modal_projector", "merger", "connector", "per_layer_projection"])
def test_names_of_bridges(name: str) -> None:
    """Not even what is called an MLP in one."""
    assert [site.module for site in mlp_sites(beside_attention(**{name: pair()}))] == ["layer"]
    holder = nn.ModuleDict({"mlp": pair()})
    assert [site.module for site in mlp_sites(beside_attention(**{name: holder}))] == ["layer"]


@pytest.mark.parametrize("name", ["mlp", "ffn", "ff", "feed_forward", "DenseReluDense", "mlp_block"])
def test_names_of_mlps(name: str) -> None:
    """What is called one may hold a convolution over places, or lie in a head. If it is none, that is said."""
    depthwise = nn.Sequential(nn.Conv2d(12, 30, 1), nn.Conv2d(30, 30, 3, groups=30), nn.Conv2d(30, 12, 1))
    assert [site.module for site in mlp_sites(beside_attention(**{name: depthwise}))] == ["layer", name]
    assert [site.module for site in mlp_sites(beside_attention(other=depthwise))] == ["layer"]
    in_head = beside_attention(head=nn.ModuleDict({name: pair()}))
    assert [site.module for site in mlp_sites(in_head)] == ["layer", f"head.{name}"]
    wrong = beside_attention(**{name: nn.Sequential(nn.Linear(12, 30), nn.Linear(20, 12))})
    assert passed_over_mlps(wrong) == {name: "no linear maps from d to N and back"}


def test_an_mlp_within_attention_is_as_wide_as_it() -> None:
    attention = nn.MultiheadAttention(12, 3)
    attention.mlp = nn.Sequential(nn.Linear(12, 30), nn.GELU(), nn.Linear(30, 12))
    attention.position_bias = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 3))
    assert [site.module for site in mlp_sites(attention)] == ["mlp"]
    assert [site.module for site in mlp_sites(nn.ModuleDict({"attn": attention}))] == ["attn.mlp"]


def test_sites_say_what_gives_the_neurons() -> None:
    site = mlp_sites(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))[0]
    assert (site.module, site.axis, site.inputs) == ("", 1, ("0",))


def test_what_is_called_an_mlp_and_is_none_is_said() -> None:
    model = nn.Module()
    model.mlp = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    model.layer = nn.Module()
    model.layer.mlp = nn.Module()
    model.layer.mlp.experts = nn.Module()
    model.layer.mlp.experts.up = nn.Parameter(torch.zeros(4, 6, 8))
    model.layer.mlp.experts.down = nn.Parameter(torch.zeros(4, 8, 6))
    model.layer.ffn = nn.Sequential(nn.Bilinear(6, 6, 8), nn.Linear(8, 6), nn.Bilinear(6, 6, 2))
    reasons = passed_over_mlps(model)
    assert set(reasons) == {"layer.mlp", "layer.ffn"}
    assert "experts" in reasons["layer.mlp"]
