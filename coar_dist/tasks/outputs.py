"""Output functions: from the model's outputs and the targets to one float per example.

To add one, write a function ``(outputs, targets) -> (num_rows,) float`` and name it in the config as
``task.output_function=my_module:my_function``, or pass it to ``coar_dist.attribute``:

    def log_likelihood(outputs, targets):
        return -torch.nn.functional.cross_entropy(outputs.float(), targets, reduction="none")
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coar_dist.errors import TaskError
from coar_dist.tasks.registry import resolve

Check = Callable[[Any, Tensor], None]
IGNORED_TOKEN = -100
"""Hugging Face's label of tokens that do not count."""


@dataclass(frozen=True)
class OutputFunction:
    """A named output function with the check of its targets.

    Attributes:
        name: the registered name, or ``module:function`` of a user's own.
        compute: ``(outputs, targets) -> (num_rows,)`` float tensor.
        check: ``(outputs of one example, targets of all examples)``; raises TaskError where they do not fit.
    """

    name: str
    compute: Callable[[Any, Tensor], Tensor]
    check: Check

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """``compute``."""
        return self.compute(outputs, targets)

    def identity(self) -> str:
        """The name; for a user's own function also the SHA-256 of its source."""
        if self.name in OUTPUT_FUNCTIONS:
            return self.name
        try:
            source = inspect.getsource(self.compute)
        except (OSError, TypeError):  # defined in an interactive session: the name has to do
            return self.name
        return f"{self.name} sha256:{hashlib.sha256(source.encode()).hexdigest()}"


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


def margin(outputs: Any, targets: Tensor) -> Tensor:
    """Correct-class margin: the target's logit minus the largest other logit (Shah et al. 2024, section 2).

    Args:
        outputs: logits (num_rows, num_classes), or model outputs that hold them.
        targets: (num_rows,) int64 class labels.

    Returns:
        (num_rows,) float32.
    """
    return _class_margins(logits_of(outputs), targets)


def next_token_margin(outputs: Any, targets: Tensor) -> Tensor:
    """Mean over next tokens of the correct token's margin: the research code's output for language models.

    Args:
        outputs: logits (num_rows, length, vocabulary), or model outputs that hold them; position t predicts t + 1.
        targets: (num_rows, length) int64 token ids; -100 where a token is padding and does not count.

    Returns:
        (num_rows,) float32.
    """
    logits = logits_of(outputs)
    next_tokens = targets[:, 1:]
    counted = next_tokens != IGNORED_TOKEN
    # Row by row: the float32 work space is one row's logits, not a second batch of them.
    margins = torch.stack(
        [_class_margins(row[:-1], tokens.clamp(min=0)) for row, tokens in zip(logits, next_tokens, strict=True)]
    )
    return (margins * counted).sum(dim=1) / counted.sum(dim=1)


def _class_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Margins (num_rows,) float32 of logits (num_rows, num_classes)."""
    best = logits.topk(2, dim=1)
    largest_other = torch.where(best.indices[:, 0] == labels, best.values[:, 1], best.values[:, 0])
    return logits.gather(1, labels.long().unsqueeze(1)).squeeze(1).float() - largest_other.float()


def _check_class_labels(outputs: Any, targets: Tensor) -> None:
    logits = logits_of(outputs)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise TaskError(
            f"margin needs logits of shape (num_examples, num_classes >= 2), but the model gives "
            f"{tuple(logits.shape)} for one example."
        )
    if targets.ndim != 1 or targets.is_floating_point():
        raise TaskError(
            f"margin needs integer class labels of shape (num_examples,), but targets are {targets.dtype} of "
            f"shape {tuple(targets.shape)}."
        )
    outside = torch.nonzero((targets < 0) | (targets >= logits.shape[1])).reshape(-1)
    if len(outside):
        first = int(outside[0])
        raise TaskError(
            f"targets of {len(outside)} examples are outside the model's classes 0..{logits.shape[1] - 1}: "
            f"example {first} has target {int(targets[first])}. Correct or leave out these examples."
        )


def _check_next_tokens(outputs: Any, targets: Tensor) -> None:
    logits = logits_of(outputs)
    if logits.ndim != 3 or targets.ndim != 2 or logits.shape[1] != targets.shape[1] or targets.is_floating_point():
        raise TaskError(
            f"next_token_margin needs logits (num_examples, length, vocabulary) and integer targets (num_examples, "
            f"length), but the model gives {tuple(logits.shape)} for one example and targets are {targets.dtype} of "
            f"shape {tuple(targets.shape)}."
        )
    counted = targets[:, 1:] != IGNORED_TOKEN
    outside = counted & ((targets[:, 1:] < 0) | (targets[:, 1:] >= logits.shape[2]))
    wrong = torch.nonzero(outside.any(dim=1) | ~counted.any(dim=1)).reshape(-1)
    if len(wrong):
        raise TaskError(
            f"targets of {len(wrong)} examples have no next token, or one outside the vocabulary "
            f"0..{logits.shape[2] - 1} ({IGNORED_TOKEN} marks padding): examples {wrong[:10].tolist()}."
        )


OUTPUT_FUNCTIONS: dict[str, OutputFunction] = {
    "margin": OutputFunction("margin", margin, _check_class_labels),
    "next_token_margin": OutputFunction("next_token_margin", next_token_margin, _check_next_tokens),
}


def output_function(function: str | Callable[[Any, Tensor], Tensor]) -> OutputFunction:
    """The output function of a registered name, of ``module:function``, or of a callable.

    Raises:
        ConfigError: there is no such function.
    """
    if isinstance(function, str):
        if function in OUTPUT_FUNCTIONS:
            return OUTPUT_FUNCTIONS[function]
        return OutputFunction(function, resolve("task.output_function", function, OUTPUT_FUNCTIONS), _no_check)
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    return OutputFunction(name, function, _no_check)


def _no_check(outputs: Any, targets: Tensor) -> None:
    """A user's own output function knows its targets itself."""
