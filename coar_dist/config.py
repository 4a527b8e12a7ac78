"""The typed configuration: every option, its default (which lives here alone) and its valid range.

Plain dataclasses: the Python face builds them directly, Hydra merges the YAML groups of ``conf/``
into them (``app.py``). ``validate`` is called by the pipeline for both, before any work.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from coar_dist.errors import ConfigError
from coar_dist.secrets import check_no_secrets

STAGES = ("train", "ablate", "fit", "evaluate", "report")
BASELINES = ("leave_one_out",)
PRECISIONS = ("float32", "bfloat16", "auto")
MODES = ("weights", "rows")
MARGIN_DTYPES = ("float32", "float16")
RANDOM_DESIGNS = ("bernoulli", "fixed_size", "balanced")
BACKENDS = ("auto", "cuml", "torch", "sklearn")
SELECTIONS = {"ridge": ("gcv", "leave_one_out"), "lasso": ("held_out", "bic")}


@dataclass
class RunConfig:
    """Where the run lives."""

    dir: str = "runs/default"
    """A folder, or an object store's URL: ``s3://bucket/prefix``, ``gs://bucket/prefix``."""


@dataclass
class ModelConfig:
    """The model: a registered constructor (``coar_dist.tasks.models``) or ``module:function``."""

    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    """A .safetensors file, or a state dict saved by torch. None: what ``train`` saved in the run directory,
    or, without ``train``, the weights that the constructor gave."""


@dataclass
class ExamplesConfig:
    """The examples: a registered loader (``coar_dist.tasks.examples``) or ``module:function``."""

    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class TaskConfig:
    """What is being explained."""

    model: ModelConfig = field(default_factory=ModelConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    output_function: str = "margin"
    """A registered output function (``coar_dist.tasks.outputs``) or ``module:function``."""


@dataclass
class TrainConfig:
    """How a preset trains its own model; a user's checkpoint replaces this stage."""

    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.01
    weight_decay: float = 0.0005
    seed: int = 0
    minimum_accuracy: float = 0.0
    """Accuracy on the task's examples below which the stage fails."""


@dataclass
class ComponentRule:
    """Components of a user's own: slices of every parameter whose name matches."""

    parameter: str = ""
    """Shell pattern of parameter names, e.g. ``*.attn.qkv.weight``."""
    axis: int = 0
    block_size: int = 1
    """Indices per component, e.g. the head size."""


@dataclass
class ComponentsConfig:
    """Which parts of the model are ablated."""

    selector: str = "conv_filters"
    """A key of ``coar_dist.components.discovery.SELECTORS``, or ``rules``."""
    rules: list[ComponentRule] = field(default_factory=list)
    include: list[str] = field(default_factory=lambda: ["*"])
    """Shell patterns of parameter names; a group is taken if any of them matches."""
    exclude: list[str] = field(default_factory=list)
    """Shell patterns of parameter names that are left out; wins over ``include``."""


@dataclass
class DesignConfig:
    """The masks from which the attributions are fitted."""

    kind: str = "bernoulli"
    num_masks: int = 4000
    ablation_fraction: float = 0.05
    seed: int = 0


@dataclass
class GradientsConfig:
    """Passes that also run backward: each gives, besides a margin, an estimate of every component's effect. They make
    the attributions ``gradient_ridge``; their share of ablated components is ``design.ablation_fraction``."""

    num_masks: int = 0
    """Passes with gradients; 0 is COAR without them."""
    kind: str = "balanced"
    seed: int = 2_000_000
    masks_per_shard: int | None = None
    """Masks in one shard, whose gradients are stored as sums. None: about 16,384 margins, in whole rounds of a balanced
    design."""


@dataclass
class EvaluationConfig:
    """The held-out masks on which predictions are compared with the truth, per ablation fraction."""

    kind: str = "bernoulli"
    num_masks: int = 200
    ablation_fractions: list[float] = field(default_factory=lambda: [0.05])
    seed: int = 1_000_000


@dataclass
class AblationConfig:
    """How the forward passes are run and stored."""

    precision: str = "float32"
    """``float32``, ``bfloat16`` (autocast), or ``auto``: bfloat16 where the actors' device computes it natively. What
    ``auto`` gave is part of the run's identity."""
    device_map: str | None = None
    """For Hugging Face models larger than one device: how accelerate spreads the model over an actor's GPUs, e.g.
    ``auto``. Set cluster.gpus_per_actor to their number."""
    mode: str | None = None
    """``weights`` (one mask at a time, its weights zeroed) or ``rows`` (every row carries its own mask); None: the
    faster of the two in a short trial."""
    rows_per_forward: int | None = None
    """Rows of one forward pass at most; None: by the same trial. Halved where memory runs out."""
    compile: bool | None = None
    """Whether the model is compiled; None: where an actor has enough work for it to pay, and it is faster."""
    masks_per_shard: int | None = None
    """Masks in one shard: the unit of work, of failure and of resume. None: 64 to 1,024, about 8,192 margins, so that
    few examples still fill the forward passes of a shard."""
    examples_per_block: int = 1024
    """Examples in one margin column of a shard, and in one block of the regression."""
    margins_dtype: str = "float32"


@dataclass
class RegressionConfig:
    """How margins become attributions."""

    method: str = "ridge"
    """``ridge`` (attributions ``coar``) or ``lasso`` (``coar_lasso``; the elastic net with an l1_ratio below 1)."""
    backend: str = "auto"
    """``torch``, ``sklearn``, ``cuml`` or ``auto``; all solve the same problem."""
    regularisation: float | None = None
    """One penalty for every example; None: chosen from the data. Ridge: ``sum of squares + penalty * ||w||**2``, 0 is
    least squares. Lasso: scikit-learn's alpha."""
    selection: str | None = None
    """What chooses the penalty of an example: for ridge ``gcv`` (the default) or ``leave_one_out``, the exact error on
    masks left out one at a time, at the price of reading the margins twice; for lasso ``held_out`` (the default), the
    error on the last ``held_out_fraction`` of the masks, or ``bic``."""
    shared_penalty: bool = False
    """Ridge: one penalty, chosen for all examples together."""
    num_penalties: int = 25
    penalty_range: list[float] | None = None
    """The grid's ends. Ridge: in units of the mean eigenvalue of the centred X'X, [0.001, 1000] by default. Lasso:
    shares of the smallest penalty at which all weights are 0, [0.001, 1] by default."""
    l1_ratio: float = 1.0
    """Lasso: share of the penalty that is ``||w||_1``; the rest is ``||w||**2 / 2``."""
    held_out_fraction: float = 0.1
    tolerance: float = 1e-6
    """Of iterative solvers: duality gap of the lasso relative to the margins' variance; relative residual of conjugate
    gradients."""
    standard_errors: bool = False
    """Ridge: store standard errors of the weights beside them."""
    memory_gb: float = 16.0
    """Memory of a factorisation, on the device that computes it. It decides between the Gram matrix of the components,
    that of the masks, and conjugate gradients."""
    distributed: bool | None = None
    """Whether the cluster's CPUs or GPUs share the work; None: where ``cluster.address`` or RAY_ADDRESS names one."""


@dataclass
class ClusterConfig:
    """Where the actors run."""

    address: str | None = None
    """Ray address to join; None: the cluster that RAY_ADDRESS names, else one started here."""
    min_actors: int = 1
    """Fewer for longer than ``start_timeout_s`` are an error."""
    max_actors: int | None = None
    """Actors asked for: where a cluster has no room for so many, they wait for nodes that an autoscaler adds. None: as
    many as the nodes' CPUs (or GPUs, where there are any) have room for, more when nodes join."""
    cpus_per_actor: int = 1
    """CPUs and torch threads of one actor. Thread counts can change the last bits of float32 sums."""
    gpus_per_actor: float | None = None
    """None: 1 where the cluster has GPUs, else 0."""
    start_timeout_s: float = 120.0
    ranges_in_flight: int = 2
    """Ranges handed to one actor at a time, so that it never waits for the driver."""
    max_attempts: int = 3
    """How often one range may fail, each time on another actor where there is one, before the run stops."""


@dataclass
class Config:
    """One run."""

    stages: list[str] = field(default_factory=lambda: list(STAGES))
    allow_code: list[str] = field(default_factory=list)
    """Modules whose functions a configuration file may name as ``module:function``; only the command line can say so.
    What the command line names itself needs no leave."""
    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig | None = None
    components: ComponentsConfig = field(default_factory=ComponentsConfig)
    design: DesignConfig = field(default_factory=DesignConfig)
    gradients: GradientsConfig = field(default_factory=GradientsConfig)
    budget: float | None = None
    """Passes to spend on the attributions, in units of one without gradients. The masks of ``design`` and of
    ``gradients`` are then a pilot, from which their best numbers within the budget follow. None: they are what is
    run."""
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def _require(condition: bool, key: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value!r}: must be {rule}.")


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, value, f"one of {', '.join(choices)}")


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
        _require_choice("stages", stage, STAGES)
    _require(len(config.stages) > 0, "stages", config.stages, f"a non-empty subset of {list(STAGES)}")
    for baseline in config.baselines:
        _require_choice("baselines", baseline, BASELINES)
    _require(config.run.dir != "", "run.dir", config.run.dir, "a path")

    design, evaluation, ablation = config.design, config.evaluation, config.ablation
    _require_choice("design.kind", design.kind, RANDOM_DESIGNS)
    _require_choice("evaluation.kind", evaluation.kind, RANDOM_DESIGNS)
    _validate_gradients(config)
    _require(evaluation.num_masks >= 2, "evaluation.num_masks", evaluation.num_masks, "at least 2")
    for key, fraction in [
        ("design.ablation_fraction", design.ablation_fraction),
        *(("evaluation.ablation_fractions", fraction) for fraction in evaluation.ablation_fractions),
    ]:
        _require(0.0 < fraction < 1.0, key, fraction, "strictly between 0 and 1")
    fractions = evaluation.ablation_fractions
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
    _require(cluster.start_timeout_s > 0.0, "cluster.start_timeout_s", cluster.start_timeout_s, "positive")

    train = config.train
    if train is not None:
        for name in ("epochs", "batch_size"):
            value = getattr(train, name)
            _require(value >= 1, f"train.{name}", value, "at least 1")
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


def _validate_gradients(config: Config) -> None:
    design, gradients, regression = config.design, config.gradients, config.regression
    _require_choice("gradients.kind", gradients.kind, RANDOM_DESIGNS)
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
    if regression.method != "ridge" and "ablate" in config.stages:
        raise ConfigError(
            f"regression.method={regression.method} does not use gradients, but gradients.num_masks="
            f"{gradients.num_masks}. Use regression.method=ridge, or estimator=coar."
        )


def _validate_regression(regression: RegressionConfig) -> None:
    _require_choice("regression.method", regression.method, tuple(SELECTIONS))
    _require_choice("regression.backend", regression.backend, BACKENDS)
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


def penalty_range(regression: RegressionConfig) -> tuple[float, float]:
    """The grid's ends, the method's own where none are set.

    Raises:
        ConfigError: there are not two.
    """
    if regression.penalty_range is None:
        return (1e-3, 1e3) if regression.method == "ridge" else (1e-3, 1.0)
    _require(len(regression.penalty_range) == 2, "regression.penalty_range", regression.penalty_range, "[low, high]")
    low, high = regression.penalty_range
    return low, high
