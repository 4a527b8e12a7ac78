"""Types, unknown keys and the rules of single fields."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch

from coar_dist.config.fields import checked
from coar_dist.config.schema import (
    AblationConfig,
    ClusterConfig,
    ComponentRule,
    ComponentsConfig,
    Config,
    DesignConfig,
    EditConfig,
    EvaluationConfig,
    ExampleGroup,
    RegressionConfig,
    RunConfig,
    SubsetConfig,
    TrainConfig,
    block_size,
)
from coar_dist.errors import ConfigError


def everything() -> Config:
    return Config(
        train=TrainConfig(),
        edit=EditConfig(target=ExampleGroup(ids=[3]), groups={"some": ExampleGroup(classes=[1])}, keep={"all": 0.5}),
        components=ComponentsConfig(rules=[ComponentRule("*.weight", 0, 4)]),
    )


def test_a_sound_configuration_is_copied_as_it_is() -> None:
    config = everything()
    copied = checked(config)
    assert copied == config
    assert copied is not config
    copied.design.seed, copied.stages[0] = 7, "fit"
    assert (config.design.seed, config.stages[0]) == (0, "train")


def test_numbers_of_numpy_and_torch_become_pythons_and_tuples_lists() -> None:
    design: Any = DesignConfig(num_masks=np.int64(9), ablation_fraction=np.float32(0.25), seed=np.uint64(2**64 - 1))
    plain = checked(design)
    assert plain == DesignConfig(num_masks=9, ablation_fraction=0.25, seed=2**64 - 1)
    assert [type(plain.num_masks), type(plain.ablation_fraction)] == [int, float]
    regression: Any = RegressionConfig(
        standard_errors=np.bool_(True), memory_gb=torch.tensor(2), penalty_range=(1, 2.5)
    )
    assert checked(regression) == RegressionConfig(standard_errors=True, memory_gb=2.0, penalty_range=[1.0, 2.5])
    assert type(checked(regression).memory_gb) is float
    group: Any = ExampleGroup(ids=(np.int64(3), 5), where={"group": {"min": np.float64(0.5)}})
    assert checked(group) == ExampleGroup(ids=[3, 5], where={"group": {"min": 0.5}})


def test_functions_pass_as_they_are() -> None:
    config = DesignConfig(kind=lambda design, mask_id: None)
    assert checked(config).kind is config.kind


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (DesignConfig(num_masks="3"), "num_masks='3': must be a whole number"),
        (DesignConfig(num_masks=True), "num_masks=True: must be"),
        (DesignConfig(num_masks=2.0), "num_masks=2.0: must be"),
        (DesignConfig(num_masks=1), "num_masks=1: must be 0 or at least 2"),
        (DesignConfig(num_masks=-2), "num_masks=-2: must be 0 or at least 2"),
        (DesignConfig(ablation_fraction=1), "ablation_fraction=1: must be a number strictly between 0 and 1"),
        (DesignConfig(ablation_fraction=0.0), "ablation_fraction=0.0: must be a number strictly between 0 and 1"),
        (DesignConfig(ablation_fraction=float("nan")), "ablation_fraction=nan: must be"),
        (DesignConfig(ablation_fraction=True), "ablation_fraction=True: must be"),
        (DesignConfig(seed=2**64), f"seed={2**64}: must be a whole number in 0..2**64-1"),
        (DesignConfig(seed=-1), "seed=-1: must be a whole number in 0..2**64-1"),
        (DesignConfig(kind=5), "kind=5: must be a name, module:function of your own, or in Python a function"),
        (DesignConfig(kind=""), "kind='': must be a name, module:function"),
        (RunConfig(dir=""), "dir='': must be a path"),
        (RunConfig(dir=None), "dir=None: must be a string"),
        (RunConfig(previews=1), "previews=1: must be true or false"),
        (EvaluationConfig(num_masks=1), "num_masks=1: must be a whole number, at least 2"),
        (EvaluationConfig(ablation_fractions=[0.1, 2.0]), "ablation_fractions[1]=2.0: must be a number strictly"),
        (EvaluationConfig(ablation_fractions=[0.1, 0.1]), "ablation_fractions=[0.1, 0.1]: must be a list without"),
        (EvaluationConfig(ablation_fractions=0.1), "ablation_fractions=0.1: must be a list"),
        (EvaluationConfig(curve_shares=[0.5, 0.25]), "curve_shares=[0.5, 0.25]: must be a list of numbers, ascending"),
        (EvaluationConfig(ceiling_pairs=39), "ceiling_pairs=39: must be 0 or at least 40"),
        (AblationConfig(precision="int8"), "precision='int8': must be one of float32, bfloat16, auto"),
        (AblationConfig(mode="row"), "mode='row': must be one of weights, rows"),
        (AblationConfig(rows_per_forward=0), "rows_per_forward=0: must be a whole number, at least 1"),
        (RegressionConfig(regularisation=-1.0), "regularisation=-1.0: must be a finite number, at least 0"),
        (RegressionConfig(regularisation=float("inf")), "regularisation=inf: must be a finite number"),
        (RegressionConfig(penalty_range=[1.0]), "penalty_range=[1.0]: must be [low, high] with 0 < low < high"),
        (RegressionConfig(l1_ratio=1.5), "l1_ratio=1.5: must be a number above 0 and at most 1"),
        (RegressionConfig(tolerance=1e-13), "tolerance=1e-13: must be a number from 1e-12 to below 1"),
        (ClusterConfig(gpus_per_actor=1.5), "gpus_per_actor=1.5: must be a share of one GPU, 0 to 1, or a whole"),
        (ClusterConfig(gpus_per_actor=-0.5), "gpus_per_actor=-0.5: must be a share"),
        (ClusterConfig(start_timeout_s=0), "start_timeout_s=0: must be a finite number above 0"),
        (ClusterConfig(placement="wide"), "placement='wide': must be one of pack, spread"),
        (SubsetConfig(ids=[2, 1]), "ids=[2, 1]: must be null, or at least one id, from 0 on, ascending, none twice"),
        (SubsetConfig(classes=[]), "classes=[]: must be null or a list, none twice"),
        (TrainConfig(minimum_accuracy=1.1), "minimum_accuracy=1.1: must be a number from 0 to 1"),
        (EditConfig(name="../up"), "name='../up': must be a name of a folder: letters, digits, _ . -"),
        (EditConfig(keep={"all": -1.0}), "keep.all=-1.0: must be a finite number, at least 0"),
        (EditConfig(groups={"x": ExampleGroup(sample=0)}), "groups.x.sample=0: must be a whole number, at least 1"),
        (EditConfig(target=ExampleGroup(predicate="f")), "target.predicate='f': must be module:function"),
        (ComponentsConfig(rules=[ComponentRule(axis=-1)]), "rules[0].axis=-1: must be a whole number, at least 0"),
        (ComponentsConfig(include="*"), "include='*': must be a list"),
        (Config(stages=[]), "stages=[]: must be at least one stage"),
        (Config(stages=["fitt"]), "stages[0]='fitt': must be one of train, ablate"),
        (Config(tracking=["wandb", "wandb"]), "tracking=['wandb', 'wandb']: must be a list without repetitions"),
        (Config(baselines=["loo"]), "baselines[0]='loo': must be one of leave_one_out"),
        (Config(budget=0.0), "budget=0.0: must be a finite number above 0"),
        (Config(regression="ridge"), "regression='ridge': must be a RegressionConfig"),
        (Config(regression=ClusterConfig()), "must be a RegressionConfig"),
    ],
)  # fmt: skip
def test_wrong_values_are_named_with_what_they_must_be(part: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(part, "some.")
    assert str(caught.value).startswith("some.")
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("part", "names", "last"),
    [
        (DesignConfig(num_masks=1, ablation_fraction=2.0, seed=-1), ["num_masks", "ablation_fraction", "seed"], None),
        (
            TrainConfig(epochs=0, batch_size=0, learning_rate=0, weight_decay=-1, shift=-1, seed=-1, device=1),
            ["epochs", "batch_size", "learning_rate", "weight_decay", "shift"],
            "and 2 more.",
        ),
    ],
)
def test_all_mistakes_are_told_at_once_in_six_lines(part: Any, names: list[str], last: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(part)
    lines = str(caught.value).splitlines()
    assert [line.partition("=")[0] for line in lines[: len(names)]] == names
    assert lines[len(names) :] == ([last] if last else [])


def test_unknown_keys_are_refused_wherever_they_are() -> None:
    config = everything()
    config.components.rules[0].__dict__["sise"] = 3
    with pytest.raises(ConfigError, match=r"components\.rules\.sise: unknown key"):
        checked(config)
    group = ExampleGroup()
    group.__dict__["sampel"] = 3
    with pytest.raises(ConfigError, match=r"edit\.target\.sampel: unknown key\. Did you mean edit\.target\.sample\?"):
        checked(group, "edit.target.")


def test_every_default_keeps_its_own_rules() -> None:
    def parts(part: Any) -> list[Any]:
        below = [getattr(part, entry.name) for entry in fields(part)]
        return [part, *(one for value in below if is_dataclass(value) for one in parts(value))]

    for part in parts(everything()):
        assert asdict(checked(part)) == asdict(part)


def test_a_block_of_many_components_has_fewer_examples() -> None:
    """Its attributions take 256 MB at most, and a number that is asked for stays."""
    sizes = {d: block_size(AblationConfig(), d) for d in (1, 2304, 22_720, 82_944, 459_776, 2**26, 2**30)}
    assert list(sizes.values()) == [1024, 1024, 1024, 512, 128, 1, 1]
    assert all(4 * d * size <= 2**28 for d, size in sizes.items() if size > 1)
    assert block_size(AblationConfig(examples_per_block=7), 459_776) == 7
