"""Models without attributions: an example's margin differs from pass to pass, or with who shares its batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.rounding import in_float64
from coar_dist.errors import TaskError, in_one_line
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import call_model

_Margins: TypeAlias = Callable[[nn.Module, ExampleSet], Tensor]
_RELATIVE, _RELATIVE_IN_FLOAT64 = 1e-3, 1e-7
"""Share of a layer's output for an example that other examples change by rounding."""
_SHARE_IN_FLOAT64 = 1 / 6
"""Of the doubtful difference, which is left in float64: a model may make some sums in float32 nevertheless."""
_BLIND = 30.0
"""Margins whose rounding is so many times that of numbers of their size are looked at in float64."""
_log = logging.getLogger(__name__)


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
    gaps = _gaps(first, again)
    if (gaps <= tolerance).all():
        return
    worst = int(np.argmax(gaps))
    raise TaskError(
        f"{model_name} gives different margins in two equal forward passes ({first[worst]:.9g} and "
        f"{again[worst]:.9g}): it is random in eval mode, or keeps a state. Take the randomness (dropout, noise) or "
        f"the state out."
    )


def refuse_mixed_rows(
    model: nn.Module,
    examples: ExampleSet,
    margins: _Margins,
    together: NDArray[np.float64],
    *,
    doubtful: float,
    allowed: float,
) -> NDArray[np.float64]:
    """Refuse a model in which an example's margin depends on the others of its batch: each is run alone.

    Kernels sum in another order for another number of rows. A difference that may be such rounding is looked at once
    more in float64, where rounding is nothing and what mixes rows stays; so are margins whose rounding would hide it.

    Args:
        model: in eval mode.
        examples: a few.
        margins: of a model and a batch of them.
        together: (num_examples,) margins of all of them in one pass.
        doubtful: a smaller difference is taken for rounding, in units of the margin.
        allowed: a smaller one is, where the model does not run in float64.

    Returns:
        (num_examples,) differences of the margins, by rounding alone.

    Raises:
        TaskError: a margin alone is another; the message names the layer that mixes rows.
    """
    try:
        alone = _alone(model, examples, margins)
    except Exception as error:  # BatchNorm without statistics refuses a single value per channel
        raise TaskError(
            f"{type(model).__name__} fails on an example alone, and runs on {len(examples)} together: "
            f"{in_one_line(error)}. Each example must be a batch of its own (track_running_stats=True)."
        ) from error
    gaps = _gaps(alone, together)
    if (gaps <= doubtful).all() and allowed <= _BLIND * doubtful:
        return gaps
    try:
        looked_at, few = in_float64(model, examples)
        exact_gaps = _gaps(_alone(looked_at, few, margins), margins(looked_at, few).cpu().numpy())
    except Exception as error:  # a model may not be copied, or be written for one dtype
        _log.info("whether rows of a batch are mixed is not looked at in float64: %s", in_one_line(error))
        looked_at, few, tolerance = model, examples, _RELATIVE
        mixes = bool((gaps > allowed).any())
    else:
        tolerance = _RELATIVE_IN_FLOAT64
        mixes = bool((exact_gaps > _SHARE_IN_FLOAT64 * doubtful).any() or np.isinf(gaps).any())
    if not mixes:
        return gaps
    layer = _mixing_layer(looked_at, few, tolerance)
    worst = int(np.argmax(gaps))
    raise TaskError(
        f"the margin of an example depends on the other examples of its batch ({alone[worst]:.9g} alone, "
        f"{together[worst]:.9g} with others): {layer} mixes rows of a batch. "
        f"Give it statistics of its own (track_running_stats=True), or let the model take each example alone."
    )


def _alone(model: nn.Module, examples: ExampleSet, margins: _Margins) -> NDArray[np.float64]:
    return np.asarray([float(margins(model, examples.rows(row, row + 1))) for row in range(len(examples))])


def _gaps(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Differences of margins; two NaN have none, and NaN against a number is more than any."""
    same = (one == other) | np.isnan(one) & np.isnan(other)
    return np.where(same, 0.0, np.nan_to_num(np.abs(one - other), nan=np.inf))


def _mixing_layer(model: nn.Module, examples: ExampleSet, tolerance: float) -> str:
    """The first module whose output for an example depends on the other examples of the batch, for a message.

    Args:
        model: of which modules without children are looked at.
        examples: a few.
        tolerance: share of an output that counts as rounding.
    """
    together, alone = (_row_outputs(model, batch) for batch in (examples, examples.rows(0, 1)))
    for name, (inputs, output) in together.items():
        if name not in alone:
            continue
        inputs_agree = all(_agree(x, y, tolerance) for x, y in zip(inputs, alone[name][0], strict=False))
        if inputs_agree and not _agree(output, alone[name][1], tolerance):
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


def _agree(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return one.shape == other.shape and torch.allclose(
        one.double(), other.double(), rtol=tolerance, atol=tolerance / 100
    )
