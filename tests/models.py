"""Small models and the slow truth that the fast engine is held to."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.components.index import ComponentIndex
from coar_dist.store.local_storage import LocalStorage
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task, call_model


class SmallResNet(nn.Module):
    """Convolutions with BatchNorm, a residual connection, a grouped convolution and a linear head."""

    def __init__(self, channels: int = 4, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=True)
        self.bn2 = nn.BatchNorm2d(channels)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(images)))
        x = functional.relu(self.bn2(self.conv2(x)) + x)
        x = functional.relu(self.grouped(x))
        return self.linear(x.mean(dim=(2, 3)))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and BatchNorm statistics, none of them 0 or 1; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4 + 0.05)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.4)
    return model.eval()


def small_task(num_examples: int = 7, seed: int = 0) -> Task:
    model = randomise(SmallResNet(), seed)
    generator = torch.Generator().manual_seed(seed + 100)
    images = torch.randn(num_examples, 1, 6, 6, generator=generator) + 0.3
    labels = torch.randint(0, 3, (num_examples,), generator=generator)
    return Task(model, ExampleSet(images, labels), output_function("margin"))


def slow_margins(task: Task, components: ComponentIndex, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The truth: deep copy, zero the weight slices, one mask at a time, float32, as in the research code."""
    rows = []
    for mask in masks:
        model = copy.deepcopy(task.model).eval()
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for component in components[~mask] if not mask.all() else ():
                for parameter, axis, start, size in component.slices:
                    parameters[parameter].narrow(axis, start, size).zero_()
            outputs = call_model(model, task.examples.inputs)
            rows.append(task.output_function(outputs, task.examples.targets))
    return torch.stack(rows).numpy()


def random_masks(num_masks: int, num_components: int, alpha: float = 0.2, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((num_masks, num_components)) >= alpha


def local_storage(root: Path) -> LocalStorage:
    """A run directory's folder, made as the one writer makes it."""
    storage = LocalStorage(str(root))
    storage.create()
    return storage
