"""Logits that the output function does not read are not made: over a vocabulary they outweigh all activations."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from coar_dist.ablation.placement import modules_called
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.logits import logits_of
from coar_dist.tasks.outputs import OutputFunction
from coar_dist.tasks.task import by_keyword, call_model

_ARGUMENT = "logits_to_keep"
"""Of forward methods of transformers: how many of the last positions have logits, or which positions of each row."""


def with_logits_read_alone(
    model: nn.Module, examples: ExampleSet, output_function: OutputFunction, device: torch.device
) -> ExampleSet | None:
    """The examples with an input that asks for the logits that are read, and the targets that go with them.

    Args:
        model: in eval mode, on ``device``.
        examples: on any device.
        output_function: says which logits it reads.
        device: where the model takes its inputs.

    Returns:
        None where that is not known, where all are read, where the model makes no fewer, or where the examples say
        themselves which it is to make.
    """
    if output_function.reads is None or _ARGUMENT not in inspect.signature(model.forward).parameters:
        return None
    inputs = examples.inputs if isinstance(examples.inputs, dict) else by_keyword(model, (examples.inputs,))
    if _ARGUMENT in inputs:
        return None
    first = examples.rows(0, 1).map(lambda tensor: tensor.to(device, copy=True))
    with torch.no_grad(), modules_called():
        length = logits_of(call_model(model, first.inputs)).shape[1]
    positions, targets = output_function.reads(examples.targets)
    num_positions = positions.shape[1]
    if num_positions >= length:
        return None
    are_last = torch.equal(positions, _last(num_positions, length).to(positions.device).expand_as(positions))
    return ExampleSet({**inputs, _ARGUMENT: num_positions if are_last else positions}, targets, examples.columns)


def _last(num_positions: int, length: int) -> Tensor:
    return torch.arange(length - num_positions, length)
