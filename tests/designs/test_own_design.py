"""Mask designs of a user's own: what is refused, and that they travel to the actors."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ray import cloudpickle
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig, ClusterConfig, EvaluationConfig
from coar_dist.designs.design import MaskDesign
from coar_dist.designs.own import OwnDesign
from coar_dist.designs.registry import design_from_json
from coar_dist.errors import ConfigError, RunMismatchError, TaskError
from coar_dist.store.reader import RunReader
from tests.models import small_task
from tests.small_run import without_ray

Rule = Callable[[MaskDesign, int], Any]
_calls = itertools.count()


def drawn(design: MaskDesign, mask_id: int, salt: int = 0) -> NDArray[np.bool_]:
    random = np.random.default_rng([design.seed, mask_id, salt])
    return random.random(design.num_components) >= design.ablation_fraction


def own(kind: str | Rule, fraction: float = 0.2, num_masks: int = 5) -> OwnDesign:
    return OwnDesign.checked("design.kind", kind, 30, num_masks, fraction, seed=4)


def test_by_its_name_and_as_it_is_they_are_the_same() -> None:
    by_name, as_it_is = own("tests.designs.test_own_design:drawn"), own(drawn)
    assert by_name == as_it_is
    assert by_name.to_json() == as_it_is.to_json()
    np.testing.assert_array_equal(by_name.masks(3, 9), [drawn(by_name, i) for i in range(3, 9)])
    assert design_from_json(by_name.to_json()).masks(3, 9).sum() == as_it_is.masks(3, 9).sum()
    assert own(drawn, num_masks=500).fingerprint == by_name.fingerprint
    assert own(drawn, fraction=0.3).fingerprint != by_name.fingerprint


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (lambda d, i: drawn(d, i)[:-1], TaskError, r"gives bool \(29,\) for mask 0: must be bool \(30,\), True = kept"),
        (lambda d, i: drawn(d, i).astype(float), TaskError, r"gives float64 \(30,\) for mask 0"),
        (lambda d, i: [drawn(d, i)][i], TaskError, "raises IndexError for mask 1: .* every id from 0 on"),
        (lambda d, i: drawn(d, next(_calls)), ConfigError, "gives another mask when it is called again"),
        (lambda d, i: ~drawn(d, i), ConfigError, r"ablates 0\.\d+ of the comp.* ablation_fraction=0\.2 is asked for"),
        (lambda d, i: np.ones(30, bool), ConfigError, "ablates 0 of the components in its first 64 masks"),
    ],
)
def test_what_is_no_mask_design_is_refused(rule: Rule, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        own(rule)


def test_names_that_lead_nowhere_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"design\.kind='nowhere:rule' cannot be imported: No module named"):
        own("nowhere:rule")
    with pytest.raises(ConfigError, match=r"design\.kind='tests\.models:rule' cannot be imported: .* no attribute"):
        own("tests.models:rule")


def test_another_version_of_the_code_on_a_node_is_noticed() -> None:
    design = replace(own(drawn), fingerprint="sha256:0", rule=None)
    with pytest.raises(ConfigError, match=r"test_own_design:drawn' makes other masks in this process than"):
        design.masks(0, 1)


def attribute(root: Path, quiet: Console, **changes: Any) -> RunReader:
    task = small_task()
    arguments = {
        "num_masks": 60,
        "ablation_fraction": 0.2,
        "ablation": AblationConfig(mode="rows", compile=False),
        "cluster": ClusterConfig(max_actors=1),
        "console": quiet,
    }
    inputs = task.model, task.examples.inputs, task.examples.targets
    return coar_dist.attribute(*inputs, run_dir=root, **{**arguments, **changes})


def test_a_run_is_continued_with_the_same_masks_alone(tmp_path: Path, quiet: Console) -> None:
    version = 0

    def rule(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
        return drawn(design, mask_id, version)

    with without_ray():
        attribute(tmp_path, quiet, design=rule)
        assert attribute(tmp_path, quiet, design=rule, num_masks=80).margins()[0].shape == (80, 12)
        version = 1
        with pytest.raises(RunMismatchError, match=r"other masks than when design 'train' .* its code has changed"):
            attribute(tmp_path, quiet, design=rule)
        with pytest.raises(RunMismatchError, match=r"^design is 'bernoulli', but design 'train' .* with 'tests\."):
            attribute(tmp_path, quiet)


def test_held_out_masks_must_be_others(tmp_path: Path, quiet: Console) -> None:
    def without_seed(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
        return drawn(replace(design, seed=0), mask_id)

    held_out = EvaluationConfig(kind=without_seed, num_masks=40, ablation_fractions=[0.2], seed=9)
    with (
        without_ray(),
        pytest.raises(ConfigError, match=r"'evaluation_0\.2' has the masks of 'train': the rule"),
    ):
        attribute(tmp_path, quiet, design=without_seed, evaluation=held_out, stages=["ablate"])


def test_a_closure_travels() -> None:
    salt = 3
    design = cloudpickle.loads(cloudpickle.dumps(own(lambda design, mask_id: drawn(design, mask_id, salt))))
    np.testing.assert_array_equal(design.masks(0, 5), [drawn(design, i, 3) for i in range(5)])


def test_what_cannot_travel_is_an_error_of_the_node(ray_cluster: None, tmp_path: Path, quiet: Console) -> None:
    module = ModuleType("only_here")
    module.rule = drawn  # type: ignore[attr-defined]
    sys.modules["only_here"] = module
    try:
        with pytest.raises(ConfigError, match=r"on \S+, kind='only_here:rule' cannot be imported: No module named"):
            attribute(tmp_path, quiet, design="only_here:rule", cluster="ray")
    finally:
        del sys.modules["only_here"]
