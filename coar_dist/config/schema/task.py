"""What is explained: model, examples and output function; and how a preset trains its own model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from coar_dist.config.schema.values import Count, Labels, NonNegative, Part, Positive, Rule, Seed, at_least

Places = Annotated[
    list[int],
    Rule(
        lambda ids: len(ids) > 0 and ids[0] >= 0 and ids == sorted(set(ids)),
        "null, or at least one id, from 0 on, ascending, none twice",
    ),
]
Accuracy = Annotated[float, Rule(lambda accuracy: 0.0 <= accuracy <= 1.0, "a number from 0 to 1")]


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


@dataclass
class TrainConfig(Part):
    """How a preset trains its own model; a user's checkpoint replaces this stage."""

    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    loss: str | None = None
    """``cross_entropy`` of class labels or ``next_token``, its mean over next tokens; None: what the task's output
    function reads."""
    optimizer: str = "sgd"
    """``sgd`` with Nesterov momentum .9, or ``adamw`` for transformers."""
    epochs: Count = 20
    batch_size: Count = 64
    learning_rate: Positive = 0.01
    """The largest of its one cycle."""
    weight_decay: NonNegative = 0.0005
    flip: bool = False
    """Images are mirrored at random."""
    shift: Annotated[int, at_least(0)] = 0
    """Images are moved at random by up to so many pixels each way, black coming in."""
    device: str | None = None
    """Where the model is trained; None: on a GPU where this process sees one."""
    seed: Seed = 0
    minimum_accuracy: Accuracy = 0.0
    """Accuracy on the task's examples (of next tokens, for language models) below which the stage fails."""
