from __future__ import annotations

import math

import pytest

from coar_dist.config.functions import call, name_of, resolve
from coar_dist.errors import ConfigError, TaskError


def own(width: int, depth: int = 1, names: list[str] | None = None) -> tuple[int, int]:
    if width < 0:
        raise ZeroDivisionError("no width")
    return width, depth


def test_names_are_registered_ones_or_modules_functions() -> None:
    assert resolve("key", "own", {"own": own}) is own
    assert resolve("key", "math:sqrt", {}) is math.sqrt
    assert name_of(own) == "tests.config.test_functions:own"
    assert resolve("key", name_of(own), {}) is own


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("owm", r"key='owm': must be one of own, other, or module:function of your own"),
        (":own", "must be one of own, other"),
        ("math:", "must be one of own, other"),
        ("nowhere:f", r"key='nowhere:f' cannot be imported: No module named 'nowhere'"),
        ("math:squirt", r"key='math:squirt' cannot be imported: .* no attribute 'squirt'"),
        ("math:pi", r"key='math:pi' is a float, not a function"),
    ],
)
def test_names_that_lead_nowhere_are_refused(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("key", source, {"own": own, "other": own})


def test_arguments_are_checked_by_the_signature() -> None:
    assert call("key", own, {"width": 3}) == (3, 1)
    for arguments, message in [
        ({"widht": 3}, r"key\.widht: unknown; the arguments are width, depth, names"),
        ({"width": "3"}, r"key\.width='3': must be int, not str"),
        ({"width": 3, "names": "a"}, r"key\.names='a': must be list or NoneType, not str"),
        ({}, r"key\.width is missing: set it, e\.g\. key\.width=\.\.\."),
    ]:
        with pytest.raises(ConfigError, match=message):
            call("key", own, arguments)
    with pytest.raises(TaskError, match=r"key: own\(\*\*\{'width': -1\}\) raises ZeroDivisionError: no width"):
        call("key", own, {"width": -1})
