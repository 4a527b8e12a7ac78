"""How much of the examples' texts a run keeps for people to read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coar_dist.errors import TaskError
from coar_dist.store.examples import TOKEN_END
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.tokens import with_excerpts, with_tokens


@pytest.mark.parametrize(("num_examples", "num_kept"), [(2, 1365), (16, 170), (128, 50)])
def test_few_examples_keep_more_of_their_tokens_than_many(
    num_examples: int, num_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.tasks.examples.tokens._ALL_TOKENS", 2**14)
    tokens = np.broadcast_to(np.arange(2000) % 7, (num_examples, 2000))
    (kept,) = with_tokens({}, tokens, lambda token: f"{token:05d}").values()  # 6 letters each
    assert {text.count(TOKEN_END) + 1 for text in kept.tolist()} == {num_kept}
    assert kept[-1].split(TOKEN_END)[:3] == ["00000", "00001", "00002"]


def test_tokens_hold_no_separator_and_a_column_of_that_name_stays() -> None:
    found = with_tokens({}, [[0, 1]], lambda token: f"a{TOKEN_END}b{token}")
    assert found["tokens"][0].split(TOKEN_END) == ["a\N{REPLACEMENT CHARACTER}b0", "a\N{REPLACEMENT CHARACTER}b1"]
    assert with_tokens({"tokens": "own"}, [[0]], str) == {"tokens": "own"}
    assert with_excerpts({"excerpt": "own"}, ["text"]) == {"excerpt": "own"}
    assert [len(text) for text in with_excerpts({}, ["x" * 300, "x" * 301])["excerpt"]] == [300, 300]


def test_tokens_of_a_users_own_examples_are_lists_of_strings() -> None:
    inputs = {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
    columns = ExampleSet.of(inputs, [0, 1], {"tokens": [["to", " be"], ["or"]], "excerpt": ["to be", "or"]}).columns
    assert [text.split(TOKEN_END) for text in columns["tokens"].tolist()] == [["to", " be"], ["or"]]
    assert ExampleSet.of(inputs, [0, 1], {"tokens": ["a", "b"]}).columns["tokens"].tolist() == ["a", "b"]
    with pytest.raises(TaskError, match="the column 'tokens' is int64"):
        ExampleSet.of(inputs, [0, 1], {"tokens": [[1, 2], [3, 4]]})
