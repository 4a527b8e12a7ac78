from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from coar_dist.components.plain_model import is_plain, plain_model
from coar_dist.errors import TaskError
from tests.models import SmallResNet, randomise

IMAGES = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.3


class LoraConv(nn.Module):
    """What PEFT puts around a layer: a base layer, two factors, and a merge."""

    def __init__(self, base_layer: nn.Conv2d, can_merge: bool = True) -> None:
        super().__init__()
        self.base_layer, self.can_merge = base_layer, can_merge
        self.lora_A = nn.Parameter(torch.randn(2, base_layer.weight[0].numel()) * 0.3)
        self.lora_B = nn.Parameter(torch.randn(len(base_layer.weight), 2) * 0.3)
        self.merged = False

    def _change(self) -> torch.Tensor:
        return (self.lora_B @ self.lora_A).reshape(self.base_layer.weight.shape)

    def merge(self, safe_merge: bool) -> None:
        if not self.can_merge:
            raise ValueError("4-bit layers are not merged")
        self.base_layer.weight.data += self._change()
        self.merged = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.base_layer.weight if self.merged else self.base_layer.weight + self._change()
        return nn.functional.conv2d(x, weight, self.base_layer.bias, padding=1)


def with_lora(model: SmallResNet, can_merge: bool = True) -> nn.Module:
    model.conv2 = LoraConv(model.conv2, can_merge)  # type: ignore[assignment]
    return model


def wrapped(wrap: Callable[[nn.Module], object]) -> Callable[[SmallResNet], nn.Module]:
    def wrap_all(model: SmallResNet) -> nn.Module:
        for layer in (model.conv1, model.conv2, model.linear):
            wrap(layer)
        return model

    return wrap_all


class PeftModel(nn.Module):
    """PEFT's wrapper of a whole model."""

    def __init__(self, base_model: nn.Module) -> None:
        super().__init__()
        self.base_model = base_model

    def get_base_model(self) -> nn.Module:
        return self.base_model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_model(x)


COMPUTED: dict[str, Callable[[SmallResNet], nn.Module]] = {
    "weight_norm": wrapped(parametrizations.weight_norm),
    "spectral_norm": wrapped(parametrizations.spectral_norm),
    "old weight_norm": wrapped(old_weight_norm),
    "old spectral_norm": wrapped(old_spectral_norm),
    "pruned": wrapped(lambda layer: prune.l1_unstructured(layer, "weight", 0.4)),
    "pruned twice": wrapped(
        lambda layer: prune.random_structured(prune.l1_unstructured(layer, "weight", 0.2), "weight", 1, dim=0)
    ),
    "lora": with_lora,
    "lora in PEFT's wrapper": lambda model: PeftModel(with_lora(model)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_effective_weights_are_parameters_under_their_own_names(name: str) -> None:
    model = COMPUTED[name](randomise(SmallResNet())).eval()
    expected, before = model(IMAGES), copy.deepcopy(model.state_dict())
    plain = plain_model(model)
    assert not is_plain(model)
    assert is_plain(plain)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in SmallResNet().named_parameters()}
    torch.testing.assert_close(plain(IMAGES), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        plain.linear.weight.zero_()
    assert (plain(IMAGES) - expected).abs().max() > 1e-3
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(model(IMAGES), expected)
    copy.deepcopy(plain)


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, lambda model: nn.DataParallel(torch.compile(model))],
    ids=["compiled", "parallel", "both"],
)
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = randomise(SmallResNet())
    assert plain_model(wrap(model)) is model
    assert is_plain(wrap(model))
    assert plain_model(model) is model


def test_a_compiled_part_of_a_model_is_unwrapped_in_a_copy() -> None:
    model = randomise(SmallResNet())
    names = [name for name, _ in model.named_parameters()]
    model.conv2 = torch.compile(model.conv2)  # type: ignore[assignment]
    plain = plain_model(model)
    assert sorted(name for name, _ in plain.named_parameters()) == sorted(names)
    assert any("_orig_mod" in name for name, _ in model.named_parameters())


def test_what_cannot_be_made_plain_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"conv2 \(LoraConv\).*4-bit layers are not merged.*merge_and_unload"):
        plain_model(with_lora(SmallResNet(), can_merge=False))
    with pytest.raises(TaskError, match=r"0\.weight of Sequential is lazy.*Call the model once"):
        plain_model(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(TaskError, match="is TorchScript"):
        plain_model(torch.jit.trace(randomise(SmallResNet()), IMAGES))
