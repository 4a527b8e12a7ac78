from __future__ import annotations

from pathlib import Path

from coar_dist.ablation.work import (
    default_gradient_masks_per_shard,
    default_masks_per_shard,
    missing_work,
    stores_of,
)
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import AblationConfig, Config
from coar_dist.designs.independent import Bernoulli
from coar_dist.designs.subsets import Balanced
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.models import local_storage


def test_shards_hold_about_as_many_margins_for_few_examples_as_for_many() -> None:
    sizes = [default_masks_per_shard(count) for count in (1, 8, 16, 30, 127, 129, 50_000)]
    assert sizes == [1024, 1024, 512, 273, 64, 64, 64]
    assert all(isinstance(size, int) for size in sizes)


def test_gradient_shards_hold_whole_rounds() -> None:
    assert [default_gradient_masks_per_shard(count, 10) for count in (1, 100, 1638, 50_000)] == [16380, 160, 10, 10]


def test_missing_masks_are_cut_by_the_examples_of_their_store_and_in_whole_rounds(tmp_path: Path) -> None:
    identity = {"ablation.examples_per_block": 370, "ablation.margins_dtype": "float32"}
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, 30),))
    run = RunDirectory.create(local_storage(tmp_path), identity, components, 500)
    designs = {"train": RunDesign("train", Bernoulli(30, 150, 0.1, 0))}
    run.set_designs({**designs, "gradients": RunDesign("gradients", Balanced(30, 100, 0.1, 7))})  # 10 masks a round
    work = missing_work(run, stores_of(run), Config())
    limits: dict[str, list[tuple[int, int]]] = {}
    for work_range in work.ranges:
        limits.setdefault(work_range.store_name, []).append((work_range.start, work_range.stop))
    assert limits == {
        "gradients of examples 0..369": [(0, 40), (40, 80), (80, 100)],  # 16,384 / 370 is 44.3
        "gradients of examples 370..499": [(0, 100)],
        "train": [(0, 64), (64, 128), (128, 150)],
    }
    assert (work.plain_masks, work.gradient_masks) == (150, 100)
    assert work.ranges.shard_seconds == {"train": 60.0}
    fixed = Config(ablation=AblationConfig(masks_per_shard=40))
    assert missing_work(run, stores_of(run), fixed).ranges.shard_seconds == {}
