"""Where tensors lie and how they are laid out, and what is asked of accelerate and of CUDA, stand-ins for both."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation import placement
from coar_dist.ablation.device_map import check_device_map, spread_over_devices
from coar_dist.ablation.graphs import why_not_recorded
from coar_dist.ablation.memory import allowed_bytes, rows_that_fit
from coar_dist.ablation.placement import (
    fits_on,
    lay_out,
    layout_of,
    modules_called,
    native_precision,
    on_host,
    placed,
    repeat_exactly,
    select_rows,
    with_layout,
)
from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet

LAST, AS_IT_IS, FIRST = torch.channels_last, torch.preserve_format, torch.contiguous_format
IMAGES = torch.randn(5, 3, 4, 6)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def is_last(tensor: Tensor) -> bool:
    """Whether the channels of an image lie beside each other."""
    return tensor.stride(1) == 1 and not tensor.is_contiguous()


def test_image_batches_alone_are_laid_out() -> None:
    assert is_last(with_layout(IMAGES, LAST))
    assert torch.equal(with_layout(IMAGES, LAST), IMAGES)
    assert not is_last(with_layout(with_layout(IMAGES, LAST), FIRST))
    for others in (torch.randn(5, 3), torch.randn(5, 3, 4), torch.randn(5, 3, 4, 6, 2)):
        assert with_layout(others, LAST) is others
    images = with_layout(IMAGES, LAST)
    assert with_layout(images, AS_IT_IS) is images


@pytest.mark.parametrize("layout", [LAST, AS_IT_IS])
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4, 6), (5, 2, 3, 4, 6)])
def test_rows_are_selected_in_the_layout(layout: torch.memory_format, shape: tuple[int, ...]) -> None:
    tensor, rows = torch.randn(shape), torch.tensor([3, 0, 0, 4])
    found = select_rows(tensor, rows, layout)
    assert torch.equal(found, tensor[rows])
    assert is_last(found) == (len(shape) == 4 and layout == LAST) if found.ndim > 1 else True


def test_convolutions_over_images_are_laid_out_channels_last() -> None:
    images, sounds = nn.Conv2d(3, 6, 3), nn.Conv1d(3, 6, 3)
    assert layout_of(nn.Sequential(sounds, nn.Linear(6, 2))) == AS_IT_IS
    model = nn.Sequential(images, sounds, nn.Conv3d(3, 6, 3))
    assert layout_of(model) == LAST
    weights = [module.weight for module in model]
    before = [weight.detach().clone() for weight in weights]
    for layout, last in ((LAST, True), (AS_IT_IS, True), (FIRST, False)):
        lay_out(model, layout)
        assert is_last(model[0].weight) == last
        assert model[1].weight.is_contiguous()
        assert all(torch.equal(module.weight, value) for module, value in zip(model, before, strict=True))
    assert all(module.weight is weight for module, weight in zip(model, weights, strict=True))


def test_a_model_is_placed_in_eval_mode_without_gradients_of_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    found, device = placed(model, torch.device("meta"))
    assert (found, device) == (model, torch.device("meta"))
    assert not model.training
    assert {(p.device.type, p.requires_grad) for p in model.parameters()} == {("meta", False)}
    spread = nn.Linear(2, 2)
    spread.hf_device_map = {"": "cpu"}
    assert placed(spread, torch.device("meta")) == (spread, CPU)  # where accelerate has put it
    assert why_not_recorded(spread, CUDA) == "the model is spread over several devices"
    assert why_not_recorded(nn.Linear(2, 2), CUDA) is None
    assert why_not_recorded(nn.Linear(2, 2), CPU) == "there are no CUDA graphs on cpu"


def test_the_fused_path_of_transformers_is_off_while_modules_are_called() -> None:
    for before in (True, False):
        torch.backends.mha.set_fastpath_enabled(before)
        try:
            with modules_called():
                assert not torch.backends.mha.get_fastpath_enabled()
            assert torch.backends.mha.get_fastpath_enabled() == before
            with pytest.raises(ZeroDivisionError), modules_called():
                raise ZeroDivisionError
            assert torch.backends.mha.get_fastpath_enabled() == before
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


def test_a_copy_on_the_host_has_the_values() -> None:
    tensor = torch.randn(3, 2, requires_grad=True)
    np.testing.assert_array_equal(on_host(tensor), tensor.detach())


@pytest.mark.parametrize(
    ("has_cuda", "capability", "has_instructions", "expected"),
    [
        (True, (8, 0), False, "bfloat16"),
        (True, (9, 0), False, "bfloat16"),
        (True, (7, 5), True, "float32"),
        (False, (0, 0), True, "bfloat16"),
        (False, (9, 0), False, "float32"),
    ],
)
def test_the_native_precision(
    has_cuda: bool, capability: tuple[int, int], has_instructions: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    assert native_precision() == expected


@pytest.mark.parametrize(("free", "fits"), [(360, False), (361, True), (1000, True), (10, False)])
def test_examples_stay_on_a_device_of_whose_free_memory_they_take_less_than_a_third(
    free: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten rows of two numbers and a target, of four bytes each."""
    examples = ExampleSet(torch.zeros(10, 2), torch.zeros(10, dtype=torch.int32))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    assert fits_on(CUDA, examples) == fits
    assert fits_on(CPU, examples)


@pytest.mark.parametrize("device", [CUDA, CPU])
def test_kernels_that_repeat_themselves_are_asked_for_on_a_cuda_device(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none with TF32: what 16-bit forms are held to runs in float32."""
    asked = SimpleNamespace(
        cudnn=SimpleNamespace(deterministic=False, allow_tf32=True),
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True)),
    )
    monkeypatch.setattr(placement.torch, "backends", asked)
    repeat_exactly(device)
    is_cuda = device == CUDA
    found = (asked.cudnn.deterministic, asked.cudnn.allow_tf32, asked.cuda.matmul.allow_tf32)
    assert found == (is_cuda, not is_cuda, not is_cuda)


def test_what_passes_may_take_of_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tenths of what is free or is held by PyTorch for nothing."""
    for name, value in (("mem_get_info", (1000, 5000)), ("memory_reserved", 700), ("memory_allocated", 200)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert allowed_bytes(CUDA, 4) == pytest.approx(0.9 * 1500)
    assert [rows_that_fit(size, CUDA) for size in (100.0, 1350.0, 1351.0, 1e9)] == [13, 1, 1, 1]


class Accelerate:
    """Stands in for accelerate and notes what it is asked for."""

    def __init__(self, places: dict[str, Any]) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._places = places

    def balanced(self, model: nn.Module, no_split_module_classes: list[str], low_zero: bool) -> dict[int, int]:
        self.asked.append(("balanced", model, no_split_module_classes, low_zero))
        return {0: 10, 1: 20}

    def infer(self, model: nn.Module, max_memory: object, no_split_module_classes: list[str]) -> dict[str, Any]:
        self.asked.append(("infer", model, max_memory, no_split_module_classes))
        return self._places

    def dispatch(self, model: nn.Module, places: dict[str, Any]) -> None:
        self.asked.append(("dispatch", model, places))


@pytest.fixture
def accelerate(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Accelerate]:
    def put(places: dict[str, Any]) -> Accelerate:
        found = Accelerate(places)
        parts = SimpleNamespace(dispatch_model=found.dispatch, infer_auto_device_map=found.infer)
        monkeypatch.setitem(sys.modules, "accelerate", parts)
        monkeypatch.setitem(sys.modules, "accelerate.utils", SimpleNamespace(get_balanced_memory=found.balanced))
        return found

    return put


@pytest.mark.parametrize(
    ("device_map", "low_zero"), [("balanced", False), ("auto", False), ("balanced_low_0", True), ("sequential", None)]
)
@pytest.mark.parametrize("unsplit", [["Block"], None])
def test_a_model_is_spread_as_accelerate_finds_best(
    device_map: str,
    low_zero: bool | None,
    unsplit: list[str] | None,
    accelerate: Callable[[dict[str, Any]], Accelerate],
) -> None:
    model, places = nn.Linear(2, 2), {"a": 0, "b": 1}
    model._no_split_modules = unsplit
    found, names = accelerate(places), unsplit or []
    spread_over_devices(model, device_map)
    memory = [] if low_zero is None else [("balanced", model, names, low_zero)]
    limits = None if low_zero is None else {0: 10, 1: 20}
    assert found.asked == [*memory, ("infer", model, limits, names), ("dispatch", model, places)]


def test_a_model_that_does_not_fit_on_the_devices_is_refused(
    accelerate: Callable[[dict[str, Any]], Accelerate],
) -> None:
    found = accelerate({"a": 0, "b": "disk"})
    with pytest.raises(TaskError, match=r"device_map='auto': the model does not fit.*Raise cluster\.gpus_per_actor"):
        spread_over_devices(nn.Linear(2, 2), "auto")
    assert [asked[0] for asked in found.asked] == ["balanced", "infer"]
    found = accelerate({"a": 0, "b": "cpu"})
    spread_over_devices(nn.Linear(2, 2), "auto")
    assert found.asked[-1][0] == "dispatch"


def test_a_device_map_takes_a_model_that_says_how_it_can_be_spread() -> None:
    model = nn.Linear(2, 2)
    check_device_map(None, model)
    with pytest.raises(ConfigError, match=r"ablation\.device_map='auto' has no effect on Linear"):
        check_device_map("auto", model)
    model._no_split_modules = ["Linear"]
    check_device_map("auto", model)
