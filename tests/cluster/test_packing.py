"""Values on their way to other processes: the same there, each process with weights of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coar_dist.cluster.packing import packed
from coar_dist.errors import NotOnThisNodeError
from coar_dist.tasks import mapped_examples, tensor_files
from coar_dist.tasks.elsewhere import ModelOrigin, weights_of, with_origin, without_weights
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.mapped_examples import is_mapped
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import randomise


class Tied(nn.Module):
    """Two layers of one weight, and a buffer that is a view of another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.rows = torch.arange(40.0).reshape(10, 4)
        self.register_buffer("row", self.rows[3])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.two(self.one(x)) + self.row
        return y


def tied() -> nn.Module:
    return randomise(Tied(), seed=4)


def frozen(value: Any, whole: bool = False) -> Any:
    """As Ray hands it over: arrays that nobody may write to."""
    sent = packed(value, whole)
    for array in (sent.content, *sent.arrays):
        array.flags.writeable = False
    return sent.value()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int8])
def test_tensors_come_as_they_were_and_may_be_written_to(dtype: torch.dtype) -> None:
    values = (torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2).to(dtype)
    for tensor in (values, values.t(), values[2:, 1:3], values[:0], nn.Parameter(values.float(), False)):
        there = frozen(tensor)
        assert torch.equal(there, tensor)
        assert (there.dtype, there.stride(), type(there)) == (tensor.dtype, tensor.stride(), type(tensor))
        there.zero_()
    assert values.any()


def test_a_model_keeps_its_ties_and_nothing_is_shared_with_the_original() -> None:
    model = tied()
    there = frozen({"model": model, "again": model})
    assert there["again"] is there["model"]
    assert there["model"].one.weight is there["model"].two.weight
    assert weights_of(there["model"]) == weights_of(model)
    there["model"].rows[3] += 1.0
    assert torch.equal(there["model"].row, model.row + 1.0)
    with torch.no_grad():
        there["model"].one.weight.zero_()
    assert weights_of(model) == weights_of(tied())


def test_arrays_travel_outside_the_pickle() -> None:
    model = nn.Linear(300, 300)
    sent = packed({"model": model, "array": np.arange(10_000)})
    assert len(sent.content) < 5000
    assert sorted(len(array) for array in sent.arrays) == [1200, 80_000, 360_000]


def test_a_model_that_was_built_from_a_configuration_is_built_again() -> None:
    model = tied()
    task = Task(model, ExampleSet(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)), output_function("margin"))
    with_origin(task.model, ModelOrigin(tied, weights_of(task.model)))
    sent = packed(task)
    assert sum(len(array) for array in sent.arrays) < 100  # examples alone
    assert weights_of(sent.value().model) == weights_of(model)
    assert task.identity() == frozen(task).identity()


def test_one_that_has_no_weights_here_is_built_here_where_it_must_be_sent() -> None:
    model = tied()
    twin = with_origin(without_weights(model), ModelOrigin(tied, weights_of(model), (0.5, -1.25)))
    task = Task(twin, ExampleSet(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)), output_function("margin"))
    assert task.check() == [0.5, -1.25]
    for whole in (False, True):
        there = frozen(task, whole).model
        assert weights_of(there) == weights_of(model)
        assert not any(tensor.is_meta for tensor in there.parameters())


def test_a_model_that_cannot_be_built_there_is_sent() -> None:
    def elsewhere() -> nn.Module:
        return randomise(Tied(), seed=5)

    model = with_origin(tied(), ModelOrigin(elsewhere, weights_of(tied())))
    with pytest.raises(NotOnThisNodeError, match="other weights"):
        packed([model]).value()
    (there,) = frozen([model], whole=True)
    assert weights_of(there) == weights_of(model)


def test_large_examples_are_found_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(mapped_examples, "LARGE_BYTES", 1000)
    pixels = torch.randint(0, 256, (40, 3, 6, 6), dtype=torch.uint8)
    examples = ExampleSet(pixels, torch.arange(40), {"name": np.arange(40)})
    sent, whole = packed(examples), packed(examples, whole=True)
    assert sum(len(array) for array in sent.arrays) == 320  # the column
    assert sum(len(array) for array in whole.arrays) == 320 + pixels.numel() + 320
    there = sent.value()
    assert is_mapped(there)
    assert there.fingerprint() == examples.fingerprint()
    tensor_files.release_all()
    with pytest.raises(NotOnThisNodeError, match="given in memory"):
        sent.value()
    assert whole.value().fingerprint() == examples.fingerprint()
    tensor_files.release_all()
