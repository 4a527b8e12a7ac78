"""Where a margin or a gradient that is not finite comes from: the mask, the example and the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from coar_dist.ablation.prepared import PreparedModel
from coar_dist.errors import NonFiniteMarginError, counted
from coar_dist.store.gradients import GateGradients

_NAMED = 3
"""Ablated components that a message names, at most."""


def refuse_not_finite(
    margins: NDArray[np.float32], masks: NDArray[np.bool_], first_mask: int, first_example: int, model: PreparedModel
) -> NoReturn:
    """Say where margins that are not finite come from.

    Args:
        margins: (num_masks, n) float32.
        masks: (num_masks, num_components) bool, True = kept.
        first_mask: mask id of the first.
        first_example: example id of the first of the n.
        model: that the margins are of, without gates; two passes of it are run again.

    Raises:
        NonFiniteMarginError: always; the message names the mask, the example and the layer.
    """
    wrong = np.argwhere(~np.isfinite(margins))
    row, column = (int(index) for index in wrong[0])
    mask, example = masks[row], first_example + column
    layer = _first_layer(model, mask, example)
    if model.precision == "float32":
        way_out = (
            "The model itself is not finite without these components. Leave them out (components.exclude), leave out "
            "the example, or ablate fewer at a time (design.ablation_fraction)."
        )
    else:
        way_out = "Use ablation.precision=float32, or leave out the example."
    raise NonFiniteMarginError(
        f"the margin of example {example} under mask {first_mask + row} is {margins[row, column]} "
        f"({counted(len(wrong), 'such value')} in masks {first_mask}..{first_mask + len(masks) - 1}). The mask ablates "
        f"{_ablated(model, mask)}; {layer} gives the first value that is not finite. {way_out}"
    )


def refuse_gradients_not_finite(
    gradients_of: Callable[[NDArray[np.bool_]], GateGradients],
    masks: NDArray[np.bool_],
    first_mask: int,
    example: int,
    model: PreparedModel,
) -> NoReturn:
    """Say where gradients that are not finite come from, while the margins are.

    Args:
        gradients_of: from masks (num_masks, num_components) to the gate gradients of ``example`` alone.
        masks: (num_masks, num_components) bool, True = kept; under one of them such gradients were found.
        first_mask: mask id of the first.
        example: an example id.
        model: that the gradient passes run.

    Raises:
        NonFiniteMarginError: always; the message names the mask, the example and the layer.
    """
    components = model.value.components
    alone = (gradients_of(mask[None]) for mask in masks)
    wrong_of = (np.flatnonzero(~np.isfinite(one.kept[0] + one.ablated[0])) for one in alone)
    row, wrong = next(((row, wrong) for row, wrong in enumerate(wrong_of) if wrong.size), (None, None))
    if row is None or wrong is None:
        raise NonFiniteMarginError(
            f"the gradients of example {example} under masks {first_mask}..{first_mask + len(masks) - 1} were not "
            f"finite, and are when they are computed again: the device or its driver may be at fault."
        )
    nearest = components.name_of(int(wrong[-1]))  # to the cause: the last in the model
    raise NonFiniteMarginError(
        f"the gradients of {counted(wrong.size, 'component')} for example {example} under mask {first_mask + row} are "
        f"not finite, though the margin is. The mask ablates {_ablated(model, masks[row])}; the cause is behind "
        f"{nearest}, such as a square root or a norm of zero. Use estimator=coar, which needs no gradients, or leave "
        f"out the example."
    )


def _ablated(model: PreparedModel, mask: NDArray[np.bool_]) -> str:
    components, ablated = model.value.components, np.flatnonzero(~mask)
    if not ablated.size:
        return "nothing"
    names = ", ".join(components.name_of(int(component)) for component in ablated[:_NAMED])
    return f"{counted(ablated.size, 'component')} ({names}{', ...' if ablated.size > _NAMED else ''})"


def _first_layer(model: PreparedModel, mask: NDArray[np.bool_], example: int) -> str:
    """The first layer that gives what is not finite under the mask, and is finite without it; for a message."""
    batch = model.on_device(model.examples.rows(example, example + 1))
    masker = model.value.masker(model.module)
    with masker.ablated(np.ones_like(mask)):
        before = set(_not_finite(model.module, lambda: model.margins(model.module, batch)))
    with masker.ablated(mask):
        found = _not_finite(model.module, lambda: model.margins(model.module, batch))
    name = next((name for name in found if name not in before), None)
    if name is None:
        return (
            f"the output function {model.output_function.name!r}, or {type(model.module).__name__} outside its layers,"
        )
    return f"{name} ({type(model.module.get_submodule(name)).__name__})"


def _not_finite(module: nn.Module, run: Callable[[], object]) -> list[str]:
    """Names of the modules whose outputs are not finite, in the order in which they are done."""
    names: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                names.append(name)

        return hook

    handles = [each.register_forward_hook(watch(name)) for name, each in module.named_modules() if name]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return names
