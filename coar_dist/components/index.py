"""The component index: an ordered list of components, each a set of slices of a model's parameters."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from coar_dist.components.groups import Component, ComponentGroup, Numbers, Slices, numbers_of
from coar_dist.components.name_patterns import matches
from coar_dist.config.keys import near
from coar_dist.config.python_arguments import NAME, WHOLE, check, is_whole, shown, takes
from coar_dist.config.schema.values import Rule
from coar_dist.errors import ComponentMismatchError, counted, listed

if TYPE_CHECKING:
    from pandas import DataFrame

_MOST_COMPARED = 10_000
"""Names that one which is not there is compared with: of more it takes seconds."""
_GROUPS = Rule(
    lambda value: isinstance(value, tuple) and all(isinstance(group, ComponentGroup) for group in value),
    "a tuple of ComponentGroup",
)


@dataclass(frozen=True, repr=False)
class ComponentIndex:
    """The ordered groups; component ids run through them from 0 to ``num_components - 1``.

    ``index["L3H5"]`` and ``index[17]`` are a component; ``index[:12]``, ``index[[3, 5]]`` and ``index.where(layer=3)``
    are an index of some of the components; iterating gives them one by one.

    Example:
        >>> index = ComponentIndex((ComponentGroup.of("conv1.weight", 0, 4), ComponentGroup.of("fc.weight", 0, 2)))
        >>> index.num_components, index.offsets.tolist(), index[5].name
        (6, [0, 4, 6], 'fc[1]')

    Raises:
        ConfigError: the groups are none.
        ComponentMismatchError: two components overlap: the message names both.
    """

    groups: tuple[ComponentGroup, ...]

    def __repr__(self) -> str:
        kinds = Counter[str]()
        for group in self.groups:
            kinds[group.kind] += group.num_components
        of_kinds = ", ".join(counted(num, kind) for kind, num in kinds.items())
        ends = f", {self.name_of(0)} to {self.name_of(len(self) - 1)}" if len(self) else ""
        return f"ComponentIndex({of_kinds or 'empty'} in {counted(len(self.groups), 'group')}{ends})"

    def __post_init__(self) -> None:
        check("groups", self.groups, _GROUPS)
        by_axis: dict[tuple[str, int], list[tuple[int, Slices]]] = {}
        for number, group in enumerate(self.groups):
            for part in group.slices:
                by_axis.setdefault((part.parameter, part.axis), []).append((number, part))
        for (parameter, axis), parts in by_axis.items():
            only = parts[0][1]
            if len(parts) == 1 and isinstance(only.starts, range) and only.starts.step >= only.size:
                continue
            starts = np.concatenate([np.asarray(part.starts, np.int64) for _, part in parts])
            ends = np.concatenate([np.asarray(part.starts, np.int64) + part.size for _, part in parts])
            ids = np.concatenate([self.offsets[number] + np.arange(len(part.starts)) for number, part in parts])
            order = np.argsort(starts, kind="stable")
            overlapping = np.flatnonzero(starts[order][1:] < ends[order][:-1])
            if overlapping.size:
                one, other = (self.name_of(int(ids[order][overlapping[0] + step])) for step in (0, 1))
                raise ComponentMismatchError(
                    f"components overlap: {one} and {other} share a part of {parameter} (axis {axis})"
                )

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(num_groups + 1,) int64: group g has the ids ``offsets[g] .. offsets[g + 1] - 1``."""
        return np.concatenate([[0], np.cumsum([group.num_components for group in self.groups])]).astype(np.int64)

    @property
    def num_components(self) -> int:
        """Number of components over all groups."""
        return int(self.offsets[-1])

    @property
    def parameters(self) -> list[str]:
        """All parameters that components are slices of."""
        return list(dict.fromkeys(name for group in self.groups for name in group.parameters))

    def __len__(self) -> int:
        return self.num_components

    def __iter__(self) -> Iterator[Component]:
        return (self._component(component_id) for component_id in range(self.num_components))

    @overload
    def __getitem__(self, key: str | int) -> Component: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | NDArray[Any]) -> ComponentIndex: ...
    def __getitem__(self, key: Any) -> Component | ComponentIndex:
        if isinstance(key, str):
            if key not in self._ids:
                like = near(key, islice(self._ids, _MOST_COMPARED)) or [self.name_of(0)]
                raise KeyError(f"there is no component {key!r} among {len(self)}, such as {', '.join(like)}")
            return self._component(self._ids[key])
        ids = np.arange(self.num_components)[key]
        return self._component(int(ids)) if np.ndim(ids) == 0 else self._only(ids)

    @takes(layer=WHOLE, kind=NAME, name=NAME)
    def where(self, *, layer: int | None = None, kind: str | None = None, name: str = "*") -> ComponentIndex:
        """The components of a layer, of a kind, or whose name matches a shell pattern; all that is given must hold.

        Raises:
            ComponentMismatchError: there is none.

        Example:
            >>> index = ComponentIndex((ComponentGroup.of("conv1.weight", 0, 4), ComponentGroup.of("fc.weight", 0, 2)))
            >>> index.where(name="fc*").num_components
            2
        """
        ids = [
            self.offsets[number] + place
            for number, group in enumerate(self.groups)
            if layer in (None, group.layer) and kind in (None, group.kind)
            for place in range(group.num_components)
            if name == "*" or matches(group.name_of(place), [name])
        ]
        if not ids:
            kinds = sorted({group.kind for group in self.groups})
            raise ComponentMismatchError(
                f"no component has layer={layer}, kind={kind!r}, name={name!r}; kinds are {kinds}"
            )
        return self._only(np.array(ids))

    def _only(self, ids: NDArray[np.int64]) -> ComponentIndex:
        """The index of some components, in its own order."""
        numbers = np.searchsorted(self.offsets, np.unique(ids), side="right") - 1
        places = np.unique(ids) - self.offsets[numbers]
        return ComponentIndex(
            tuple(self.groups[number].only(places[numbers == number]) for number in np.unique(numbers).tolist())
        )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: component_id for component_id, name in enumerate(self.names())}

    def _component(self, component_id: int) -> Component:
        number = int(np.searchsorted(self.offsets, component_id, side="right")) - 1
        group, place = self.groups[number], component_id - int(self.offsets[number])
        slices = tuple((part.parameter, part.axis, part.starts[place], part.size) for part in group.slices)
        return Component(component_id, self.name_of(component_id), group.kind, group.layer, slices)

    @takes(parameter=NAME)
    def ids(self, parameter: str) -> NDArray[np.int64]:
        """The ids of the components that a parameter has slices of.

        Raises:
            KeyError: the parameter has no components; the message lists those that have.
        """
        numbers = [number for number, group in enumerate(self.groups) if parameter in group.parameters]
        if not numbers:
            like = near(parameter, self.parameters) or self.parameters
            raise KeyError(f"{parameter!r} has no components; {listed(like)} {'have' if len(like) > 1 else 'has'}")
        return np.concatenate([np.arange(self.offsets[number], self.offsets[number + 1]) for number in numbers])

    def name_of(self, component_id: int) -> str:
        """For people, e.g. ``L3H5`` or ``layer1.0.conv1[5]``.

        Raises:
            IndexError: there is no such id.
        """
        if not is_whole(component_id) or not 0 <= component_id < self.num_components:
            raise IndexError(f"component_id={shown(component_id)}: the ids are 0 to {self.num_components - 1}.")
        number = int(np.searchsorted(self.offsets, component_id, side="right")) - 1
        return self.groups[number].name_of(component_id - int(self.offsets[number]))

    def names(self) -> list[str]:
        """All names, in the order of the ids."""
        return [name for group in self.groups for name in group.names()]

    def table(self) -> dict[str, list[Any]]:
        """One row per component: the content of ``components.parquet``; the last columns are of its first slice."""
        sizes = np.diff(self.offsets)
        return {
            "component_id": list(range(self.num_components)),
            "name": self.names(),
            "kind": _repeated([group.kind for group in self.groups], sizes),
            "layer": _repeated([group.layer for group in self.groups], sizes),
            "group": _repeated(range(len(self.groups)), sizes),
            "index": [number for group in self.groups for number in group.numbers],
            "module": _repeated([group.module for group in self.groups], sizes),
            "parameter": _repeated([group.parameter for group in self.groups], sizes),
            "axis": _repeated([group.slices[0].axis for group in self.groups], sizes),
            "start": [start for group in self.groups for start in group.slices[0].starts],
            "size": _repeated([group.slices[0].size for group in self.groups], sizes),
        }

    def slice_table(self) -> dict[str, list[Any]]:
        """One row per slice, those of a group's first parameter first: the content of ``slices.parquet``."""
        parts = [
            (first, part)
            for group, first in zip(self.groups, self.offsets.tolist(), strict=False)
            for part in group.slices
        ]
        sizes = [len(part.starts) for _, part in parts]
        return {
            "component_id": [first + place for first, part in parts for place in range(len(part.starts))],
            "parameter": _repeated([part.parameter for _, part in parts], sizes),
            "axis": _repeated([part.axis for _, part in parts], sizes),
            "start": [start for _, part in parts for start in part.starts],
            "size": _repeated([part.size for _, part in parts], sizes),
        }

    @classmethod
    def from_tables(cls, table: Mapping[str, Sequence[Any]], slices: Mapping[str, Sequence[Any]]) -> ComponentIndex:
        """The inverse of ``table`` and ``slice_table``."""
        of_component = np.asarray(table["group"], dtype=np.int64)
        firsts = np.flatnonzero(np.diff(of_component, prepend=-1))
        rows = np.asarray(slices["component_id"], dtype=np.int64)
        # A part of a group begins where the ids start again, or go on with the next group.
        begins = np.flatnonzero(np.isin(rows, firsts))
        parts: dict[int, list[Slices]] = {}
        for begin, end in zip(begins.tolist(), [*begins.tolist()[1:], len(rows)], strict=True):
            starts = numbers_of(slices["start"][begin:end])
            part = Slices(slices["parameter"][begin], slices["axis"][begin], slices["size"][begin], starts)
            parts.setdefault(int(rows[begin]), []).append(part)
        groups = []
        for first, end in zip(firsts.tolist(), [*firsts.tolist()[1:], len(of_component)], strict=True):
            numbers = numbers_of(table["index"][first:end])
            before, number, after = table["name"][first].rpartition(str(numbers[0]))
            name = f"{before}{{}}{after}" if number and (before or after) else table["name"][first]
            of_group = tuple(parts[first])
            module = table["module"][first]
            units_of = module if module and module != of_group[0].module else None
            groups.append(
                ComponentGroup(of_group, numbers, name, table["kind"][first], table["layer"][first], units_of)
            )
        return cls(tuple(groups))

    def to_frame(self) -> DataFrame:
        """``table`` as a pandas DataFrame, one row per component."""
        from pandas import DataFrame

        return DataFrame(self.table())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered components' slices; names do not count."""
        content = [_content_of(group) for group in self.groups]
        return "sha256:" + hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _repeated(values: Sequence[Any], sizes: Sequence[int] | NDArray[np.int64]) -> list[Any]:
    """Each value as often as its size says."""
    return np.repeat(np.array(values, dtype=object), sizes).tolist()


def _content_of(group: ComponentGroup) -> list[Any]:
    if len(group.slices) == 1 and group.slices[0].covers:
        (part,) = group.slices
        return [part.parameter, part.axis, group.num_components, part.size]
    return [[part.parameter, part.axis, part.size, *_numbers(part.starts)] for part in group.slices]


def _numbers(numbers: Numbers) -> list[Any]:
    return [numbers.start, numbers.step, len(numbers)] if isinstance(numbers, range) else [list(numbers)]
