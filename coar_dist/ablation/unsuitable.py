"""Models without attributions: an example's margin differs from pass to pass, or with who shares its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.errors import TaskError, in_one_line
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import call_model

_Margins: TypeAlias = Callable[[nn.Module, ExampleSet], Tensor]


def refuse_unrepeatable(
    first: NDArray[np.float64], again: NDArray[np.float64], tolerance: float, model_name: str
) -> None:
    """Refuse a model whose margins of two equal rounds of passes differ; NaN is equal to NaN.

    Args:
        first: (num_passes,) margins.
        again: margins of the same passes, run a second time.
        tolerance: in units of the margin.
        model_name: for the message.

    Raises:
        TaskError: they differ.
    """
    if np.allclose(again, first, rtol=0.0, atol=tolerance, equal_nan=True):
        return
    worst = _worst(first, again)
    raise TaskError(
        f"{model_name} gives different margins in two equal forward passes ({first[worst]:.9g} and "
        f"{again[worst]:.9g}): it is random in eval mode, or keeps a state. Take the randomness (dropout, noise) or "
        f"the state out."
    )


def refuse_mixed_rows(
    model: nn.Module, examples: ExampleSet, margins: _Margins, together: NDArray[np.float64], tolerance: float
) -> None:
    """Refuse a model in which an example's margin depends on the others of its batch: each is run alone.

    Args:
        model: in eval mode.
        examples: a few.
        margins: of a model and a batch of them.
        together: (num_examples,) margins of all of them in one pass.
        tolerance: in units of the margin.

    Raises:
        TaskError: a margin alone is another; the message names the layer that mixes rows.
    """
    try:
        alone = [float(margins(model, examples.rows(row, row + 1))) for row in range(len(examples))]
    except Exception as error:  # BatchNorm without statistics refuses a single value per channel
        raise TaskError(
            f"{type(model).__name__} fails on an example alone, and runs on {len(examples)} together: "
            f"{in_one_line(error)}. Each example must be a batch of its own (track_running_stats=True)."
        ) from error
    if np.allclose(alone, together, rtol=0.0, atol=tolerance, equal_nan=True):
        return
    worst = _worst(np.asarray(alone), together)
    raise TaskError(
        f"the margin of an example depends on the other examples of its batch ({alone[worst]:.9g} alone, "
        f"{together[worst]:.9g} with others): {_mixing_layer(model, examples)} mixes rows of a batch. "
        f"Give it statistics of its own (track_running_stats=True), or let the model take each example alone."
    )


def _worst(one: NDArray[np.float64], other: NDArray[np.float64]) -> int:
    """Where two rows of margins differ most; NaN against a number is more than any difference."""
    gaps = np.where(np.isnan(one) & np.isnan(other), 0.0, np.abs(one - other))
    return int(np.argmax(np.nan_to_num(gaps, nan=np.inf)))


def _mixing_layer(model: nn.Module, examples: ExampleSet) -> str:
    """The first module whose output for an example depends on the other examples of the batch, for a message."""
    together, alone = (_row_outputs(model, batch) for batch in (examples, examples.rows(0, 1)))
    for name, (inputs, output) in together.items():
        if name not in alone:
            continue
        inputs_agree = all(_agree(x, y) for x, y in zip(inputs, alone[name][0], strict=False))
        if inputs_agree and not _agree(output, alone[name][1]):
            kind = type(model.get_submodule(name)).__name__
            return f"{name or 'the model'} ({kind})"
    return f"the forward method of {type(model).__name__}"


def _row_outputs(model: nn.Module, batch: ExampleSet) -> dict[str, tuple[list[Tensor], Tensor]]:
    """Per module without children, in the order of the calls, its inputs and output for the first row."""
    found: dict[str, tuple[list[Tensor], Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim and len(output) == len(batch):
                found.setdefault(
                    name, ([x[:1].clone() for x in inputs if isinstance(x, Tensor) and x.ndim], output[:1].clone())
                )

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if not list(m.children())]
    try:
        with torch.no_grad():
            call_model(model, batch.map(torch.clone).inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5)
