"""Texts as token ids: the tokenizer, padding, and the beginnings of the texts that people see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.store.examples import EXCERPT, TOKEN_END, TOKENS
from coar_dist.tasks.examples.pixels import missing

_EXCERPT_LENGTH = 300
_TOKENS_LENGTH, _ALL_TOKENS = 8192, 2**24
"""Letters of an example's tokens, and of those of all examples, each of which has at least as many as its excerpt."""


def with_excerpts(columns: dict[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The columns, and the beginnings of the texts where no column of the user's has that name."""
    if EXCERPT in columns:
        return columns
    cut = [text if len(text) <= _EXCERPT_LENGTH else f"{text[: _EXCERPT_LENGTH - 1]}…" for text in texts]
    return {**columns, EXCERPT: np.array(cut)}


def with_tokens(
    columns: dict[str, Any], tokens: Sequence[Sequence[int]] | NDArray[np.int64], text_of: Callable[[int], str]
) -> dict[str, Any]:
    """The columns, and the texts of the first tokens of every example, one after the other with ``TOKEN_END`` between
    them, where no column of the user's has that name.

    Args:
        columns: of the examples.
        tokens: their ids.
        text_of: one token's text.
    """
    if TOKENS in columns:
        return columns
    known: dict[int, str] = {}
    joined, most = [], max(min(_ALL_TOKENS // max(len(tokens), 1), _TOKENS_LENGTH), _EXCERPT_LENGTH)
    for ids in tokens:
        parts: list[str] = []
        length = 0
        for token in map(int, ids):
            if token not in known:
                known[token] = text_of(token).replace(TOKEN_END, "\N{REPLACEMENT CHARACTER}")
            length += len(known[token]) + 1
            if length > most:
                break
            parts.append(known[token])
        joined.append(TOKEN_END.join(parts))
    return {**columns, TOKENS: np.array(joined)}


def tokenizer_of(name: str) -> Any:
    """A Hugging Face tokenizer: a name on the hub or a folder."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing("transformers", "hf", error) from error
    return AutoTokenizer.from_pretrained(name)


def token_ids(encoder: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """The token ids of each text.

    Args:
        encoder: a Hugging Face tokenizer.
        texts: any number of them.
        options: further arguments of the tokenizer.
    """
    found = encoder(list(texts), return_attention_mask=False, verbose=False, **options)
    return [list(ids) for ids in found["input_ids"]]


def padded(tokens: list[list[int]], encoder: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask (num_rows, longest), padded on the right; any id pads, as nothing attends to it."""
    pads = (encoder.pad_token_id, encoder.eos_token_id, 0)
    input_ids = np.full((len(tokens), max(map(len, tokens))), next(pad for pad in pads if pad is not None), np.int64)
    mask = np.zeros_like(input_ids)
    for i, ids in enumerate(tokens):
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
    return input_ids, mask
