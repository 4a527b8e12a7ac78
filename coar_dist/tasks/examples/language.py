"""Token ids for language models: windows of a text file, texts of a data set, prompts with one right next token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.examples.huggingface import Gathered, HubRows, Pairs, Row
from coar_dist.tasks.examples.pixels import missing
from coar_dist.tasks.examples.source import SOURCE_ID, IndexedSource, StreamedSource, tensor_of
from coar_dist.tasks.outputs import IGNORED_TOKEN
from coar_dist.tasks.task import EXCERPT, ExampleSet

BYTES = "bytes"
_EXCERPT_LENGTH = 300


def text_file(
    path: str,
    tokenizer: str = BYTES,
    length: int = 64,
    stride: int | None = None,
    start: float = 0.0,
    stop: float = 1.0,
    marks: dict[str, str] | None = None,
) -> IndexedSource:
    """Windows of equal length of one text.

    Args:
        path: a UTF-8 file.
        tokenizer: ``bytes``, whose token ids are the values of the UTF-8 bytes (a vocabulary of 256), or a Hugging Face
            tokenizer: a name on the hub or a folder. Special tokens are not added.
        length: tokens of a window.
        stride: tokens from one window's start to the next one's; None is ``length``, so that none overlap.
        start, stop: the part of the text, as shares of its tokens; training on [0, 0.9] and explaining [0.9, 1] keeps
            the two apart.
        marks: regular expressions by name; each becomes a column of that name, int64, with the number of its matches in
            the window's own text, e.g. ``{speaker: "(?m)^[A-Z][A-Z ]+:$"}`` for a play's headings. That text is the
            window's decoded tokens: a byte or token that the window cuts in two is not what it is in the file, and
            ``^`` and ``$`` also match at the window's ends.

    Returns:
        Inputs ``input_ids`` (num_examples, length) int64, by keyword, and the same as targets; no window is padded, and
        a rest shorter than ``length`` is left out. ``source_id`` is the window's first token, ``excerpt`` its text.

    Raises:
        ConfigError: a number is out of range, or a mark is no regular expression.
        TaskError: there is no such text, or it is shorter than a window.
    """
    step = length if stride is None else stride
    if length < 2 or step < 1 or not 0.0 <= start < stop <= 1.0:
        raise ConfigError(
            f"length={length}, stride={stride}, start={start}, stop={stop}: length must be at least 2, stride null or "
            f"at least 1, and 0 <= start < stop <= 1."
        )
    patterns = {name: _pattern(name, expression) for name, expression in (marks or {}).items()}
    try:
        content = Path(path).read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"path={path!r} is no UTF-8 text that can be read: {error}") from error
    if tokenizer == BYTES:
        tokens = np.frombuffer(content, dtype=np.uint8).astype(np.int64)
    else:
        encoder = _tokenizer(tokenizer)
        encoded = encoder(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
        tokens = np.array(encoded["input_ids"], dtype=np.int64)
    first, end = int(start * len(tokens)), int(stop * len(tokens))
    if end - first < length:
        raise TaskError(f"{path} has {end - first} tokens from {first} to {end}, fewer than length={length}.")
    starts = np.arange(first, end - length + 1, step)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length)

    def decoded(window: NDArray[np.int64]) -> str:
        if tokenizer == BYTES:
            return bytes(window.tolist()).decode(errors="replace")
        return str(encoder.decode(window.tolist(), clean_up_tokenization_spaces=False))

    def load(ids: NDArray[np.int64]) -> ExampleSet:
        chosen = windows[starts[ids]]
        texts = [decoded(window) for window in chosen]
        columns = {
            name: np.array([sum(1 for _ in pattern.finditer(text)) for text in texts], dtype=np.int64)
            for name, pattern in patterns.items()
        }
        input_ids = tensor_of(chosen)
        columns = _with_excerpts({**columns, SOURCE_ID: starts[ids]}, texts)
        return ExampleSet({"input_ids": input_ids}, input_ids.clone(), columns)

    return IndexedSource(len(starts), load)


def _pattern(name: str, expression: Any) -> re.Pattern[str]:
    if name in (SOURCE_ID, EXCERPT) or not isinstance(expression, str):
        raise ConfigError(
            f"marks.{name}={expression!r}: must be a regular expression, under a name but {SOURCE_ID} and {EXCERPT}."
        )
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(f"marks.{name}={expression!r} is no regular expression: {error}.") from error


def huggingface_text(
    dataset: str,
    split: str,
    tokenizer: str,
    config_name: str | None = None,
    text_column: str = "text",
    max_length: int = 512,
    columns: list[str] | None = None,
    streaming: bool = False,
) -> IndexedSource | StreamedSource:
    """Texts of a Hugging Face data set, for ``task.output_function=next_token_margin``.

    Args:
        dataset, split, config_name, streaming: see ``HubRows.open``.
        tokenizer: a name on the hub or a folder; its special tokens are added.
        text_column: the texts.
        max_length: tokens after which a text is cut off.
        columns: further columns to keep with the examples.

    Returns:
        Inputs ``input_ids`` and ``attention_mask``, (num_examples, length) int64 each, padded on the right to the
        longest of the chosen texts; targets are the ``input_ids`` with -100 at padding. ``source_id`` is the row,
        ``excerpt`` the beginning of the text.

    Raises:
        TaskError: a column is missing, a row is no text, or a text has fewer than two tokens.
    """
    if max_length < 2:
        raise ConfigError(f"max_length={max_length}: must be at least 2.")
    rows = HubRows.open(dataset, split, config_name, streaming, [text_column, *(columns or ())])
    encoder = _tokenizer(tokenizer)

    def load(pairs: Pairs, _num_examples: int | None) -> ExampleSet:
        gathered, texts, names = Gathered(columns), [], []
        for i, row in gathered.passing(pairs):
            names.append(f"row {i} of {rows.where}")
            if not isinstance(row[text_column], str):
                raise TaskError(f"{names[-1]}: {text_column!r} is {row[text_column]!r}, not a text.")
            texts.append(row[text_column])
        tokens = _encoded(encoder, texts, max_length=max_length, truncation=True)
        short = [name for name, ids in zip(names, tokens, strict=True) if len(ids) < 2]
        if short:
            raise TaskError(
                f"{short[0]} and {len(short) - 1} others have fewer than 2 tokens, so no next token. Leave them out "
                f"(subset.ids), or load texts of your own (source=module:function)."
            )
        input_ids, mask = _padded(tokens, encoder)
        targets = np.where(mask == 1, input_ids, IGNORED_TOKEN)
        inputs = {"input_ids": tensor_of(input_ids), "attention_mask": tensor_of(mask)}
        return ExampleSet(inputs, tensor_of(targets), _with_excerpts(gathered.columns(), texts))

    return rows.source(load, None)


def huggingface_answers(
    dataset: str,
    split: str,
    tokenizer: str,
    template: str,
    answers: list[str],
    label_column: str | None = None,
    config_name: str | None = None,
    max_length: int = 512,
    truncate: bool = False,
    add_special_tokens: bool = True,
    columns: list[str] | None = None,
    streaming: bool = False,
) -> IndexedSource | StreamedSource:
    """Prompts whose next token is the answer, for ``task.output_function=answer_token_margin``.

    BoolQ: ``template="{passage}\\nQuestion: {question}?\\nAnswer:" answers=[" no", " yes"] label_column=answer``.
    Indirect objects: ``template="{prompt}" answers=[" {indirect_object}", " {subject}"]``, the first one being right.

    Args:
        dataset, split, config_name, streaming: see ``HubRows.open``.
        tokenizer: a name on the hub or a folder.
        template: the prompt; ``{name}`` stands for the row's column of that name, ``{{`` for a brace.
        answers: two or more, as they follow the prompt (with their blank); each is one token. They are templates too.
        label_column: which answer is right: an integer, or a truth value, whose answers are ``[if false, if true]``.
            None: always the first.
        max_length: tokens of a prompt at most.
        truncate: cut the start off longer prompts; else they are an error.
        add_special_tokens: whether the tokenizer adds its own, e.g. one that begins a text.
        columns: further columns to keep with the examples.

    Returns:
        Inputs ``input_ids`` and ``attention_mask``, (num_examples, length) int64 each, padded on the right to the
        longest of the chosen prompts. Targets (num_examples, 1 + num_answers) int64: the position of the prompt's last
        token, the right answer's token, the other answers' tokens in their order. ``source_id`` is the row, ``excerpt``
        the beginning of the prompt.

    Raises:
        ConfigError: a template is malformed, or there are fewer than two answers.
        TaskError: a column is missing, an answer is not one token or not unlike the others, a label has no answer, a
            prompt is empty, too long, or ends in a token that the tokenizer has added.
    """
    if len(answers) < 2:
        raise ConfigError(f"answers={answers}: there must be at least two.")
    if max_length < 1:
        raise ConfigError(f"max_length={max_length}: must be at least 1.")
    used = [name for text in (template, *answers) for name in _fields(text)]
    labelled = [] if label_column is None else [label_column]
    rows = HubRows.open(dataset, split, config_name, streaming, [*used, *labelled, *(columns or ())])
    encoder = _tokenizer(tokenizer)
    token_of: dict[str, int] = {}

    def answer_tokens(row: Row, name: str) -> list[int]:
        """The right answer's token, then the others'."""
        tokens = []
        for answer in answers:
            text = _filled(answer, row, name)
            if text not in token_of:
                (ids,) = _encoded(encoder, [text], add_special_tokens=False)
                if len(ids) != 1:
                    raise TaskError(
                        f"{name}: the answer {text!r} is {len(ids)} tokens of {tokenizer}, {ids}, but must be one. "
                        f"Choose another word, or write it with or without the blank before it."
                    )
                token_of[text] = ids[0]
            tokens.append(token_of[text])
        if len(set(tokens)) != len(tokens):
            raise TaskError(f"{name}: two of its answers are the same token: {tokens}.")
        right = 0 if label_column is None else rows.label(row, label_column, name)
        if not 0 <= right < len(tokens):
            raise TaskError(f"{name}: {label_column!r} is {right}, but there are {len(tokens)} answers, from 0 on.")
        return [tokens.pop(right), *tokens]

    def load(pairs: Pairs, _num_examples: int | None) -> ExampleSet:
        gathered, prompts, names, tokens_of_answers = Gathered(columns), [], [], []
        for i, row in gathered.passing(pairs):
            names.append(f"row {i} of {rows.where}")
            prompts.append(_filled(template, row, names[-1]))
            tokens_of_answers.append(answer_tokens(row, names[-1]))
        if add_special_tokens:
            (with_added,), (without,) = (_encoded(encoder, prompts[:1], add_special_tokens=i) for i in (True, False))
            if without and with_added[-len(without) :] != without:
                raise TaskError(
                    f"{names[0]}: {tokenizer} adds {encoder.decode(with_added[-1:])!r} to the end of the prompt, which "
                    f"no answer follows. Use add_special_tokens=false."
                )
        options = {"max_length": max_length, "truncation": True} if truncate else {}
        encoder.truncation_side = "left"
        tokens = _encoded(encoder, prompts, add_special_tokens=add_special_tokens, **options)
        for name, ids in zip(names, tokens, strict=True):
            if not 0 < len(ids) <= max_length:
                raise TaskError(
                    f"{name}: its prompt has {len(ids)} tokens, but must have 1 to {max_length}. Raise max_length, or "
                    f"cut the starts of prompts off with truncate=true."
                )
        input_ids, mask = _padded(tokens, encoder)
        targets = np.column_stack([mask.sum(axis=1) - 1, np.array(tokens_of_answers, dtype=np.int64)])
        inputs = {"input_ids": tensor_of(input_ids), "attention_mask": tensor_of(mask)}
        return ExampleSet(inputs, tensor_of(targets), _with_excerpts(gathered.columns(), prompts))

    return rows.source(load, label_column)


def _with_excerpts(columns: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The columns, and the beginnings of the texts where no column of the user's has that name."""
    if EXCERPT in columns:
        return columns
    cut = [text if len(text) <= _EXCERPT_LENGTH else f"{text[: _EXCERPT_LENGTH - 1]}…" for text in texts]
    return {**columns, EXCERPT: np.array(cut)}


def _tokenizer(name: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing("transformers", "hf", error) from error
    return AutoTokenizer.from_pretrained(name)


def _encoded(encoder: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    encoded = encoder(list(texts), return_attention_mask=False, verbose=False, **options)
    return [list(ids) for ids in encoded["input_ids"]]


def _padded(tokens: list[list[int]], encoder: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask (num_rows, longest), padded on the right; any id pads, as nothing attends to it."""
    pads = (encoder.pad_token_id, encoder.eos_token_id, 0)
    input_ids = np.full((len(tokens), max(map(len, tokens))), next(pad for pad in pads if pad is not None), np.int64)
    mask = np.zeros_like(input_ids)
    for i, ids in enumerate(tokens):
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
    return input_ids, mask


def _fields(template: str) -> list[str]:
    """The columns that a template names.

    Raises:
        ConfigError: it holds anything but plain ``{name}``.
    """
    try:
        parts = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template)]
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}; write {{{{ for a brace.") from error
    names = [name for name, _, _ in parts if name is not None]
    wrong = [name for name, spec, conversion in parts if name == "" or spec or conversion]
    if wrong:
        raise ConfigError(f"template {template!r}: only {{column}} is allowed in braces; write {{{{ for a brace.")
    return names


def _filled(template: str, row: Row, name: str) -> str:
    """The template with the row's values; names are looked up whole, so that nothing but columns can be reached."""
    text = []
    for literal, column, _, _ in Formatter().parse(template):
        text.append(literal)
        if column is not None:
            if row[column] is None:
                raise TaskError(f"{name}: column {column!r}, which the template needs, is empty.")
            text.append(str(row[column]))
    return "".join(text)
