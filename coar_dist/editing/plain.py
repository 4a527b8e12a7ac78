"""Outputs of a model as it is: nothing folded, compiled or ablated, in the model's own precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from coar_dist.errors import NonFiniteMarginError
from coar_dist.tasks.logits import predicted_classes
from coar_dist.tasks.task import Task, call_model

_ROWS, _MOST_VALUES = 256, 1 << 28
"""Rows of one forward pass, and values in one of its outputs (1 GiB in float32), at most. How many rows that is depends
on the task alone, because the last bits of a float32 sum may depend on it."""


@torch.no_grad()
def plain_outputs(
    task: Task, device: torch.device | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Outputs and predictions of all examples.

    Args:
        task: its model is in eval mode, and perhaps on a GPU, meanwhile.
        device: where it is run; None is a GPU, where this process sees one.

    Returns:
        The output function's values (num_examples,) float32, and predicted classes (num_examples,) int64; None where
        targets are not class labels.

    Raises:
        NonFiniteMarginError: a value is NaN or infinite.
    """
    model, was_training = task.model, task.model.training
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device is None and torch.cuda.is_available() and not hasattr(model, "hf_device_map"):
        device = torch.device("cuda")
    device = device or home
    values: list[Tensor] = []
    predictions: list[Tensor] = []
    examples = task.examples.without_columns()
    try:
        if device != home:
            model.to(device)
        model.eval()
        num_rows = _num_rows(call_model(model, examples.rows(0, 1).map(lambda tensor: tensor.to(device)).inputs))
        for start in range(0, len(examples), num_rows):
            batch = examples.rows(start, start + num_rows).map(lambda tensor: tensor.to(device))
            outputs = call_model(model, batch.inputs)
            values.append(task.output_function(outputs, batch.targets).float().cpu())
            predicted = None if batch.targets.is_floating_point() else predicted_classes(outputs, batch.targets)
            if predicted is not None:
                predictions.append(predicted.cpu())
    finally:
        model.train(was_training)
        if device != home:  # it goes to actors from here, which may have no GPU
            model.to(home)
    margins = torch.cat(values).numpy()
    wrong = np.flatnonzero(~np.isfinite(margins))
    if wrong.size:
        raise NonFiniteMarginError(
            f"outputs of {wrong.size} examples are not finite: example {wrong[0]} has {margins[wrong[0]]}. "
            f"Correct the inputs or the checkpoint, or leave these examples out."
        )
    return margins, torch.cat(predictions).numpy() if predictions else None


def _num_rows(outputs: Any) -> int:
    """Rows of a forward pass, from the outputs for one example."""
    largest = max((leaf.numel() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)), default=1)
    return max(min(_ROWS, _MOST_VALUES // max(largest, 1)), 1)
