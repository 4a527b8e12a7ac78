"""Options that make no sense together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from coar_dist.config.combinations import check_subset, validate
from coar_dist.config.schema import (
    AblationConfig,
    BaselineConfig,
    ClusterConfig,
    ComponentRule,
    ComponentsConfig,
    Config,
    DesignConfig,
    EvaluationConfig,
    ExamplesConfig,
    GradientsConfig,
    ModelConfig,
    RegressionConfig,
    SubsetConfig,
    TaskConfig,
    TrainConfig,
)
from coar_dist.errors import ConfigError

PAIRS = EvaluationConfig(num_masks=60, ceiling_pairs=50, ablation_fractions=[0.05])


def changed(part: Any, **changes: Any) -> Any:
    return type(part)(**{**vars(part), **changes})


def of_regression(**options: Any) -> dict[str, Any]:
    return {"stages": ["fit"], "regression": RegressionConfig(**options)}


def of_model(**options: Any) -> dict[str, Any]:
    return {"task": TaskConfig(ModelConfig("digits_resnet", **options))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ["plan", "fit"]}, "plan estimates a run and starts none. Use it alone, stages=[plan]."),
        ({"stages": ["edit"]}, "there is no edit to make: choose one, e.g. edit=forget_class."),
        ({"stages": ["fit"], "tracking": ["wandb"]}, "tracking=['wandb'] has no effect with stages=['fit']"),
        ({"design": DesignConfig(num_masks=0)}, "design.num_masks=0 and gradients.num_masks=0: there is nothing to fi"),
        ({"budget": 100.0}, "budget=100 is shared out between passes with gradients and without, but gradients.num_"),
        (
            {"budget": 1.0, "gradients": GradientsConfig(10), "regression": RegressionConfig("lasso")},
            "regression.method=lasso. Use estimator=budget",
        ),
        (
            {"gradients": GradientsConfig(10), "regression": RegressionConfig("lasso")},
            "regression.method=lasso does not use gradients, but gradients.num_masks=10. Use regression.method=ridge",
        ),
        ({"gradients": GradientsConfig(10, "bernoulli", 0)}, "gradients.seed=0 is design.seed too, so the same masks"),
        ({"gradients": GradientsConfig(10, "bernoulli", 1_000_000)}, "evaluation.seed=1000000 is gradients.seed too"),
        ({"evaluation": EvaluationConfig(seed=0)}, "evaluation.seed=0 is design.seed too: masks of equal seeds are no"),
        ({"evaluation": EvaluationConfig(ablation_fractions=[])}, "evaluation.ablation_fractions=[]: the stages evalu"),
        ({"evaluation": EvaluationConfig(ceiling_correlation=0.4)}, "evaluation.ceiling_correlation=0.4 has no effect"),
        ({"evaluation": changed(PAIRS, ceiling_pairs=61)}, "evaluation.ceiling_pairs=61 is above evaluation.num_masks"),
        ({"evaluation": changed(PAIRS, kind="fixed_size")}, "evaluation.ceiling_pairs=50 needs components that are ab"),
        (
            {"evaluation": changed(PAIRS, ablation_fractions=[0.1]), "design": DesignConfig(ablation_fraction=0.05)},
            "design.ablation_fraction=0.05, which is not in",
        ),
        ({"baseline_settings": BaselineConfig(num_steps=20)}, "baseline_settings.num_steps=20 has no effect with base"),
        ({"baseline_settings": BaselineConfig(rows_per_pass=9)}, "it applies to gradient_x_parameter, neuron_cond"),
        (of_regression(selection="bic"), "regression.selection='bic': must be one of gcv, leave_one_out for regressio"),
        (of_regression(method="lasso", selection="gcv"), "regression.selection='gcv': must be one of held_out, bic fo"),
        (of_regression(method="lasso", regularisation=0.0), "regression.regularisation=0.0: must be above 0 with"),
        (of_regression(method="lasso", penalty_range=[0.1, 2.0]), "regression.penalty_range=[0.1, 2.0]: must be at mo"),
        (of_regression(l1_ratio=0.5), "regression.l1_ratio=0.5 has no effect with regression.method=ridge"),
        (of_regression(held_out_fraction=0.5), "regression.held_out_fraction=0.5 has no effect"),
        (of_regression(method="lasso", standard_errors=True), "regression.standard_errors=True has no effect"),
        (of_regression(method="lasso", shared_penalty=True), "regression.shared_penalty=True has no effect"),
        (of_regression(regularisation=1.0, num_penalties=4), "num_penalties=4 has no effect with regression.regularis"),
        (of_regression(method="lasso", selection="bic", held_out_fraction=0.5), "no effect with regression.selection="),
        ({"components": ComponentsConfig("rules")}, "rules are used by the selector 'rules', which needs at least one"),
        ({"components": ComponentsConfig(rules=[ComponentRule("*")])}, "components.selector='auto': rules are"),
        (of_model(input_mean=[0.5]), "task.model.input_mean is set alone: input_mean and input_std go together"),
        (of_model(input_std=[0.5]), "task.model.input_std is set alone"),
        (of_model(input_mean=[0.5], input_std=[0.5, 0.5]), "task.model.input_std=[0.5, 0.5]: must be as long as"),
        (of_model(input_mean=[], input_std=[]), "task.model.input_std=[]: must be as long as"),
        ({**of_model(checkpoint="x.pt"), "train": TrainConfig()}, "task.model.checkpoint='x.pt' and train are both se"),
        ({"ablation": AblationConfig(device_map="auto", compile=True)}, "ablation.compile=true has no effect on a mod"),
        ({"cluster": ClusterConfig(min_actors=3, max_actors=2)}, "cluster.max_actors=2 is below cluster.min_actors=3"),
        ({"cluster": ClusterConfig("head:1", "process")}, "cluster.address='head:1' has no effect with cluster.where="),
        ({"cluster": ClusterConfig(where="process", max_actors=2)}, "cluster.max_actors=2 has no effect with cluster."),
        (
            {"cluster": ClusterConfig(where="process", max_actors=1), **of_regression(distributed=True)},
            "regression.distributed=true has no effect with cluster.where=process: everything is computed in the call",
        ),
        ({"cluster": ClusterConfig(where="here")}, "cluster.where='here': must be one of auto, process, ray"),
        ({"cluster": ClusterConfig(price_per_hour=2.5)}, "cluster.price_per_hour=2.5 has no effect with stages="),
        ({"task": TaskConfig(ModelConfig("x", {"hf_token": "abc"}))}, "task.model.arguments.hf_token looks like a cre"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_together_is_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Config(**options))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stages": ["plan"], "tracking": ["wandb"]},
        {"gradients": GradientsConfig(10), "design": DesignConfig(num_masks=0)},
        {"evaluation": PAIRS},
        {"evaluation": EvaluationConfig(kind="balanced", seed=0)},
        {"stages": ["fit"], "gradients": GradientsConfig(10), "regression": RegressionConfig("lasso")},
        {"baselines": ["internal_influence"], "baseline_settings": BaselineConfig(num_steps=20, rows_per_pass=9)},
        of_regression(method="lasso", l1_ratio=0.5, held_out_fraction=0.5, penalty_range=[0.1, 1.0]),
        of_regression(regularisation=0.0, standard_errors=True),
        of_model(input_mean=[0.5], input_std=[0.5]),
    ],
)
def test_what_makes_sense_is_kept(options: Mapping[str, Any]) -> None:
    config = Config(**options)
    assert validate(config) == config


def subsets(config: Config) -> Iterator[ExamplesConfig]:
    assert config.train is not None
    yield from (config.task.examples, config.train.examples)


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (SubsetConfig(ids=[1], every=2), "every=2 and {key}.ids are both set, and both choose. Use one."),
        (SubsetConfig(seed=3), "seed=3 has no effect without {key}.sample. Leave it out."),
        (SubsetConfig(first=0), "first=0: must be a whole number, at least 1."),
    ],
)
def test_subsets_are_checked_wherever_they_are(subset: SubsetConfig, message: str) -> None:
    for place, key in enumerate(["task.examples.subset", "train.examples.subset"]):
        config = Config(train=TrainConfig())
        list(subsets(config))[place].subset = subset
        with pytest.raises(ConfigError) as caught:
            validate(config)
        assert str(caught.value) == f"{key}.{message.format(key=key)}"
    check_subset(SubsetConfig(sample=3, seed=3, ids=[1, 2]), "key")
