from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from coar_dist.config.schema import ExampleGroup
from coar_dist.editing.groups import check_disjoint, group_of, members, without_draws
from coar_dist.errors import ConfigError, TaskError

KEY = "edit.target"
HERE = "tests.editing.predicates"
COLUMNS: dict[str, Any] = {
    "example_id": np.arange(8),
    "label": np.array([0, 1, 2, 0, 1, 2, 0, 1]),
    "prediction": np.array([0, 1, 1, 0, 0, 2, 2, 1]),
    "margin": np.array([2.0, 0.5, -3.0, 1.0, -0.25, 9.0, -0.5, 4.0], np.float32),
    "place": np.array(["land", "water", "land", "land", "water", "water", "land", "water"]),
    "trigger": np.array([True, False] * 4),
    "image": np.array([0, 0, 1, 1, 2, 2, 3, 3], np.int16),
}
NO_CLASSES = {**COLUMNS, "label": np.full(8, np.nan), "prediction": np.full(8, np.nan)}


def found(columns: dict[str, Any] = COLUMNS, targets: list[int] | None = None, **conditions: Any) -> list[int]:
    ids = members(ExampleGroup(**conditions), columns, KEY, None if targets is None else np.array(targets))
    assert ids.dtype == np.int64
    return ids.tolist()


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"ids": [5, 0, 5]}, [0, 5]),
        ({"classes": [1]}, [1, 4, 7]),
        ({"classes": [2, 0, 77]}, [0, 2, 3, 5, 6]),
        ({"correct": True}, [0, 1, 3, 5, 7]),
        ({"correct": False}, [2, 4, 6]),
        ({"where": {"place": "water"}}, [1, 4, 5, 7]),
        ({"where": {"place": ["water", "land"]}}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"where": {"trigger": False}}, [1, 3, 5, 7]),
        ({"where": {"image": 2}}, [4, 5]),
        ({"where": {"image": 2.0}}, [4, 5]),
        ({"where": {"image": [np.int64(0), 3, 100_000]}}, [0, 1, 6, 7]),
        ({"where": {"margin": 0.5}}, [1]),
        ({"where": {"margin": 4}}, [7]),
        ({"where": {"margin": {"min": -0.25, "max": 2}}}, [0, 1, 3, 4]),
        ({"where": {"margin": {"max": -0.5}}}, [2, 6]),
        ({"where": {"image": {"min": 2.5}}}, [6, 7]),
        ({"where": {"place": "land", "trigger": True}}, [0, 2, 6]),
        ({"predicate": f"{HERE}:unsure"}, [1, 4, 6]),
        ({"classes": [0, 1], "correct": False, "where": {"place": "land"}, "predicate": f"{HERE}:unsure"}, [6]),
    ],
)
def test_members_meet_every_condition(conditions: dict[str, Any], expected: list[int]) -> None:
    assert found(**conditions) == expected


def test_small_floats_equal_the_value_as_it_is_written() -> None:
    columns = {**COLUMNS, "share": np.linspace(0, 0.7, 8).astype(np.float32)}
    assert found(columns, where={"share": 0.1}) == [1]
    assert found(columns, where={"share": {"min": 0.1, "max": 0.3}}) == [1, 2, 3]


def test_groups_as_python_writes_them() -> None:
    for given in ([3, 5], (3, 5), np.array([3, 5]), np.arange(8) % 8 == [9, 9, 9, 3, 9, 5, 9, 9]):
        assert group_of(given).ids == [3, 5]
    assert group_of(3).ids == group_of(np.int64(3)).ids == [3]
    for wrong in ("3", True, 1.5, None):
        with pytest.raises(ConfigError, match="is no group of examples: give ids"):
            group_of(wrong)  # type: ignore[arg-type]


def test_matching_takes_what_shares_a_value_with_a_target() -> None:
    assert found(targets=[2, 7], matching="image") == [2, 3, 6, 7]
    assert found(targets=[2, 7], matching="image", where={"trigger": False}) == [3, 7]
    assert found(targets=[1], matching="place", sample=4) == [1, 4, 5, 7]
    with pytest.raises(ConfigError, match=r"edit.target.matching='image': there are no targets to match here"):
        found(matching="image")


def test_ids_are_those_of_the_columns() -> None:
    some = {name: values[[6, 1, 4, 5]] for name, values in COLUMNS.items()}
    assert found(some) == [1, 4, 5, 6]
    assert found(some, ids=[6, 1]) == [1, 6]
    assert found(some, targets=[4], matching="image") == [4, 5]
    with pytest.raises(ConfigError, match=r"ids: \[0\] are no examples; there are 4, with ids 1 to 6"):
        found(some, ids=[0, 1])


def test_a_larger_sample_holds_the_smaller_and_other_conditions_do_not_move_it() -> None:
    columns = {"example_id": np.arange(1000), "even": np.arange(1000) % 2 == 0}
    whole = [set(found(columns, sample=size, seed=7)) for size in range(1, 60)]
    assert all(a < b for a, b in pairwise(whole))
    assert [len(ids) for ids in whole] == list(range(1, 60))
    even = {i for i in whole[-1] if i % 2 == 0}
    assert set(found(columns, sample=len(even), seed=7, where={"even": True})) == even
    upper = {name: values[500:] for name, values in columns.items()}
    high = {i for i in whole[-1] if i >= 500}
    assert set(found(upper, sample=len(high), seed=7)) == high
    assert found(columns, sample=59, seed=8) != found(columns, sample=59, seed=7)
    assert found(columns, sample=1000) == list(range(1000))


def test_samples_are_uniform() -> None:
    counts = np.zeros(8)
    for seed in range(2000):
        counts[found(sample=2, seed=seed)] += 1
    assert (np.abs(counts - 500) < 100).all()  # 500 +- 19.4 each


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"ids": [3, 8, -1]}, r"edit.target.ids: \[-1, 8\] are no examples; there are 8, with ids 0 to 7"),
        ({"ids": []}, r"edit.target.ids=\[\] leaves no example: 8 examples, 0 of them after ids=\[\]"),
        ({"classes": [9]}, r"edit.target.classes=\[9\] leaves no example: 8 examples, 0 of them after classes=\[9\]"),
        (
            {"classes": [2], "correct": True, "where": {"place": "land"}},
            r"edit.target.where.place=land leaves no example: 8 examples, 2 of them after classes=\[2\], 1 of them "
            r"after correct=true, 0 of them after where.place=land. Loosen",
        ),
        ({"sample": 9}, r"edit.target.sample=9: must be 1 to 8, .*\(8 examples\)"),
        ({"sample": 4, "correct": False}, r"sample=4: must be 1 to 3, .*\(8 examples, 3 of them after correct=false\)"),
        ({"sample": 0}, r"edit.target.sample=0: must be 1 to 8"),
        (
            {"where": {"plaice": "land"}},
            r"where.plaice: there is no column 'plaice'; the examples have example_id, label,",
        ),
        ({"matching": "picture"}, r"matching=picture: there is no column 'picture'; the examples have example_id"),
        ({"where": {"place": 1}}, r"edit.target.where.place=1: cannot be compared with the column, which has strings"),
        ({"where": {"place": ["land", True]}}, r"where.place=True: cannot be compared .* has strings"),
        ({"where": {"trigger": 1}}, r"where.trigger=1: cannot be compared with the column, which has true or false"),
        ({"where": {"trigger": "yes"}}, r"where.trigger='yes': cannot be compared"),
        ({"where": {"image": "3"}}, r"where.image='3': cannot be compared with the column, which has numbers"),
        ({"where": {"image": True}}, r"where.image=True: cannot be compared"),
        ({"where": {"image": None}}, r"where.image=None: cannot be compared"),
        ({"where": {"image": [[1, 2]]}}, r"where.image=\[1, 2\]: cannot be compared"),
        ({"where": {"margin": float("nan")}}, r"where.margin=nan: cannot be compared"),
        ({"where": {"image": []}}, r"where.image=\[\]: no value can be among none"),
        ({"where": {"image": {}}}, r"where.image={}: a range is {min: ..., max: ...}"),
        (
            {"where": {"image": {"min": 1, "maximum": 2}}},
            r"a range is {min: ..., max: ...}, of which one may be left out",
        ),
        ({"where": {"image": {"min": "a"}}}, r"where.image.min='a': cannot be compared"),
        ({"where": {"image": {"min": 3, "max": 1}}}, r"min must not be above max"),
        ({"where": {"place": {"min": "a"}}}, r"a range takes numbers, and the column has strings"),
        ({"where": {"trigger": {"min": False}}}, r"a range takes numbers, and the column has true or false"),
        ({"predicate": "unsure"}, r"edit.target.predicate='unsure': must be module:function of your own"),
        ({"predicate": f"{HERE}:sure"}, r"predicate='tests.editing.predicates:sure' cannot be imported"),
        ({"predicate": f"{HERE}:nothing"}, r"is a NoneType, not a function"),
        ({"predicate": f"{HERE}:numbers"}, r"numbers' gives float64 of shape \(8,\): must be bool of shape \(8,\)"),
        ({"predicate": f"{HERE}:too_few"}, r"too_few' gives bool of shape \(7,\): must be bool of shape \(8,\)"),
    ],
)
def test_errors_name_the_value_and_the_way_out(conditions: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        found(**conditions)


def test_a_predicate_that_raises_is_named() -> None:
    with pytest.raises(TaskError, match=r"edit.target.predicate='tests.editing.predicates:broken' raises KeyError"):
        found(predicate=f"{HERE}:broken")


@pytest.mark.parametrize("conditions", [{"classes": [1]}, {"correct": True}])
def test_without_classes_nothing_is_correct(conditions: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"edit.target.c\w+=.*: the examples have no class labels. Leave it out"):
        found(NO_CLASSES, **conditions)
    assert found(NO_CLASSES, where={"place": "water"}) == [1, 4, 5, 7]


def test_labels_without_predictions_cannot_be_correct() -> None:
    columns = {**NO_CLASSES, "label": COLUMNS["label"]}
    assert found(columns, classes=[2]) == [2, 5]
    with pytest.raises(ConfigError, match=r"correct=true: the examples have no class predictions"):
        found(columns, correct=True)


def test_long_lists_are_shortened_in_messages() -> None:
    with pytest.raises(ConfigError) as raised:
        found(ids=list(range(8)) * 30, classes=[9])
    assert "after ids=[0, 1, 2, 3," in str(raised.value)
    assert len(str(raised.value)) < 300


def test_without_draws_leaves_the_conditions_that_other_examples_can_meet() -> None:
    group = ExampleGroup([1], [2], True, {"place": "land"}, "a:b", "image", 3, 4)
    assert without_draws(group) == ExampleGroup(None, [2], True, {"place": "land"}, "a:b")


def test_targets_and_references_are_parted() -> None:
    check_disjoint(np.array([0, 2]), np.array([1, 3]))
    with pytest.raises(ConfigError, match=r"edit.reference: 2 of its 3 examples are targets too, first \[2, 5\]. Part"):
        check_disjoint(np.array([5, 2, 0]), np.array([1, 2, 5]))
