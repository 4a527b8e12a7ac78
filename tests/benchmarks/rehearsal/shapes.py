"""What is rehearsed: sizes, and a model of so many components that stands for a real one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import (
    AblationConfig,
    ClusterConfig,
    Config,
    DesignConfig,
    EvaluationConfig,
    GradientsConfig,
    RegressionConfig,
    RunConfig,
)
from coar_dist.tasks.build import given_task
from coar_dist.tasks.task import Task
from tests.benchmarks.rehearsal.engine import ABLATION_FRACTION


@dataclass(frozen=True)
class Shape:
    """Sizes of a run.

    Attributes:
        name: for people.
        num_masks: without gradients.
        num_gradient_masks: with gradients.
        num_examples: n.
        groups: components by layer and kind: the components of each group.
        num_held_out: masks of each of the held-out designs.
    """

    name: str
    num_masks: int
    num_gradient_masks: int
    num_examples: int
    groups: tuple[int, ...]
    num_held_out: int = 200

    @property
    def num_components(self) -> int:
        """d."""
        return sum(self.groups)

    def scaled(self, scale: float) -> Shape:
        """The same with so much of everything but the number of groups; proportions stay."""
        return replace(
            self,
            num_masks=max(round(self.num_masks * scale), 20),
            num_gradient_masks=_scaled(self.num_gradient_masks, scale),
            num_examples=max(round(self.num_examples * scale), 8),
            groups=tuple(max(round(size * scale), 1) for size in self.groups),
            num_held_out=max(round(self.num_held_out * min(4 * scale, 1.0)), 40),
        )

    def config(self, run_dir: str, stages: list[str], num_actors: int, memory_gb: float) -> Config:
        """The configuration of a command."""
        return Config(
            stages=stages,
            run=RunConfig(run_dir, previews=False),
            design=DesignConfig(num_masks=self.num_masks, ablation_fraction=ABLATION_FRACTION),
            baselines=[],
            gradients=GradientsConfig(num_masks=self.num_gradient_masks),
            evaluation=EvaluationConfig(num_masks=self.num_held_out, curve_shares=[0.5]),
            ablation=AblationConfig(margins_dtype="float16"),
            regression=RegressionConfig(memory_gb=memory_gb),
            cluster=ClusterConfig(where="ray", max_actors=num_actors),
        )


SHAPES = {
    "plain": Shape("masks alone", 100_000, 0, 20_000, (4_000,)),
    "language": Shape("an 8B language model's heads and neurons", 100, 500, 512, (32, 14_336) * 32),
}
SETUPS = {
    "B": Shape("setup B, ResNet-50", 100_000, 0, 50_000, (22_720,)),
    "C": Shape("setup C, ViT-B/16", 100_000, 0, 5_000, (82_944,)),
}


def _scaled(number: int, scale: float) -> int:
    return 0 if number == 0 else max(round(number * scale), 40)


class Stand(nn.Module):
    """A model with a linear layer for every group of components, which costs next to nothing."""

    def __init__(self, groups: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, 1, bias=False) for size in groups)

    def forward(self, inputs: Tensor) -> Tensor:
        """(num_rows, 2) of (num_rows, 2)."""
        total = sum(layer(inputs[:, :1].expand(-1, layer.in_features)) for layer in self.layers)
        return inputs + torch.cat([total, -total], dim=1)


def task_of(shape: Shape) -> tuple[Task, ComponentIndex]:
    """The task of a shape, and its components."""
    torch.manual_seed(0)
    model = Stand(shape.groups)
    inputs = torch.randn(shape.num_examples, 2)
    columns = {"source_id": np.arange(shape.num_examples)}
    task = given_task(model, inputs, torch.zeros(shape.num_examples, dtype=torch.long), columns, "margin", None)
    groups = (ComponentGroup.of(f"layers.{i}.weight", 1, size) for i, size in enumerate(shape.groups))
    return task, ComponentIndex(tuple(groups))
