"""Actors that know their margins beforehand; all else of them, and all that is around them, is the product's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
from typing_extensions import override

from coar_dist.ablation.actor import AblationActor, AblationJob, Start
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.trial import Trial, TrialActor
from coar_dist.ablation.unablated import Unablated
from coar_dist.ablation.work import ExpectedMasks
from coar_dist.cluster.ranges import WorkRange
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from coar_dist.tasks.task import Task
from tests.benchmarks.rehearsal.known import Known

PLAN = EnginePlan("weights", 1024, compiled=False, gradient_rows=1024)
ABLATION_FRACTION = 0.05
GRADIENT_COST = 3.0
_TRIED = 8


class RehearsedActor(AblationActor):
    """Takes margins and gate gradients from ``Known``."""

    @override
    def prepare(self, task: Task, job: AblationJob) -> None:
        self._job = job
        self._known = Known(job.value.components.num_components, len(task.examples), ABLATION_FRACTION)

    @override
    def choose(self, request: ExpectedMasks, num_actors: int, plan: EnginePlan | None) -> Start:
        margins = self._known.offsets()
        unablated = Unablated(margins, np.zeros(len(margins), np.int64))
        return Start(PLAN, self.log.drain(), _seconds_per_mask(self._known), GRADIENT_COST, unablated)

    @override
    def adopt(self, plan: EnginePlan) -> float:
        return _seconds_per_mask(self._known)

    @override
    def compute(self, masks: WorkRange) -> Callable[[], None]:
        design, store = self._job.stores[masks.store_name]
        rows = design.masks(masks.start, masks.stop)
        made_by = {"engine": PLAN.to_json()}
        if isinstance(store, GradientStore):
            gradients = self._known.gradients(design, rows, masks.start, store.block)
            return lambda: store.write(masks.start, rows, gradients, made_by)
        assert isinstance(store, MarginStore)
        margins = self._known.margins(rows, masks.start, design.seed, (0, store.num_examples))
        return lambda: store.write(masks.start, rows, margins, made_by)


class RehearsedTrial(TrialActor):
    """The same for the plan stage."""

    @override
    def prepare(self, task: Task, job: AblationJob) -> None:
        self._known = Known(job.value.components.num_components, len(task.examples), ABLATION_FRACTION)

    @override
    def choose(self, request: ExpectedMasks, num_actors: int, plan: EnginePlan | None) -> Trial:
        seconds = _seconds_per_mask(self._known)
        return Trial(PLAN, self.log.drain(), seconds, GRADIENT_COST, seconds / self._known.num_examples)


def _seconds_per_mask(known: Known) -> float:
    """As the engine's trial, by a few masks."""
    masks = np.ones((_TRIED, known.num_components), np.bool_)
    block = (0, known.num_examples)
    known.margins(masks, 0, 0, block)
    started = time.perf_counter()
    known.margins(masks, 0, 0, block)
    return (time.perf_counter() - started) / _TRIED


@contextlib.contextmanager
def rehearsed() -> Iterator[None]:
    """For the ``with`` block the stages' actors are these."""
    with (
        mock.patch("coar_dist.stages.collect.AblationActor", RehearsedActor),
        mock.patch("coar_dist.stages.timing.TrialActor", RehearsedTrial),
    ):
        yield
