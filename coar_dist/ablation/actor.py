"""The ablation actor: holds an engine on its device and writes one shard per range of masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.ablation.calibration import ChosenPlan, choose_plan, gradient_cost
from coar_dist.ablation.device_map import spread_over_devices
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.unablated import Unablated
from coar_dist.ablation.value import AblationValue
from coar_dist.ablation.work import ExpectedMasks, Stores
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.worker import StartReport, Worker
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import Storage
from coar_dist.tasks.task import Task


@dataclass(frozen=True)
class AblationJob:
    """What every actor needs besides the task: the same for all.

    Attributes:
        value: what ablated components are replaced by.
        stores: per ``store_name`` of a range the masks, and where their margins or gate gradients go.
        precision: of the engine.
        device_map: how accelerate spreads the model over the actor's GPUs; None: one device.
        pins: what the user fixed of the engine plan.
    """

    value: AblationValue
    stores: Stores
    precision: str
    device_map: str | None
    pins: PlanPins

    @property
    def storage(self) -> Storage | None:
        """The run directory; None where nothing is to be written."""
        return next((store.storage for _, store in self.stores.values()), None)

    def store(self, name: str) -> ShardFolder:
        """Where the shards of ranges of this ``store_name`` go."""
        return self.stores[name][1]

    def num_margins(self, masks: WorkRange) -> int:
        """Margins of a range: masks times examples."""
        _, store = self.stores[masks.store_name]
        num_examples = store.num_examples if isinstance(store, MarginStore) else store.block[1] - store.block[0]
        return masks.num_units * num_examples


@dataclass(frozen=True)
class Choice(StartReport):
    """What the first actor chooses for all.

    Attributes:
        plan: the engine plan that every actor is to use.
        log: what the engine logged.
        gradient_cost: what a gradient pass costs in passes without gradients; None where there are none.
    """

    plan: EnginePlan
    gradient_cost: float | None


@dataclass(frozen=True)
class Start(Choice):
    """What the first actor finds out for all.

    Attributes:
        unablated: the unablated model's outputs.
    """

    unablated: Unablated


class EngineActor(Worker):
    """An engine in an actor's process."""

    @override
    def prepare(self, task: Task, job: AblationJob) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if job.device_map is not None:
            spread_over_devices(task.model, job.device_map)
        self._engine = AblationEngine(task, job.value.components, device, job.precision, value=job.value)
        self._job = job

    def _choose(self, expected: ExpectedMasks, num_actors: int, plan: EnginePlan | None) -> ChosenPlan:
        """The engine plan for an actor's share of the masks, or ``plan``, and what passes cost with it."""
        share = expected.shared_by(num_actors)
        num_plain, num_with_gradients = max(math.ceil(share.plain), 1), math.ceil(share.with_gradients)
        if plan is None:
            return choose_plan(self._engine, self._job.pins, num_plain, gradient_masks_per_actor=num_with_gradients)
        self._engine.use(plan)
        cost = gradient_cost(self._engine) if num_with_gradients else None
        return ChosenPlan(plan, self._engine.trial(), cost)


class AblationActor(EngineActor):
    """Computes the margins, or the gate gradients, of ranges of masks."""

    @override
    def choose(self, request: ExpectedMasks, num_actors: int, plan: EnginePlan | None) -> Start:
        """Run the unablated model, and choose the engine plan for about so many masks, or take over ``plan``."""
        unablated = self._engine.unablated()
        chosen = self._choose(request, num_actors, plan)
        seconds_per_mask = chosen.seconds_per_margin * self._engine.num_examples
        return Start(chosen.plan, self.log.drain(), seconds_per_mask, chosen.gradient_cost, unablated)

    @override
    def adopt(self, plan: EnginePlan) -> float:
        self._engine.use(plan)
        return self._engine.trial() * self._engine.num_examples

    @override
    def compute(self, masks: WorkRange) -> Callable[[], None]:
        design, store = self._job.stores[masks.store_name]
        rows = design.masks(masks.start, masks.stop)
        made_by = {"engine": self._engine.plan.to_json()}
        if isinstance(store, GradientStore):
            gradients = self._engine.gate_gradients(rows, store.block)
            self._engine.check_finite_gradients(gradients, rows, masks.start, store.block[0])
            return lambda: store.write(masks.start, rows, gradients, made_by)
        margins = self._engine.margins(rows, among=self._masks_around(masks))
        self._engine.check_finite(margins, rows, masks.start)
        return lambda: store.write(masks.start, rows, margins, made_by)

    def _masks_around(self, masks: WorkRange) -> NDArray[np.bool_] | None:
        """All masks of the whole shard that a range is cut from: where that was must not show in its margins.

        None where the range is the whole, or nothing is reused.
        """
        if masks.whole is None or not self._engine.reuse_activations:
            return None
        design, _ = self._job.stores[masks.store_name]
        start, stop = masks.whole[0], min(masks.whole[1], design.num_masks)
        return None if (start, stop) == (masks.start, masks.stop) else design.masks(start, stop)
