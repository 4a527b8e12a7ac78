"""Output functions: from the model's outputs and the targets to one float per example.

To add one, write a function ``(outputs, targets) -> (num_rows,) float`` and name it in the config as
``task.output_function=my_module:my_function``, or pass it to ``coar_dist.attribute``:

    def log_likelihood(outputs, targets):
        return -torch.nn.functional.cross_entropy(outputs.float(), targets, reduction="none")

A function of a language model's logits may say which of them it reads, as the attribute ``reads`` (see ``Reads``): a
model that takes ``logits_to_keep`` then makes no others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coar_dist.config.function_identity import identity_of
from coar_dist.config.functions import name_of, resolve
from coar_dist.errors import ConfigError, TaskError, counted
from coar_dist.tasks.logits import at_least_float32, logits_of
from coar_dist.tasks.value_outputs import VALUE_CHECKS, check_column, logit_of, value_of

Check = Callable[[Any, Tensor], None]
Reads = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the targets of all examples to the positions of the logits (num_examples, length, vocabulary) that are read,
(num_examples, num_positions) int64, and to the targets that go with logits (num_examples, num_positions, vocabulary)
of these positions alone."""
IGNORED_TOKEN = -100
"""Hugging Face's label of tokens that do not count."""
_LOGITS_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Logits that the margins of a language model are found from at a time: enough to fill the device."""


@dataclass(frozen=True)
class OutputFunction:
    """A named output function with the check of its targets.

    Attributes:
        name: the registered name, or ``module:function`` of a user's own.
        compute: ``(outputs, targets) -> (num_rows,)`` float tensor.
        check: ``(outputs of one example, targets of all examples)``; raises TaskError where they do not fit.
        reads: which logits it reads, of a language model's; None: any.
    """

    name: str
    compute: Callable[[Any, Tensor], Tensor]
    check: Check
    reads: Reads | None = None

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """``compute``."""
        return self.compute(outputs, targets)

    def identity(self) -> str:
        """The name; for a user's own function also the SHA-256 of what it does."""
        if self.name in OUTPUT_FUNCTIONS or self.name.partition(":")[0] in _OF_COLUMNS:
            return self.name
        return identity_of(self.name, self.compute)


def margin(outputs: Any, targets: Tensor) -> Tensor:
    """Correct-class margin: the target's logit minus the largest other logit (Shah et al. 2024, section 2).

    Args:
        outputs: logits (num_rows, num_classes), or model outputs that hold them.
        targets: (num_rows,) int64 class labels.

    Returns:
        (num_rows,) float32.
    """
    return _class_margins(logits_of(outputs), targets)


def logsumexp_margin(outputs: Any, targets: Tensor) -> Tensor:
    """The target's logit minus the log-sum-exp of all others: the log-odds ``log(p / (1 - p))`` of the target.

    Smooth where ``margin`` switches from one runner-up to another; the output of TRAK (Park et al. 2023, section 3).

    Args:
        outputs: logits (num_rows, num_classes), or model outputs that hold them.
        targets: (num_rows,) int64 class labels.

    Returns:
        (num_rows,) float32.
    """
    logits, labels = at_least_float32(logits_of(outputs)), targets.long().unsqueeze(1)
    others = logits.scatter(1, labels, float("-inf")).logsumexp(dim=1)
    return logits.gather(1, labels).squeeze(1) - others


def logit(outputs: Any, targets: Tensor) -> Tensor:
    """The target's logit alone, with no regard to other classes.

    Args:
        outputs: logits (num_rows, num_classes), or model outputs that hold them.
        targets: (num_rows,) int64 class labels.

    Returns:
        (num_rows,) float32.
    """
    return at_least_float32(logits_of(outputs).gather(1, targets.long().unsqueeze(1)).squeeze(1))


def loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy ``-log p`` of the target, in nats. It falls as the prediction gets better, unlike the margins:
    components with a negative weight are those that the prediction needs.

    Args:
        outputs: logits (num_rows, num_classes), or model outputs that hold them.
        targets: (num_rows,) int64 class labels.

    Returns:
        (num_rows,) float32, at least 0.
    """
    return functional.cross_entropy(at_least_float32(logits_of(outputs)), targets.long(), reduction="none")


def answer_token_margin(outputs: Any, targets: Tensor) -> Tensor:
    """The answer token's logit minus the largest alternative's, where a prompt ends: of yes-or-no questions, or the
    logit difference of indirect-object identification (Wang et al. 2022, section 2).

    Args:
        outputs: logits (num_rows, length, vocabulary), or model outputs that hold them.
        targets: (num_rows, 2 + num_alternatives) int64: position of the prompt's last token, the answer's token id,
            the alternatives' token ids.

    Returns:
        (num_rows,) float32.
    """
    logits = logits_of(outputs)
    at_the_end = logits[torch.arange(len(targets), device=logits.device), targets[:, 0]]
    answers = at_least_float32(at_the_end.gather(1, targets[:, 1:]))
    return answers[:, 0] - answers[:, 1:].amax(dim=1)


def answer_probability_difference(outputs: Any, targets: Tensor) -> Tensor:
    """The probability of all right answers less that of all wrong ones, where a prompt ends: of greater-than (Hanna et
    al. 2023, section 2).

    Args:
        outputs: logits (num_rows, length, vocabulary), or model outputs that hold them.
        targets: (num_rows, 2 + num_answers) int64: position of the prompt's last token, how many of the answers are
            right, the answers' token ids, the right ones first.

    Returns:
        (num_rows,) float32 from -1 to 1.
    """
    logits = logits_of(outputs)
    at_the_end = logits[torch.arange(len(targets), device=logits.device), targets[:, 0]]
    probabilities = at_least_float32(at_the_end).softmax(dim=1).gather(1, targets[:, 2:])
    is_right = torch.arange(probabilities.shape[1], device=targets.device) < targets[:, 1:2]
    return torch.where(is_right, probabilities, -probabilities).sum(dim=1)


def _ends_of_prompts(targets: Tensor) -> tuple[Tensor, Tensor]:
    """What output functions of answers read."""
    return targets[:, :1], torch.cat([torch.zeros_like(targets[:, :1]), targets[:, 1:]], dim=1)


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
    # A few rows at a time: the work space is not a second batch of logits. The last position, which predicts nothing,
    # is computed and left out: without it the logits would be copied.
    most = _LOGITS_AT_ONCE["cuda" if logits.device.type == "cuda" else "cpu"]
    num_rows = max(most // (logits.shape[1] * logits.shape[2]), 1)
    labels = targets.clamp(min=0).roll(-1, dims=1)
    parts = []
    for start in range(0, len(logits), num_rows):
        rows = slice(start, start + num_rows)
        parts.append(_class_margins(logits[rows].flatten(0, 1), labels[rows].flatten()))
    margins = torch.cat(parts).reshape(targets.shape)[:, :-1]
    return (margins * counted).sum(dim=1) / counted.sum(dim=1)


def _next_tokens(targets: Tensor) -> tuple[Tensor, Tensor]:
    """What ``next_token_margin`` reads, and one position more: of the last it reads none."""
    next_tokens = targets[:, 1:]
    counted = next_tokens != IGNORED_TOKEN
    # Positions that count come first, in their order; a row with fewer than others is filled up.
    positions = counted.int().argsort(dim=1, descending=True, stable=True)[:, : int(counted.sum(dim=1).max())]
    kept = next_tokens.gather(1, positions)
    last, first = torch.full_like(positions[:, :1], targets.shape[1] - 1), torch.zeros_like(kept[:, :1])
    return torch.cat([positions, last], dim=1), torch.cat([first, kept], dim=1)


def _class_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Margins (num_rows,) float32 of logits (num_rows, num_classes)."""
    best = logits.topk(2, dim=1)
    largest_other = torch.where(best.indices[:, 0] == labels, best.values[:, 1], best.values[:, 0])
    own = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    return at_least_float32(own) - at_least_float32(largest_other)


def _check_class_labels(name: str, outputs: Any, targets: Tensor) -> None:
    logits = logits_of(outputs)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise TaskError(
            f"{name} needs logits of shape (num_examples, num_classes >= 2), but the model gives {tuple(logits.shape)}."
            + (" For a language model use answer_token_margin or next_token_margin." if logits.ndim == 3 else "")
            + (" For one number an example use value or squared_error." if logits.shape[1:] == (1,) else "")
        )
    if targets.ndim != 1 or targets.is_floating_point():
        raise TaskError(
            f"{name} needs integer class labels of shape (num_examples,), but targets are {targets.dtype} of "
            f"shape {tuple(targets.shape)}. Give labels.long(); for a regression, task.output_function=value."
        )
    outside = torch.nonzero((targets < 0) | (targets >= logits.shape[1])).reshape(-1)
    if len(outside):
        first = int(outside[0])
        raise TaskError(
            f"targets of {counted(len(outside), 'example')} are outside the model's classes 0..{logits.shape[1] - 1}: "
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
    is_counted = targets[:, 1:] != IGNORED_TOKEN
    outside = is_counted & ((targets[:, 1:] < 0) | (targets[:, 1:] >= logits.shape[2]))
    wrong = torch.nonzero(outside.any(dim=1) | ~is_counted.any(dim=1)).reshape(-1)
    if len(wrong):
        raise TaskError(
            f"targets of {counted(len(wrong), 'example')} have no next token, or one outside the vocabulary "
            f"0..{logits.shape[2] - 1} ({IGNORED_TOKEN} marks padding): examples {wrong[:10].tolist()}."
        )


def _check_answers(outputs: Any, targets: Tensor) -> None:
    logits = logits_of(outputs)
    if logits.ndim != 3 or targets.ndim != 2 or targets.shape[1] < 3 or targets.is_floating_point():
        raise TaskError(
            f"answer_token_margin needs logits (num_examples, length, vocabulary) and integer targets (num_examples, "
            f"2 + num_alternatives >= 3), of the position of the prompt's last token, the answer's token id and the "
            f"alternatives'. The model gives {tuple(logits.shape)} for one example and targets are {targets.dtype} of "
            f"shape {tuple(targets.shape)}."
        )
    answers, alternatives = targets[:, 1], targets[:, 2:]
    is_among = (alternatives == answers[:, None]).any(dim=1)
    _check_ends(logits, targets, targets[:, 1:], ("the answer among its alternatives", is_among))


def _check_answer_sets(outputs: Any, targets: Tensor) -> None:
    logits = logits_of(outputs)
    if logits.ndim != 3 or targets.ndim != 2 or targets.shape[1] < 4 or targets.is_floating_point():
        raise TaskError(
            f"answer_probability_difference needs logits (num_examples, length, vocabulary) and integer targets "
            f"(num_examples, 2 + num_answers >= 4), of the position of the prompt's last token, the number of right "
            f"answers and the answers' token ids, the right ones first. The model gives {tuple(logits.shape)} for one "
            f"example and targets are {targets.dtype} of shape {tuple(targets.shape)}."
        )
    num_right, answers = targets[:, 1], targets[:, 2:]
    is_twice = (answers.sort(dim=1).values.diff(dim=1) == 0).any(dim=1)
    is_no_number = (num_right < 1) | (num_right >= answers.shape[1])
    what = f"a number of right answers outside 1..{answers.shape[1] - 1}"
    _check_ends(logits, targets, answers, (what, is_no_number), ("an answer twice", is_twice))


def _check_ends(logits: Tensor, targets: Tensor, tokens: Tensor, *others: tuple[str, Tensor]) -> None:
    """Refuse positions, tokens and whatever else is wrong, (num_examples,) bool each, by the first example."""
    positions = targets[:, 0]
    is_no_token = ((tokens < 0) | (tokens >= logits.shape[2])).any(dim=1)
    for what, is_wrong in [
        (f"a position outside 0..{logits.shape[1] - 1}", (positions < 0) | (positions >= logits.shape[1])),
        (f"a token outside the vocabulary 0..{logits.shape[2] - 1}", is_no_token),
        *others,
    ]:
        wrong = torch.nonzero(is_wrong).reshape(-1)
        if len(wrong):
            raise TaskError(
                f"targets of {counted(len(wrong), 'example')} have {what}: example {int(wrong[0])} has "
                f"{targets[wrong[0]].tolist()}. Correct or leave out these examples."
            )


OUTPUT_FUNCTIONS: dict[str, OutputFunction] = {
    **{
        function.__name__: OutputFunction(function.__name__, function, partial(_check_class_labels, function.__name__))
        for function in (margin, logsumexp_margin, logit, loss)
    },
    **{
        function.__name__: OutputFunction(function.__name__, function, check)
        for function, check in VALUE_CHECKS.items()
    },
    "next_token_margin": OutputFunction("next_token_margin", next_token_margin, _check_next_tokens, _next_tokens),
    **{
        function.__name__: OutputFunction(function.__name__, function, check, _ends_of_prompts)
        for function, check in (
            (answer_token_margin, _check_answers),
            (answer_probability_difference, _check_answer_sets),
        )
    },
}


_OF_COLUMNS = {"logit": logit_of, "value": value_of}


def output_function(function: str | Callable[[Any, Tensor], Tensor]) -> OutputFunction:
    """The output function of a registered name, of ``module:function``, or of a callable.

    ``logit:3`` is the logit of class 3 whatever the target, ``value:0`` the first column of a regression's output.

    Raises:
        ConfigError: there is no such function.
    """
    if not isinstance(function, str) and not callable(function):
        raise ConfigError(f"task.output_function={function!r}: must be a name, module:function, or a function.")
    name = function if isinstance(function, str) else name_of(function)
    if name in OUTPUT_FUNCTIONS:
        return OUTPUT_FUNCTIONS[name]
    kind, _, column = name.partition(":")
    if kind in _OF_COLUMNS and column.isdecimal():
        number = int(column)
        return OutputFunction(name, partial(_OF_COLUMNS[kind], column=number), partial(check_column, name, number))
    if isinstance(function, str):
        function = resolve("task.output_function", function, OUTPUT_FUNCTIONS)
    return OutputFunction(name, function, _no_check, getattr(function, "reads", None))


def _no_check(outputs: Any, targets: Tensor) -> None:
    """A user's own output function knows its targets itself."""
