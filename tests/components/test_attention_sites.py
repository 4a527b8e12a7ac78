"""Heads are where they are said to be: by hand-written numbers, and by what zeroed slices do to the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from coar_dist.components.attention_sites import AttentionSite, attention_sites, passed_over_attention
from coar_dist.components.head_slices import SliceRule
from coar_dist.components.plain_model import plain_model
from coar_dist.components.projections import Slice
from coar_dist.tasks.task import Task, call_model
from tests.components.families import FAMILIES, FEW, counted, tasks

TASKS = tasks()
ALL = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
pytestmark = pytest.mark.filterwarnings("ignore")

VALUES_ARE_NOT_ALL = {"bitnet", "timm MViTv2", "timm davit_tiny"}
"""A norm over all heads, or pooled queries, stand before the projection; attention over channels has other values."""
TALKING = {"bitnet", "timm cait_xxs24_224"}
"""Heads are mixed before the projection reads them."""
ONE_KEY = {"pvt", "timm pvt_v2_b0", "timm CAFormer", "timm mobilevit_xxs"}
"""Images so small that some softmaxes are over one key: queries and keys do nothing there."""


@contextmanager
def zeroed(model: nn.Module, slices: list[Slice]) -> Iterator[None]:
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name, *_ in slices}
    with torch.no_grad():
        for name, axis, start, size in slices:
            parameters[name].narrow(axis, start, size).zero_()
        yield
        for name, value in before.items():
            parameters[name].copy_(value)


def margins(model: nn.Module, task: Task) -> Tensor:
    examples = task.examples.rows(0, 3).map(lambda tensor: tensor.clone())
    with torch.no_grad():
        return task.output_function(call_model(model, examples.inputs), examples.targets)


def read_by_projection(model: nn.Module, task: Task, site: AttentionSite) -> Tensor | None:
    """(num_places, num_heads, head_size) of what the output projection reads; None where it is not called."""
    seen: list[Tensor] = []
    projection = model.get_submodule(site.parameter.rpartition(".")[0])
    handle = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    margins(model, task)
    handle.remove()
    if not seen:
        return None
    channels = 1 if model.get_parameter(site.parameter).ndim > 2 else -1
    return seen[0].movedim(channels, -1).reshape(-1, site.num_heads, site.head_size)


def few(sites: list[AttentionSite]) -> list[AttentionSite]:
    """The first and the last module of each shape."""
    shapes = {(site.num_heads, site.head_size, site.module.rpartition(".")[2]): site for site in sites}
    return list(dict.fromkeys([sites[0], *shapes.values()]))


def of_group(site: AttentionSite, rules: tuple[SliceRule, ...], group: int) -> list[Slice]:
    return [rule.at(group) for rule in rules]


def blocks_of_group(site: AttentionSite, group: int) -> list[Slice]:
    width = site.num_heads // site.num_key_value_heads * site.head_size
    return [(site.parameter, site.axis, group * width, width)]


@pytest.mark.parametrize("name", ALL)
def test_heads_of_families(name: str) -> None:
    model = plain_model(TASKS[name]().model)
    sites = attention_sites(model)
    found = counted([(site.num_heads, site.head_size, site.num_key_value_heads) for site in sites])
    assert found == FAMILIES[name].heads
    for site in sites:
        assert model.get_parameter(site.parameter).shape[site.axis] == site.num_heads * site.head_size
    slices = {role[0]: [getattr(site, role) for site in sites] for role in ("query", "key", "value")}
    assert {letter for letter, rules in slices.items() if None in rules} == set(FAMILIES[name].unknown)


@pytest.mark.parametrize("name", ALL)
def test_a_group_s_values_are_its_heads(name: str) -> None:
    """Values of a group set to zero, weights and biases, are the group's block of the output projection set to zero."""
    task = TASKS[name]()
    model = plain_model(task.model).eval()
    sites = [site for site in attention_sites(model) if site.value is not None]
    if not sites or name in VALUES_ARE_NOT_ALL:
        pytest.skip("no values of heads alone")
    before = margins(model, task)
    for site in few(sites):
        assert site.value is not None
        for group in range(site.num_key_value_heads):
            with zeroed(model, blocks_of_group(site, group)):
                by_blocks = margins(model, task)
            with zeroed(model, of_group(site, site.value, group)):
                by_values = margins(model, task)
            torch.testing.assert_close(by_values, by_blocks, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert torch.equal(margins(model, task), before)


@pytest.mark.parametrize("name", ALL)
def test_queries_keys_and_values_change_their_own_heads_alone(name: str) -> None:
    if name in ONE_KEY | TALKING:
        pytest.skip("heads are mixed, or queries and keys do nothing")
    task = TASKS[name]()
    model = plain_model(task.model).eval()
    sites = attention_sites(model)
    for site in few(sites) if sites else []:
        before = read_by_projection(model, task, site)
        shared_by = site.num_heads // site.num_key_value_heads
        for rules, heads in ((site.query, 1), (site.key, shared_by), (site.value, shared_by)):
            if rules is None or before is None:
                continue
            for group in range(site.num_heads // heads):
                with zeroed(model, of_group(site, rules, group)):
                    after = read_by_projection(model, task, site)
                assert after is not None
                changed = (after - before).abs().amax(dim=(0, 2)) > 1e-5 * before.abs().max()
                expected = torch.arange(site.num_heads) // heads == group
                assert torch.equal(changed, expected), (site.module, group)


@pytest.mark.parametrize("name", ALL)
def test_a_head_is_a_block_of_what_the_projection_reads(name: str) -> None:
    task = TASKS[name]()
    model = plain_model(task.model).eval()
    sites = attention_sites(model)
    for site in few(sites) if sites else []:
        if read_by_projection(model, task, site) is None:  # nn.MultiheadAttention never calls its projection
            continue
        module, head = model.get_submodule(site.parameter.rpartition(".")[0]), site.num_heads - 1
        channels = 1 if model.get_parameter(site.parameter).ndim > 2 else -1

        def without(_: nn.Module, inputs: tuple[Tensor, ...], site=site, head=head, channels=channels) -> Tensor:  # type: ignore[no-untyped-def]
            read = inputs[0].clone()
            read.movedim(channels, -1)[..., head * site.head_size : (head + 1) * site.head_size] = 0
            return read

        handle = module.register_forward_pre_hook(without)
        by_inputs = margins(model, task)
        handle.remove()
        with zeroed(model, [(site.parameter, site.axis, head * site.head_size, site.head_size)]):
            by_weight = margins(model, task)
        torch.testing.assert_close(by_weight, by_inputs, rtol=1e-6, atol=1e-6 * float(by_inputs.abs().max()))


class Attention(nn.Module):
    """A student's own, with names and numbers to choose."""

    def __init__(self, width: int = 12, **numbers: object) -> None:
        super().__init__()
        self.W_q, self.W_k, self.W_v = (nn.Linear(width, width) for _ in range(3))
        self.W_o = nn.Linear(width, width)
        for name, value in numbers.items():
            setattr(self, name, value)


class Configured(nn.Module):
    """A configuration of another tower above the one that counts."""

    def __init__(self, inner: object, outer: object, **numbers: object) -> None:
        super().__init__()
        self.config = outer
        self.tower = nn.Module()
        self.tower.config = inner
        self.tower.attn = Attention(**numbers)


class Config:
    def __init__(self, num_attention_heads: object) -> None:
        self.num_attention_heads = num_attention_heads


class Raises:
    @property
    def num_attention_heads(self) -> int:
        raise RuntimeError("differs from layer to layer")


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (Attention(n_head=3), 3),
        (Attention(num_heads=6), 6),
        (Attention(head_dim=4), 3),
        (Attention(head_size=12, attention_head_size=3, num_heads=4), 4),  # the size that agrees
        (Configured(Config(2), Config(6), head_dim=4), 3),  # the head size decides
        (Configured(Config(4), Config(2)), 4),
        (Configured(Config([1, 2]), Config(2)), 2),
        (Configured(Raises(), Config(6)), 6),
        (nn.TransformerEncoderLayer(12, 4, 8), 4),
    ],
)
def test_the_nearest_number_of_heads_counts(model: nn.Module, heads: int) -> None:
    (site,) = attention_sites(model)
    assert site.num_heads == heads
    assert site.num_heads * site.head_size == 12
    assert site.query is not None
    assert site.query[0].at(1)[2:] == (12 // heads, 12 // heads)


def test_heads_that_are_not_all_of_attention_have_no_queries() -> None:
    (site,) = attention_sites(Attention(num_heads=2, head_dim=4))
    assert (site.num_heads, site.num_key_value_heads, site.query, site.value) == (3, 3, None, None)


@pytest.mark.parametrize(("beside", "found"), [(["output"], ["output.weight"]), (["intermediate", "output"], [])])
def test_an_output_beside_attention_may_be_an_mlp_s(beside: list[str], found: list[str]) -> None:
    block = nn.Module()
    block.attention = Attention(num_heads=3)
    del block.attention.W_o
    for name in beside:
        setattr(block, name, nn.Linear(12, 12))
    assert [site.parameter for site in attention_sites(block)] == found


def test_what_is_passed_over_is_said() -> None:
    model = nn.Module()
    model.no_number = Attention()
    model.odd = Attention(num_heads=5)
    model.mixer = Attention(num_heads=3)
    model.mixer.A_log = nn.Parameter(torch.zeros(3))
    model.own_attention = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert attention_sites(model) == []
    reasons = passed_over_attention(model)
    assert set(reasons) == {"no_number", "odd", "mixer", "own_attention"}
    assert "no number of heads" in reasons["no_number"]
    assert "not whole heads" in reasons["odd"]
    assert "state-space" in reasons["mixer"]
    assert "no query" in reasons["own_attention"]


def test_a_rule_knows_runs_of_heads() -> None:
    grouped = SliceRule("qkv.weight", 0, 0, 16, 4, run=2)  # two queries, a key and a value per group
    assert [grouped.at(head)[2] for head in range(4)] == [0, 4, 16, 20]


def test_sites_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24), 3, enable_nested_tensor=False)
    assert [site.module for site in attention_sites(model)] == [f"layers.{layer}.self_attn" for layer in range(3)]
