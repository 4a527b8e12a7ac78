"""Gates on weights that functions read, and which weights these are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.components.gate_places import weights_read
from coar_dist.components.gates import GatedModel, gated
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker

CPU = torch.device("cpu")


class Reader(nn.Module):
    """Reads weights in a way of its own: ``read(weight, bias, x)``."""

    def __init__(self, read: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...], bias: int) -> None:
        super().__init__()
        self.read, self.inner = read, nn.Module()
        self.inner.weight = nn.Parameter(torch.randn(shape) + 0.1)
        self.bias = nn.Parameter(torch.randn(bias) - 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.inner.weight, self.bias, x).tanh()


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.2


def tokens() -> Tensor:
    return torch.randint(0, 6, (4, 5), generator=torch.Generator().manual_seed(2))


READS = {
    "linear": (lambda w, b, x: functional.linear(x, w, b), (6, 8), 6, floats(4, 3, 8)),
    "linear without bias": (lambda w, b, x: functional.linear(x, w) + b, (6, 8), 6, floats(4, 8)),
    "bias by name": (lambda w, b, x: functional.linear(x, w, bias=b), (6, 8), 6, floats(4, 8)),
    "operator": (lambda w, b, x: x @ w + b, (8, 6), 6, floats(4, 3, 8)),
    "mm": (lambda w, b, x: torch.mm(x, w) + b, (8, 6), 6, floats(4, 8)),
    "conv2d": (lambda w, b, x: functional.conv2d(x, w, b, 2, padding=1), (6, 4, 3, 3), 6, floats(4, 4, 7, 7)),
    "conv1d": (lambda w, b, x: functional.conv1d(x, w, b), (6, 4, 3), 6, floats(4, 4, 9)),
    "embedding": (lambda w, b, x: functional.embedding(x, w) + b, (6, 8), 8, tokens()),
    "twice": (lambda w, b, x: functional.linear(functional.linear(x, w, b).relu(), w, b), (8, 8), 8, floats(4, 8)),
    "windows": (lambda w, b, x: functional.linear(x.reshape(8, 4), w, b).reshape(4, -1), (6, 4), 6, floats(4, 8)),
}


def masks_of(components: ComponentIndex, num_rows: int) -> np.ndarray:
    return np.random.default_rng(3).random((num_rows, components.num_components)) < 0.6


def differences(model: nn.Module, components: ComponentIndex, x: Tensor, run: nn.Module | None = None) -> float:
    """The largest difference of a gated pass, its rows under masks of their own, from zeroed weights."""
    masks = masks_of(components, len(x))
    read = weights_read(model, components, lambda: model(x))
    with gated(model, components, len(x), CPU, read=read) as gates, torch.no_grad():
        gates.gates.copy_(torch.from_numpy(masks))
        found = (model if run is None else run)(x)
    largest = 0.0
    for row, mask in enumerate(masks):
        with WeightMasker(model, components).ablated(mask), torch.no_grad():
            largest = max(largest, float((found[row] - model(x)[row]).abs().max()))
    return largest


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("axis", [0, 1])
def test_gates_stand_where_the_weight_is_read(name: str, axis: int) -> None:
    read, shape, bias, x = READS[name]
    torch.manual_seed(0)
    model = Reader(read, shape, bias)
    components = ComponentIndex((ComponentGroup.of("inner.weight", axis, shape[axis] // 2, 2),))
    assert weights_read(model, components, lambda: model(x)) == {"inner.weight"}
    assert differences(model, components, x) < 1e-6
    assert type(model.inner.weight) is nn.Parameter


def test_both_axes_of_one_weight() -> None:
    read, shape, bias, x = READS["linear"]
    model = Reader(read, shape, bias)
    both = ComponentIndex((ComponentGroup.of("inner.weight", 0, 6), ComponentGroup.of("inner.weight", 1, 8)))
    assert differences(model, both, x) < 1e-6


def test_what_a_module_reads_for_itself_keeps_its_hook() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    components = ComponentIndex((ComponentGroup.of("0.weight", 0, 6), ComponentGroup.of("2.weight", 1, 6)))
    assert weights_read(model, components, lambda: model(floats(4, 8))) == frozenset()


class Router(nn.Linear):
    """Gives more than a tensor, as routers of language models do."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(input)
        return logits, logits.softmax(-1)


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = Router(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.router(x)[1]


def test_a_module_that_gives_no_tensor_is_gated_where_it_reads() -> None:
    model = Routed()
    components = ComponentIndex((ComponentGroup.of("router.weight", 0, 6),))
    assert weights_read(model, components, lambda: model(floats(4, 8))) == {"router.weight"}
    assert differences(model, components, floats(4, 8)) < 1e-6


def test_a_model_that_does_not_run_leaves_nothing_behind() -> None:
    read, shape, bias, _ = READS["linear"]
    model = Reader(read, shape, bias)
    components = ComponentIndex((ComponentGroup.of("inner.weight", 0, 6),))
    assert weights_read(model, components, lambda: model(floats(4, 9))) == frozenset()
    assert type(model.inner.weight) is nn.Parameter
    assert not model.inner._forward_hooks


@pytest.mark.parametrize("name", ["linear", "operator", "conv2d"])
def test_they_are_compiled_in_one_piece(name: str) -> None:
    read, shape, bias, x = READS[name]
    model = Reader(read, shape, bias)
    components = ComponentIndex((ComponentGroup.of("inner.weight", 0, shape[0]),))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert differences(model, components, x, compiled) < 1e-6


def test_the_mask_of_a_weight_without_gates_is_seen_through_them() -> None:
    """Gates share the parameter's storage: what is zeroed in the weights is zero in a gated pass."""
    read, shape, bias, x = READS["linear"]
    model = Reader(read, shape, bias)
    components = ComponentIndex((ComponentGroup.of("inner.weight", 0, 6), ComponentGroup.of("inner.weight", 1, 8)))
    mask = np.ones(14, np.bool_)
    mask[[7, 9]] = False
    masker = WeightMasker(model, components)
    with masker.ablated(mask):
        expected = model(x)
    with masker.ablated(mask):
        gates = GatedModel(model, components, len(x), CPU, without={1}, read={"inner.weight"})
        found = model(x)
        gates.remove()
    torch.testing.assert_close(found, expected)
