"""Examples on the node's disk: the same bits as examples in memory, and the disk keeps what it has."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.placement import moved
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.row_value import Resampled, RowValues
from coar_dist.ablation.value import ZeroWeights
from coar_dist.components.discovery import discover
from coar_dist.tasks import mapped_examples, tensor_files
from coar_dist.tasks.mapped_examples import is_mapped, mapped
from coar_dist.tasks.task import Task
from tests.models import random_masks, small_task

PLAIN = small_task()


class InPlace(nn.Module):
    """Scales its input where it lies."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x.mul_(1.25))
        return out


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(mapped_examples, "LARGE_BYTES", 100)
    yield
    tensor_files.release_all()


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("mode", ["weights", "rows"])
@pytest.mark.parametrize("kind", ["plain", "in place", "resampled"])
def test_the_same_bits_as_in_memory(kind: str, mode: str) -> None:
    task = PLAIN if kind != "in place" else replace(PLAIN, model=InPlace(copy.deepcopy(PLAIN.model)))
    there = replace(task, examples=mapped(task.examples))
    assert is_mapped(there.examples)
    components = discover(task.model, "conv_filters")
    value = RowValues(components, source=Resampled(3, len(task.examples), True)) if kind == "resampled" else None
    masks = random_masks(5, components.num_components)
    found = []
    for each in (task, there):
        own: Task = copy.deepcopy(each)
        plan = EnginePlan(mode, 4, compiled=False, gradient_rows=4)
        value_of = value or ZeroWeights(components)
        engine = AblationEngine(own, components, "cpu", "float32", plan, value=value_of)
        gradients = engine.gate_gradients(masks[:2], (0, 7)) if kind == "plain" else None
        found.append((engine.margins(masks), engine.unablated().margins if mode == "weights" else 0.0, gradients))
        for _, tensor in engine.model.examples.tensors():
            is_there = tensor_files.file_of(tensor) is not None
            assert is_there == (each is there) or kind == "resampled"
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    if kind == "plain":
        np.testing.assert_array_equal(found[0][2].kept, found[1][2].kept)
    assert mapped(PLAIN.examples).fingerprint() == PLAIN.examples.fingerprint()
    again = mapped_examples.MappedExamples.of(there.examples).make()
    assert torch.equal(again.targets, PLAIN.examples.targets)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(again.tensors(), PLAIN.examples.tensors(), strict=True))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.preserve_format])
@pytest.mark.parametrize("shape", [(600, 3, 4, 5), (600, 7)])
def test_tensors_are_moved_in_pieces(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    tensor = torch.arange(np.prod(shape)).reshape(shape).to(torch.int32)
    there = moved(tensor, torch.device("meta"), layout)
    assert there.shape == tensor.shape
    expected = tensor.contiguous(memory_format=layout) if len(shape) == 4 and layout == torch.channels_last else tensor
    assert there.stride() == expected.stride()
    assert torch.equal(moved(tensor, torch.device("cpu"), layout), tensor)
