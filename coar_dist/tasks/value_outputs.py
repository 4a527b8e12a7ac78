"""Output functions of regressions, of binary and multi-label classifiers, and of one class or column."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from coar_dist.errors import TaskError
from coar_dist.tasks.logits import at_least_float32, logits_of


def value(outputs: Any, targets: Tensor) -> Tensor:
    """What a regression predicts.

    Args:
        outputs: (num_rows,) or (num_rows, 1), or model outputs that hold them as logits.
        targets: not read.

    Returns:
        (num_rows,) float32.
    """
    return at_least_float32(logits_of(outputs).reshape(len(targets)))


def squared_error(outputs: Any, targets: Tensor) -> Tensor:
    """A regression's squared error, the mean over its columns. It falls as the prediction gets better.

    Args:
        outputs: (num_rows,) or (num_rows, num_columns), or model outputs that hold them as logits.
        targets: (num_rows,) or (num_rows, num_columns).

    Returns:
        (num_rows,) float32, at least 0.
    """
    found, wanted = at_least_float32(logits_of(outputs)), at_least_float32(targets)
    return (found.reshape(len(wanted), -1) - wanted.reshape(len(wanted), -1)).square().mean(dim=1)


def label_margin(outputs: Any, targets: Tensor) -> Tensor:
    """Of a binary or multi-label classifier: the logits of labels that are there, less those of the others, in the mean
    over labels. For one label it is the log-odds of the right answer.

    Args:
        outputs: logits (num_rows,) or (num_rows, num_labels), one per label, or model outputs that hold them.
        targets: (num_rows,) or (num_rows, num_labels), each 0 or 1.

    Returns:
        (num_rows,) float32.

    Example:
        >>> label_margin(torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 0]])).tolist()
        [1.5]
    """
    logits = at_least_float32(logits_of(outputs)).reshape(len(targets), -1)
    return (logits * (2 * targets.reshape(len(targets), -1).float() - 1)).mean(dim=1)


def logit_of(outputs: Any, targets: Tensor, column: int) -> Tensor:
    """The logit of one class, whatever the target: ``logit:3``.

    Args:
        outputs: logits (num_rows, num_classes), or model outputs that hold them.
        targets: not read.
        column: the class.

    Returns:
        (num_rows,) float32.
    """
    return value_of(outputs, targets, column)


def value_of(outputs: Any, _targets: Tensor, column: int) -> Tensor:
    """One column of a regression's output: ``value:0``.

    Args:
        outputs: (num_rows, num_columns), or model outputs that hold them as logits.
        _targets: not read.
        column: which.

    Returns:
        (num_rows,) float32.
    """
    return at_least_float32(logits_of(outputs)[:, column])


def check_column(name: str, column: int, outputs: Any, _targets: Tensor) -> None:
    """Check that outputs have a column.

    Raises:
        TaskError: they do not.
    """
    found = logits_of(outputs)
    if found.ndim != 2 or column >= found.shape[1]:
        raise TaskError(
            f"task.output_function={name}: needs outputs (num_examples, num_columns > {column}), but the model gives "
            f"{tuple(found.shape)} for the first examples."
        )


def _check_one(outputs: Any, _targets: Tensor) -> None:
    found = logits_of(outputs)
    if found.numel() != len(found):
        raise TaskError(
            f"task.output_function=value: needs one output per example, but the model gives {tuple(found.shape)} for "
            f"the first examples. Name a column: value:0 .. value:{found.shape[-1] - 1}."
        )


def _check_same(name: str, outputs: Any, targets: Tensor) -> None:
    found = logits_of(outputs)
    one, other = found[0].numel(), targets[0].numel()
    if one != other:
        raise TaskError(
            f"task.output_function={name}: needs as many targets as outputs per example, but the model gives "
            f"{tuple(found.shape[1:])} and the targets are {tuple(targets.shape[1:])}."
        )
    if not bool(torch.isfinite(targets.float()).all()):
        raise TaskError(f"task.output_function={name}: targets are not finite. Leave out these examples.")


def _check_labels(outputs: Any, targets: Tensor) -> None:
    _check_same("label_margin", outputs, targets)
    wrong = ((targets != 0) & (targets != 1)).nonzero()
    if len(wrong):
        row = int(wrong[0][0])
        raise TaskError(
            f"task.output_function=label_margin: targets must be 0 or 1, but example {row} has {targets[row].tolist()}."
        )


VALUE_CHECKS: dict[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], None]] = {
    value: _check_one,
    squared_error: partial(_check_same, "squared_error"),
    label_margin: _check_labels,
}
"""The functions of this module that are registered by their names, with the checks of their targets."""
