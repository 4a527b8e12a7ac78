"""Modules that keep what they compute from their weights: stale once a mask changes these.

LeViT, EfficientFormer and TinyViT, for example, look their attention biases up in a table of weights at the first pass
in eval mode, and read what they found in every later one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker
from coar_dist.components.stale_values import kept_attributes, tensors_in


def forget_between_passes(model: nn.Module, components: ComponentIndex, margins: Callable[[], Tensor]) -> list[str]:
    """Let a module empty, before each of its passes, the attributes in which it keeps values of ablated weights.

    An attribute is emptied where the model fills it again with the same margins, and with other values once all
    components are zero. Tables that depend on no such weight, as of positions, stay.

    Args:
        model: in eval mode; it gets hooks.
        components: the component index.
        margins: runs the model.

    Returns:
        The attributes that are emptied, ``Class.attribute``.
    """
    kept = margins()  # fills what was empty
    found: dict[tuple[type[nn.Module], str], list[nn.Module]] = {}
    for module in model.modules():
        for attribute in kept_attributes(module):
            found.setdefault((type(module), attribute), []).append(module)
    forgotten = []
    for (kind, attribute), modules in found.items():
        if _holds_weights(model, components, margins, kept, attribute, modules):
            for module in modules:
                module.register_forward_pre_hook(partial(_empty, attribute))
            forgotten.append(f"{kind.__name__}.{attribute}")
    return forgotten


def _holds_weights(
    model: nn.Module,
    components: ComponentIndex,
    margins: Callable[[], Tensor],
    kept: Tensor,
    attribute: str,
    modules: list[nn.Module],
) -> bool:
    before = [getattr(module, attribute) for module in modules]
    try:
        for module in modules:
            _empty(attribute, module)
        if not torch.allclose(margins(), kept, rtol=1e-5, atol=1e-6, equal_nan=True):
            return False
        filled = [tensors_in(getattr(module, attribute)) for module in modules]
        for module in modules:
            _empty(attribute, module)
        none: NDArray[np.bool_] = np.zeros(components.num_components, np.bool_)
        with WeightMasker(model, components).ablated(none):
            margins()
        zeroed = [tensors_in(getattr(module, attribute)) for module in modules]
        return any(not _equal(one, other) for one, other in zip(filled, zeroed, strict=True))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the model needs what was emptied
        return False
    finally:
        for module, value in zip(modules, before, strict=True):
            setattr(module, attribute, value)


def _empty(attribute: str, module: nn.Module, *_: Any) -> None:
    setattr(module, attribute, {} if isinstance(getattr(module, attribute), dict) else None)


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        x.shape == y.shape and torch.allclose(x.float(), y.float(), rtol=0, atol=0, equal_nan=True)
        for x, y in zip(one, other, strict=True)
    )
