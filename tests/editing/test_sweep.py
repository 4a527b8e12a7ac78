"""Sweeps over numbers of ablated components, held to a slow reference."""

from __future__ import annotations

import re

import numpy as np

from coar_dist.editing.sweep import Sweep


def test_masks_are_the_first_components_of_every_order() -> None:
    random = np.random.default_rng(0)
    num_components, sizes = 45, (0, 1, 2, 5, 17)
    orders = {str(i): random.permutation(num_components)[:20] for i in range(6)}
    orders["again"] = orders["3"]
    orders["same set"] = np.concatenate([orders["3"][:5][::-1], orders["3"][5:]])
    sweep = Sweep.of(orders, sizes, num_components)
    masks = sweep.design.masks(0, sweep.design.num_masks)
    assert masks.shape[1] == num_components
    for name, order in orders.items():
        assert sweep.masks[name].shape == (len(sizes),)
        for size, mask_id in zip(sizes, sweep.masks[name], strict=True):
            assert set(np.flatnonzero(~masks[mask_id])) == set(order[:size].tolist())
    ablated = [frozenset(np.flatnonzero(~mask)) for mask in masks]
    assert len(set(ablated)) == len(ablated)
    first_seen = dict.fromkeys(frozenset(order[:size].tolist()) for order in orders.values() for size in sizes)
    assert ablated == list(first_seen)
    assert sweep.design.ablation_fraction == sum(map(len, ablated)) / masks.size


def test_the_name_is_that_of_the_masks() -> None:
    orders = {"a": np.arange(9), "b": np.arange(9)[::-1]}
    name = Sweep.of(orders, (0, 2), 9).name
    assert re.fullmatch("sweep_[0-9a-f]{12}", name)
    assert name == Sweep.of({"c": orders["a"], "d": orders["b"]}, (0, 2), 9).name
    assert len({name, Sweep.of(orders, (0, 3), 9).name, Sweep.of(orders, (0, 2), 10).name}) == 3
