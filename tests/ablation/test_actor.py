from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from coar_dist.ablation.actor import AblationActor, AblationJob, EngineActor
from coar_dist.ablation.calibration import ChosenPlan
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.trial import TrialActor
from coar_dist.ablation.value import ZeroWeights
from coar_dist.ablation.work import ExpectedMasks
from coar_dist.cluster.ranges import WorkRange
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.independent import Bernoulli
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from tests.models import local_storage, slow_margins, small_task

pytestmark = pytest.mark.usefixtures("package_log")


def test_a_range_has_a_margin_for_each_mask_and_each_example_of_its_store(tmp_path: Path) -> None:
    storage, design = local_storage(tmp_path), Bernoulli(11, 40, 0.2, 0)
    stores = {
        "train": (design, MarginStore(storage, "margins/train", "x", 11, 40, 9, 4, "float32")),
        "gradients of examples 4..8": (design, GradientStore(storage, "gradients/gradients/1", "x", 11, 40, (4, 9))),
    }
    job = AblationJob(
        ZeroWeights(ComponentIndex((ComponentGroup.of("a.weight", 0, 11),))), stores, "float32", None, PlanPins()
    )
    counts = {name: job.num_margins(WorkRange(name, 10, 16, "masks")) for name in stores}
    assert counts == {"train": 6 * 9, "gradients of examples 4..8": 6 * 5}


def test_a_trial_takes_over_a_plan_and_an_actor_writes_what_is_true(tmp_path: Path) -> None:
    task, design = small_task(), Bernoulli(12, 6, 0.3, 0)
    components = discover(task.model, "conv_filters")
    store = MarginStore(local_storage(tmp_path), "margins/train", "x", 12, 6, 7, 4, "float32")
    job = AblationJob(
        ZeroWeights(components), {"train": (design, store)}, "float32", None, PlanPins("weights", 3, False)
    )
    plan = EnginePlan("rows", 5, compiled=False)
    for kind in (TrialActor, AblationActor):
        actor = kind()
        actor.setup(copy.deepcopy(task), job, num_threads=1)
        chosen = actor.start(ExpectedMasks(6, 0), 2, None)
        assert chosen.plan == EnginePlan("weights", 3, compiled=False)
        assert any(text.startswith("trial mode=weights, 3 rows per forward, eager: ") for _, text in chosen.log)
        assert actor.start(ExpectedMasks(6, 0), 2, plan).plan == plan
    actor.use(plan)
    for start, stop in ((0, 2), (2, 6)):
        actor.compute(WorkRange("train", start, stop, "masks"))()
    assert store.made_by()["engine"] == plan.to_json()
    truth = slow_margins(task, components, design.masks(0, 6))
    for block in store.blocks:
        ((masks, margins),) = store.read(block, 6)
        np.testing.assert_array_equal(masks, design.masks(0, 6))
        np.testing.assert_allclose(margins, truth[:, slice(*block)], rtol=1e-4, atol=2e-5)


def test_a_part_of_a_shard_is_computed_as_the_whole_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, design = small_task(), Bernoulli(12, 6, 0.3, 0)
    store = MarginStore(local_storage(tmp_path), "margins/train", "x", 12, 6, 7, 4, "float32")
    components = discover(task.model, "conv_filters")
    job = AblationJob(ZeroWeights(components), {"train": (design, store)}, "float32", None, PlanPins())
    actor = AblationActor()
    actor.setup(task, job, num_threads=1)
    seconds = actor.use(EnginePlan("weights", 7, compiled=False))
    assert seconds is not None
    assert seconds > 0
    among: list[np.ndarray | None] = []
    margins = actor._engine.margins

    def watched(masks: np.ndarray, among_: np.ndarray | None) -> np.ndarray:
        among.append(among_)
        return margins(masks, among_)

    monkeypatch.setattr(actor._engine, "margins", lambda masks, among: watched(masks, among))
    for start, stop, whole in ((0, 4, None), (0, 4, (0, 4)), (5, 6, (4, 8)), (4, 6, (4, 8))):
        actor.compute(WorkRange("train", start, stop, "masks", whole))
    assert [None if each is None else each.tolist() for each in among] == [
        None,
        None,
        design.masks(4, 6).tolist(),  # there is no seventh mask
        None,
    ]


@pytest.mark.parametrize("kind", [TrialActor, AblationActor])
def test_what_a_gradient_pass_costs_is_measured_where_there_are_any(
    kind: type[EngineActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks are shared by the actors; a share that is begun counts as one."""
    asked: list[dict[str, Any]] = []

    def choose(engine: object, pins: PlanPins, plain: int, gradient_masks_per_actor: int) -> ChosenPlan:
        asked.append({"pins": pins, "plain": plain, "with gradients": gradient_masks_per_actor})
        cost = 1.5 if gradient_masks_per_actor else None
        return ChosenPlan(EnginePlan("weights", 3, compiled=False), 1e-3, cost)

    monkeypatch.setattr("coar_dist.ablation.actor.choose_plan", choose)
    monkeypatch.setattr("coar_dist.ablation.actor.gradient_cost", lambda engine: 2.5)
    task = small_task()
    job = AblationJob(
        ZeroWeights(discover(task.model, "conv_filters")), {}, "float32", None, PlanPins("weights", 3, False)
    )
    actor = kind()
    actor.setup(copy.deepcopy(task), job, num_threads=1)
    found = [actor.start(ExpectedMasks(*masks), 4, None) for masks in ((9, 0), (8, 0.5), (0, 9))]
    assert [start.gradient_cost for start in found] == [None, 1.5, 1.5]
    plan = EnginePlan("weights", 2, compiled=False)
    given = [actor.start(ExpectedMasks(*masks), 4, plan) for masks in ((9, 0), (8, 0.5))]
    assert [(start.gradient_cost, start.plan) for start in given] == [(None, plan), (2.5, plan)]
    assert [(each["plain"], each["with gradients"]) for each in asked] == [(3, 0), (2, 1), (1, 3)]
    assert {each["pins"] for each in asked} == {job.pins}


@pytest.mark.parametrize("device_map", [None, "balanced"])
def test_a_model_is_spread_where_a_device_map_says_so(device_map: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    spread: list[tuple[nn.Module, str]] = []
    monkeypatch.setattr("coar_dist.ablation.actor.spread_over_devices", lambda *given: spread.append(given))
    task = small_task()
    job = AblationJob(ZeroWeights(discover(task.model, "conv_filters")), {}, "float32", device_map, PlanPins())
    AblationActor().setup(task, job, num_threads=1)
    assert spread == ([] if device_map is None else [(task.model, "balanced")])
    assert job.storage is None
