"""The baseline actor: holds a model on its device and writes one shard of weights per range of examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from coar_dist.ablation.actor import spread_over_devices
from coar_dist.ablation.placement import repeat_exactly
from coar_dist.ablation.plan import EnginePlan
from coar_dist.baselines.gradient_baselines import GradientBaselines, untouched
from coar_dist.cluster.schedule import MaskRange
from coar_dist.cluster.worker import (
    Address,
    Laps,
    LogCollector,
    RangeReport,
    gpu_memory_peak,
    own_address,
    require_visible,
)
from coar_dist.components.index import ComponentIndex
from coar_dist.store.baselines import BaselineStore
from coar_dist.tasks.task import Task


@dataclass(frozen=True)
class BaselineJob:
    """What every actor needs besides the task: the same for all.

    Attributes:
        components: the component index.
        stores: per method where its weights go.
        num_steps: of the path.
        rows_per_pass: rows of one pass at most; None: a default of the device.
        device_map: how accelerate spreads the model over the actor's GPUs; None: one device.
        num_threads: torch threads of an actor.
    """

    components: ComponentIndex
    stores: Mapping[str, BaselineStore]
    num_steps: int
    rows_per_pass: int | None
    device_map: str | None
    num_threads: int

    def store(self, name: str) -> BaselineStore:
        """Where the weights of a method go."""
        return self.stores[name]

    def num_margins(self, examples: MaskRange) -> int:
        """None: a baseline's shard holds weights."""
        del examples
        return 0


class BaselineActor:
    """Runs in a Ray actor process; a plain class, so that it can be tested without Ray.

    The driver calls ``address``, ``setup``, ``use`` and then ``run`` for every range.
    """

    def address(self, job: BaselineJob) -> Address:
        """Where the actor runs, from where the run directory can be seen; answered as soon as it has started."""
        require_visible(next(iter(job.stores.values())).storage)
        return own_address()

    def setup(self, task: Task, job: BaselineJob) -> None:
        """Make the model ready."""
        torch.set_num_threads(job.num_threads)
        self._log = LogCollector.attached()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        repeat_exactly(device, "float32")
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

    def use(self, plan: EnginePlan) -> None:
        """Take over nothing: the engine's plan is of passes without gradients."""
        del plan
        self._laps = Laps()

    def run(self, examples: MaskRange) -> RangeReport:
        """Compute the weights of a range of examples and write their shard."""
        wait_s = self._laps.seconds()
        rows = self._examples.rows(examples.start, examples.stop)
        store = self._job.store(examples.design_name)
        weights = self._baselines.weights(examples.design_name, rows)
        forward_s = self._laps.seconds()
        store.write(examples.start, weights)
        return RangeReport(self._log.drain(), wait_s, forward_s, self._laps.seconds(), gpu_memory_peak())
