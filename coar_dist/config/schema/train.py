"""How a preset trains its own model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from coar_dist.config.schema.task import ExamplesConfig
from coar_dist.config.schema.values import Count, NonNegative, Part, Positive, Rule, Seed, at_least

Accuracy = Annotated[float, Rule(lambda accuracy: 0.0 <= accuracy <= 1.0, "a number from 0 to 1")]


@dataclass
class TrainConfig(Part):
    """How a preset trains its own model; a user's checkpoint replaces this stage."""

    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    loss: str | None = None
    """``cross_entropy`` of class labels, ``next_token``, its mean over next tokens, or ``answer_token``, that of the
    token after a prompt; None: what the task's output function reads."""
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
    """Accuracy on the task's examples (language models: of next tokens, or answers) below which the stage fails."""
