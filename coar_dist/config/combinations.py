"""Whether options make sense together: everything that can be said without loading a model.

Types and the rules of single options stand beside them in ``coar_dist.config.schema``.
"""

from __future__ import annotations

from dataclasses import asdict

from coar_dist.config.class_names import names_by_class
from coar_dist.config.edit_combinations import check_edit
from coar_dist.config.fields import checked
from coar_dist.config.methods import GRADIENT_BASELINES, PATH_BASELINES
from coar_dist.config.schema import (
    ALL_POSITIONS,
    BALANCED,
    CIRCUIT,
    CONSTANTS,
    MEAN,
    PLAN,
    PROCESS,
    RAY,
    RESAMPLE,
    SELECTIONS,
    STAGES,
    ZERO_WEIGHTS,
    BaselineConfig,
    CircuitConfig,
    Config,
    EvaluationConfig,
    ExamplesConfig,
    ModelConfig,
    RegressionConfig,
    SubsetConfig,
    TrainConfig,
    asked_of_ray,
    differs_by_example,
    held_out_fractions,
    penalty_range,
)
from coar_dist.config.secrets import check_no_secrets
from coar_dist.errors import ConfigError


def validate(config: Config) -> Config:
    """Check every value that can be checked without loading a model.

    Returns:
        The same configuration, in which NumPy's numbers are Python's and tuples are lists.

    Raises:
        ConfigError: naming the key, the value and the valid type or range.
    """
    config = checked(config)
    check_no_secrets(asdict(config))
    _check_stages(config)
    _check_baselines(config)
    _check_seeds(config)
    _check_evaluation(config)
    _check_gradients(config)
    _check_regression(config.regression)
    _check_task(config)
    _check_value(config)
    _check_cluster(config)
    _check_circuit(config.circuit)
    if config.edit is not None:
        check_edit(config.edit)
    return config


def _ablates(config: Config) -> bool:
    """Whether the run is collected, or planned as it would be."""
    return bool({"ablate", PLAN} & set(config.stages))


def _check_stages(config: Config) -> None:
    stages = config.stages
    if PLAN in stages and stages != [PLAN]:
        raise ConfigError(f"stages={stages}: {PLAN} estimates a run and starts none. Use it alone, stages=[{PLAN}].")
    if "edit" in stages and config.edit is None and {*stages, CIRCUIT} != set(STAGES):
        raise ConfigError(f"stages={stages}, but there is no edit to make: choose one, e.g. edit=forget_class.")
    if config.tracking and not {"ablate", "evaluate", PLAN} & set(stages):
        raise ConfigError(
            f"tracking={config.tracking} has no effect with stages={stages}: ablate and evaluate alone have "
            f"figures. Leave it out."
        )


def _check_baselines(config: Config) -> None:
    settings = config.baseline_settings
    for name, users in (("num_steps", PATH_BASELINES), ("rows_per_pass", GRADIENT_BASELINES)):
        value = getattr(settings, name)
        if value != getattr(BaselineConfig(), name) and not set(users) & set(config.baselines):
            raise ConfigError(
                f"baseline_settings.{name}={value!r} has no effect with baselines={config.baselines}: it applies to "
                f"{', '.join(users)}. Leave it out, or add one."
            )


def _check_seeds(config: Config) -> None:
    design, gradients, evaluation = config.design, config.gradients, config.evaluation
    for name, kind, seed in [
        ("design", design.kind, design.seed),
        ("gradients", gradients.kind or BALANCED, gradients.seed),
    ]:
        if (kind, seed) == (evaluation.kind, evaluation.seed):
            raise ConfigError(
                f"evaluation.seed={evaluation.seed} is {name}.seed too: masks of equal seeds are not held out, "
                f"so the correlation would be in-sample. Use another evaluation.seed."
            )
    if gradients.num_masks and (design.kind, design.seed) == (gradients.kind or BALANCED, gradients.seed):
        raise ConfigError(
            f"gradients.seed={gradients.seed} is design.seed too, so the same masks would be run twice. Use another "
            f"gradients.seed."
        )


def _check_evaluation(config: Config) -> None:
    evaluation, fractions = config.evaluation, config.evaluation.ablation_fractions
    if "ablate" in config.stages and {"evaluate", "report"} & set(config.stages) and fractions == []:
        raise ConfigError(
            "evaluation.ablation_fractions=[]: the stages evaluate and report need at least one. Leave these stages "
            "out, or name a fraction."
        )
    pairs, rho, trained = evaluation.ceiling_pairs, evaluation.ceiling_correlation, config.design.ablation_fraction
    if pairs == 0 and rho != EvaluationConfig().ceiling_correlation:
        raise ConfigError(
            f"evaluation.ceiling_correlation={rho} has no effect with evaluation.ceiling_pairs=0. Leave it out."
        )
    if pairs > evaluation.num_masks:
        raise ConfigError(
            f"evaluation.ceiling_pairs={pairs} is above evaluation.num_masks={evaluation.num_masks}: each pair takes a "
            f"held-out mask. Lower one, or raise the other."
        )
    if pairs and evaluation.kind != "bernoulli":
        raise ConfigError(
            f"evaluation.ceiling_pairs={pairs} needs components that are ablated independently, but evaluation.kind="
            f"{evaluation.kind}. Use evaluation.kind=bernoulli, or evaluation.ceiling_pairs=0."
        )
    if pairs and _ablates(config) and trained is not None:
        check_ceiling_fraction(config, trained)


def check_ceiling_fraction(config: Config, trained: float) -> None:
    """Check that pairs for the ceiling have held-out masks of the fraction ``trained``.

    Raises:
        ConfigError: there are none.
    """
    pairs, fractions = config.evaluation.ceiling_pairs, held_out_fractions(config, trained)
    if pairs and trained not in fractions:
        raise ConfigError(
            f"evaluation.ceiling_pairs={pairs} take held-out masks at design.ablation_fraction={trained}, which is "
            f"not in evaluation.ablation_fractions={fractions}. Add it, or leave out the pairs."
        )


def _check_gradients(config: Config) -> None:
    gradients, regression, budget = config.gradients, config.regression, config.budget
    if budget is not None and (gradients.num_masks == 0 or regression.method != "ridge"):
        raise ConfigError(
            f"budget={budget:g} is shared out between passes with gradients and without, but gradients.num_masks="
            f"{gradients.num_masks} and regression.method={regression.method}. Use estimator=budget, or set "
            f"design.num_masks instead."
        )
    if gradients.num_masks == 0 and config.design.num_masks == 0:
        raise ConfigError(
            "design.num_masks=0 and gradients.num_masks=0: there is nothing to fit. Set one of them to at least 2."
        )
    if gradients.num_masks and regression.method != "ridge" and _ablates(config):
        raise ConfigError(
            f"regression.method={regression.method} does not use gradients, but gradients.num_masks="
            f"{gradients.num_masks}. Use regression.method=ridge, or estimator=coar."
        )


def _check_regression(regression: RegressionConfig) -> None:
    method, penalty = regression.method, regression.regularisation
    is_ridge, by_method = method == "ridge", f"regression.method={method}"
    if penalty == 0.0 and not is_ridge:
        raise ConfigError(
            f"regression.regularisation=0.0: must be above 0 with {by_method}, or null (chosen from the data)."
        )
    if regression.selection is not None and regression.selection not in SELECTIONS[method]:
        raise ConfigError(
            f"regression.selection={regression.selection!r}: must be one of {', '.join(SELECTIONS[method])} for "
            f"{by_method}."
        )
    low, high = penalty_range(regression)
    if not is_ridge and high > 1.0:
        raise ConfigError(
            f"regression.penalty_range={[low, high]}: must be at most 1 for {by_method}, whose penalties are shares of "
            f"the smallest one at which all weights are 0."
        )
    fixed = f"regression.regularisation={penalty}"
    without_effect = [
        ("l1_ratio", is_ridge, by_method),
        ("held_out_fraction", is_ridge, by_method),
        ("standard_errors", not is_ridge, by_method),
        ("shared_penalty", not is_ridge, by_method),
        ("selection", penalty is not None and not is_ridge, fixed),
        *((name, penalty is not None, fixed) for name in ("shared_penalty", "num_penalties", "penalty_range")),
        ("held_out_fraction", penalty is not None, fixed),
        ("held_out_fraction", regression.selection == "bic", "regression.selection=bic"),
    ]
    for name, has_none, reason in without_effect:
        value = getattr(regression, name)
        if has_none and value != getattr(RegressionConfig(), name):
            raise ConfigError(f"regression.{name}={value!r} has no effect with {reason}. Leave it out.")


def _check_task(config: Config) -> None:
    model, train, components = config.task.model, config.train, config.components
    if ("rules" in components.selectors) != bool(components.rules):
        raise ConfigError(
            f"components.rules={components.rules} and components.selector={components.selector!r}: rules are used by "
            f"the selector 'rules', which needs at least one."
        )
    _check_normalisation(model)
    if config.task.class_names is not None:
        names_by_class(config.task.class_names)
    for key, examples in _examples_of(config, train):
        check_subset(examples.subset, f"{key}.subset")
    if train is not None and model.checkpoint is not None:
        raise ConfigError(
            f"task.model.checkpoint={model.checkpoint!r} and train are both set: the checkpoint replaces the training. "
            f"Set train=null, or task.model.checkpoint=null."
        )


def _examples_of(config: Config, train: TrainConfig | None) -> list[tuple[str, ExamplesConfig]]:
    found = [("task.examples", config.task.examples), ("ablation.reference", config.ablation.reference)]
    if config.edit is not None and config.edit.examples is not None:
        found.append(("edit.examples", config.edit.examples))
    return found if train is None else [*found, ("train.examples", train.examples)]


def check_subset(subset: SubsetConfig, key: str) -> None:
    """Check what can be said of a subset without its source.

    Args:
        subset: which examples.
        key: its config key, for messages.

    Raises:
        ConfigError: naming the key, the value and the valid range.
    """
    subset = checked(subset, f"{key}.")
    if subset.ids is not None and subset.every is not None:
        raise ConfigError(f"{key}.every={subset.every} and {key}.ids are both set, and both choose. Use one.")
    if subset.seed != SubsetConfig().seed and subset.sample is None:
        raise ConfigError(f"{key}.seed={subset.seed} has no effect without {key}.sample. Leave it out.")


def _check_normalisation(model: ModelConfig) -> None:
    mean, std = model.input_mean, model.input_std
    if mean is None and std is None:
        return
    if mean is None or std is None:
        key = "task.model.input_mean" if std is None else "task.model.input_std"
        raise ConfigError(f"{key} is set alone: input_mean and input_std go together. Set both, e.g. [0.5] and [0.5].")
    if not len(mean) == len(std) > 0:
        raise ConfigError(
            f"task.model.input_std={std}: must be as long as task.model.input_mean={mean}, one value per channel."
        )


def _check_value(config: Config) -> None:
    ablation = config.ablation
    for key, of, is_set in (
        ("mean_over", (MEAN,), ablation.mean_over != ALL_POSITIONS),
        ("reference", (MEAN, RESAMPLE), ablation.reference != ExamplesConfig()),
        ("constants", (CONSTANTS,), ablation.constants is not None),
    ):
        if is_set and ablation.value not in of:
            raise ConfigError(
                f"ablation.{key} has no effect with ablation.value={ablation.value}: it belongs to "
                f"ablation.value={' and '.join(of)}. Leave one out."
            )
    if ablation.reference != ExamplesConfig() and not ablation.reference.source:
        raise ConfigError("ablation.reference has no effect without ablation.reference.source. Set it.")
    if (
        differs_by_example(ablation)
        and "ablate" in config.stages
        and "edit" in config.stages
        and config.edit is not None
    ):
        value = ablation.value if ablation.value != MEAN else f"mean with ablation.mean_over={ablation.mean_over}"
        raise ConfigError(
            f"edit: ablation.value={value} differs from example to example, so that no edited model can give it. "
            f"Leave edit out, or use ablation.value=mean, zero or zero_weights."
        )
    methods = [method for method in GRADIENT_BASELINES if method in config.baselines]
    if methods and ablation.value != ZERO_WEIGHTS:
        raise ConfigError(
            f"baselines={methods} are of zeroed weights, not of ablation.value={ablation.value}. Leave them out."
        )


def _check_circuit(circuit: CircuitConfig) -> None:
    if circuit.random_draws == 0 and circuit.seed != CircuitConfig().seed:
        raise ConfigError(f"circuit.seed={circuit.seed} has no effect with circuit.random_draws=0. Leave it out.")


def _check_cluster(config: Config) -> None:
    ablation, cluster = config.ablation, config.cluster
    if ablation.device_map is not None and ablation.compile:
        raise ConfigError(
            "ablation.compile=true has no effect on a model spread by ablation.device_map. Leave one out."
        )
    if cluster.max_actors is not None and cluster.max_actors < cluster.min_actors:
        raise ConfigError(
            f"cluster.max_actors={cluster.max_actors} is below cluster.min_actors={cluster.min_actors}. Raise one, or "
            f"lower the other."
        )
    if cluster.price_per_hour is not None and PLAN not in config.stages:
        raise ConfigError(
            f"cluster.price_per_hour={cluster.price_per_hour} has no effect with stages={config.stages}: only "
            f"stages=[{PLAN}] estimates a price. Leave it out."
        )
    if cluster.where == PROCESS:
        of_ray = [f"cluster.{name}={value!r}" for name, value in asked_of_ray(cluster).items()]
        of_ray += ["regression.distributed=true"] if config.regression.distributed else []
        if of_ray:
            raise ConfigError(
                f"{', '.join(of_ray)} has no effect with cluster.where={PROCESS}: everything is computed in the "
                f"calling process, by one actor. Leave it out, or use cluster.where={RAY}."
            )
