"""Prompts of templates: what is asked, what is right, and what the counterfactual changes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from coar_dist.errors import TaskError
from coar_dist.tasks.examples import templates
from tests.tasks.examples.making import built

WORDS = re.findall(r"[A-Za-z]+|[,.]", " ".join([*templates._INDIRECT, *templates._EVENTS, "The lasted from year"]))
WORDS += [*templates._NAMES, *templates._PLACES, *templates._THINGS]


def saved_tokenizer(root: Path, digits: int, names: int = 99) -> str:
    """A tokenizer of whole words and of so many digits, on disk as from the hub."""
    numbers = [f"{number:0{digits}}" for number in range(10**digits)]
    known = dict.fromkeys(["<unk>", *(word for word in WORDS if word not in templates._NAMES[names:]), *numbers])
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    split = pre_tokenizers.Split(Regex(rf"\d{{{digits}}}"), "isolated")
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), split])
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<unk>").save_pretrained(root)
    return str(root)


def texts_of(examples: Any, tokenizer: str) -> tuple[list[str], list[str], list[list[str]]]:
    """Prompts, counterfactuals and answers as words."""
    encoder = AutoTokenizer.from_pretrained(tokenizer)

    def words(rows: Any) -> list[str]:
        return [" ".join(encoder.convert_ids_to_tokens(row)) for row in rows]

    lengths = examples.targets[:, 0].tolist()
    pairs = [
        words(row[: end + 1] for row, end in zip(part["input_ids"].tolist(), lengths, strict=True))
        for part in (examples.inputs, examples.counterfactual)
    ]
    return pairs[0], pairs[1], [encoder.convert_ids_to_tokens(row) for row in examples.targets[:, 1:].tolist()]


def test_the_indirect_object_is_the_name_that_is_said_once(tmp_path: Path) -> None:
    tokenizer = saved_tokenizer(tmp_path, 2, names=7)
    examples = built("indirect_objects", tokenizer=tokenizer, num_examples=60)
    texts, others, answers = texts_of(examples, tokenizer)
    firsts = 0
    for text, other, (right, wrong) in zip(texts, others, answers, strict=True):
        said = [word for word in text.split() if word in templates._NAMES]
        assert sorted((said.count(right), said.count(wrong))) == [1, 2]
        assert said.count(right) == 1
        assert said[2] == wrong
        of_other = [word for word in other.split() if word in templates._NAMES]
        assert said[:2] == of_other[:2]
        assert len({*of_other}) == 3
        assert "<unk>" not in text + other
        firsts += said[0] == right
    assert firsts == 30
    assert examples.columns["answer"].tolist() == [right for right, _ in answers]
    with pytest.raises(TaskError, match="has 2 of 24 names as one token"):
        built("indirect_objects", tokenizer=saved_tokenizer(tmp_path / "few", 2, names=2))


@pytest.mark.parametrize("digits", [2, 1])
def test_later_years_are_right(tmp_path: Path, digits: int) -> None:
    tokenizer = saved_tokenizer(tmp_path, digits)
    examples = built("greater_than", tokenizer=tokenizer, num_examples=60)
    num_right = examples.targets[:, 1].tolist()
    without = torch.cat([examples.targets[:, :1], examples.targets[:, 2:]], dim=1)
    texts, others, answers = texts_of(replace(examples, targets=without), tokenizer)
    years = examples.columns["year"]
    for text, other, of_both, num, year in zip(texts, others, answers, num_right, years, strict=True):
        century, start, end = re.match(r"The \w+ lasted from the year (.*?) (\d ?\d) to the year (.*)", text).groups()  # type: ignore[union-attr]
        assert century == end
        assert int(start.replace(" ", "")) == year
        last = year if digits == 2 else year // 10
        right, wrong = (sorted(map(int, part)) for part in (of_both[:num], of_both[num:]))
        assert right == list(range(last + 1, 10**digits))
        assert wrong == list(range(last + (digits == 2)))
        assert other == text.replace(f" {start} to", f" {'01' if digits == 2 else '0 1'} to")
    with pytest.raises(TaskError, match="writes no year of"):
        built("greater_than", tokenizer=saved_tokenizer(tmp_path / "three", 3))
