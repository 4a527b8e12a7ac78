"""Values at sites that differ from row to row of a pass: another example's activation, or the mean of a class.

A model whose forward method is a ``RowForward`` takes one input more: the ids of the examples that are its rows. Before
its own pass it finds the values that belong to them, which hooks at sites then put in the place of activations.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.components.gate_places import GatePlace
from coar_dist.components.sites import ValueOf, site_name
from coar_dist.errors import ComponentMismatchError

EXAMPLE, ONLY_INPUT = "component_example", "component_input"
"""Inputs of a ``RowForward``: (num_rows,) int64 example ids, and the input of a model that takes one by position."""


class RowSource(ABC):
    """Where the values of rows come from; what copies of a model share."""

    @property
    def tables(self) -> Mapping[str, Tensor] | None:
        """Per site (num_entries, num_channels); None where values are activations of donors."""
        return None

    @abstractmethod
    def entries(self, examples: Tensor, masks: Tensor) -> Tensor:
        """Which donor, or entry of a table, belongs to each row of a pass.

        Args:
            examples: (num_rows,) int64 ids.
            masks: (num_rows,) int64, what ``mask_terms`` of ablated components add up to.

        Returns:
            (num_rows,) int64.
        """

    def mask_terms(self, num_components: int) -> NDArray[np.int64]:
        """(num_components,) what an ablated component adds to ``masks``; zeros where masks do not matter."""
        return np.zeros(num_components, np.int64)


class RowForward:
    """A forward method that is told the examples of its rows, and what ablates them.

    Args:
        model: whose forward method this takes the place of.
        source: where values come from.

    Attributes:
        donors: inputs of all donors, by keyword; None where the source has tables.
        held: per site the donors' activations, one (num_donors * k, ...) tensor for each time that a pass comes by,
            from which rows are taken; None runs the donors of a pass before it.
    """

    def __init__(self, model: nn.Module, source: RowSource) -> None:
        self.__wrapped__ = model.forward  # by this name inspect.signature finds it
        self._source = source
        self.donors: Mapping[str, Any] | None = None
        self.held: Mapping[str, list[Tensor]] | None = None
        self._free()

    def _free(self) -> None:
        self._num_users = self._num_keys = 0
        self._gates: list[tuple[nn.Module, str, Tensor]] = []
        self._masked: Tensor | None = None
        self._is_recording = False
        self._calls: dict[int, int] = {}
        self._recorded: dict[int, list[Tensor]] = {}
        self._entries: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """For a copy of the model, which has no hooks yet; what is held has no copy."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__wrapped__ = copy.deepcopy(self.__wrapped__, memo)
        new._source, new.donors, new.held = self._source, self.donors, self.held
        new._free()
        return new

    def __call__(self, **inputs: Any) -> Any:
        """The model's outputs; ``inputs`` has ``EXAMPLE``."""
        examples = inputs.pop(EXAMPLE)
        if self._num_users:
            self._begin(examples, inputs)
        return self._run(inputs)

    def _run(self, inputs: Mapping[str, Any]) -> Any:
        if ONLY_INPUT in inputs:
            return self.__wrapped__(inputs[ONLY_INPUT])
        return self.__wrapped__(**inputs)

    def _begin(self, examples: Tensor, inputs: Mapping[str, Any]) -> None:
        """Find the values of a pass's rows; without what is held, by a pass of their donors."""
        self._calls, self._is_recording = {}, False
        self._entries = entries = self._source.entries(examples, self._masks(examples))
        if self.held is not None or self._source.tables is not None:
            return
        assert self.donors is not None
        own = {name: _chosen(each, entries) for name, each in self.donors.items()}
        self._recorded, self._is_recording = {}, True
        with torch.no_grad():
            self._run({**inputs, **own})
        self._is_recording = False

    def _masks(self, examples: Tensor) -> Tensor:
        total = torch.zeros_like(examples)
        if self._masked is not None:
            total = total + self._masked.to(examples.device)
        for module, key, terms in self._gates:
            ablated = getattr(module, key).detach() < 0.5
            total = total + (ablated.long() * terms).sum(dim=1).to(examples.device)
        return total

    def enter(self) -> None:
        """Somebody ablates the model from now on."""
        self._num_users += 1

    def leave(self) -> None:
        """The inverse of ``enter``."""
        self._num_users -= 1

    def set_mask(self, mask: NDArray[np.bool_], device: torch.device) -> None:
        """What all rows ablate: ``mask`` (num_components,) bool, True = kept."""
        total = int(self._source.mask_terms(len(mask))[~mask].sum())  # it wraps around
        if self._masked is None or self._masked.device != device:
            self._masked = torch.zeros((), dtype=torch.int64, device=device)
        self._masked.fill_(total)

    def set_gates(
        self, gates: list[tuple[nn.Module, str, int, int]], num_components: int, device: torch.device
    ) -> None:
        """Where the gates of rows are: buffers (num_rows, stop - start) of modules; [] is none."""
        terms = torch.from_numpy(self._source.mask_terms(num_components)).to(device)
        self._gates = [(module, key, terms[start:stop]) for module, key, start, stop in gates]

    def use(self, source: RowSource) -> RowForward:
        """Take values from another source from now on, such as tables that fit a changed layer."""
        self._source = source
        return self

    def new_key(self) -> int:
        """A number for one more hook."""
        self._num_keys += 1
        return self._num_keys

    def value(self, key: int, site: str, activation: Tensor, channel_axis: int, part: slice) -> Tensor | None:
        """What takes the place of an activation that a hook sees; None in a pass of donors, which has all of its own.

        Args:
            key: the hook's own number.
            site: its site's name.
            activation: which is here.
            channel_axis: its axis of channels.
            part: which of the site's channels they are.

        Returns:
            A tensor of the activation's shape and dtype.

        Raises:
            ComponentMismatchError: donors and examples differ in what they make of the site.
        """
        if self._is_recording:
            self._recorded.setdefault(key, []).append(activation.clone())  # the model may change it in place
            return None
        number = self._calls.get(key, 0)
        self._calls[key] = number + 1
        tables = self._source.tables
        if tables is not None:
            assert self._entries is not None
            table = tables[site].to(activation.device)[:, part]
            return _spread(table.index_select(0, self._entries.to(activation.device)), activation, channel_axis, site)
        known = self._recorded.get(key, []) if self.held is None else self.held.get(site, [])
        if number >= len(known):
            raise ComponentMismatchError(
                f"{site}: a donor comes by {len(known)} times and an example more often. {_WAY_OUT}"
            )
        value = known[number]
        if self.held is not None:
            assert self._entries is not None
            value = _rows(value, self._entries.to(value.device), activation)
        if value.shape != activation.shape:
            raise ComponentMismatchError(
                f"{site}: a donor's activation has the shape {tuple(value.shape)}, and an example's "
                f"{tuple(activation.shape)}. {_WAY_OUT}"
            )
        return value.to(activation.device, activation.dtype)


def _rows(held: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """What rows have of ``held`` (num_donors * k, ...), in the layout that it has."""
    each = len(like) // len(rows)
    if each != 1:
        return held.reshape(-1, each, *held.shape[1:]).index_select(0, rows).flatten(0, 1)
    if held.ndim == 4 and held.is_contiguous(memory_format=torch.channels_last):
        return held.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return held.index_select(0, rows)


def _chosen(values: Any, rows: Tensor) -> Any:
    if not isinstance(values, Tensor):
        return values
    return values.index_select(0, rows.to(values.device)).to(rows.device)


_WAY_OUT = "Leave its components out (components.exclude), or use ablation.value=mean."


def rows_of(model: nn.Module) -> RowForward:
    """The forward method of a model that is told its rows."""
    forward = vars(model)["forward"]
    assert isinstance(forward, RowForward)
    return forward


def row_hook(rows: RowForward, place: GatePlace) -> ValueOf:
    """What a hook at a place puts there."""
    key, site = rows.new_key(), site_name(place)

    def value(activation: Tensor, channel_axis: int, part: slice) -> Tensor | None:
        return rows.value(key, site, activation, channel_axis, part)

    return value


def _spread(value: Tensor, like: Tensor, channel_axis: int, site: str) -> Tensor:
    """(num_rows, num_channels) as ``like`` (num_rows * k, ...)."""
    if like.shape[0] % len(value) or not len(like):
        raise ComponentMismatchError(
            f"{site}: an activation of shape {tuple(like.shape)} has not a row for each of {len(value)} examples. "
            f"{_WAY_OUT}"
        )
    shape = [len(like)] + [1] * (like.ndim - 1)
    shape[channel_axis] = value.shape[1]
    return value.repeat_interleave(len(like) // len(value), dim=0).to(like.dtype).reshape(shape).expand_as(like)
