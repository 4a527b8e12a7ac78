"""Whether the values of a configuration make sense: everything that can be said without loading a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from coar_dist.config.edit_checks import check_edit
from coar_dist.config.methods import BASELINES, GRADIENT_BASELINES, PATH_BASELINES
from coar_dist.config.schema import (
    BACKENDS,
    LOSSES,
    MARGIN_DTYPES,
    MIN_CEILING_MASKS,
    MODES,
    OPTIMIZERS,
    PLACEMENTS,
    PLAN,
    PRECISIONS,
    RANDOM_DESIGNS,
    SELECTIONS,
    STAGES,
    TRACKERS,
    BaselineConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    RegressionConfig,
    SubsetConfig,
    held_out_fractions,
    penalty_range,
)
from coar_dist.config.secrets import check_no_secrets
from coar_dist.errors import ConfigError


def _require(condition: bool, key: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value!r}: must be {rule}.")


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, value, f"one of {', '.join(choices)}")


def _require_choice_or_own(key: str, value: object, choices: tuple[str, ...]) -> None:
    """A name, ``module:function``, or in Python a function."""
    is_own = callable(value) or (isinstance(value, str) and all(value.partition(":")))
    _require(is_own or value in choices, key, value, f"one of {', '.join(choices)}, or module:function of your own")


def _check_types(part: Any, prefix: str) -> None:
    """Hydra checks types; a configuration built in Python may hold anything. NumPy's numbers become Python's."""
    hints = get_type_hints(type(part))
    for entry in fields(part):
        value, key = getattr(part, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            _check_types(value, f"{key}.")
        else:
            setattr(part, entry.name, _checked(value, hints[entry.name], key))


def _checked(value: Any, hint: Any, key: str) -> Any:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        origin = get_origin(kind) or kind
        if is_dataclass(kind) and is_dataclass(value) and type(value) is kind:
            _check_types(value, f"{key}.")
            return value
        if origin is dict and isinstance(value, Mapping):
            _, item_kind = get_args(kind)
            return {str(name): _checked(item, item_kind, f"{key}.{name}") for name, item in value.items()}
        if origin is list and isinstance(value, list | tuple):
            (item_kind,) = get_args(kind)
            return [_checked(item, item_kind, f"{key}[{i}]") for i, item in enumerate(value)]
        if kind is float and isinstance(value, Real) and not isinstance(value, bool):
            return float(value)
        if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
            return int(value)
        if origin is Any or (origin not in (int, float, list) and isinstance(value, origin)):
            return value
    names = " or ".join("null" if kind is NoneType else getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ConfigError(f"{key}={value!r}: must be of type {names}, not {type(value).__name__}.")


def validate(config: Config) -> None:
    """Check every value that can be checked without loading a model.

    Raises:
        ConfigError: naming the key, the value and the valid type or range.
    """
    _check_types(config, "")
    check_no_secrets(asdict(config))
    for stage in config.stages:
        _require_choice("stages", stage, (*STAGES, PLAN))
    _require(len(config.stages) > 0, "stages", config.stages, f"a non-empty subset of {list(STAGES)}")
    if PLAN in config.stages and config.stages != [PLAN]:
        raise ConfigError(
            f"stages={config.stages}: {PLAN} estimates a run and starts none. Use it alone, stages=[{PLAN}]."
        )
    _validate_tracking(config)
    _validate_baselines(config)
    _require(config.run.dir != "", "run.dir", config.run.dir, "a path")

    design, evaluation, ablation = config.design, config.evaluation, config.ablation
    _require_choice_or_own("design.kind", design.kind, RANDOM_DESIGNS)
    _require_choice_or_own("evaluation.kind", evaluation.kind, RANDOM_DESIGNS)
    _validate_gradients(config)
    _validate_ceiling(config)
    _require(evaluation.num_masks >= 2, "evaluation.num_masks", evaluation.num_masks, "at least 2")
    for key, fraction in [
        ("design.ablation_fraction", design.ablation_fraction),
        *(("evaluation.ablation_fractions", fraction) for fraction in evaluation.ablation_fractions or []),
    ]:
        _require(0.0 < fraction < 1.0, key, fraction, "strictly between 0 and 1")
    shares = evaluation.curve_shares
    _require(
        all(0.0 < share < 1.0 for share in shares) and shares == sorted(set(shares)),
        "evaluation.curve_shares",
        shares,
        "ascending and strictly between 0 and 1",
    )
    fractions = held_out_fractions(config)
    _require(
        len(set(fractions)) == len(fractions),
        "evaluation.ablation_fractions",
        fractions,
        "free of repetitions",
    )
    if "ablate" in config.stages and {"evaluate", "report"} & set(config.stages) and not fractions:
        raise ConfigError(
            "evaluation.ablation_fractions=[]: the stages evaluate and report need at least one. Leave these stages "
            "out, or name a fraction."
        )
    gradients = config.gradients
    for key, seed in [
        ("design.seed", design.seed),
        ("evaluation.seed", evaluation.seed),
        ("gradients.seed", gradients.seed),
    ]:
        _require(0 <= seed < 2**64, key, seed, "in 0..2**64-1")
    for name, kind, seed in [
        ("design", design.kind, design.seed),
        ("gradients", gradients.kind, gradients.seed),
    ]:
        if (kind, seed) == (evaluation.kind, evaluation.seed):
            raise ConfigError(
                f"evaluation.seed={evaluation.seed} is {name}.seed too: masks of equal seeds are not held out, "
                f"so the correlation would be in-sample. Use another evaluation.seed."
            )

    components = config.components
    if (components.selector == "rules") != bool(components.rules):
        raise ConfigError(
            f"components.rules={components.rules} and components.selector={components.selector!r}: rules are used by "
            f"the selector 'rules', which needs at least one."
        )
    for rule in components.rules:
        _require(rule.block_size >= 1, "components.rules.block_size", rule.block_size, "at least 1")
        _require(rule.axis >= 0, "components.rules.axis", rule.axis, "at least 0")
    _require_choice("ablation.precision", ablation.precision, PRECISIONS)
    _require_choice("ablation.margins_dtype", ablation.margins_dtype, MARGIN_DTYPES)
    if ablation.mode is not None:
        _require_choice("ablation.mode", ablation.mode, MODES)
    for name in ("rows_per_forward", "masks_per_shard", "examples_per_block"):
        value = getattr(ablation, name)
        _require(value is None or value >= 1, f"ablation.{name}", value, "at least 1")

    _validate_regression(config.regression)
    _validate_normalisation(config.task.model)

    if ablation.device_map is not None and ablation.compile:
        raise ConfigError(
            "ablation.compile=true has no effect on a model spread by ablation.device_map. Leave one out."
        )
    cluster = config.cluster
    for name in ("min_actors", "max_actors", "cpus_per_actor", "ranges_in_flight", "max_attempts"):
        value = getattr(cluster, name)
        _require(value is None or value >= 1, f"cluster.{name}", value, "at least 1")
    if cluster.max_actors is not None and cluster.max_actors < cluster.min_actors:
        raise ConfigError(
            f"cluster.max_actors={cluster.max_actors} is below cluster.min_actors={cluster.min_actors}. Raise one, or "
            f"lower the other."
        )
    gpus = cluster.gpus_per_actor
    _require(gpus is None or gpus >= 0.0, "cluster.gpus_per_actor", gpus, "null or at least 0")
    if cluster.placement is not None:
        _require_choice("cluster.placement", cluster.placement, PLACEMENTS)
    _require(cluster.start_timeout_s > 0.0, "cluster.start_timeout_s", cluster.start_timeout_s, "positive")
    price = cluster.price_per_hour
    _require(price is None or 0.0 <= price < float("inf"), "cluster.price_per_hour", price, "null or at least 0")

    check_subset(config.task.examples.subset, "task.examples.subset")
    if config.edit is not None:
        check_edit(config.edit)
        if config.edit.examples is not None:
            check_subset(config.edit.examples.subset, "edit.examples.subset")
    elif "edit" in config.stages and set(config.stages) != set(STAGES):
        raise ConfigError(f"stages={config.stages}, but there is no edit to make: choose one, e.g. edit=forget_class.")
    train = config.train
    if train is not None:
        check_subset(train.examples.subset, "train.examples.subset")
        for name in ("epochs", "batch_size"):
            value = getattr(train, name)
            _require(value >= 1, f"train.{name}", value, "at least 1")
        _require(train.loss is None or train.loss in LOSSES, "train.loss", train.loss, f"null or {' or '.join(LOSSES)}")
        _require_choice("train.optimizer", train.optimizer, OPTIMIZERS)
        _require(train.shift >= 0, "train.shift", train.shift, "at least 0")
        _require(train.learning_rate > 0.0, "train.learning_rate", train.learning_rate, "positive")
        _require(train.weight_decay >= 0.0, "train.weight_decay", train.weight_decay, "at least 0")
        _require(
            0.0 <= train.minimum_accuracy <= 1.0,
            "train.minimum_accuracy",
            train.minimum_accuracy,
            "in [0, 1]",
        )
        if config.task.model.checkpoint is not None:
            raise ConfigError(
                f"task.model.checkpoint={config.task.model.checkpoint!r} and train are both set: the checkpoint "
                f"replaces the training. Set train=null, or task.model.checkpoint=null."
            )


def _ablates(config: Config) -> bool:
    """Whether the run is collected, or planned as it would be."""
    return bool({"ablate", PLAN} & set(config.stages))


def check_subset(subset: SubsetConfig, key: str) -> None:
    """Check what can be said of a subset without its source.

    Args:
        subset: which examples.
        key: its config key, for messages.

    Raises:
        ConfigError: naming the key, the value and the valid range.
    """
    for name in ("every", "sample", "first"):
        value = getattr(subset, name)
        _require(value is None or value >= 1, f"{key}.{name}", value, "null or at least 1")
    ids, classes = subset.ids, subset.classes
    if ids is not None:
        is_ascending = len(ids) > 0 and ids[0] >= 0 and ids == sorted(set(ids))
        _require(is_ascending, f"{key}.ids", ids, "null, or at least one id, from 0 on, ascending, none twice")
        if subset.every is not None:
            raise ConfigError(f"{key}.every={subset.every} and {key}.ids are both set, and both choose. Use one.")
    if classes is not None:
        _require(0 < len(classes) == len(set(classes)), f"{key}.classes", classes, "null or class labels, none twice")
    _require(0 <= subset.seed < 2**64, f"{key}.seed", subset.seed, "in 0..2**64-1")
    if subset.seed != SubsetConfig().seed and subset.sample is None:
        raise ConfigError(f"{key}.seed={subset.seed} has no effect without {key}.sample. Leave it out.")


def _validate_tracking(config: Config) -> None:
    names = config.tracking
    for name in names:
        _require_choice("tracking", name, TRACKERS)
    _require(len(set(names)) == len(names), "tracking", names, "free of repetitions")
    if names and not {"ablate", "evaluate", PLAN} & set(config.stages):
        raise ConfigError(
            f"tracking={names} has no effect with stages={config.stages}: it is of the figures of ablate and evaluate. "
            f"Leave it out."
        )


def _validate_baselines(config: Config) -> None:
    for baseline in config.baselines:
        _require_choice("baselines", baseline, BASELINES)
    settings = config.baseline_settings
    _require(settings.num_steps >= 2, "baseline_settings.num_steps", settings.num_steps, "at least 2")
    rows = settings.rows_per_pass
    _require(rows is None or rows >= 1, "baseline_settings.rows_per_pass", rows, "null or at least 1")
    for name, users in (("num_steps", PATH_BASELINES), ("rows_per_pass", GRADIENT_BASELINES)):
        value = getattr(settings, name)
        if value != getattr(BaselineConfig(), name) and not set(users) & set(config.baselines):
            raise ConfigError(
                f"baseline_settings.{name}={value!r} has no effect with baselines={config.baselines}: it is of "
                f"{', '.join(users)}. Leave it out, or add one."
            )


def _validate_ceiling(config: Config) -> None:
    evaluation, fraction = config.evaluation, config.design.ablation_fraction
    pairs, rho = evaluation.ceiling_pairs, evaluation.ceiling_correlation
    _require(0.0 < rho < 1.0, "evaluation.ceiling_correlation", rho, "strictly between 0 and 1")
    _require(
        pairs == 0 or MIN_CEILING_MASKS <= pairs <= evaluation.num_masks,
        "evaluation.ceiling_pairs",
        pairs,
        f"0, or in {MIN_CEILING_MASKS}..{evaluation.num_masks} (evaluation.num_masks: each is of a held-out mask)",
    )
    if pairs == 0 and rho != EvaluationConfig().ceiling_correlation:
        raise ConfigError(
            f"evaluation.ceiling_correlation={rho} has no effect with evaluation.ceiling_pairs=0. Leave it out."
        )
    if pairs and evaluation.kind != "bernoulli":
        raise ConfigError(
            f"evaluation.ceiling_pairs={pairs} needs components that are ablated independently, but evaluation.kind="
            f"{evaluation.kind}. Use evaluation.kind=bernoulli, or evaluation.ceiling_pairs=0."
        )
    if pairs and _ablates(config) and fraction not in held_out_fractions(config):
        raise ConfigError(
            f"evaluation.ceiling_pairs={pairs} are of held-out masks at design.ablation_fraction={fraction}, which is "
            f"not in evaluation.ablation_fractions={held_out_fractions(config)}. Add it, or leave out the pairs."
        )


def _validate_gradients(config: Config) -> None:
    design, gradients, regression = config.design, config.gradients, config.regression
    _require_choice_or_own("gradients.kind", gradients.kind, RANDOM_DESIGNS)
    _require(
        gradients.num_masks == 0 or gradients.num_masks >= 2, "gradients.num_masks", gradients.num_masks, "0 or >= 2"
    )
    size = gradients.masks_per_shard
    _require(size is None or size >= 1, "gradients.masks_per_shard", size, "null or at least 1")
    budget = config.budget
    _require(budget is None or 0.0 < budget < float("inf"), "budget", budget, "null or positive and finite")
    if budget is not None and (gradients.num_masks == 0 or regression.method != "ridge"):
        raise ConfigError(
            f"budget={budget:g} is shared out between passes with gradients and without, but gradients.num_masks="
            f"{gradients.num_masks} and regression.method={regression.method}. Use estimator=budget, or set "
            f"design.num_masks instead."
        )
    if gradients.num_masks == 0:
        _require(design.num_masks >= 2, "design.num_masks", design.num_masks, "at least 2")
        return
    _require(design.num_masks == 0 or design.num_masks >= 2, "design.num_masks", design.num_masks, "0 or at least 2")
    if (design.kind, design.seed) == (gradients.kind, gradients.seed):
        raise ConfigError(
            f"gradients.seed={gradients.seed} is design.seed too, so the same masks would be run twice. Use another "
            f"gradients.seed."
        )
    if regression.method != "ridge" and _ablates(config):
        raise ConfigError(
            f"regression.method={regression.method} does not use gradients, but gradients.num_masks="
            f"{gradients.num_masks}. Use regression.method=ridge, or estimator=coar."
        )


def _validate_regression(regression: RegressionConfig) -> None:
    _require_choice("regression.method", regression.method, tuple(SELECTIONS))
    _require_choice_or_own("regression.backend", regression.backend, BACKENDS)
    is_ridge, penalty = regression.method == "ridge", regression.regularisation
    _require(
        penalty is None or (0.0 <= penalty < float("inf") and (is_ridge or penalty > 0.0)),
        "regression.regularisation",
        penalty,
        f"null (chosen from the data) or a finite number {'>=' if is_ridge else '>'} 0",
    )
    if regression.selection is not None:
        choices = SELECTIONS[regression.method]
        rule = f"one of {', '.join(choices)} for regression.method={regression.method}"
        _require(regression.selection in choices, "regression.selection", regression.selection, rule)
    _require(regression.num_penalties >= 2, "regression.num_penalties", regression.num_penalties, "at least 2")
    low, high = penalty_range(regression)
    _require(
        0.0 < low < high < float("inf") and (is_ridge or high <= 1.0),
        "regression.penalty_range",
        [low, high],
        f"[low, high] with 0 < low < high{'' if is_ridge else ' <= 1'}",
    )
    _require(0.0 < regression.l1_ratio <= 1.0, "regression.l1_ratio", regression.l1_ratio, "above 0 and at most 1")
    held_out = regression.held_out_fraction
    _require(0.0 < held_out < 1.0, "regression.held_out_fraction", held_out, "strictly between 0 and 1")
    _require(1e-12 <= regression.tolerance < 1.0, "regression.tolerance", regression.tolerance, "in [1e-12, 1)")
    _require(regression.memory_gb > 0.0, "regression.memory_gb", regression.memory_gb, "positive")
    fixed = f"regression.regularisation={penalty}"
    by_method = f"regression.method={regression.method}"
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


def _validate_normalisation(model: ModelConfig) -> None:
    mean, std = model.input_mean, model.input_std
    if mean is None and std is None:
        return
    key = "task.model.input_mean" if std is None else "task.model.input_std"
    if mean is None or std is None:
        raise ConfigError(f"{key} is set alone: input_mean and input_std go together. Set both, e.g. [0.5] and [0.5].")
    _require(len(mean) == len(std) > 0, key, std, f"as long as task.model.input_mean={mean}, one value per channel")
    _require(all(0.0 < value < float("inf") for value in std), key, std, "positive and finite")
    _require(all(abs(value) < float("inf") for value in mean), "task.model.input_mean", mean, "finite")
