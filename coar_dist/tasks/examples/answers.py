"""Prompts that one token answers: from texts to inputs, targets and counterfactuals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coar_dist.config.python_arguments import COUNT, MAPPING, check
from coar_dist.config.schema.values import Rule
from coar_dist.errors import TaskError, warn
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.source import tensor_of
from coar_dist.tasks.examples.tokens import padded, token_ids, tokenizer_of, with_excerpts, with_tokens


def _are_texts(value: Any) -> bool:
    is_listed = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | set)
    return is_listed and all(isinstance(text, str) for text in value)


_TEXTS = Rule(_are_texts, "a list of strings")
_ANSWERS = Rule(lambda value: (isinstance(value, str) and value != "") or _are_texts(value), "a string, or one of each")
_ALTERNATIVES = Rule(
    lambda value: (
        _ANSWERS.holds(value) or (isinstance(value, Sequence) and all(_ANSWERS.holds(each) for each in value))
    ),
    "a string, or one or a list of them for each prompt",
)
_TOKENIZER = Rule(lambda value: isinstance(value, str) and value != "", "a tokenizer of Hugging Face, or its name")
_FLAG = Rule(lambda value: isinstance(value, bool), "True or False")


def prompts(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    answers: str | Sequence[str],
    against: str | Sequence[str | Sequence[str]],
    counterfactual: Sequence[str] | None = None,
    columns: Mapping[str, Any] | None = None,
    max_length: int = 512,
    add_special_tokens: bool = True,
) -> ExampleSet:
    """Prompts with their right next token and the alternatives, for ``output_function="answer_token_margin"``.

    Args:
        tokenizer: of Hugging Face, or its name.
        texts: the prompts.
        answers: the right answer of every prompt, or one for all, as it follows the prompt (mostly with a blank before
            it); each is one token.
        against: the alternatives: one for all, one of every prompt, or several of every prompt, as many of each.
        counterfactual: prompts of ``ablation_value="counterfactual"``, each as many tokens long as its own.
        columns: further values of the prompts by name, (num_prompts,) each.
        max_length: tokens of a prompt at most.
        add_special_tokens: whether the tokenizer adds its own, e.g. one that begins a text.

    Returns:
        Inputs ``input_ids`` and ``attention_mask``, (num_prompts, length) int64 each, padded on the right. Targets
        (num_prompts, 2 + num_alternatives) int64: the position of the last token, the answer's token, the others'.

    Raises:
        TaskError: naming the prompt: an answer is not one token or among its alternatives, a counterfactual has another
            length, or numbers differ.

    Example:
        >>> examples = prompts(  # doctest: +SKIP
        ...     "gpt2",
        ...     ["When Mary and John went out, John gave a drink to"],
        ...     answers=" Mary",
        ...     against=" John",
        ...     counterfactual=["When Mary and John went out, Mary gave a drink to"],
        ... )
        >>> run = coar_dist.attribute(model, examples, output_function="answer_token_margin")  # doctest: +SKIP
    """
    if isinstance(texts, str) or isinstance(counterfactual, str):
        raise TaskError("texts and counterfactual must be lists of prompts, and one is a string. Give [text].")
    check("texts", texts, _TEXTS)
    if not len(texts):
        raise TaskError("texts=[]: give at least one prompt.")
    check("answers", answers, _ANSWERS)
    check("against", against, _ALTERNATIVES)
    if counterfactual is not None:
        check("counterfactual", counterfactual, _TEXTS)
    if columns is not None:
        check("columns", columns, MAPPING)
    check("max_length", max_length, COUNT)
    check("add_special_tokens", add_special_tokens, _FLAG)
    if not (callable(tokenizer) and hasattr(tokenizer, "unk_token")):
        check("tokenizer", tokenizer, _TOKENIZER)
    right = _of_each("answers", answers, len(texts))
    others = [[each] if isinstance(each, str) else list(each) for each in _of_each("against", against, len(texts))]
    if len({len(each) for each in others}) != 1 or not others[0]:
        raise TaskError("against: every prompt needs as many alternatives as the others, at least one.")
    pairs = None if counterfactual is None else _of_each("counterfactual", list(counterfactual), len(texts))
    name = tokenizer if isinstance(tokenizer, str) else str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
    encoder = tokenizer_of(tokenizer) if isinstance(tokenizer, str) else tokenizer
    encoding = AnswerPrompts(encoder, name, add_special_tokens, max_length)
    names = [f"prompt {number}" for number in range(len(texts))]
    tokens = [
        encoding.answer_tokens([str(answer), *wrong], where)
        for answer, wrong, where in zip(right, others, names, strict=True)
    ]
    return encoding.examples(list(texts), pairs, names, tokens, dict(columns or {}))


def _of_each(key: str, given: Any, num: int) -> list[Any]:
    """One for all prompts, or one of each."""
    if isinstance(given, str):
        return [given] * num
    if len(given) != num:
        raise TaskError(f"{key}: there are {len(given)} for {num} prompts. Give one of each.")
    return list(given)


@dataclass
class AnswerPrompts:
    """How prompts and their answers become tokens.

    Attributes:
        encoder: a Hugging Face tokenizer.
        name: its name, for messages.
        add_special_tokens: whether it adds its own.
        max_length: tokens of a prompt at most.
        truncate: whether the start of longer prompts is cut off; else they are an error.
    """

    encoder: Any
    name: str
    add_special_tokens: bool
    max_length: int
    truncate: bool = False
    _token_of: dict[str, int] = field(default_factory=dict)

    def answer_tokens(self, answers: Sequence[str], where: str) -> list[int]:
        """One token for each answer, all different.

        Raises:
            TaskError: an answer is not one token, or not known, or two are the same.
        """
        for text in answers:
            if text not in self._token_of:
                (ids,) = token_ids(self.encoder, [text], add_special_tokens=False)
                if len(ids) != 1:
                    raise TaskError(
                        f"{where}: the answer {text!r} is {len(ids)} tokens of {self.name}, {ids}, but must be one. "
                        f"Choose another word, or write it with or without the blank before it."
                    )
                if ids[0] == getattr(self.encoder, "unk_token_id", None) and text != self.encoder.unk_token:
                    raise TaskError(f"{where}: {self.name} does not know the answer {text!r}. Choose another word.")
                self._token_of[text] = ids[0]
        tokens = [self._token_of[text] for text in answers]
        if len(set(tokens)) != len(tokens):
            raise TaskError(f"{where}: two of its answers are the same token: {tokens}.")
        return tokens

    def examples(
        self,
        texts: list[str],
        counterfactual: list[str] | None,
        names: Sequence[str],
        tokens_of_answers: Sequence[Sequence[int]],
        columns: dict[str, Any],
        num_right: Sequence[int] | None = None,
    ) -> ExampleSet:
        """The example set.

        Args:
            texts: the prompts.
            counterfactual: of each; None: there are none.
            names: of the prompts, for messages.
            tokens_of_answers: (num_prompts, num_answers), the right ones first.
            columns: further values.
            num_right: of each, how many answers are right, for ``answer_probability_difference``; None: one, for
                ``answer_token_margin``.

        Raises:
            TaskError: a prompt is empty, too long, ends in a token that the tokenizer has added, or has another length
                than its counterfactual.
        """
        self._check_ends(texts[0], names[0])
        tokens = self._tokens(texts)
        for name, ids in zip(names, tokens, strict=True):
            if not 0 < len(ids) <= self.max_length:
                raise TaskError(
                    f"{name}: its prompt has {len(ids)} tokens, but must have 1 to {self.max_length}. Raise "
                    f"max_length, or cut the starts of prompts off with truncate=true."
                )
        self._warn_of_joints(texts, names, tokens, tokens_of_answers)
        input_ids, mask = padded(tokens, self.encoder)
        pairs: dict[str, Any] | None = None
        if counterfactual is not None:
            of_pairs = self._tokens(counterfactual)
            for name, own, other in zip(names, tokens, of_pairs, strict=True):
                if len(own) != len(other):
                    raise TaskError(
                        f"{name}: its prompt has {len(own)} tokens and its counterfactual {len(other)}, but both must "
                        f"have as many. Leave it out, or choose words of equal length."
                    )
            pairs = {"input_ids": tensor_of(padded(of_pairs, self.encoder)[0]), "attention_mask": tensor_of(mask)}
        answers = np.array(tokens_of_answers, dtype=np.int64)
        counts = [] if num_right is None else [np.array(num_right, dtype=np.int64)]
        targets = np.column_stack([mask.sum(axis=1) - 1, *counts, answers])
        inputs = {"input_ids": tensor_of(input_ids), "attention_mask": tensor_of(mask)}
        columns = with_tokens(with_excerpts(columns, texts), tokens, self.encoder.decode)
        return ExampleSet(inputs, tensor_of(targets), columns, pairs)

    def _warn_of_joints(
        self,
        texts: Sequence[str],
        names: Sequence[str],
        tokens: Sequence[Sequence[int]],
        tokens_of_answers: Sequence[Sequence[int]],
    ) -> None:
        """Say where a prompt and its answer, written as one text, are other tokens: most often a blank is missing."""
        answers = {token: text for text, token in self._token_of.items()}
        joined = [text + answers[own[0]] for text, own in zip(texts, tokens_of_answers, strict=True)]
        for name, text, ids, own, found in zip(
            names, texts, tokens, tokens_of_answers, self._tokens(joined), strict=True
        ):
            if len(ids) < self.max_length and found[: len(ids) + 1] != [*ids, own[0]]:
                warn(
                    f"{name}: {text[-20:]!r} and the answer {answers[own[0]]!r} are other tokens where they are "
                    f"written as one text. Mostly the answer needs a blank before it, and the prompt none at its end."
                )
                return

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        options = {"max_length": self.max_length, "truncation": True} if self.truncate else {}
        self.encoder.truncation_side = "left"
        return token_ids(self.encoder, texts, add_special_tokens=self.add_special_tokens, **options)

    def _check_ends(self, text: str, name: str) -> None:
        if not self.add_special_tokens:
            return
        (with_added,), (without,) = (token_ids(self.encoder, [text], add_special_tokens=i) for i in (True, False))
        if without and with_added[-len(without) :] != without:
            raise TaskError(
                f"{name}: {self.name} adds {self.encoder.decode(with_added[-1:])!r} to the end of the prompt, which no "
                f"answer follows. Use add_special_tokens=false."
            )
