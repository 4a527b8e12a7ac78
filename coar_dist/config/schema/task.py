"""What is explained: model, examples and output function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from coar_dist.config.schema.values import Count, Labels, Part, Positive, Rule, Seed

Places = Annotated[
    list[int],
    Rule(
        lambda ids: len(ids) > 0 and ids[0] >= 0 and ids == sorted(set(ids)),
        "null, or at least one id, from 0 on, ascending, none twice",
    ),
]


@dataclass
class ModelConfig(Part):
    """The model: a registered constructor (``coar_dist.tasks.models``) or ``module:function``."""

    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    """A .safetensors file, a state dict saved by torch, or a folder of a transformers model. None: what ``train`` saved
    in the run directory, or, without ``train``, the weights that the constructor gave."""
    input_mean: list[float] | None = None
    """Per channel, of pixels scaled to [0, 1]: uint8 inputs, or floats in [0, 1], are then normalised within the model,
    on its device. None: the examples are normalised already."""
    input_std: list[Positive] | None = None
    """The same for the standard deviations; both or none."""


@dataclass
class SubsetConfig(Part):
    """Which examples of a source are explained, in the source's own order. What is set applies in this order; images
    that are left out are not decoded."""

    every: Count | None = None
    """Every so many-th: 10 takes the source's examples 0, 10, 20, ..."""
    ids: Places | None = None
    """These, by their place in the source, counted from 0 and ascending; instead of ``every``."""
    classes: Labels | None = None
    """Those of these class labels."""
    sample: Count | None = None
    """So many at random: a source's example has the same place in the draw whatever else is set, so a larger sample
    holds the smaller one."""
    seed: Seed = 0
    """Of ``sample``."""
    first: Count | None = None
    """The first so many of what is left."""


@dataclass
class ExamplesConfig(Part):
    """The examples: a registered source (``coar_dist.tasks.examples``) or ``module:function``."""

    source: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    subset: SubsetConfig = field(default_factory=SubsetConfig)


@dataclass
class TaskConfig(Part):
    """What is being explained."""

    model: ModelConfig = field(default_factory=ModelConfig)
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    output_function: str = "margin"
    """A registered output function (``coar_dist.tasks.outputs``) or ``module:function``."""
    class_names: Any = None
    """What classes are called on the page and in figures: a list, the first of class 0, or names by class, such as
    ``{0: cat, 5: dog}``. No result depends on it; None: what an earlier command said."""
