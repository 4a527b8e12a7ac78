"""Texts for language models: windows of a file, and texts of a data set. Every next token counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.errors import ConfigError, TaskError
from coar_dist.store.examples import EXCERPT, TOKENS
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.huggingface import Gathered, HubRows, Pairs
from coar_dist.tasks.examples.source import SOURCE_ID, IndexedSource, StreamedSource, tensor_of
from coar_dist.tasks.examples.tokens import padded, token_ids, tokenizer_of, with_excerpts, with_tokens
from coar_dist.tasks.outputs import IGNORED_TOKEN

BYTES = "bytes"


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
        a rest shorter than ``length`` is left out. ``source_id`` is the window's first token, ``excerpt`` its text,
        ``tokens`` the texts of its tokens.

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
        encoder = tokenizer_of(tokenizer)
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

    def token_text(token: int) -> str:
        return decoded(np.array([token]))

    def load(ids: NDArray[np.int64]) -> ExampleSet:
        chosen = windows[starts[ids]]
        texts = [decoded(window) for window in chosen]
        columns = {
            name: np.array([sum(1 for _ in pattern.finditer(text)) for text in texts], dtype=np.int64)
            for name, pattern in patterns.items()
        }
        input_ids = tensor_of(chosen)
        columns = with_tokens(with_excerpts({**columns, SOURCE_ID: starts[ids]}, texts), chosen, token_text)
        return ExampleSet({"input_ids": input_ids}, input_ids.clone(), columns)

    return IndexedSource(len(starts), load)


def _pattern(name: str, expression: Any) -> re.Pattern[str]:
    if name in (SOURCE_ID, EXCERPT, TOKENS) or not isinstance(expression, str):
        raise ConfigError(
            f"marks.{name}={expression!r}: must be a regular expression, under a name but {SOURCE_ID}, {EXCERPT} and "
            f"{TOKENS}."
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
        ``excerpt`` the beginning of the text, ``tokens`` the texts of its first tokens.

    Raises:
        TaskError: a column is missing, a row is no text, or a text has fewer than two tokens.
    """
    if max_length < 2:
        raise ConfigError(f"max_length={max_length}: must be at least 2.")
    rows = HubRows.open(dataset, split, config_name, streaming, [text_column, *(columns or ())])
    encoder = tokenizer_of(tokenizer)

    def load(pairs: Pairs) -> ExampleSet:
        gathered, texts, names = Gathered(columns), [], []
        for i, row in gathered.passing(pairs):
            names.append(f"row {i} of {rows.where}")
            if not isinstance(row[text_column], str):
                raise TaskError(f"{names[-1]}: {text_column!r} is {row[text_column]!r}, not a text.")
            texts.append(row[text_column])
        tokens = token_ids(encoder, texts, max_length=max_length, truncation=True)
        short = [name for name, ids in zip(names, tokens, strict=True) if len(ids) < 2]
        if short:
            raise TaskError(
                f"{short[0]} and {len(short) - 1} others have fewer than 2 tokens, so no next token. Leave them out "
                f"(subset.ids), or load texts of your own (source=module:function)."
            )
        input_ids, mask = padded(tokens, encoder)
        targets = np.where(mask == 1, input_ids, IGNORED_TOKEN)
        inputs = {"input_ids": tensor_of(input_ids), "attention_mask": tensor_of(mask)}
        columns_of = with_tokens(with_excerpts(gathered.columns(), texts), tokens, encoder.decode)
        return ExampleSet(inputs, tensor_of(targets), columns_of)

    return rows.source(load, None)
