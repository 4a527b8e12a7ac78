from __future__ import annotations

import pytest

from coar_dist.cluster.pool import preferred_node


@pytest.mark.parametrize(
    ("placement", "taken", "expected"),
    [
        ("pack", [], "b"),  # the most room
        ("pack", ["a"], "a"),
        ("pack", ["a", "a"], "b"),
        ("pack", ["a", "a", "b", "b", "b", "c"], ""),
        ("spread", [], "b"),
        ("spread", ["b", "a"], "c"),
        ("spread", ["a", "b", "c"], "b"),
        ("spread", ["a", "a", "b", "c", "gone"], "b"),
    ],
)
def test_nodes_preferred_for_one_more_actor(placement: str, taken: list[str], expected: str) -> None:
    assert preferred_node(placement, {"a": 2, "b": 3, "c": 1}, taken) == expected
