from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from coar_dist.ablation.actor import AblationActor, AblationJob
from coar_dist.ablation.device_map import check_device_map
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.trial import TrialActor
from coar_dist.ablation.work import ExpectedMasks
from coar_dist.cluster.ranges import WorkRange
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.independent import Bernoulli
from coar_dist.errors import ConfigError
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from tests.models import local_storage, slow_margins, small_task


def test_a_range_has_a_margin_for_each_mask_and_each_example_of_its_store(tmp_path: Path) -> None:
    storage, design = local_storage(tmp_path), Bernoulli(11, 40, 0.2, 0)
    stores = {
        "train": (design, MarginStore(storage, "margins/train", "x", 11, 40, 9, 4, "float32")),
        "gradients of examples 4..8": (design, GradientStore(storage, "gradients/gradients/1", "x", 11, 40, (4, 9))),
    }
    job = AblationJob(ComponentIndex((ComponentGroup.of("a.weight", 0, 11),)), stores, "float32", None, PlanPins())
    counts = {name: job.num_margins(WorkRange(name, 10, 16, "masks")) for name in stores}
    assert counts == {"train": 6 * 9, "gradients of examples 4..8": 6 * 5}


def test_a_device_map_takes_a_model_that_says_how_it_can_be_spread() -> None:
    model = nn.Linear(2, 2)
    check_device_map(None, model)
    with pytest.raises(ConfigError, match=r"ablation\.device_map='auto' has no effect on Linear"):
        check_device_map("auto", model)
    model._no_split_modules = ["Linear"]
    check_device_map("auto", model)


@pytest.fixture
def _package_log() -> Iterator[None]:
    """An actor's process is its own; here its handler would stay."""
    logger = logging.getLogger("coar_dist")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.usefixtures("_package_log")
def test_a_trial_takes_over_a_plan_and_an_actor_writes_what_is_true(tmp_path: Path) -> None:
    task, design = small_task(), Bernoulli(12, 6, 0.3, 0)
    components = discover(task.model, "conv_filters")
    store = MarginStore(local_storage(tmp_path), "margins/train", "x", 12, 6, 7, 4, "float32")
    job = AblationJob(components, {"train": (design, store)}, "float32", None, PlanPins("weights", 3, False))
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
