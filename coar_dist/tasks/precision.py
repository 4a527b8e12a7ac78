"""The dtypes of inputs and weights: arrays are taken in the model's, tensors as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def in_precision_of(model: nn.Module, inputs: Any) -> Any:
    """Inputs whose arrays and data frames of floating point numbers are tensors of the dtype of the model's weights.

    Tensors stay as they are: who makes one chooses its dtype.

    Example:
        >>> in_precision_of(nn.Linear(3, 1), np.zeros((5, 3))).dtype
        torch.float32
    """
    dtype = _dtype_of(model) or torch.float32

    def taken(value: Any) -> Any:
        if hasattr(value, "to_numpy"):
            value = value.to_numpy()
        is_real = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return torch.from_numpy(value.copy()).to(dtype) if is_real else value

    return {name: taken(value) for name, value in inputs.items()} if isinstance(inputs, Mapping) else taken(inputs)


def other_dtypes(model: nn.Module, inputs: Mapping[str, Tensor]) -> str:
    """The way out where pixels or inputs have another dtype than the weights; nothing where they have not."""
    weights, are_pixels = _dtype_of(model), any(tensor.dtype == torch.uint8 for tensor in inputs.values())
    others = [name for name, t in inputs.items() if t.is_floating_point() and t.dtype != weights]
    said = ""
    if weights is not None and (others or are_pixels):
        said = f" (The model's weights are {weights}, which tensor.to({weights}) makes of the inputs.)"
    if are_pixels:
        said += " (task.model.input_mean and input_std let a model of the command line take uint8 pixels.)"
    return said


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    if not isinstance(model, nn.Module):  # which is said elsewhere
        return None
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
