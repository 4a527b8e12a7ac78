"""Which examples a subset takes, and that the rest is never loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coar_dist.config.combinations import check_subset
from coar_dist.config.schema import SubsetConfig
from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples.source import IndexedSource, StreamedSource, load_subset
from tests.untimed import UNTIMED

LABELS = np.array([3, 0, 1, 1, 0, 3, 1, 1, 0, 3, 0, 1])
KEY = "task.examples.subset"


def in_memory() -> ExampleSet:
    return ExampleSet(torch.arange(12.0), torch.from_numpy(LABELS))


def indexed(loaded: list[int]) -> IndexedSource:
    def load(ids: np.ndarray) -> ExampleSet:
        loaded.extend(ids.tolist())
        return ExampleSet(torch.from_numpy(ids).float(), torch.from_numpy(LABELS[ids]), {"source_id": ids})

    return IndexedSource(12, load, lambda: LABELS)


def streamed(passed: list[int]) -> StreamedSource:
    def rows() -> Iterator[dict[str, Any]]:
        for i in range(12):
            passed.append(i)
            yield {"label": int(LABELS[i])}

    def load(pairs: Any) -> ExampleSet:
        chosen = list(pairs)
        ids = np.array([i for i, _ in chosen])
        targets = torch.tensor([row["label"] for _, row in chosen])
        return ExampleSet(torch.from_numpy(ids).float(), targets, {"source_id": ids})

    return StreamedSource(rows, load, lambda row: row["label"])


def taken(source: Any, **subset: Any) -> list[int]:
    config = SubsetConfig(**subset)
    check_subset(config, KEY)
    examples = load_subset(source, config, "numbers", KEY)
    assert examples.inputs.tolist() == examples.columns["source_id"].tolist()
    assert examples.targets.tolist() == LABELS[examples.columns["source_id"]].tolist()
    return examples.columns["source_id"].tolist()


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ({}, list(range(12))),
        ({"every": 5}, [0, 5, 10]),
        ({"ids": [1, 4, 11]}, [1, 4, 11]),
        ({"classes": [3, 0]}, [0, 1, 4, 5, 8, 9, 10]),
        ({"first": 3}, [0, 1, 2]),
        ({"every": 2, "classes": [1], "first": 2}, [2, 6]),
        ({"ids": [0, 2, 3, 5], "classes": [1, 3], "first": 3}, [0, 2, 3]),
    ],
)
def test_every_kind_of_source_gives_the_same_subset(subset: dict[str, Any], expected: list[int]) -> None:
    loaded: list[int] = []
    assert taken(in_memory(), **subset) == expected
    assert taken(indexed(loaded), **subset) == expected == loaded
    assert taken(streamed([]), **subset) == expected


def test_a_stream_is_read_no_further_than_needed() -> None:
    for subset, last in [({"every": 3, "first": 2}, 3), ({"ids": [1, 4]}, 4), ({"classes": [1], "first": 2}, 3)]:
        passed: list[int] = []
        taken(streamed(passed), **subset)
        assert passed == list(range(last + 1)), subset


@UNTIMED
@given(st.integers(0, 2**64 - 1), st.integers(1, 7))
def test_samples_are_nested_in_order_and_do_not_depend_on_other_options(seed: int, size: int) -> None:
    small, large = (taken(in_memory(), sample=count, seed=seed) for count in (size, size + 5))
    assert small == sorted(set(small))
    assert len(small) == size
    assert set(small) < set(large) or large == list(range(12))
    assert taken(indexed([]), sample=size, seed=seed) == small
    # The literal rule: the examples with the smallest of twelve numbers, which the seed and their ids alone make.
    words = np.random.Philox(key=np.array([seed, 2**64 - 1], dtype=np.uint64)).random_raw(12)
    assert small == sorted(sorted(range(12), key=lambda i: words[i])[:size])
    of_class = sorted(np.flatnonzero(LABELS == 1), key=lambda i: words[i])[:3]
    assert taken(in_memory(), classes=[1], sample=3, seed=seed) == sorted(of_class)


def test_samples_are_fair() -> None:
    counts = np.bincount(
        np.concatenate([taken(in_memory(), sample=4, seed=seed) for seed in range(1500)]), minlength=12
    )
    # Binomial(1500, 1/3): standard deviation 18.
    assert np.abs(counts - 500).max() < 5 * 18


@pytest.mark.parametrize("source", [in_memory(), indexed([]), streamed([])], ids=["memory", "indexed", "streamed"])
@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ({"ids": [3, 12, 40]}, r"task\.examples\.subset\.ids: \[12, 40\] are outside 0\.\.11, the examples of numbers"),
        ({"classes": [1, 2, 7]}, r"classes=\[1, 2, 7\]: no example has label \[2, 7\] among the examples of numbers"),
        ({"ids": [1, 2], "classes": [3]}, r"no example has label \[3\] among the examples chosen by every or ids"),
        ({"first": 13}, r"first=13: numbers has 12 examples"),
        ({"classes": [3], "first": 4}, r"first=4: .* has 3 examples"),
    ],
)
def test_what_the_source_does_not_have_is_an_error(source: Any, subset: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        taken(source, **subset)


def test_samples_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sample=5: .* has 4 examples"):
        taken(in_memory(), every=3, sample=5)
    with pytest.raises(ConfigError, match=r"sample=5: a sample needs to know.*streaming=false"):
        taken(streamed([]), sample=5)
    without_classes = IndexedSource(3, lambda ids: in_memory())
    with pytest.raises(ConfigError, match="have no class labels"):
        load_subset(without_classes, SubsetConfig(classes=[1]), "numbers", KEY)
    floats = ExampleSet(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ConfigError, match="have no class labels"):
        load_subset(floats, SubsetConfig(classes=[0]), "numbers", KEY)
    for empty in (IndexedSource(0, lambda ids: in_memory()), StreamedSource(lambda: iter([]), list)):
        with pytest.raises(TaskError, match="numbers has no examples"):
            load_subset(empty, SubsetConfig(), "numbers", KEY)
