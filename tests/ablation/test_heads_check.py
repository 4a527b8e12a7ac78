"""A forward pass says which inputs of a projection are heads; components that are not those are refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.ablation.heads_check import check_heads
from coar_dist.ablation.traced_heads import heads_read
from coar_dist.components.attention_sites import attention_sites
from coar_dist.components.discovery import by_rules, discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ComponentRule
from coar_dist.errors import ComponentMismatchError
from coar_dist.tasks.task import call_model
from tests.components.families import FEW, tasks

WIDTH, LENGTH = 12, 5
BLOCKS = {2: (0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 6, 6), 3: (0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8)}
Mix = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def inputs() -> Tensor:
    return torch.rand(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5


def split(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1)


def eager(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return merged(scores(split(q, num), split(k, num)) @ split(v, num))


def fused(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return merged(functional.scaled_dot_product_attention(split(q, num), split(k, num), split(v, num)))


def three_axes(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    q, k, v = (split(x, num).flatten(0, 1) for x in (q, k, v))
    return merged(torch.bmm(torch.baddbmm(torch.ones(1), q, k.mT).softmax(-1), v).unflatten(0, (-1, num)))


def einsum(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (num, -1)) for x in (q, k, v))
    attention = torch.einsum("bihd,bjhd->bijh", q, k).softmax(2)
    return torch.einsum("bijh,bjhd->bihd", attention, v).flatten(2)


def values_first(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return (split(v, num).mT @ scores(split(q, num), split(k, num)).mT).flatten(1, 2).mT


def one_key_for_all(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    """The heads' queries as so many positions of one head (GPT-BigCode)."""
    size = WIDTH // num
    rows = q.unflatten(-1, (num, size)).flatten(1, 2)
    return (scores(rows, k[..., :size]) @ v[..., :size]).unflatten(1, (-1, num)).flatten(2)


def over_channels(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    """Softmaxes are over the channels of a head (XCiT)."""
    q, k, v = (split(x, num).mT for x in (q, k, v))
    return (scores(q, k) @ v).flatten(1, 2).mT


def head_by_head(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    parts = zip(*(x.chunk(num, dim=-1) for x in (q, k, v)), strict=True)
    return torch.cat([scores(one, other) @ values for one, other, values in parts], dim=-1)


def stacked(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    parts = zip(*(x.chunk(num, dim=-1) for x in (q, k, v)), strict=True)
    return torch.stack([scores(one, other) @ values for one, other, values in parts], dim=-2).flatten(-2)


def values_in_halves(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    attention = scores(split(q, num), split(k, num))
    return merged(torch.cat([attention @ half for half in split(v, num).chunk(2, dim=-1)], dim=-1))


def in_windows(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    """Windows of two positions, one more is padded: batch and windows share an axis (Swin)."""
    q, k, v = (functional.pad(x, (0, 0, 0, 1)).unflatten(1, (-1, 2)).flatten(0, 1) for x in (q, k, v))
    return eager(q, k, v, num).unflatten(0, (2, -1)).flatten(1, 2)[:, :LENGTH]


def gated(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return functional.hardswish(functional.layer_norm(eager(q, k, v, num), (WIDTH,))) * q.sigmoid() + v


def twice_as_many(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return eager(q, k, v, 2 * num)


def half_as_many(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return eager(q, k, v, num // 2)


def interleaved(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return fused(q, k, v, num).unflatten(-1, (num, -1)).mT.flatten(-2)


def rolled(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return eager(q, k, v, num).roll(1, dims=-1)


def rolled_in_16_bits(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
    return rolled(q, k, v, num).bfloat16().float()


class Attention(nn.Module):
    def __init__(self, mix: Mix, num_heads: int, projection: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.num_heads, self.mix, self.project = num_heads, mix, projection
        self.q, self.k, self.v, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.mix(self.q(x), self.k(x), self.v(x), self.num_heads)
        return self.project(heads, self.o_proj.weight, self.o_proj.bias)


def built(mix: Mix, num_heads: int, projection: Callable[..., Tensor] = functional.linear) -> Attention:
    torch.manual_seed(0)
    return Attention(mix, num_heads, projection).eval()


def check(model: nn.Module, components: ComponentIndex) -> None:
    check_heads(model, components, lambda: model(inputs()))


ALIKE = [eager, fused, three_axes, einsum, values_first, one_key_for_all, over_channels, head_by_head, stacked]
ALIKE += [values_in_halves, in_windows, gated]


@pytest.mark.parametrize("num_heads", [2, 3])
@pytest.mark.parametrize("mix", ALIKE, ids=lambda mix: mix.__name__)
def test_heads_are_found_however_attention_is_written(mix: Mix, num_heads: int) -> None:
    model = built(mix, num_heads)
    (read,) = heads_read(model, lambda: model(inputs()))
    assert (read.parameter, read.axis) == ("o_proj.weight", 1)
    assert BLOCKS[num_heads] in (read.heads, *read.others)
    check(model, discover(model, "heads"))


@pytest.mark.parametrize(
    "projection",
    [
        lambda x, weight, bias: x @ weight.t() + bias,
        lambda x, weight, bias: torch.addmm(bias, x.flatten(0, 1), weight.transpose(0, 1)).unflatten(0, (2, -1)),
        lambda x, weight, bias: (weight @ x.flatten(0, 1).t()).t().unflatten(0, (2, -1)) + bias,
        lambda x, weight, bias: functional.conv1d(x.mT, weight[..., None], bias).mT,
        lambda x, weight, bias: functional.conv2d(x.mT[..., None], weight[..., None, None], bias)[..., 0].mT,
        lambda x, weight, bias: functional.linear(x.bfloat16(), weight.bfloat16()).float() + bias,
    ],
    ids=["matmul", "addmm", "weight first", "conv1d", "conv2d", "bfloat16"],
)
def test_whatever_reads_them(projection: Callable[..., Tensor]) -> None:
    model = built(eager, 3, projection)
    (read,) = heads_read(model, lambda: model(inputs()))
    assert (read.parameter, read.axis, read.heads) == ("o_proj.weight", 1, BLOCKS[3])


def test_input_rows_of_a_transposed_map() -> None:
    model = built(eager, 3, lambda x, weight, bias: x @ weight + bias)
    (read,) = heads_read(model, lambda: model(inputs()))
    assert (read.axis, read.heads) == (0, BLOCKS[3])
    with pytest.raises(ComponentMismatchError, match=r"along axis 1, and a forward pass .* 3 of 4 along axis 0"):
        check(model, discover(model, "heads"))


@pytest.mark.parametrize("mix", [twice_as_many, half_as_many, interleaved, rolled, rolled_in_16_bits])
def test_other_heads_than_the_modules_say_are_refused(mix: Mix) -> None:
    model = built(mix, 2)
    with pytest.raises(ComponentMismatchError, match=r"heads of o_proj.weight: .* 2 of 6 along axis 1, and a forward"):
        check(model, discover(model, "heads"))


def test_key_value_groups_are_whole_heads() -> None:
    model = built(eager, 6)
    of_three = ComponentGroup.of("o_proj.weight", 1, 2, 6, "key-value group")
    check(model, ComponentIndex((of_three,)))
    of_one_and_a_half = ComponentGroup.of("o_proj.weight", 1, 4, 3, "key-value group")
    with pytest.raises(ComponentMismatchError, match="6 of 2 along axis 1"):
        check(model, ComponentIndex((of_one_and_a_half,)))


def test_one_wrong_head_among_many_is_refused() -> None:
    model = built(eager, 3)
    right = discover(model, "heads").groups[0]
    (part,) = right.slices
    wrong = ComponentGroup((Slices(part.parameter, 1, 4, (8, 3)),), (2, 1), "H{}", "head")
    check(model, ComponentIndex((right.only([0, 2]),)))
    with pytest.raises(ComponentMismatchError, match="3 of 4"):
        check(model, ComponentIndex((wrong,)))


def test_inputs_that_no_head_fills_say_nothing() -> None:
    model = built(lambda q, k, v, num: torch.cat([eager(q[..., :8], k[..., :8], v[..., :8], 2), q[..., 8:]], -1), 3)
    (read,) = heads_read(model, lambda: model(inputs()))
    assert read.heads == (0, 0, 0, 0, 4, 4, 4, 4, -1, -1, -1, -1)
    check(model, discover(model, "heads"))


def test_what_is_overwritten_is_no_head() -> None:
    def replaced(q: Tensor, k: Tensor, v: Tensor, num: int) -> Tensor:
        return eager(q, k, v, num).copy_(v)

    model = built(replaced, 3)
    assert heads_read(model, lambda: model(inputs())) == []


def test_attention_without_a_selector_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known, self.weight = built(eager, 3), nn.Parameter(torch.rand(WIDTH, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return fused(self.known(x), x, x, 2) @ self.weight

    model = Hidden().eval()
    with caplog.at_level(logging.INFO, logger="coar_dist"):
        check(model, discover(model, "heads"))
    assert "heads: 1 of 1 projection confirmed by a forward pass" in caplog.text
    assert "attention that no selector finds: weight (2 of 6)" in caplog.text


def test_a_pass_that_cannot_be_followed_confirms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = built(eager, 3)

    def run() -> None:
        raise NotImplementedError("no kernel of mine here")

    with caplog.at_level(logging.INFO, logger="coar_dist"):
        check_heads(model, discover(model, "heads"), run)
    assert "heads are not confirmed by a forward pass: NotImplementedError: no kernel of mine here" in caplog.text


def test_other_kinds_cost_no_pass() -> None:
    model = built(twice_as_many, 2)
    components = ComponentIndex(tuple(by_rules(model, [ComponentRule("o_proj.weight", 1, 6)])))
    check_heads(model, components, lambda: pytest.fail("a pass is run"))


UNTRACED = {"minimax": 1, "timm efficientformerv2_s0": 2}
"""Projections that read attention without a softmax, or after an interpolation."""
WITHOUT_SELECTOR = {"squeezebert"}
"""Its queries are convolutions of another kind."""
TASKS = tasks()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "family", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
)
def test_both_ways_find_the_same_heads(family: str) -> None:
    task = TASKS[family]()
    model, examples = task.model.eval(), task.examples.rows(0, 1)
    reads = {read.parameter: read for read in heads_read(model, lambda: call_model(model, examples.inputs))}
    num_untraced = 0
    for site in attention_sites(model):
        read = reads.pop(site.parameter, None)
        if read is None:
            num_untraced += 1
            continue
        starts = range(0, site.num_heads * site.head_size, site.head_size)
        assert read.axis == site.axis
        assert len(read.heads) == site.num_heads * site.head_size
        assert all(read.are_one(start, site.head_size) for start in starts), read
        assert not any(read.are_one(start, site.head_size - 1) for start in starts)
    assert num_untraced == UNTRACED.get(family, 0)
    assert family in WITHOUT_SELECTOR or not any(read.several for read in reads.values())
