"""Logits among a model's outputs, and the classes that they predict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coar_dist.errors import TaskError


def logits_of(outputs: Any) -> Tensor:
    """The logits of a model's outputs: the tensor itself, its ``logits`` field, or the first of a tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    if hasattr(outputs, "logits"):
        return outputs.logits  # type: ignore[no-any-return]
    if isinstance(outputs, (tuple, list)) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise TaskError(
        f"the model returns {type(outputs).__name__}: expected a tensor of logits, an object with .logits, or a "
        f"tuple that starts with the logits. Write an output function for it (task.output_function=module:function)."
    )


def at_least_float32(outputs: Tensor) -> Tensor:
    """Outputs in float32, and float64 ones as they are, whose small differences float32 would round off."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def predicted_classes(outputs: Any, targets: Tensor) -> Tensor | None:
    """Predicted classes (num_rows,) int64; None where outputs hold no logits (num_rows, num_classes >= 2), or targets
    are no class labels: not one integer per row."""
    if not isinstance(outputs, Tensor) and not hasattr(outputs, "logits"):
        return None
    logits = logits_of(outputs)
    are_classes = targets.ndim == 1 and not targets.is_floating_point()
    return logits.argmax(dim=1) if logits.ndim == 2 and logits.shape[1] > 1 and are_classes else None
