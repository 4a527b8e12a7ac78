from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from coar_dist.editing.criterion import (
    METRICS,
    Choice,
    choose,
    describe,
    paired_correlation,
    per_example,
    sizes,
    split,
)
from coar_dist.errors import ConfigError, NonFiniteMarginError


def test_sizes_grow_by_about_15_percent_and_end_at_the_largest() -> None:
    assert sizes(0) == (0,)
    assert sizes(5) == (0, 1, 2, 3, 4, 5)
    assert sizes(17) == (*range(17), 17)
    assert sizes(25) == (*range(17), 18, 20, 23, 25)
    for largest in range(1, 2000):
        tried = sizes(largest)
        assert tried[0] == 0
        assert tried[-1] == largest
        assert all(a < b <= max(a + 1, 1.15 * a) for a, b in pairwise(tried))
    assert len(sizes(1000)) < 50


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.73])
def test_a_split_has_its_share_and_a_larger_one_holds_the_smaller(fraction: float) -> None:
    chosen = split(100, fraction, seed=0)
    assert chosen.shape == (100,)
    assert chosen.sum() == round(100 * fraction)
    assert (split(100, 0.8, seed=0) >= chosen).all()
    np.testing.assert_array_equal(split(100, fraction, seed=0), chosen)
    assert (split(100, fraction, seed=1) != chosen).any()
    assert 0 < chosen[:50].sum() < chosen.sum()  # not the first ones


def test_pairs_stay_together() -> None:
    random = np.random.default_rng(0)
    for pairs in (np.repeat(np.arange(30), 2), random.permutation(np.repeat([f"image {i}" for i in range(30)], 2))):
        chosen = split(60, 0.4, 5, pairs)
        assert chosen.sum() == 24
        for value in pairs:
            assert len(set(chosen[pairs == value])) == 1
    renamed = np.repeat(np.arange(30)[::-1], 2)  # what a pair is called does not matter
    np.testing.assert_array_equal(split(60, 0.4, 5, renamed), split(60, 0.4, 5, np.repeat(np.arange(30), 2)))


def test_both_sides_have_an_example() -> None:
    for fraction in (0.0, 0.1, 0.9, 1.0):
        with pytest.raises(ConfigError, match=rf"edit.choice_fraction={fraction}: of 4 held-out examples, [04] would"):
            split(4, fraction, 0)
    with pytest.raises(ConfigError, match="of 1 pairs of held-out examples, 0 would be chosen on and 1 measured on"):
        split(2, 0.5, 0, np.array(["a", "a"]))
    assert split(2, 0.5, 0).sum() == 1


def test_metrics_count_margins_above_zero_or_margins() -> None:
    margins = np.array([[1.0, -1.0, 0.0, 4.0], [1.0, 2.0, 3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(per_example(margins, "accuracy"), [[1, 0, 0, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(per_example(margins, "output"), margins)
    for metric in METRICS:
        assert per_example(margins, metric).dtype == np.float64


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_metrics_refuse_margins_that_are_no_numbers(metric: str, value: float) -> None:
    margins = np.ones((2, 3))
    margins[1, 2] = value
    with pytest.raises(NonFiniteMarginError, match=r"1 of 6 margins .* first at \[1, 2\] of \[2, 3\]"):
        per_example(margins, metric)


SIZES = (0, 1, 2, 3, 4)


def curve(**groups: list[float]) -> dict[str, Any]:
    return {name: np.array(values) for name, values in groups.items()}


def test_the_best_size_is_within_every_limit() -> None:
    measured = curve(a=[0.3, 0.5, 0.7, 0.8, 0.9], b=[0.9, 0.9, 0.89, 0.88, 0.5], c=[0.5, 0.5, 0.5, 0.6, 0.4])
    assert choose(measured, SIZES, ["a"], {}, "raise", "accuracy") == Choice(4, 4, ())
    assert choose(measured, SIZES, ["a"], {"b": 0.01}, "raise", "accuracy") == Choice(2, 2, ("b",))
    assert choose(measured, SIZES, ["a"], {"b": 0.01, "c": 0.0}, "raise", "accuracy") == Choice(2, 2, ("b", "c"))
    assert choose(measured, SIZES, ["a"], {"b": 0.5, "c": 0.05}, "raise", "accuracy") == Choice(3, 3, ("c",))
    assert choose(measured, (0, 2, 5, 9, 20), ["a"], {"b": 0.02}, "raise", "accuracy") == Choice(3, 9, ("b",))


def test_a_limit_binds_only_where_a_better_size_misses_it() -> None:
    measured = curve(a=[0.3, 0.7, 0.7, 0.6], b=[0.9, 0.9, 0.5, 0.9], c=[0.9, 0.9, 0.9, 0.5])
    assert choose(measured, (0, 1, 2, 3), ["a"], {"b": 0.01, "c": 0.01}, "raise", "accuracy") == Choice(1, 1, ())


def test_a_limit_is_met_in_spite_of_rounding() -> None:
    assert 0.8 - 0.1 > 0.7
    assert 1000.7 - 0.3 > 1000.4
    for start, fallen, limit in ((0.8, 0.7, 0.1), (1000.7, 1000.4, 0.3)):
        measured = curve(a=[0.1, 0.2], b=[start, fallen])
        assert choose(measured, (0, 1), ["a"], {"b": limit}, "raise", "accuracy").num_components == 1
        assert choose(measured, (0, 1), ["a"], {"b": limit - 1e-5}, "raise", "accuracy").num_components == 0


def test_lowering_takes_the_lowest_and_kept_groups_must_not_fall_either() -> None:
    measured = curve(a=[0.9, 0.4, 0.2, 0.3, 0.1], b=[0.8, 0.9, 0.9, 0.8, 0.7])
    assert choose(measured, SIZES, ["a"], {}, "lower", "accuracy").index == 4
    assert choose(measured, SIZES, ["a"], {"b": 0.05}, "lower", "accuracy") == Choice(2, 2, ("b",))


def test_a_kept_output_may_neither_fall_nor_rise() -> None:
    measured = curve(a=[0.0, 1.0, 2.0, 3.0, 4.0], b=[5.0, 5.1, 5.4, 4.7, 4.9])
    assert choose(measured, SIZES, ["a"], {"b": 0.35}, "raise", "output").index == 4
    assert choose(measured, SIZES, ["a"], {"b": 0.25}, "raise", "output").index == 4
    assert choose(measured, SIZES, ["a"], {"b": 0.05}, "raise", "output") == Choice(0, 0, ("b",))
    risen = curve(a=[0.0, 1.0, 2.0, 3.0, 4.0], b=[5.0, 5.1, 5.2, 5.3, 5.4])
    assert choose(risen, SIZES, ["a"], {"b": 0.2}, "raise", "output") == Choice(2, SIZES[2], ("b",))
    assert choose(risen, SIZES, ["a"], {"b": 0.2}, "raise", "accuracy").index == 4
    assert describe(["a"], {"b": 0.2}, "output", "raise").endswith("`b` changes by no more than 0.2")


def test_the_worst_group_counts() -> None:
    measured = curve(a=[0.3, 0.9, 0.6, 0.4, 0.2], b=[0.4, 0.1, 0.5, 0.45, 0.9])
    assert choose(measured, SIZES, ["a", "b"], {}, "raise", "accuracy").index == 2
    assert choose(measured, SIZES, ["a", "b"], {}, "lower", "accuracy").index == 0


def test_ties_and_no_improvement_take_the_smallest_size() -> None:
    assert choose(curve(a=[0.3, 0.5, 0.5, 0.4, 0.5]), SIZES, ["a"], {}, "raise", "accuracy").index == 1
    assert choose(curve(a=[0.3, 0.3, 0.2, 0.3, 0.1]), SIZES, ["a"], {}, "raise", "accuracy") == Choice(0, 0, ())
    assert choose(curve(a=[0.3, 0.9], b=[0.5, 0.1]), (0, 1), ["a"], {"b": 0.01}, "raise", "accuracy") == Choice(
        0, 0, ("b",)
    )


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_the_choice_is_that_of_trying_every_size(direction: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        measured = {name: random.integers(0, 11, 6) / 10 for name in "abcd"}
        limit = random.integers(0, 4) / 10
        best, best_size = None, -1
        for size in range(6):
            if all(measured[name][size] >= measured[name][0] - limit - 1e-9 for name in "cd"):
                values = [measured[name][size] for name in "ab"]
                worst = min(values) if direction == "raise" else -max(values)
                if best is None or worst > best:
                    best, best_size = worst, size
        found = choose(measured, range(6), ["a", "b"], {"c": limit, "d": limit}, direction, "accuracy")
        assert found.index == best_size


def test_unknown_groups_are_named() -> None:
    measured = curve(targets=[0.1, 0.2], others=[0.3, 0.3])
    with pytest.raises(
        ConfigError, match=r"edit.improve: there are no groups \['tagrets'\]; there are targets, others"
    ):
        choose(measured, (0, 1), ["tagrets"], {}, "raise", "accuracy")
    with pytest.raises(ConfigError, match=r"edit.keep: there are no groups \['clean'\]"):
        choose(measured, (0, 1), ["targets"], {"clean": 0.1}, "raise", "accuracy")


def test_the_criterion_in_words() -> None:
    assert describe(["a"], {}, "output", "lower") == "least output of `a`"
    text = describe(["a", "b"], {"c": 0.01, "d": 2}, "accuracy", "raise")
    limits = "`c` falls by no more than 0.01 and `d` falls by no more than 2"
    assert text == f"most accuracy of the lowest of `a` and `b` while {limits}"
    assert describe(["a", "b"], {}, "output", "lower") == "least output of the highest of `a` and `b`"


def test_correlation_of_pairs_is_numpys_in_any_order() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=20)
    second = first + random.normal(size=20)
    rows = random.permutation(40)
    margins = np.concatenate([first, second])[rows] + 500
    pairs = np.array([f"image {i}" for i in range(20)] * 2)[rows]
    forms = np.repeat([False, True], 20)[rows]
    assert paired_correlation(margins, pairs, forms) == pytest.approx(np.corrcoef(first, second)[0, 1], rel=1e-9)


def test_correlation_of_pairs_is_nan_where_undefined() -> None:
    pairs, forms = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert np.isnan(paired_correlation(np.array([1.0, 2.0, 1.0, 3.0]), pairs, forms))
    assert np.isnan(paired_correlation(np.array([1.0, 2.0]), pairs[:2], forms[:2]))


def test_pairs_have_both_forms() -> None:
    margins = np.arange(4.0)
    with pytest.raises(ConfigError, match=r"2 of 3 pairs .* first 'b' with \{0: 1, 1: 0\}"):
        paired_correlation(margins, np.array(["a", "a", "b", "c"]), np.array([0, 1, 0, 1]))
    with pytest.raises(ConfigError, match=r"1 of 2 pairs .* first 1 with \{False: 2, True: 0\}"):
        paired_correlation(margins, np.array([0, 0, 1, 1]), np.array([False, True, False, False]))
    with pytest.raises(ConfigError, match=r"pairs have two forms, and there are 3: \[0, 1, 2\]"):
        paired_correlation(margins, np.array([0, 0, 1, 1]), np.array([0, 1, 2, 0]))


def test_rounding_of_large_metrics_breaks_no_limit() -> None:
    curve = {"improved": np.array([0.0, 1.0, 2.0, 3.0]), "kept": np.array([1e9, 0.0, 1e9 - 1.5, 1e9 - 2.5])}
    assert choose(curve, (0, 1, 2, 3), ["improved"], {"kept": 1.0}, "raise", "accuracy").index == 2
