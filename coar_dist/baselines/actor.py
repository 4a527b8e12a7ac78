"""The baseline actor: holds a model on its device and writes one shard of weights per range of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from typing_extensions import override

from coar_dist.ablation.device_map import spread_over_devices
from coar_dist.ablation.placement import repeat_exactly
from coar_dist.baselines.gradient_baselines import GradientBaselines, untouched
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.worker import Worker
from coar_dist.components.index import ComponentIndex
from coar_dist.store.baselines import BaselineStore
from coar_dist.store.storage import Storage
from coar_dist.tasks.task import Task


@dataclass(frozen=True)
class BaselineJob:
    """What every actor needs besides the task: the same for all.

    Attributes:
        components: the component index.
        stores: per method where its weights go.
        num_steps: steps of the path.
        rows_per_pass: rows of one pass at most; None: a default of the device.
        device_map: how accelerate spreads the model over the actor's GPUs; None: one device.
    """

    components: ComponentIndex
    stores: Mapping[str, BaselineStore]
    num_steps: int
    rows_per_pass: int | None
    device_map: str | None

    @property
    def storage(self) -> Storage:
        """The run directory."""
        return next(iter(self.stores.values())).storage

    def store(self, name: str) -> BaselineStore:
        """Where the weights of a method go."""
        return self.stores[name]

    def num_margins(self, examples: WorkRange) -> int:
        """0: a shard of a baseline holds weights."""
        del examples
        return 0


class BaselineActor(Worker):
    """Computes the weights of ranges of examples, by the method that the range's store is named after."""

    @override
    def prepare(self, task: Task, job: BaselineJob) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        repeat_exactly(device)
        if job.device_map is not None:
            spread_over_devices(task.model, job.device_map)
        model = untouched(task.model, device)
        if job.device_map is not None:
            device = next(model.parameters()).device
        self._job, self._examples = job, task.examples
        self._baselines = GradientBaselines(
            Task(model, task.examples, task.output_function),
            job.components,
            list(job.stores),
            job.num_steps,
            job.rows_per_pass,
            device,
        )

    @override
    def compute(self, examples: WorkRange) -> Callable[[], None]:
        method = examples.store_name
        weights = self._baselines.weights(method, self._examples.rows(examples.start, examples.stop))
        return lambda: self._job.store(method).write(examples.start, weights)
