"""Prompts of two behaviours that are much studied in language models, with counterfactuals, from templates alone.

No data set is needed, only a tokenizer: names and years that are not one token of it are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coar_dist.errors import TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.answers import AnswerPrompts
from coar_dist.tasks.examples.tokens import token_ids, tokenizer_of

_MOST_TOKENS = 128
_NAMES = (
    *("Mary", "John", "Tom", "James", "Anna", "Paul", "Sarah", "David", "Laura", "Peter", "Emma", "Mark", "Alice"),
    *("Robert", "Julia", "Simon", "Jane", "Michael", "Kate", "Daniel", "Lisa", "Adam", "Rachel", "Martin"),
)
_PLACES = ("station", "market", "library", "garden", "office", "beach", "museum", "kitchen")
_THINGS = ("letter", "book", "ticket", "key", "ring", "drink", "coat", "map")
_INDIRECT = (
    "When{first} and{second} met at the {place},{subject} gave the {thing} to",
    "After{first} and{second} had left the {place},{subject} handed a {thing} to",
    "While{first} and{second} were waiting at the {place},{subject} passed the {thing} to",
    "Yesterday{first} and{second} were at the {place}, and{subject} offered a {thing} to",
)
_EVENTS = ("war", "journey", "siege", "project", "famine", "dispute", "reign", "voyage", "campaign", "strike")
_CENTURIES = (15, 16, 17, 18)
_FIRST_YEARS = "01"


def indirect_objects(
    tokenizer: str, num_examples: int = 100, add_special_tokens: bool = True, seed: int = 0
) -> ExampleSet:
    """Indirect-object identification (Wang et al. 2022): the name that was said once, not the one said twice.

    ``When Mary and John met at the station, John gave the key to`` has the answer `` Mary`` against `` John``. In the
    counterfactual a third name takes the place of the second `` John``, so that nothing tells the two apart.

    Args:
        tokenizer: a name on the hub or a folder.
        num_examples: how many.
        add_special_tokens: whether the tokenizer adds its own, e.g. one that begins a text.
        seed: of names, places, things and templates; both names come first as often.

    Returns:
        Inputs, targets and counterfactuals as of ``huggingface_answers``, for ``answer_token_margin``; the columns
        ``answer`` and ``template``.

    Raises:
        TaskError: fewer than three of the names are one token.
    """
    encoder = tokenizer_of(tokenizer)
    tokens = {name: _ids(encoder, f" {name}") for name in _NAMES}
    names = [name for name, ids in tokens.items() if len(ids) == 1 and ids[0] != encoder.unk_token_id]
    if len(names) < 3:
        raise TaskError(f"indirect_objects: {tokenizer} has {len(names)} of {len(_NAMES)} names as one token: {names}.")
    random = _generator(seed)
    texts: list[str] = []
    others: list[str] = []
    answers: list[list[str]] = []
    columns: dict[str, list[Any]] = {"answer": [], "template": []}
    for number in range(num_examples):
        subject, indirect, third = (f" {names[i]}" for i in random.permutation(len(names))[:3])
        template = int(random.integers(len(_INDIRECT)))
        words = {
            "first": subject if number % 2 else indirect,
            "second": indirect if number % 2 else subject,
            "place": _PLACES[random.integers(len(_PLACES))],
            "thing": _THINGS[random.integers(len(_THINGS))],
        }
        texts.append(_INDIRECT[template].format(subject=subject, **words))
        others.append(_INDIRECT[template].format(subject=third, **words))
        answers.append([indirect, subject])
        columns["answer"].append(indirect.strip())
        columns["template"].append(template)
    return _examples(encoder, tokenizer, add_special_tokens, texts, others, answers, columns)


def greater_than(tokenizer: str, num_examples: int = 100, add_special_tokens: bool = True, seed: int = 0) -> ExampleSet:
    """Greater-than (Hanna et al. 2023): a war that began in 1732 ends in a later year.

    ``The war lasted from the year 1732 to the year 17`` has all years from 33 to 99 as its right answers, and those
    from 00 to 32 as wrong ones. Where digits are tokens of their own, as in Llama and Qwen, larger first digits are
    right and smaller ones wrong; the same one may be either. In the counterfactual the war begins in 1701, so that
    nearly every year is right.

    Args: as ``indirect_objects``.

    Returns:
        Inputs, targets and counterfactuals for ``answer_probability_difference``; the column ``year`` is the first
        year's last two digits.

    Raises:
        TaskError: no century's years are one token, or one token per digit, after the century.
    """
    encoder = tokenizer_of(tokenizer)
    by_digits: dict[int, list[tuple[int, int]]] = {1: [], 2: []}
    for century in _CENTURIES:
        for year in range(12, 89):
            digits = _digits_of_a_token(encoder, century, year)
            if digits and digits == _digits_of_a_token(encoder, century, int(_FIRST_YEARS)):
                by_digits[digits].append((century, year))
    by_digits[1] = [(century, year) for century, year in by_digits[1] if 30 <= year < 80]
    digits = 2 if by_digits[2] else 1
    starts = by_digits[digits]
    if not starts:
        raise TaskError(
            f"greater_than: {tokenizer} writes no year of {[100 * c for c in _CENTURIES]} as a century and one token "
            f"of two digits, or one of each digit. Use another tokenizer."
        )
    ends = [value for value in range(10**digits) if len(_ids(encoder, f"{value:0{digits}}")) == 1]
    random = _generator(seed)
    texts: list[str] = []
    others: list[str] = []
    answers: list[list[str]] = []
    num_right: list[int] = []
    columns: dict[str, list[Any]] = {"year": []}
    for _ in range(num_examples):
        century, year = starts[random.integers(len(starts))]
        event = _EVENTS[random.integers(len(_EVENTS))]
        prompt = f"The {event} lasted from the year {century}{{}} to the year {century}"
        texts.append(prompt.format(year))
        others.append(prompt.format(_FIRST_YEARS))
        last = year if digits == 2 else year // 10
        right = [end for end in ends if end > last]
        wrong = [end for end in ends if end < last + (digits == 2)]  # of two digits the same year is wrong
        answers.append([f"{end:0{digits}}" for end in (*right, *wrong)])
        num_right.append(len(right))
        columns["year"].append(year)
    return _examples(encoder, tokenizer, add_special_tokens, texts, others, answers, columns, num_right)


def _digits_of_a_token(encoder: Any, century: int, year: int) -> int | None:
    """How many digits of a year are one token after the century: 2, 1, or None where it is written otherwise."""
    start, whole = (_ids(encoder, f" {text}") for text in (century, f"{century}{year:02}"))
    rest = whole[len(start) :]
    if whole[: len(start)] != start or len(rest) not in (1, 2):
        return None
    parts = [f"{year:02}"] if len(rest) == 1 else list(f"{year:02}")
    return 3 - len(rest) if [_ids(encoder, part) for part in parts] == [[token] for token in rest] else None


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.uint64(seed)))


def _ids(encoder: Any, text: str) -> list[int]:
    (ids,) = token_ids(encoder, [text], add_special_tokens=False)
    return ids


def _examples(
    encoder: Any,
    tokenizer: str,
    add_special_tokens: bool,
    texts: list[str],
    others: list[str],
    answers: list[list[str]],
    columns: dict[str, Any],
    num_right: list[int] | None = None,
) -> ExampleSet:
    encoding = AnswerPrompts(encoder, tokenizer, add_special_tokens, _MOST_TOKENS)
    names = [f"prompt {number}" for number in range(len(texts))]
    tokens = [encoding.answer_tokens(of_one, name) for of_one, name in zip(answers, names, strict=True)]
    arrays = {name: np.array(values) for name, values in columns.items()}
    return encoding.examples(texts, others, names, tokens, arrays, num_right)
