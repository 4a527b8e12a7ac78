"""Recorded functions: which arguments are copied again before a replay. The device's recording is stood in for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from coar_dist.ablation import graphs
from coar_dist.ablation.graphs import RecordedFunction, Source
from coar_dist.tasks.example_set import ExampleSet


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Records a function whose replay computes it from the recording's own arguments, as a graph does."""

    @contextlib.contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    stream = SimpleNamespace(wait_stream=lambda _: None)
    fake = SimpleNamespace(
        device=nothing,
        Stream=lambda: stream,
        stream=nothing,
        current_stream=lambda: stream,
        empty_cache=lambda: None,
        CUDAGraph=SimpleNamespace,
        graph=nothing,
    )
    monkeypatch.setattr(graphs.torch, "cuda", fake)

    def record(function: Callable[..., Tensor], *arguments: Any) -> RecordedFunction:
        found = RecordedFunction(function, arguments)
        found._graph.replay = lambda: found._results.copy_(function(*found._arguments))
        return found

    return record


def copies(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call gives, and how many arguments it copied."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = call().clone()
    found = {event.key: event.count for event in profile.key_averages()}
    return result, found.get("aten::copy_", 0) - 2  # into the result, and into the clone


def test_examples_that_all_masks_share_are_copied_once(recorded: Callable[..., Any]) -> None:
    examples = ExampleSet(torch.randn(6, 3), torch.arange(6.0))
    first, other = examples.rows(0, 3), examples.rows(3, 6)
    call = recorded(lambda inputs, targets: inputs.sum(dim=1) + targets, first.inputs, first.targets)
    for batch, number in (
        (first, 2),
        (first, 0),
        (examples.rows(0, 3), 0),  # cut out again
        (other, 2),
        (first, 2),
    ):
        result, copied = copies(lambda batch=batch: call(batch.inputs, batch.targets))
        torch.testing.assert_close(result, batch.inputs.sum(dim=1) + batch.targets)
        assert copied == number
    assert isinstance(examples.inputs, Tensor)
    examples.inputs[0] += 1.0  # also in what the slice shows
    result, copied = copies(lambda: call(first.inputs, first.targets))
    torch.testing.assert_close(result, first.inputs.sum(dim=1) + first.targets)
    assert copied == 1


def test_constants_among_the_inputs_stay(recorded: Callable[..., Any]) -> None:
    """Inputs of language models say how many logits they want, and that nothing is cached."""

    def last(inputs: dict[str, Any], targets: Tensor) -> Tensor:
        assert inputs["use_cache"] is False
        return inputs["tokens"][:, -inputs["logits_to_keep"] :].sum(dim=1) + targets

    def batch(start: int) -> tuple[dict[str, Any], Tensor]:
        tokens = torch.arange(start, start + 8.0).reshape(2, 4)
        return {"logits_to_keep": 2, "use_cache": False, "tokens": tokens, "mask": None}, torch.zeros(2)

    call = recorded(last, *batch(0))
    for start in (0, 5):
        torch.testing.assert_close(call(*batch(start)), last(*batch(start)))


def test_what_a_function_changes_is_copied_every_time(recorded: Callable[..., Any]) -> None:
    given = torch.ones(3)
    call = recorded(lambda values: values.mul_(2.0).clone(), given)
    for _ in range(3):
        torch.testing.assert_close(call(given), torch.full((3,), 2.0))
    with torch.inference_mode():  # no account of changes is kept
        untold = torch.ones(3)
    call = recorded(lambda values: values * 2.0, given)
    call(untold)
    with torch.inference_mode():
        untold.fill_(5.0)
    torch.testing.assert_close(call(untold), torch.full((3,), 10.0))


def test_what_is_gone_is_never_the_same() -> None:
    """Another tensor at the address of one that is gone, of the same version, is not it."""
    values = torch.zeros(4)
    source = Source(values)
    assert source.is_still(values)
    address = values.data_ptr()
    array = values.numpy()
    del values
    again = torch.from_numpy(array)
    assert (again.data_ptr(), again._version) == (address, 0)
    assert not source.is_still(again)
    assert not source.is_still(again[:4])
