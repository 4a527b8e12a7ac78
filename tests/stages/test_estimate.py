"""The arithmetic of an estimate, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coar_dist.stages.estimate import Estimate, Load, makespan

GRADIENTS = Load("with gradients", "masks", 20, 10, [40, 60], cost=3.0, num_bytes=1000)
TRAIN = Load("without gradients", "masks", 100, 50, [200, 200, 100], cost=1.0, num_bytes=200)
BASELINE = Load("gradient_x_parameter", "examples", 10, 10, [15, 15], cost=1.0, num_bytes=30)
ESTIMATE = Estimate(
    loads=(GRADIENTS, TRAIN),
    num_examples=10,
    seconds_per_pass=0.5,
    gradient_cost=3.0,
    num_actors=2,
    gpus_per_actor=0.5,
    start_s=30.0,
    price_per_hour=4.0,
)


def test_each_range_goes_to_the_actor_that_is_free_first() -> None:
    assert makespan([3.0, 1.0, 1.0, 1.0, 4.0], 1) == 10.0
    assert makespan([3.0, 1.0, 1.0, 1.0, 4.0], 2) == 7.0  # 3 | 1 1 1, then 4 on either
    assert makespan([3.0, 1.0], 5) == 3.0
    assert makespan([], 3) == 0.0


def test_wall_time_actor_hours_and_price() -> None:
    # 40 and 60 passes of 1.5 s, then 200, 200, 100 of 0.5 s: 60 + 100 | 90 + 100, the last one where 60 + 100 is over.
    assert ESTIMATE.work_s == 60 + 100 + 50
    assert ESTIMATE.wall_hours == pytest.approx((30 + 210) / 3600)
    assert ESTIMATE.actor_hours == pytest.approx(2 * 240 / 3600)
    assert ESTIMATE.gpu_hours == pytest.approx(240 / 3600)
    assert ESTIMATE.price == pytest.approx(4 * 2 * 240 / 3600)
    assert replace(ESTIMATE, price_per_hour=None).price is None
    assert ESTIMATE.masks_per_second == pytest.approx(1 / 5)
    assert ESTIMATE.seconds_of(GRADIENTS) == 150
    assert ESTIMATE.num_bytes == 1200


def test_baselines_of_examples_follow_when_all_masks_are_done() -> None:
    assert replace(ESTIMATE, loads=(GRADIENTS, TRAIN, BASELINE)).work_s == 210 + 7.5


def test_a_budget_adds_what_its_pilot_leaves() -> None:
    spent = ESTIMATE.with_budget(200.0, ["without gradients", "with gradients"])  # the pilot is 100 + 20 * 3
    assert spent.budget_passes == 40 * 10
    assert spent.work_s == 210 + 400 * 0.5 / 2
    assert ESTIMATE.with_budget(150.0, ["without gradients", "with gradients"]).work_s == 210


def test_loads_of_one_kind_are_one() -> None:
    both = TRAIN.with_more(replace(TRAIN, num_total=7, num_missing=7, range_passes=[70], num_bytes=5))
    assert (both.num_total, both.num_missing, both.passes, both.num_bytes) == (107, 57, 570, 205)
