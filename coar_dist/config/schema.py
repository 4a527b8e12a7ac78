"""The typed configuration: every option and its default, which lives here alone.

Plain dataclasses: the Python face builds them directly, Hydra merges the YAML groups of ``conf/``
into them (``app.py``). The pipeline checks both (``config_checks.py``) before any work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coar_dist.errors import ConfigError

STAGES = ("train", "ablate", "fit", "evaluate", "edit", "report")
PLAN = "plan"
"""Instead of all others: what the ablate stage would take."""
PRECISIONS = ("float32", "bfloat16", "auto")
PLACEMENTS = ("pack", "spread")
MODES = ("weights", "rows")
LOSSES = ("cross_entropy", "next_token")
OPTIMIZERS = ("sgd", "adamw")
MARGIN_DTYPES = ("float32", "float16")
RANDOM_DESIGNS = ("bernoulli", "fixed_size", "balanced")
MIN_CEILING_MASKS = 40
"""Masks below which the ceiling's standard error cannot be told."""
TRACKERS = ("tensorboard", "wandb", "mlflow")
BACKENDS = ("auto", "cuml", "torch", "sklearn")
PILOT_MASKS, PILOT_GRADIENT_MASKS = 100, 40
"""Of a run with a budget, as in ``conf/estimator/budget.yaml``."""
SELECTIONS = {"ridge": ("gcv", "leave_one_out"), "lasso": ("held_out", "bic")}
DIRECTIONS = ("raise", "lower")
EDIT_METRICS = ("accuracy", "output")
GREEDY, MAGNITUDE, RANDOM = "greedy", "magnitude", "random"
TARGETS, OTHERS, ALL = "targets", "others", "all"
"""Measured groups that an edit has of itself."""


@dataclass
class RunConfig:
    """Where the run lives."""

    dir: str = "runs/default"
    """A folder, or an object store's URL: ``s3://bucket/prefix``, ``gs://bucket/prefix``."""
    previews: bool = True
    """Whether the ablate stage keeps small pictures of the examples, or the first 300 characters of their texts, for
    reports that are made without the data."""


@dataclass
class ModelConfig:
    """The model: a registered constructor (``coar_dist.tasks.models``) or ``module:function``."""

    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    """A .safetensors file, a state dict saved by torch, or a folder of a transformers model. None: what ``train`` saved
    in the run directory, or, without ``train``, the weights that the constructor gave."""
    input_mean: list[float] | None = None
    """Per channel, of pixels scaled to [0, 1]: uint8 inputs, or floats in [0, 1], are then normalised within the model,
    on its device. None: the examples are normalised already."""
    input_std: list[float] | None = None
    """The same for the standard deviations; both or none."""


@dataclass
class SubsetConfig:
    """Which examples of a source are explained, in the source's own order. What is set applies in this order; images
    that are left out are not decoded."""

    every: int | None = None
    """Every so many-th: 10 takes the source's examples 0, 10, 20, ..."""
    ids: list[int] | None = None
    """These, by their place in the source, counted from 0 and ascending; instead of ``every``."""
    classes: list[int] | None = None
    """Those of these class labels."""
    sample: int | None = None
    """So many at random: a source's example has the same place in the draw whatever else is set, so a larger sample
    holds the smaller one."""
    seed: int = 0
    """Of ``sample``."""
    first: int | None = None
    """The first so many of what is left."""


@dataclass
class ExamplesConfig:
    """The examples: a registered source (``coar_dist.tasks.examples``) or ``module:function``."""

    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    subset: SubsetConfig = field(default_factory=SubsetConfig)


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
    loss: str | None = None
    """``cross_entropy`` of class labels or ``next_token``, its mean over next tokens; None: what the task's output
    function reads."""
    optimizer: str = "sgd"
    """``sgd`` with Nesterov momentum .9, or ``adamw`` for transformers."""
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.01
    """The largest of its one cycle."""
    weight_decay: float = 0.0005
    flip: bool = False
    """Images are mirrored at random."""
    shift: int = 0
    """Images are moved at random by up to so many pixels each way, black coming in."""
    device: str | None = None
    """Where the model is trained; None: on a GPU where this process sees one."""
    seed: int = 0
    minimum_accuracy: float = 0.0
    """Accuracy on the task's examples (of next tokens, for language models) below which the stage fails."""


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

    kind: Any = "bernoulli"
    """``bernoulli``, ``fixed_size``, ``balanced``, or your own: ``module:function``, or in Python a function,
    ``(design, mask_id) -> (num_components,)`` bool, True = kept, of the design's seed and the mask's id alone."""
    num_masks: int = 4000
    ablation_fraction: float = 0.05
    seed: int = 0


@dataclass
class GradientsConfig:
    """Passes that also run backward: each gives, besides a margin, an estimate of every component's effect. They make
    the attributions ``gradient_ridge``; their share of ablated components is ``design.ablation_fraction``."""

    num_masks: int = 0
    """Passes with gradients; 0 is COAR without them."""
    kind: Any = "balanced"
    """As ``DesignConfig.kind``."""
    seed: int = 2_000_000
    masks_per_shard: int | None = None
    """Masks in one shard, whose gradients are stored as sums. None: about 16,384 margins, in whole rounds of a balanced
    design."""


@dataclass
class BaselineConfig:
    """How the gradient baselines are computed, always in the model's own precision."""

    num_steps: int = 50
    """Steps along the path from a zero input to the example, of neuron conductance and internal influence."""
    rows_per_pass: int | None = None
    """Rows of one forward and backward pass at most; None: 128, or 512 on a GPU. Halved where memory runs out."""


@dataclass
class EvaluationConfig:
    """The held-out masks on which predictions are compared with the truth, per ablation fraction."""

    kind: Any = "bernoulli"
    """As ``DesignConfig.kind``."""
    num_masks: int = 200
    ablation_fractions: list[float] | None = None
    """None: twice, 1.5 times, once and half ``design.ablation_fraction``, as far as they are below 1."""
    seed: int = 1_000_000
    curve_shares: list[float] = field(default_factory=lambda: [0.0625, 0.125, 0.25, 0.5])
    """Shares of the train design's masks from which attributions are fitted once more, to see what more masks would
    give; at most 1,024 examples are looked at. [] leaves that out."""
    ceiling_pairs: int = 0
    """The ceiling of linear models is estimated from the held-out masks, at no cost. So many of them at
    ``design.ablation_fraction`` also get a partner with some components drawn anew, one pass each: the ceiling's error
    shrinks as with so many more held-out masks, and bounds from the pairs stand beside it, for which only their number
    matters. They are what is left where components are many and masks few."""
    ceiling_correlation: float = 0.25
    """Of mask and partner. Lower: closer bounds with more noise."""


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
    cuda_graphs: bool | None = None
    """Whether passes are recorded as CUDA graphs; None: on CUDA devices, where that is faster."""
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
    backend: Any = "auto"
    """``torch``, ``sklearn``, ``cuml``, ``auto``, or your own: ``module:function``, or in Python a function, with the
    arguments of the others (``coar_dist.regression.backends``). All solve the same problem."""
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
    """None: 1 where the cluster has GPUs, else 0. A fraction shares a GPU, several are for ablation.device_map."""
    placement: str | None = None
    """``pack``: fill one node after another, so that an autoscaler can take idle ones away; ``spread``: as evenly over
    the nodes as they have room, for the most memory and network an actor; None: as Ray sees fit."""
    start_timeout_s: float = 120.0
    ranges_in_flight: int = 2
    """Ranges handed to one actor at a time, so that it never waits for the driver."""
    max_attempts: int = 3
    """How often one range may fail, each time on another actor where there is one, before the run stops."""
    price_per_hour: float | None = None
    """What an actor costs, in USD per hour; ``stages=[plan]`` then also estimates the run's price."""


@dataclass
class ExampleGroup:
    """The examples that meet every condition that is set; of ``examples.parquet``'s columns."""

    ids: list[int] | None = None
    """Example ids of the run."""
    classes: list[int] | None = None
    """Class labels."""
    correct: bool | None = None
    """Whether the unablated model predicts the label."""
    where: dict[str, Any] = field(default_factory=dict)
    """Column: a value, a list of values, or {min: ..., max: ...}, ends included."""
    predicate: Any = None
    """``module:function``, or in Python a function, of the columns, a dict of (num_examples,) arrays: (num_examples,)
    bool."""
    matching: str | None = None
    """Of a reference: only examples whose value in this column a target has, e.g. the same image without a trigger."""
    sample: int | None = None
    """So many of them at random."""
    seed: int = 0
    """Of ``sample``."""


@dataclass
class EditConfig:
    """COAR-Edit (Shah et al. 2024, section 5): components whose ablation raises or lowers the targets' outputs and
    leaves the references' alone, as many as a criterion on held-out examples says."""

    name: str = "edit"
    """Of its folder: ``edits/<name>`` in the run directory."""
    target: ExampleGroup = field(default_factory=ExampleGroup)
    """Explained examples whose outputs are to change."""
    reference: ExampleGroup = field(default_factory=ExampleGroup)
    """Explained examples whose outputs are to stay; without conditions those that do not meet the conditions of the
    targets, half of them where ``examples`` is None, so that the others measure the edit."""
    direction: str = "raise"
    each: bool = False
    """Every target is a target of its own, with an edit of its own, which is to make it right."""
    method: str | None = None
    """What selects the components: a method with attributions, ``greedy`` (by the linear model's predictions, anew for
    every component), ``magnitude`` or ``random``. None: the run's best attributions."""
    compare: list[str] = field(default_factory=list)
    """Other selections, measured beside it."""
    max_components: int | None = None
    """Components that are ablated at most; None: a twentieth of all."""
    examples: ExamplesConfig | None = None
    """Held-out examples on which the number of components is chosen and the edit is measured; None: the run's own that
    are neither targets nor references."""
    groups: dict[str, ExampleGroup] = field(default_factory=dict)
    """Measured groups of the held-out examples, besides ``all``, ``targets`` (those that meet the conditions of
    ``target``, but ids and sample) and ``others``."""
    metric: str | None = None
    """``accuracy`` or ``output``, the mean of the output function; None: accuracy where outputs are margins of one
    prediction, else output."""
    improve: list[str] = field(default_factory=lambda: [TARGETS])
    """Groups whose metric is to rise or fall; the worst of them counts."""
    keep: dict[str, float] = field(default_factory=dict)
    """Groups, and by how much their metric may fall, whatever the direction. {}: ``others`` by .01, or ``all`` with
    ``each``."""
    pairs: str | None = None
    """Column of the held-out examples whose equal values are two forms of one image, as with and without a trigger, of
    which the first group of ``improve`` holds one: both are chosen on or measured on, and the correlation of their
    margins is measured."""
    choice_fraction: float = 0.5
    """Share of the held-out examples on which the number of components is chosen; the others measure the edit."""
    seed: int = 0
    """Of the split, and of ``random``."""


@dataclass
class Config:
    """One run."""

    stages: list[str] = field(default_factory=lambda: list(STAGES))
    """Of these, in this order; or ``plan`` alone, which estimates time, cost and bytes and writes nothing."""
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
    baselines: list[str] = field(default_factory=lambda: ["leave_one_out"])
    """Of ``leave_one_out``, ``gradient_x_parameter``, ``neuron_conductance``, ``internal_influence``."""
    baseline_settings: BaselineConfig = field(default_factory=BaselineConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    edit: EditConfig | None = None
    ablation: AblationConfig = field(default_factory=AblationConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: list[str] = field(default_factory=list)
    """Of ``tensorboard``, ``wandb``, ``mlflow``: where the ablate and evaluate stages' figures go, too."""


def held_out_fractions(config: Config) -> list[float]:
    """The ablation fractions on which attributions are evaluated."""
    if config.evaluation.ablation_fractions is not None:
        return config.evaluation.ablation_fractions
    trained = config.design.ablation_fraction
    others = [float(f"{trained * factor:.12g}") for factor in (2.0, 1.5, 0.5)]  # .075, not .07500000000000001
    return [fraction for fraction in (*others[:2], trained, others[2]) if fraction < 1.0]


def kept_groups(edit: EditConfig) -> dict[str, float]:
    """The groups whose metric an edit is to keep, and by how much it may fall."""
    return dict(edit.keep) or {ALL if edit.each else OTHERS: 0.01}


def penalty_range(regression: RegressionConfig) -> tuple[float, float]:
    """The grid's ends, the method's own where none are set.

    Raises:
        ConfigError: there are not two.
    """
    if regression.penalty_range is None:
        return (1e-3, 1e3) if regression.method == "ridge" else (1e-3, 1.0)
    if len(regression.penalty_range) != 2:
        raise ConfigError(f"regression.penalty_range={regression.penalty_range!r}: must be [low, high].")
    low, high = regression.penalty_range
    return low, high


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
