from __future__ import annotations

import pytest

from coar_dist.config.keys import all_keys, either, leaves, near, unknown_key
from coar_dist.config.schema import ComponentRule, Config, DesignConfig, SubsetConfig


def test_all_keys_are_those_of_every_part() -> None:
    keys = all_keys()
    assert keys["stages"] is Config
    assert keys["design.num_masks"] is DesignConfig
    for examples in ("task.examples", "train.examples", "edit.examples"):
        assert keys[f"{examples}.subset.first"] is SubsetConfig
    assert keys["components.rules.block_size"] is ComponentRule
    assert "edit.groups.sample" in keys
    assert not [key for key in keys if "__" in key]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("design.num_mask", "design.num_mask: unknown key. Did you mean design.num_masks?"),
        ("edit.target.sampel", "edit.target.sampel: unknown key. Did you mean edit.target.sample?"),
        ("regresion", "regresion: unknown key. Did you mean regression?"),
        ("num_mask", "num_mask: unknown key. Did you mean design.num_masks, gradients.num_masks or"),
        ("epochs", "epochs: unknown key. Did you mean train.epochs?"),
        ("desing.selection", "desing.selection: unknown key. Did you mean regression.selection?"),
        ("cluster.foo", "cluster.foo: unknown key; cluster has address, where, min_actors"),
        ("nowhere.foo", "nowhere.foo: unknown key; the configuration has stages, allow_code"),
    ],
)
def test_an_unknown_key_names_what_was_probably_meant(key: str, message: str) -> None:
    assert str(unknown_key(key)).startswith(message)


def test_leaves_are_values_by_dotted_key() -> None:
    assert dict(leaves({"a": {"b": 1, "c": {}}, "d": [{"e": 2}]})) == {"a.b": 1, "d": [{"e": 2}]}


def test_names_in_a_sentence() -> None:
    assert [either(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a or b", "a, b or c"]
    assert near("ridgee", ["ridge", "lasso"]) == ["ridge"]
