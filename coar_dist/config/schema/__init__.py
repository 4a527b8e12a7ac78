"""Every option, its type, range and Python's default; ``conf/`` sets what differs on the command line.

Plain dataclasses: the Python face builds them directly, Hydra merges the YAML groups of ``conf/`` into them.
``coar_dist.config.fields`` checks each option and ``coar_dist.config.combinations`` all together, before any work.
Import from here: the modules divide the options by subject, and have the names of the configuration's parts.
"""

from __future__ import annotations

from coar_dist.config.schema.ablation import (
    ALL_POSITIONS,
    CONSTANTS,
    COUNTERFACTUAL,
    MEAN,
    POSITION,
    RESAMPLE,
    ZERO,
    ZERO_WEIGHTS,
    AblationConfig,
    block_size,
    differs_by_example,
    is_of_classes,
)
from coar_dist.config.schema.baselines import BaselineConfig
from coar_dist.config.schema.circuit import MIB_SIZES, NECESSARY, CircuitConfig
from coar_dist.config.schema.cluster import AUTO, PROCESS, RAY, ClusterConfig, asked_of_ray
from coar_dist.config.schema.components import ComponentRule, ComponentsConfig
from coar_dist.config.schema.design import (
    BALANCED,
    GRADIENT_MASKS,
    MASKS_BESIDE_GRADIENTS,
    PILOT_GRADIENT_MASKS,
    PILOT_MASKS,
    DesignConfig,
    GradientsConfig,
)
from coar_dist.config.schema.edit import (
    ALL,
    GREEDY,
    MAGNITUDE,
    OTHERS,
    RANDOM,
    TARGETS,
    EditConfig,
    ExampleGroup,
    kept_groups,
)
from coar_dist.config.schema.evaluation import MIN_CEILING_MASKS, EvaluationConfig, light_evaluation
from coar_dist.config.schema.regression import SELECTIONS, RegressionConfig, penalty_range
from coar_dist.config.schema.run import CIRCUIT, PLAN, STAGES, Config, RunConfig, ablation_fraction, held_out_fractions
from coar_dist.config.schema.task import ExamplesConfig, ModelConfig, SubsetConfig, TaskConfig
from coar_dist.config.schema.train import TrainConfig

__all__ = [
    "ALL",
    "ALL_POSITIONS",
    "AUTO",
    "BALANCED",
    "CIRCUIT",
    "CONSTANTS",
    "COUNTERFACTUAL",
    "GRADIENT_MASKS",
    "GREEDY",
    "MAGNITUDE",
    "MASKS_BESIDE_GRADIENTS",
    "MEAN",
    "MIB_SIZES",
    "MIN_CEILING_MASKS",
    "NECESSARY",
    "OTHERS",
    "PILOT_GRADIENT_MASKS",
    "PILOT_MASKS",
    "PLAN",
    "POSITION",
    "PROCESS",
    "RANDOM",
    "RAY",
    "RESAMPLE",
    "SELECTIONS",
    "STAGES",
    "TARGETS",
    "ZERO",
    "ZERO_WEIGHTS",
    "AblationConfig",
    "BaselineConfig",
    "CircuitConfig",
    "ClusterConfig",
    "ComponentRule",
    "ComponentsConfig",
    "Config",
    "DesignConfig",
    "EditConfig",
    "EvaluationConfig",
    "ExampleGroup",
    "ExamplesConfig",
    "GradientsConfig",
    "ModelConfig",
    "RegressionConfig",
    "RunConfig",
    "SubsetConfig",
    "TaskConfig",
    "TrainConfig",
    "ablation_fraction",
    "asked_of_ray",
    "block_size",
    "differs_by_example",
    "held_out_fractions",
    "is_of_classes",
    "kept_groups",
    "light_evaluation",
    "penalty_range",
]
