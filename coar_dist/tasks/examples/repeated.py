"""Sequences of random tokens that repeat with a period of their own: what induction continues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.errors import ConfigError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.tokens import with_tokens
from coar_dist.tasks.outputs import IGNORED_TOKEN

_SHORTEST = 4


def repeated_tokens(
    num_examples: int,
    vocabulary: int = 32,
    length: int = 32,
    periods: Sequence[int] = (4, 12),
    answers: bool = False,
    seed: int = 0,
) -> ExampleSet:
    """Sequences in which a block of distinct random tokens repeats; its length, the period, is drawn for each.

    With one period for all a model copies from a fixed distance and needs no circuit: with its own for each it has to
    find the last token's earlier place and take what followed it there (Olsson et al. 2022).

    Args:
        num_examples: how many.
        vocabulary: number of tokens.
        length: of every sequence.
        periods: the shortest and the longest period, from 4 to half the length.
        answers: False, to train: targets (num_examples, length) are the tokens, -100 in the first block, which nothing
            tells. True, to explain, for ``answer_token_margin``: targets (num_examples, 3) are the last position, the
            token that comes next, and the one that would come next in the counterfactual. That is the sequence with the
            last token and another one swapped in all places but the last.
        seed: of the tokens; others for other sequences.

    Returns:
        Inputs ``input_ids`` (num_examples, length) int64; the columns ``period`` and ``tokens``, the ids as texts.

    Raises:
        ConfigError: periods do not fit length or vocabulary.
    """
    low, high = periods
    if not _SHORTEST <= low <= high <= length // 2:
        raise ConfigError(f"periods={list(periods)}: must be from {_SHORTEST} to half the length, {length // 2}.")
    if high > vocabulary:
        raise ConfigError(f"periods={list(periods)}: a block of {high} distinct tokens, and vocabulary={vocabulary}.")
    random = np.random.Generator(np.random.Philox(key=np.uint64(seed)))
    period = random.integers(low, high, num_examples, endpoint=True)
    blocks = random.permuted(np.tile(np.arange(vocabulary), (num_examples, 1)), axis=1)
    places = np.arange(length) % period[:, None]
    tokens = np.take_along_axis(blocks, places, axis=1)
    columns = with_tokens({"period": period}, tokens, str)
    if not answers:
        targets = np.where(np.arange(length) < period[:, None], IGNORED_TOKEN, tokens)
        return ExampleSet({"input_ids": torch.from_numpy(tokens)}, torch.from_numpy(targets), columns)
    last = (length - 1) % period
    other = (last + random.integers(2, period - 1)) % period  # neither beside the last one nor itself
    swapped = _swapped(blocks, last, other)
    counterfactual = np.take_along_axis(swapped, places, axis=1)
    counterfactual[:, -1] = tokens[:, -1]
    rows = np.arange(num_examples)
    answer, alternative = (blocks[rows, (place + 1) % period] for place in (last, other))
    targets = np.stack([np.full(num_examples, length - 1), answer, alternative], axis=1)
    return ExampleSet(
        {"input_ids": torch.from_numpy(tokens)},
        torch.from_numpy(targets),
        columns,
        {"input_ids": torch.from_numpy(counterfactual)},
    )


def _swapped(blocks: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Blocks (num_examples, n) with the tokens at two places of each, (num_examples,), swapped."""
    rows, swapped = np.arange(len(blocks)), blocks.copy()
    swapped[rows, first], swapped[rows, second] = blocks[rows, second], blocks[rows, first]
    return swapped
