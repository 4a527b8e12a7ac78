"""Experts are where they are said to be: their slices set to zero are experts that the mixture gives nothing from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from coar_dist.components.expert_sites import expert_sites
from tests.components.families import tasks
from tests.components.test_attention_sites import margins, zeroed

pytestmark = pytest.mark.filterwarnings("ignore")
TASKS = tasks()
LAYERS = {
    **dict.fromkeys(["mixtral", "qwen3_moe", "olmoe", "phimoe", "qwen2_moe", "gpt_oss", "dbrx"], 2),
    **dict.fromkeys(["granitemoehybrid", "qwen3_next", "minimax"], 2),
    **dict.fromkeys(["llama4_text", "glm4_moe", "deepseek_v2", "deepseek_v3", "jamba"], 1),
}
"""Layers of four experts each, by family."""
FEW = ["mixtral", "gpt_oss", "dbrx", "llama", "deepseek_v3"]
ALL = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]


@pytest.mark.parametrize("name", ALL)
def test_experts_of_families(name: str) -> None:
    sites = expert_sites(TASKS[name]().model)
    assert [site.num_experts for site in sites] == [4] * LAYERS.get(name, 0)


@pytest.mark.parametrize("name", [name for name in FEW if name in LAYERS and name != "dbrx"])
def test_an_expert_is_what_the_router_weighs(name: str) -> None:
    """An expert's slices set to zero are its routing weights set to zero, as the experts' module receives them."""
    task = TASKS[name]()
    model = task.model.eval()
    before = margins(model, task)
    for site in expert_sites(model):
        experts, changed = model.get_submodule(site.module), 0
        for expert in range(site.num_experts):

            def without(_: nn.Module, inputs: tuple[Tensor, ...], expert: int = expert) -> tuple[Tensor, ...]:
                hidden, chosen, weights = inputs
                return hidden, chosen, weights * (chosen != expert)

            handle = experts.register_forward_pre_hook(without)
            by_router = margins(model, task)
            handle.remove()
            with zeroed(model, list(site.slices[expert])):
                by_slices = margins(model, task)
            torch.testing.assert_close(by_slices, by_router, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
            changed += not torch.equal(by_slices, before)
        assert changed >= 2


def test_dbrx_experts_are_rows() -> None:
    site = expert_sites(TASKS["dbrx"]().model)[0]
    assert site.slices[3] == (("transformer.blocks.0.ffn.experts.mlp.w2", 0, 36, 12),)


class Mixture(nn.Module):
    """A student's own mixture: every expert, weighed by a router."""

    def __init__(self, expert: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(expert() for _ in range(3))

    def forward(self, x: Tensor, without: int | None = None) -> Tensor:
        weights = self.gate(x).softmax(-1)
        return sum(weights[:, i, None] * expert(x) for i, expert in enumerate(self.experts) if i != without)  # type: ignore[return-value]


def test_experts_in_a_list() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Mixture(lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))))
    (site,) = expert_sites(model)
    assert (site.module, site.num_experts) == ("1.experts", 3)
    x = torch.randn(5, 4) + 0.3
    for expert in range(3):
        with zeroed(model, list(site.slices[expert])):
            torch.testing.assert_close(model(x), model[1](model[0](x), without=expert))


def test_experts_in_a_dict() -> None:
    experts = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)) for name in "ab"})
    experts["dropout"] = nn.Dropout()
    (site,) = expert_sites(nn.ModuleDict({"experts": experts}))
    assert site.num_experts == 2
    assert site.slices[1] == (("experts.b.2.weight", 0, 0, 6), ("experts.b.2.bias", 0, 0, 6))


@pytest.mark.parametrize(
    "model",
    [
        nn.ModuleDict({"blocks": nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6)) for _ in range(2))}),
        Mixture(lambda: nn.Linear(6, 6)),  # no neurons, so no MLPs
        nn.Linear(3, 3),
    ],
)
def test_what_is_no_mixture(model: nn.Module) -> None:
    assert expert_sites(model) == []


def experts_of(**shapes: tuple[int, ...]) -> nn.Module:
    module = nn.Module()
    for name, shape in shapes.items():
        setattr(module, name, nn.Parameter(torch.zeros(shape)))
    return nn.ModuleDict({"moe": module})


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("gate_up_proj", "down_proj"),
        ("up_proj", "down_proj"),
        ("up", "down"),
        ("w1", "w2"),
        ("w13", "w2"),
        ("w_up", "w_down"),
        ("wi", "wo"),
        ("fc1", "fc2"),
        ("input_linear", "output_linear"),
        ("mlp1_weight", "mlp2_weight"),
        ("linear1", "linear2"),
        ("c_fc", "c_proj"),
    ],
)
def test_experts_in_parameters_by_every_name(first: str, last: str) -> None:
    """With a bias of each expert, whose name follows the parameter's."""
    bias = f"{last.removesuffix('_weight')}_bias"
    (site,) = expert_sites(experts_of(**{first: (3, 12, 6), last: (3, 6, 12), bias: (3, 6)}))
    assert (site.module, site.num_experts) == ("moe", 3)
    assert site.slices[1] == ((f"moe.{last}", 0, 1, 1), (f"moe.{bias}", 0, 1, 1))


@pytest.mark.parametrize(
    "name", ["num_experts", "moe_num_experts", "num_local_experts", "n_routed_experts", "n_experts"]
)
@pytest.mark.parametrize(("number", "is_found"), [(4, True), (5, False), (0, False), ("4", False)])
def test_experts_in_rows_by_every_name_of_their_number(name: str, number: object, is_found: bool) -> None:
    model = experts_of(w1=(12, 6), w2=(12, 6))
    setattr(model["moe"], name, number)
    rows = tuple(((("moe.w2", 0, expert * 3, 3),)) for expert in range(4))
    assert [site.slices for site in expert_sites(model)] == ([rows] if is_found else [])


@pytest.mark.parametrize(
    "shapes",
    [
        {"w1": (3, 12, 6), "w2": (4, 6, 12)},  # of different numbers
        {"w1": (3, 12, 6)},
        {"w2": (3, 6, 12)},
        {"w1": (12, 6), "w2": (3, 6, 12)},
        {"a": (3, 12, 6), "b": (3, 6, 12)},
    ],
)
def test_parameters_that_are_no_experts(shapes: dict[str, tuple[int, ...]]) -> None:
    assert expert_sites(experts_of(**shapes)) == []


@pytest.mark.parametrize(
    ("name", "shape"), [("w2_bias", (4, 6)), ("w2_bias", (3,)), ("w1_bias", (3, 6)), ("w2_b", (3, 6))]
)
def test_what_is_no_bias_of_the_output_projections(name: str, shape: tuple[int, ...]) -> None:
    (site,) = expert_sites(experts_of(**{"w1": (3, 12, 6), "w2": (3, 6, 12), name: shape}))
    assert site.slices[2] == (("moe.w2", 0, 2, 1),)


@pytest.mark.parametrize("router", ["gate", "router", "gating", None])
@pytest.mark.parametrize("holder", ["experts", "local_experts", "blocks"])
def test_lists_of_mlps_are_experts_by_their_name_or_beside_a_router(router: str | None, holder: str) -> None:
    mlps = nn.ModuleList(nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 6)) for _ in range(2))
    model = nn.ModuleDict({holder: mlps, **({} if router is None else {router: nn.Linear(6, 2)})})
    slices = [((f"{holder}.{expert}.2.weight", 0, 0, 6), (f"{holder}.{expert}.2.bias", 0, 0, 6)) for expert in (0, 1)]
    found = [site.slices for site in expert_sites(model)]
    assert found == ([tuple(slices)] if router is not None or holder != "blocks" else [])
    unlike = nn.ModuleList([mlps[0], nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))])
    assert expert_sites(nn.ModuleDict({holder: unlike, "gate": nn.Linear(6, 2)})) == []
    assert expert_sites(nn.ModuleDict({holder: nn.ModuleList(mlps[:1]), "gate": nn.Linear(6, 2)})) == []


def test_experts_on_the_meta_device() -> None:
    module = nn.Module()
    module.gate_up_proj = nn.Parameter(torch.empty(5, 24, 16, device="meta"))
    module.down_proj = nn.Parameter(torch.empty(5, 16, 12, device="meta"))
    module.down_proj_bias = nn.Parameter(torch.empty(5, 16, device="meta"))
    module.gate_up_proj_bias = nn.Parameter(torch.empty(5, 24, device="meta"))
    (site,) = expert_sites(nn.ModuleDict({"experts": module}))
    assert site.slices[2] == (("experts.down_proj", 0, 2, 1), ("experts.down_proj_bias", 0, 2, 1))
