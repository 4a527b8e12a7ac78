"""Options of an edit that make no sense together."""

from __future__ import annotations

from typing import Any

import pytest

from coar_dist.config.edit_combinations import check_edit, code_of
from coar_dist.config.schema import EditConfig, ExampleGroup, ExamplesConfig
from coar_dist.errors import ConfigError


def edit(**changes: Any) -> EditConfig:
    return EditConfig(**{"target": ExampleGroup(classes=[3]), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": ExampleGroup()}, "edit.target has no condition: say which examples are to change"),
        ({"target": ExampleGroup(matching="x")}, "edit.target.matching='x': only edit.reference can match the targets"),
        ({"target": ExampleGroup(ids=[1], seed=3)}, "edit.target.seed=3 has no effect without edit.target.sample"),
        ({"reference": ExampleGroup(seed=3)}, "edit.reference.seed=3 has no effect without edit.reference.sample"),
        ({"groups": {"all": ExampleGroup()}}, "edit.groups.all: an edit has a group of that name of itself"),
        ({"groups": {"x": ExampleGroup(seed=3)}}, "edit.groups.x.seed=3 has no effect without edit.groups.x.sample"),
        ({"groups": {"x": ExampleGroup(matching="y")}}, "edit.groups.x.matching='y': only edit.reference can match"),
        ({"improve": []}, "edit.improve=[]: must be at least one group, e.g. [targets]."),
        ({"improve": ["x"]}, "edit.improve: there is no group 'x'. Add it to edit.groups, or use: all, targets, other"),
        ({"keep": {"x": 0.1}}, "edit.keep: there is no group 'x'."),
        ({"method": "coar", "compare": ["coar"]}, "edit.compare=['coar']: coar is edit.method already. Leave it out."),
        (
            {"direction": "lower", "metric": "accuracy", "keep": {"targets": 0.1}},
            "edit.keep: 'targets' is to fall (edit.improve, edit.direction=lower).",
        ),
        ({"each": True, "pairs": "x"}, "edit.pairs='x' has no effect with edit.each"),
        ({"each": True, "metric": "output"}, "edit.metric='output' has no effect with edit.each"),
        ({"each": True, "keep": {"others": 0.1}}, "with edit.each it is the accuracy on all that is kept"),
        ({"each": True, "direction": "lower"}, "edit.direction=lower: edit.each makes wrong predictions right"),
    ],
)
def test_what_makes_no_sense_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_edit(edit(**changes))
    assert str(caught.value).startswith(message) or message in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reference": ExampleGroup(matching="image", sample=3, seed=4)},
        {"groups": {"x": ExampleGroup(classes=[1])}, "improve": ["x", "targets"], "keep": {"x": 0.1}},
        {"method": "coar", "compare": ["greedy"]},
        {"each": True, "keep": {"all": 0.1}, "improve": ["targets"]},
    ],
)
def test_what_makes_sense_passes(changes: dict[str, Any]) -> None:
    check_edit(edit(**changes))


def test_code_is_named_by_predicates_and_the_held_out_source() -> None:
    groups = {"x": ExampleGroup(predicate="m:f"), "y": ExampleGroup(predicate=len)}
    config = edit(reference=ExampleGroup(predicate="m:g"), groups=groups, examples=ExamplesConfig("m:load"))
    assert code_of(config) == {
        "edit.reference.predicate": "m:g",
        "edit.groups.x.predicate": "m:f",
        "edit.examples.source": "m:load",
    }
