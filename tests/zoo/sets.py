"""Components that are sets of slices, at random: with biases, of several weights, any subset, in any order."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from torch import nn

from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex

_SIZES = (1, 2, 3, 4)
_MOST_GROUPS = 8


def random_sets(model: nn.Module, seed: int = 0) -> ComponentIndex:
    """Up to eight groups of one to three components, of one or two weights each, some with the biases of their rows.

    A weight has one or two groups along one of its axes, which may interlock; a bias follows some of the rows. At most
    half of a weight is ablated at once: a projection that is zero has no direction for those who divide by its norm.
    """
    random = np.random.default_rng([seed, zlib.crc32(type(model).__name__.encode())])
    parameters = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and max(p.shape[:2]) > 1}
    names = random.permutation(sorted(parameters))[:_MOST_GROUPS].tolist()
    parts: list[tuple[Slices, ...]] = []
    for name in names:
        shape = parameters[name].shape
        axis = int(random.integers(2)) if min(shape[:2]) > 1 else int(np.argmax(shape[:2]))
        size = int(random.choice([size for size in _SIZES if shape[axis] % size == 0 and shape[axis] > size]))
        slots = random.permutation(shape[axis] // size)
        some = slots[: min(int(random.integers(1, 6)), max(len(slots) // 2, 1))]
        for places in np.array_split(some, int(random.integers(1, 3))):
            if len(places):
                parts.append(_with_bias(model, name, axis, size, places, random))
    groups = []
    while parts:
        slices = parts.pop()
        as_many = [other for other in parts if len(other[0].starts) == len(slices[0].starts)]
        if as_many and random.random() < 0.4:
            parts.remove(as_many[0])
            slices += as_many[0]
        groups.append(ComponentGroup(slices, range(len(slices[0].starts)), f"set {len(groups)}: {{}}"))
    return ComponentIndex(tuple(groups))


def _with_bias(
    model: nn.Module, name: str, axis: int, size: int, places: NDArray[np.int64], random: np.random.Generator
) -> tuple[Slices, ...]:
    starts = tuple(int(place) * size for place in places)
    bias = model.get_submodule(name.rpartition(".")[0])._parameters.get("bias")
    rows = Slices(name, axis, size, starts)
    if bias is None or bias.ndim != 1 or axis != 0 or len(bias) < max(starts) + size or random.random() < 0.5:
        return (rows,)
    return (rows, Slices(f"{rows.module}.bias".removeprefix("."), 0, size, starts))
