"""Rounding is told from rows that a model mixes, however large outputs are beside margins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation.effects import Effects
from coar_dist.ablation.gate_probe import ungated_groups
from coar_dist.ablation.rounding import in_float64, rounding_of_outputs
from coar_dist.ablation.value import ZeroWeights
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function

CPU = torch.device("cpu")
GROUPS = ComponentIndex((ComponentGroup.of("a.weight", 0, 32), ComponentGroup.of("b.weight", 0, 32)))
INPUTS = torch.randn(200, 20, generator=torch.Generator().manual_seed(1)) + 0.2
LABELS = torch.arange(200) % 5
OFFSETS = ["none", "bias", "constant", "inside"]


class Net(nn.Module):
    """Five classes. Sums run in another order where an example is alone, as they do in a batched kernel.

    Args:
        offset: where a number of 1000 is added to all logits, which margins do not show.
        mixing: how much of the batch's mean is subtracted within.
    """

    def __init__(self, offset: str = "none", mixing: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(20, 32), nn.Linear(32, 32), nn.Linear(32, 5)
        self.offset, self.mixing = offset, mixing
        if offset == "bias":
            self.head.bias.data += 1000.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        x = x - self.mixing * x.mean(0)
        order = torch.arange(32).flip(0) if len(x) == 1 else torch.arange(32)
        parts = x[:, None, order] * self.head.weight[:, order] + (1000.0 / 32 if self.offset == "inside" else 0.0)
        logits = self.head.bias + parts[..., 0]
        for number in range(1, 32):
            logits = logits + parts[..., number]
        return logits + 1000.0 if self.offset == "constant" else logits


class SingleOnly(Net):
    """Cannot run in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def effects_of(model: nn.Module, rows: slice = slice(None), name: str = "margin") -> Effects:
    examples = ExampleSet(INPUTS[rows], LABELS[rows])
    return Effects(model.eval(), ZeroWeights(GROUPS), examples, output_function(name), CPU)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", [Net, SingleOnly])
def test_no_sound_model_is_refused_or_goes_without_gates(kind: type[Net], offset: str) -> None:
    model = kind(offset)
    for first in range(0, 160, 40):
        effects = effects_of(model, slice(first, first + 2 + first))
        assert ungated_groups(effects, effects.value, model, CPU) == {}


@pytest.mark.usefixtures("threads")
def test_no_slice_of_a_convolutional_net_is_refused() -> None:
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)]
    model = nn.Sequential(*layers).eval()
    model[5].weight.data *= 30
    components = ComponentIndex((ComponentGroup.of("0.weight", 0, 16), ComponentGroup.of("2.weight", 0, 32)))
    images, labels = torch.rand(150, 1, 8, 8), torch.arange(150) % 10
    for first in range(0, 140, 20):
        examples = ExampleSet(images[first:], labels[first:])
        Effects(model, ZeroWeights(components), examples, output_function("margin"), CPU)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("mixing", [1e-4, 1e-5])
def test_what_mixes_rows_a_little_is_refused_however_large_its_logits_are(offset: str, mixing: float) -> None:
    with pytest.raises(TaskError, match=r"depends on the other examples of its batch .* of Net mixes rows"):
        effects_of(Net(offset, mixing))


def test_without_float64_what_is_more_than_rounding_is_refused() -> None:
    for offset, mixing in [("none", 1e-4), ("bias", 0.05), ("constant", 0.05), ("inside", 0.05)]:
        with pytest.raises(TaskError, match="of SingleOnly mixes rows"):
            effects_of(SingleOnly(offset, mixing))


class OverRows(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * x.softmax(0)


@pytest.mark.parametrize("share", [1.0, 1e-4])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("kind", ["softmax", "norm"])
def test_layers_over_rows_are_named(kind: str, share: float, offset: float) -> None:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "a": nn.Linear(20, 32),
        "over": OverRows(share) if kind == "softmax" else Normalised(share),
        "b": nn.Linear(32, 32),
        "head": nn.Linear(32, 5),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    model.head.bias.data += offset  # type: ignore[operator, union-attr]
    with pytest.raises(TaskError, match=rf"over \({type(layers['over']).__name__}\) mixes rows of a batch"):
        effects_of(model)


class Normalised(OverRows):
    """Like batch norm in training, which takes a single row too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def test_nan_with_others_alone_is_refused() -> None:
    class Empty(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * x.std(0).sum()  # NaN of one row

    with pytest.raises(TaskError, match="nan alone"):
        effects_of(Empty())


def test_the_rounding_of_outputs_is_that_of_their_last_bits() -> None:
    logits, labels = torch.randn(50, 5), torch.arange(50) % 5
    margin = output_function("margin")
    found = [rounding_of_outputs(logits + offset, lambda o: margin(o, labels)) for offset in (0.0, 1e3, 1e6)]
    assert found[0] < 5e-7
    assert 2e-5 < found[1] < 4e-4
    assert 2e-2 < found[2] < 0.4
    masked = torch.cat([logits, torch.full((50, 1), -1e9), torch.full((50, 1), -torch.inf)], dim=1)
    assert rounding_of_outputs(masked, lambda o: margin(o, labels)) < 5e-7
    assert rounding_of_outputs({"a": (labels, "x")}, lambda o: o["a"][0].float()) == 0.0


def test_a_model_too_large_for_a_copy_is_told() -> None:
    with torch.device("meta"):
        model = nn.Linear(40_000, 20_000)
    with pytest.raises(MemoryError, match="more than 4 GB"):
        in_float64(model, ExampleSet(INPUTS, LABELS))
