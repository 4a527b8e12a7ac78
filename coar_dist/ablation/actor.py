"""The ablation actor: holds an engine on its device and writes one shard per range of masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from coar_dist.ablation.calibration import choose_plan, gradient_cost
from coar_dist.ablation.engine import AblationEngine, Unablated
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.cluster.schedule import MaskRange
from coar_dist.cluster.worker import (
    Address,
    Laps,
    LogCollector,
    LogLines,
    RangeReport,
    gpu_memory_peak,
    own_address,
    require_visible,
)
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.design import MaskDesign
from coar_dist.errors import TaskError
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import Storage
from coar_dist.tasks.task import Task


@dataclass(frozen=True)
class AblationJob:
    """What every actor needs besides the task: the same for all.

    Attributes:
        components: the component index.
        designs: per name of ``MaskRange`` the masks, and where their margins or gate gradients go.
        precision: of the engine.
        device_map: how accelerate spreads the model over the actor's GPUs; None: one device.
        num_threads: torch threads of an actor.
        pins: what the user fixed of the engine plan.
    """

    components: ComponentIndex
    designs: Mapping[str, tuple[MaskDesign, MarginStore | GradientStore]]
    precision: str
    device_map: str | None
    num_threads: int
    pins: PlanPins

    def store(self, name: str) -> ShardFolder:
        """Where the shards of a ``MaskRange`` of this name go."""
        return self.designs[name][1]

    def num_margins(self, masks: MaskRange) -> int:
        """Margins of a range."""
        store = self.designs[masks.design_name][1]
        num_examples = store.num_examples if isinstance(store, MarginStore) else store.block[1] - store.block[0]
        return masks.num_masks * num_examples

    @property
    def storage(self) -> Storage:
        """The run directory's."""
        return next(iter(self.designs.values()))[1].storage


@dataclass(frozen=True)
class Choice:
    """What the first actor chooses for all.

    Attributes:
        plan: the engine plan that every actor is to use.
        gradient_cost: what a gradient pass costs in passes without gradients; None where there are none.
        log: what the engine logged.
    """

    plan: EnginePlan
    gradient_cost: float | None
    log: LogLines


@dataclass(frozen=True)
class Start(Choice):
    """What the first actor finds out for all.

    Attributes:
        unablated: the unablated model's outputs.
    """

    unablated: Unablated


class EngineActor:
    """An engine in a Ray actor process; a plain class, so that it can be tested without Ray."""

    def address(self, job: AblationJob) -> Address:
        """Where the actor runs; answered as soon as it has started."""
        del job
        return own_address()

    def setup(self, task: Task, job: AblationJob) -> None:
        """Build the engine."""
        torch.set_num_threads(job.num_threads)
        self._log = LogCollector.attached()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if job.device_map is not None:
            spread_over_devices(task.model, job.device_map)
        self._engine = AblationEngine(task, job.components, device, job.precision)
        self._job = job
        self._laps = Laps()

    def _choose(
        self, masks_per_actor: int, gradient_masks_per_actor: int, plan: EnginePlan | None
    ) -> tuple[EnginePlan, float | None]:
        """The engine plan for about so many masks, or ``plan``, and what a gradient pass costs with it."""
        if plan is None:
            plan = choose_plan(
                self._engine, self._job.pins, masks_per_actor, gradient_masks_per_actor=gradient_masks_per_actor
            )
        else:
            self._engine.use(plan)
        return plan, gradient_cost(self._engine) if gradient_masks_per_actor else None


class AblationActor(EngineActor):
    """Computes ranges of masks.

    The driver calls ``address``, ``setup``, on one actor ``start`` if the run has no engine plan or no unablated
    outputs yet, on all others ``use``, and then ``run`` for every range.
    """

    def address(self, job: AblationJob) -> Address:
        """Where the actor runs, from where the run directory can be seen; answered as soon as it has started."""
        require_visible(job.storage)
        return own_address()

    def start(self, masks_per_actor: int, gradient_masks_per_actor: int, plan: EnginePlan | None) -> Start:
        """Run the unablated model, and choose the engine plan for about so many masks, or take over ``plan``."""
        unablated = self._engine.unablated()
        chosen, cost = self._choose(masks_per_actor, gradient_masks_per_actor, plan)
        self._laps = Laps()
        return Start(chosen, cost, self._log.drain(), unablated)

    def use(self, plan: EnginePlan) -> None:
        """Take over the plan that another actor chose."""
        self._engine.use(plan)
        self._laps = Laps()

    def run(self, masks: MaskRange) -> RangeReport:
        """Compute the margins, or the gate gradients, of a range of masks and write its shard."""
        wait_s = self._laps.seconds()
        design, store = self._job.designs[masks.design_name]
        rows = design.masks(masks.start, masks.stop)
        made_by = {"engine": self._engine.plan.to_json()}
        if isinstance(store, GradientStore):
            gradients = self._engine.gate_gradients(rows, store.block)
            forward_s = self._laps.seconds()
            store.write(masks.start, rows, gradients, made_by)
        else:
            margins = self._engine.margins(rows)
            forward_s = self._laps.seconds()
            store.write(masks.start, rows, margins, made_by)
        return RangeReport(self._log.drain(), wait_s, forward_s, self._laps.seconds(), gpu_memory_peak())


def spread_over_devices(model: nn.Module, device_map: str) -> None:
    """Spread a Hugging Face model over all devices that this process sees."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    unsplit = list(getattr(model, "_no_split_modules", None) or [])
    memory = None
    if device_map != "sequential":
        low_zero = device_map == "balanced_low_0"
        memory = get_balanced_memory(model, no_split_module_classes=unsplit, low_zero=low_zero)
    places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=unsplit)
    if "disk" in places.values():
        raise TaskError(
            f"ablation.device_map={device_map!r}: the model does not fit on this actor's devices. Raise "
            f"cluster.gpus_per_actor."
        )
    dispatch_model(model, places)
