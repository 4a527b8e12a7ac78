"""The whole configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from coar_dist.config.methods import BASELINES
from coar_dist.config.schema.ablation import AblationConfig
from coar_dist.config.schema.baselines import BaselineConfig
from coar_dist.config.schema.circuit import CircuitConfig
from coar_dist.config.schema.cluster import ClusterConfig
from coar_dist.config.schema.components import ComponentsConfig
from coar_dist.config.schema.design import DesignConfig, GradientsConfig
from coar_dist.config.schema.edit import EditConfig
from coar_dist.config.schema.evaluation import EvaluationConfig
from coar_dist.config.schema.regression import RegressionConfig
from coar_dist.config.schema.task import TaskConfig
from coar_dist.config.schema.train import TrainConfig
from coar_dist.config.schema.values import Distinct, NonNegative, Part, Positive, Rule, one_of

STAGES = ("train", "ablate", "fit", "evaluate", "circuit", "edit", "report")
CIRCUIT = "circuit"
"""Runs only where it is asked for by name."""
PLAN = "plan"
"""Instead of all others: what the ablate stage would take."""
Stages = Annotated[list[Annotated[str, one_of(*STAGES, PLAN)]], Rule(bool, "at least one stage")]


@dataclass
class RunConfig(Part):
    """Where the run lives."""

    dir: Annotated[str, Rule(bool, "a path")] = "runs/default"
    """A folder, or an object store's URL: ``s3://bucket/prefix``, ``gs://bucket/prefix``."""
    previews: bool = True
    """Whether the ablate stage keeps small pictures of the examples, or the beginnings of their texts and tokens, for
    reports that are made without the data."""
    responses_mb: NonNegative = 16.0
    """Megabytes up to which the ablate stage keeps what each component looks at, for the same reports: its activations
    on the 8 examples on which it is strongest, attention patterns of heads, kernels of filters that read images. 0:
    nothing; with ``previews=false`` nothing either. No result depends on it."""


@dataclass
class Config(Part):
    """One run."""

    stages: Stages = field(default_factory=lambda: [stage for stage in STAGES if stage != CIRCUIT])
    """Of these, in this order, all but ``circuit`` by default; or ``plan`` alone, which estimates time, cost and bytes
    and writes nothing."""
    allow_code: list[str] = field(default_factory=list)
    """Modules whose functions a configuration file may name as ``module:function``; only the command line can say so.
    What the command line names itself needs no leave."""
    run: RunConfig = field(default_factory=RunConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig | None = None
    components: ComponentsConfig = field(default_factory=ComponentsConfig)
    design: DesignConfig = field(default_factory=DesignConfig)
    gradients: GradientsConfig = field(default_factory=GradientsConfig)
    budget: Positive | None = None
    """Passes to spend on the attributions, in units of one without gradients. The masks of ``design`` and of
    ``gradients`` are then a pilot, from which their best numbers within the budget follow. None: they are what is
    run."""
    baselines: list[Annotated[str, one_of(*BASELINES)]] = field(default_factory=lambda: ["leave_one_out"])
    """Of ``leave_one_out``, ``gradient_x_parameter``, ``neuron_conductance``, ``internal_influence``."""
    baseline_settings: BaselineConfig = field(default_factory=BaselineConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    circuit: CircuitConfig = field(default_factory=CircuitConfig)
    edit: EditConfig | None = None
    ablation: AblationConfig = field(default_factory=AblationConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: Annotated[list[str], Distinct] = field(default_factory=list)
    """Of ``tensorboard``, ``wandb``, ``mlflow``: where the ablate and evaluate stages' figures go, too."""


_ABLATION_FRACTION = 0.05


def ablation_fraction(config: Config, num_components: int) -> float:
    """The share of components that a mask ablates: as configured, else 5%, or one component of few, at most half.

    Example:
        >>> [ablation_fraction(Config(), num_components) for num_components in (1, 12, 20, 5000)]
        [0.5, 0.08333, 0.05, 0.05]
    """
    if config.design.ablation_fraction is not None:
        return config.design.ablation_fraction
    return min(max(_ABLATION_FRACTION, float(f"{1 / num_components:.4g}")), 0.5)


def held_out_fractions(config: Config, trained: float) -> list[float]:
    """The ablation fractions on which attributions of masks of the fraction ``trained`` are evaluated."""
    if config.evaluation.ablation_fractions is not None:
        return config.evaluation.ablation_fractions
    others = [float(f"{trained * factor:.12g}") for factor in (2.0, 1.5, 0.5)]  # .075, not .07500000000000001
    return [fraction for fraction in (*others[:2], trained, others[2]) if fraction < 1.0]
