from __future__ import annotations

from pathlib import Path

from coar_dist.ablation.actor import AblationJob
from coar_dist.ablation.plan import PlanPins
from coar_dist.cluster.ranges import WorkRange
from coar_dist.components.index import ComponentGroup, ComponentIndex
from coar_dist.designs.independent import Bernoulli
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from tests.models import local_storage


def test_a_range_has_a_margin_for_each_mask_and_each_example_of_its_store(tmp_path: Path) -> None:
    storage, design = local_storage(tmp_path), Bernoulli(11, 40, 0.2, 0)
    stores = {
        "train": (design, MarginStore(storage, "margins/train", "x", 11, 40, 9, 4, "float32")),
        "gradients of examples 4..8": (design, GradientStore(storage, "gradients/gradients/1", "x", 11, 40, (4, 9))),
    }
    job = AblationJob(ComponentIndex((ComponentGroup("a.weight", 0, 11),)), stores, "float32", None, PlanPins())
    counts = {name: job.num_margins(WorkRange(name, 10, 16, "masks")) for name in stores}
    assert counts == {"train": 6 * 9, "gradients of examples 4..8": 6 * 5}
