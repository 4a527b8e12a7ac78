from __future__ import annotations

from coar_dist.ablation.work import default_gradient_masks_per_shard, default_masks_per_shard


def test_shards_hold_about_as_many_margins_for_few_examples_as_for_many() -> None:
    assert [default_masks_per_shard(count) for count in (1, 8, 16, 128, 50_000)] == [1024, 1024, 512, 64, 64]


def test_gradient_shards_hold_whole_rounds() -> None:
    assert [default_gradient_masks_per_shard(count, 10) for count in (1, 100, 1638, 50_000)] == [16380, 160, 10, 10]
