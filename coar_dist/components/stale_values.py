"""What modules keep of earlier passes: values that are stale once weights change."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every module has: not the user's own."""


def kept_attributes(module: nn.Module) -> list[str]:
    """The attributes in which a module itself holds tensors that are no parameters or buffers."""
    return [name for name in sorted(vars(module).keys() - OF_MODULES) if tensors_in(vars(module)[name])]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that an attribute holds: itself, or those in its tuple, list or dictionary."""
    if isinstance(value, dict):
        value = list(value.values())
    values = value if isinstance(value, tuple | list) else [value]
    return [each for each in values if isinstance(each, Tensor) and not isinstance(each, nn.Parameter)]


def forget_as_in_training(model: nn.Module) -> None:
    """Empty what modules keep in eval mode and drop when they are set to training, as LeViT's attention biases.

    All modules are in the mode that they were in.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        if type(module).train is not nn.Module.train and kept_attributes(module):
            module.train()
    for module, training in modes:
        module.training = training
