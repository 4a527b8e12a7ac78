"""Groups of components: what belongs together in one place of a model, and where its slices are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.python_arguments import AXIS, COUNT, NAME, STARTS, WHOLE, WHOLES, check, takes
from coar_dist.config.schema.values import Rule
from coar_dist.errors import ConfigError

Numbers = range | tuple[int, ...]
"""Ascending or not; a range wherever the steps are equal, so that half a million of them take no memory."""


def numbers_of(values: Sequence[int] | NDArray[np.int64]) -> Numbers:
    """The values as a range if their steps are equal.

    Example:
        >>> numbers_of([0, 64, 128]), numbers_of([0, 1, 3])
        (range(0, 192, 64), (0, 1, 3))
    """
    if isinstance(values, range):
        return values
    array = np.asarray(values, dtype=np.int64)
    if len(array) == 0:
        return range(0)
    first, step = int(array[0]), int(array[1] - array[0]) if len(array) > 1 else 1
    if step and (np.diff(array) == step).all():
        return range(first, first + step * len(array), step)
    return tuple(array.tolist())


@dataclass(frozen=True)
class Slices:
    """What the components of a group have of one parameter: a slice along an axis each.

    Attributes:
        parameter: dotted name as in ``model.named_parameters()``, e.g. ``layer1.0.conv1.weight``.
        axis: of the parameter (0 is the output axis of Conv and Linear).
        size: indices of a slice: 1 of a filter or a neuron, the head size of an attention head.
        starts: the first index of every component's slice.
    """

    parameter: str
    axis: int
    size: int
    starts: Numbers

    def __post_init__(self) -> None:
        for key, rule in (("parameter", NAME), ("axis", AXIS), ("size", COUNT), ("starts", STARTS)):
            check(key, getattr(self, key), rule)
        object.__setattr__(self, "starts", numbers_of(self.starts))

    @property
    def module(self) -> str:
        """Dotted name of the module that owns the parameter; empty for the model itself."""
        return self.parameter.rpartition(".")[0]

    @property
    def covers(self) -> int:
        """How many indices along the axis they cut into equal slices from 0 up, leaving none out; 0 where not so."""
        end = self.size * len(self.starts)
        return end if self.starts == range(0, end, self.size) else 0

    def indices(self, places: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """(n * size,) int64: the indices along the axis of the components at some places of the group; None is all."""
        if isinstance(self.starts, range):  # half a million starts are not written out for a few of them
            places = np.arange(len(self.starts)) if places is None else places
            starts = self.starts.start + self.starts.step * places
        else:
            starts = np.asarray(self.starts, dtype=np.int64)
            starts = starts if places is None else starts[places]
        return starts if self.size == 1 else np.asarray((starts[:, None] + np.arange(self.size)).reshape(-1))

    def owners(self, length: int, none: int) -> NDArray[np.int64]:
        """(length,) int64: the place in the group of the component that has each index of the axis, or ``none``."""
        owners = np.full(length, none, dtype=np.int64)
        owners[self.indices()] = np.repeat(np.arange(len(self.starts)), self.size)
        return owners


_SLICES = Rule(
    lambda value: isinstance(value, tuple) and all(isinstance(part, Slices) for part in value), "a tuple of Slices"
)


@dataclass(frozen=True)
class ComponentGroup:
    """Components of one kind in one place: component ``i`` is the ``i``-th slice of each of ``slices``, together.

    Attributes:
        slices: one or more, of as many components each.
        numbers: what the components are called by: head 0, 1, ... of its layer.
        name: the components' names, with ``{}`` for the number, such as ``L3H{}``.
        kind: such as ``head``, ``neuron``, ``filter``.
        layer: None where there is none.
        units_of: dotted name of the module whose units they are, where that is another than the owner of the first
            slices: neurons are cut from the matrix that reads them. None: it is the owner.
    """

    slices: tuple[Slices, ...]
    numbers: Numbers
    name: str = field(compare=False)
    kind: str = "slice"
    layer: int | None = None
    units_of: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for key, rule in (("slices", _SLICES), ("numbers", WHOLES), ("name", NAME), ("kind", NAME)):
            check(key, getattr(self, key), rule)
        if self.layer is not None:
            check("layer", self.layer, WHOLE)
        if self.units_of is not None:
            check("units_of", self.units_of, NAME)
        object.__setattr__(self, "numbers", numbers_of(self.numbers))
        if not self.slices or any(len(part.starts) != len(self.numbers) for part in self.slices):
            raise ConfigError(f"invalid component group {self.name!r}: every one of its slices needs as many starts")

    @classmethod
    @takes(parameter=NAME, axis=AXIS, num_components=COUNT, block_size=COUNT, kind=NAME)
    def of(
        cls, parameter: str, axis: int, num_components: int, block_size: int = 1, kind: str = "slice"
    ) -> ComponentGroup:
        """Consecutive slices of one parameter, named after it.

        Args:
            parameter: dotted name as in ``model.named_parameters()``.
            axis: the axis that is cut.
            num_components: how many components.
            block_size: indices of each.
            kind: as the attribute.

        Example:
            >>> ComponentGroup.of("layer1.0.conv1.weight", 0, 16).name
            'layer1.0.conv1[{}]'
        """
        starts = range(0, num_components * block_size, block_size)
        name = parameter.removesuffix(".weight") + "[" + ":, " * axis + "{}]"
        return cls((Slices(parameter, axis, block_size, starts),), range(num_components), name, kind)

    @property
    def num_components(self) -> int:
        """How many components."""
        return len(self.numbers)

    def name_of(self, place: int) -> str:
        """The name of the component at a place of the group."""
        return self.name.format(self.numbers[place])

    def names(self) -> list[str]:
        """The names of all components."""
        return [self.name.format(number) for number in self.numbers]

    @property
    def parameter(self) -> str:
        """The parameter of the first slices, by which messages and layers of a report name the group."""
        return self.slices[0].parameter

    @property
    def module(self) -> str:
        """The module whose units the components are: the owner of ``parameter``, or ``units_of``."""
        return self.slices[0].module if self.units_of is None else self.units_of

    @property
    def parameters(self) -> list[str]:
        """All parameters of the slices."""
        return list(dict.fromkeys(part.parameter for part in self.slices))

    def only(self, places: Sequence[int] | NDArray[np.int64]) -> ComponentGroup:
        """The group with the components at some places alone."""

        def chosen(numbers: Numbers) -> Numbers:
            return numbers_of(np.asarray(numbers, dtype=np.int64)[np.asarray(places, dtype=np.int64)])

        slices = tuple(Slices(part.parameter, part.axis, part.size, chosen(part.starts)) for part in self.slices)
        return replace(self, slices=slices, numbers=chosen(self.numbers))


@dataclass(frozen=True)
class Component:
    """One component.

    Attributes:
        id: its place in the index.
        name: for people.
        kind: such as ``head``.
        layer: None where there is none.
        slices: (parameter, axis, start, size) each, ablated together.
    """

    id: int
    name: str
    kind: str
    layer: int | None
    slices: tuple[tuple[str, int, int, int], ...]
