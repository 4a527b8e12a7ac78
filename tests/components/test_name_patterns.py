"""Patterns of names, whose brackets may be the names' own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from coar_dist.components.discovery import discover
from coar_dist.components.masks import mask_without
from coar_dist.components.name_patterns import matches
from coar_dist.errors import CoarWarning
from tests.models import SmallResNet


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "conv1[5]", True),
        ("conv1[5]", "conv1[5]", True),
        ("conv1[5]", "conv1[15]", False),
        ("conv1[?]", "conv1[5]", True),
        ("conv1[?]", "conv1[15]", False),
        ("conv1[1*]", "conv1[15]", True),
        ("conv1[*]", "conv12[5]", False),
        ("fc[:, *]", "fc[:, 3]", True),
        ("L[23]H*", "L2H7", True),
        ("L[23]H*", "L4H7", False),
        ("L[!2]H*", "L2H7", False),
        ("Conv1*", "conv1[5]", False),
    ],
)
def test_brackets_are_a_set_or_the_name_s_own(pattern: str, name: str, expected: bool) -> None:
    assert matches(name, [pattern]) is expected
    assert matches(name, ["nothing", pattern]) is expected
    assert not matches(name, [])


def test_components_are_left_out_by_their_names() -> None:
    whole = discover(SmallResNet(), "conv_filters")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest = discover(SmallResNet(), "conv_filters", exclude=["conv1[1]", "conv2[?]"])
    left_out = [name for name in whole.names() if name == "conv1[1]" or (name.startswith("conv2[") and len(name) == 8)]
    assert len(left_out) > 1
    assert rest.names() == [name for name in whole.names() if name not in left_out]
    assert np.flatnonzero(~mask_without(whole, ["conv1[1]", "conv2[?]"])).tolist() == [
        whole.names().index(name) for name in left_out
    ]
    assert whole.where(name="conv2[?]").names() == left_out[1:]


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_said(key: str) -> None:
    patterns = {"include": ["conv1*", "cnv2*"], "exclude": ["cnv2*"]}[key]
    with pytest.warns(CoarWarning, match=rf"{key}: 'cnv2\*' matches none of the components, conv1\[0\] to .*"):
        discover(SmallResNet(), "conv_filters", **{key: patterns})
