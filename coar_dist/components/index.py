"""The ordered list of components: one id for every slice of a parameter that can be ablated. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

TABLE_COLUMNS = ("component_id", "parameter", "axis", "index", "start", "size", "module")


@dataclass(frozen=True)
class ComponentGroup:
    """All components of one parameter: consecutive slices of ``block_size`` indices along ``axis``.

    Attributes:
        parameter: dotted name as in ``model.named_parameters()``, e.g. ``layer1.0.conv1.weight``.
        axis: the parameter's axis that is cut into components (0 is the output axis of Conv and Linear).
        num_components: how many components the parameter has.
        block_size: indices per component; 1 for a filter or a neuron, the head size for an attention head.
    """

    parameter: str
    axis: int
    num_components: int
    block_size: int = 1

    def __post_init__(self) -> None:
        if self.axis < 0 or self.num_components < 1 or self.block_size < 1:
            raise ValueError(f"invalid component group {self}: axis >= 0, num_components and block_size >= 1")

    @property
    def module(self) -> str:
        """Dotted name of the module that owns the parameter; empty for the model itself."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class ComponentIndex:
    """The ordered groups; component ids run through them from 0 to ``num_components - 1``.

    Example:
        >>> index = ComponentIndex((ComponentGroup("conv1.weight", 0, 4), ComponentGroup("fc.weight", 0, 2)))
        >>> index.num_components, index.offsets.tolist()
        (6, [0, 4, 6])
    """

    groups: tuple[ComponentGroup, ...]

    def __post_init__(self) -> None:
        keys = [(group.parameter, group.axis) for group in self.groups]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"component groups repeat (parameter, axis): {repeated}")

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(num_groups + 1,) int64: group g has the ids ``offsets[g] .. offsets[g + 1] - 1``."""
        return np.concatenate([[0], np.cumsum([group.num_components for group in self.groups])]).astype(np.int64)

    @property
    def num_components(self) -> int:
        """Number of components over all groups."""
        return int(self.offsets[-1])

    def __len__(self) -> int:
        return self.num_components

    def ids(self, parameter: str) -> range:
        """The component ids of one parameter.

        Raises:
            KeyError: the parameter has no components; the message lists those that have.
        """
        for group, start, stop in zip(self.groups, self.offsets[:-1], self.offsets[1:], strict=True):
            if group.parameter == parameter:
                return range(int(start), int(stop))
        raise KeyError(f"{parameter!r} has no components; {[group.parameter for group in self.groups]} have")

    def name_of(self, component_id: int) -> str:
        """For people, e.g. ``layer1.0.conv1.weight[5]``: the parameter, and the component's place among its own."""
        group = int(np.searchsorted(self.offsets, component_id, side="right")) - 1
        return f"{self.groups[group].parameter}[{component_id - self.offsets[group]}]"

    def table(self) -> dict[str, list[Any]]:
        """One column per field, one row per component: the content of ``components.parquet``."""
        rows = [
            (
                int(offset) + i,
                group.parameter,
                group.axis,
                i,
                i * group.block_size,
                group.block_size,
                group.module,
            )
            for group, offset in zip(self.groups, self.offsets[:-1], strict=True)
            for i in range(group.num_components)
        ]
        return {name: list(column) for name, column in zip(TABLE_COLUMNS, zip(*rows, strict=True), strict=True)}

    @classmethod
    def from_table(cls, table: Mapping[str, Sequence[Any]]) -> ComponentIndex:
        """The inverse of ``table``."""
        keys = zip(table["parameter"], table["axis"], table["size"], strict=True)
        return cls(
            tuple(
                ComponentGroup(parameter, axis, sum(1 for _ in rows), size)
                for (parameter, axis, size), rows in groupby(keys)
            )
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered groups."""
        content = [(g.parameter, g.axis, g.num_components, g.block_size) for g in self.groups]
        return "sha256:" + hashlib.sha256(json.dumps(content).encode()).hexdigest()
