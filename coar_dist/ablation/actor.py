"""The ablation actor: holds an engine on its device and writes one shard per range of masks."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from coar_dist.ablation.engine import AblationEngine, EngineSettings, Unablated
from coar_dist.ablation.schedule import MaskRange
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.design import MaskDesign
from coar_dist.store.margins import MarginStore
from coar_dist.tasks.task import Task


@dataclass(frozen=True)
class AblationJob:
    """What every actor needs besides the task: the same for all.

    Attributes:
        components: the component index.
        designs: per design name the masks and where their margins go.
        precision: see ``EngineSettings``.
        examples_per_forward: see ``EngineSettings``.
        num_threads: torch threads of an actor.
    """

    components: ComponentIndex
    designs: Mapping[str, tuple[MaskDesign, MarginStore]]
    precision: str
    examples_per_forward: int
    num_threads: int


class AblationActor:
    """Runs in a Ray actor process; a plain class, so that it can be tested without Ray."""

    def address(self) -> str:
        """Where the actor runs; the driver calls this first, to learn that it has started."""
        return socket.gethostname()

    def setup(self, task: Task, job: AblationJob) -> None:
        """Build the engine."""
        torch.set_num_threads(job.num_threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = EngineSettings(device, job.precision, job.examples_per_forward)
        self._engine = AblationEngine(task, job.components, settings)
        self._job = job

    def unablated(self) -> Unablated:
        """Margins and predictions of the unablated model."""
        return self._engine.unablated()

    def run(self, masks: MaskRange) -> None:
        """Compute the margins of a range of masks and write its shard."""
        design, store = self._job.designs[masks.design_name]
        rows = design.masks(masks.start, masks.stop)
        store.write(masks.start, rows, self._engine.margins(rows))
