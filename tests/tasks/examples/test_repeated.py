"""Repeated tokens, read by a loop that looks for the last token's earlier place."""

from __future__ import annotations

import pytest
import torch

from coar_dist.errors import ConfigError
from coar_dist.tasks.models_attention import attention_only
from tests.tasks.examples.making import built


def continuation(tokens: list[int]) -> int:
    """What followed the last token where it stood before."""
    places = [i for i, token in enumerate(tokens[:-1]) if token == tokens[-1]]
    (following,) = {tokens[i + 1] for i in places}
    return following


def test_the_answer_continues_the_sequence_and_the_alternative_its_counterfactual() -> None:
    examples = built("repeated_tokens", num_examples=300, vocabulary=14, length=25, periods=[4, 12], answers=True)
    sequences, counterfactuals = (part["input_ids"].tolist() for part in (examples.inputs, examples.counterfactual))
    for tokens, other, (position, answer, alternative) in zip(
        sequences, counterfactuals, examples.targets.tolist(), strict=True
    ):
        assert position == 24
        assert continuation(tokens) == answer
        assert continuation(other) == alternative != answer
        assert tokens[-1] == other[-1]
        assert 0 < sum(one != two for one, two in zip(tokens, other, strict=True)) <= 2 * 7
    periods = examples.columns["period"].tolist()
    assert set(periods) == set(range(4, 13))
    for tokens, period in zip(sequences, periods, strict=True):
        assert len(set(tokens[:period])) == period
        assert tokens[period:] == tokens[:-period]


def test_the_first_block_is_not_trained_on() -> None:
    examples = built("repeated_tokens", num_examples=50, vocabulary=14, length=25, periods=[4, 12], seed=3)
    for tokens, targets, period in zip(
        examples.inputs["input_ids"].tolist(), examples.targets.tolist(), examples.columns["period"], strict=True
    ):
        assert targets == [-100] * period + tokens[period:]
    others = built("repeated_tokens", num_examples=50, vocabulary=14, length=25, periods=[4, 12], seed=4)
    assert not torch.equal(examples.targets, others.targets)


@pytest.mark.parametrize(
    ("periods", "message"),
    [
        ([3, 5], "from 4 to half the length, 8"),
        ([4, 9], "half the length"),
        ([4, 8], "8 distinct tokens, and vocabulary=7"),
    ],
)
def test_periods_that_do_not_fit_are_errors(periods: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built("repeated_tokens", num_examples=2, vocabulary=7, length=16, periods=periods)


def test_attention_is_causal_and_of_heads() -> None:
    model = attention_only(vocabulary=7, length=6, width=8, num_heads=2)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    logits = model(tokens)
    assert logits.shape == (1, 5, 7)
    later = tokens.clone()
    later[0, 4] = 0
    torch.testing.assert_close(model(later)[:, :4], logits[:, :4])
    with pytest.raises(ConfigError, match="width=8 is no multiple of num_heads=3"):
        attention_only(width=8, num_heads=3)
