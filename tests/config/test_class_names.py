from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coar_dist.config.class_names import check_every_class, names_by_class, names_of
from coar_dist.errors import ConfigError


@pytest.mark.parametrize(
    "given", [["cat", "dog"], ("cat", "dog"), {0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}, np.array(["cat", "dog"])]
)
def test_names_come_in_sequences_of_any_kind_and_by_class(given: Any) -> None:
    assert names_by_class(names_of(given)) == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cat", "'cat': must be a list of names, the first of class 0"),
        ([], "must be a list of names"),
        (3, "must be a list of names"),
        (["cat", 7], "class 1 is called 7, which is no name"),
        (["cat", " "], "class 1 is called ' ', which is no name"),
        (["cat", "dog", "cat"], "classes 0 and 2 are both called 'cat'"),
        ({"cat": 0, "dog": 1}, "'cat' is no class. A mapping has names by class"),
        ({-1: "cat"}, "-1 is no class"),
    ],
)
def test_what_are_no_names_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        names_by_class(names_of(given))


def test_every_class_needs_a_name() -> None:
    check_every_class({0: "cat", 5: "dog", 6: "cow"}, [5, 0])
    with pytest.raises(ConfigError, match="names 0, 5, but the labels have 1, 7 too"):
        check_every_class({0: "cat", 5: "dog"}, [7, 0, 1])
    with pytest.raises(ConfigError, match="not class labels"):
        check_every_class({0: "cat"}, [])
