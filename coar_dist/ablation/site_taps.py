"""Taps at the sites of components: activations with a row per example, as the unablated model gives them.

An activation is looked at within the pass, before anything that follows can overwrite it. Which of its axes are the
examples is not known from shapes alone: two passes of two and of three examples tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.placement import modules_called
from coar_dist.components.gate_places import GatePlace
from coar_dist.components.routing import Routing
from coar_dist.components.sites import Sites, site_name
from coar_dist.errors import in_one_line

_TOLERANCE = 0.05
"""Of the activations of one example in passes of two and three, by their largest: bfloat16 sums in another order."""
NO_ROWS = "its activation has no row for every example"


@dataclass(frozen=True)
class Seen:
    """A call of a site in a pass.

    Attributes:
        shape: of the activation.
        channel_axis: its axis of channels, from 0 up.
        means: per axis of the first two, but for that of channels, the means of the magnitudes along the others.
    """

    shape: tuple[int, ...]
    channel_axis: int
    means: Mapping[int, Tensor]

    @classmethod
    def of(cls, activation: Tensor, channel_axis: int) -> Seen:
        """Of an activation."""
        axis = channel_axis % activation.ndim
        magnitudes = activation.detach().abs().float()
        means = {
            each: magnitudes.movedim(each, 0).flatten(1).mean(dim=1).cpu() if activation.ndim > 1 else magnitudes.cpu()
            for each in range(min(activation.ndim, 2))
            if each != axis
        }
        return cls(tuple(activation.shape), axis, means)


@dataclass(frozen=True)
class Layout:
    """Where the examples are in an activation.

    Attributes:
        row_axis: the axis that they lie along.
        repeats: indices of it for every example, which lie together: windows, say.
        num_calls: of the site in a pass.
        positions: the shape of what an example has of one channel.
    """

    row_axis: int
    repeats: int
    num_calls: int
    positions: tuple[int, ...]

    @classmethod
    def of(cls, few: Sequence[Seen], more: Sequence[Seen], num_few: int, num_more: int) -> Layout | str:
        """By all calls of a site in two passes that begin with the same examples; else why there is none."""
        if not few or not more:
            return "it is not reached"
        if len(few) != len(more):
            return "how often it is called depends on the examples"
        if len({seen.shape for seen in few}) > 1:
            return "it is called with activations of several shapes"
        for axis in (0, 1):
            if axis not in few[0].means or few[0].shape[axis] % num_few:
                continue
            repeats = few[0].shape[axis] // num_few
            if (repeats == 1 or axis == 0) and all(
                _are_rows(one, other, axis, repeats * num_more, repeats) for one, other in zip(few, more, strict=True)
            ):
                rest = [size for i, size in enumerate(few[0].shape) if i not in (axis, few[0].channel_axis)]
                positions = tuple(rest) if repeats == 1 else (repeats * math.prod(rest),)
                return cls(axis, repeats, len(few), positions)
        return NO_ROWS

    def has_rows(self, activation: Tensor, num_rows: int) -> bool:
        """Whether an activation of a pass of so many examples is as expected."""
        return activation.ndim > self.row_axis and activation.shape[self.row_axis] == num_rows * self.repeats

    def by_row(self, activation: Tensor, channel_axis: int) -> Tensor:
        """(num_rows, num_channels, *positions); positions of several windows are in one row."""
        rows = activation.detach().movedim((self.row_axis, channel_axis), (0, 1))
        if self.repeats == 1:
            return rows
        return rows.reshape(-1, self.repeats, *rows.shape[1:]).movedim(1, 2).flatten(2)


def _are_rows(few: Seen, more: Seen, axis: int, length: int, repeats: int) -> bool:
    others = [tuple(size for i, size in enumerate(seen.shape) if i != axis) for seen in (few, more)]
    if few.channel_axis != more.channel_axis or others[0] != others[1] or more.shape[axis] != length:
        return False
    own = [seen.means[axis][:repeats] for seen in (few, more)]
    allowed = _TOLERANCE * own[0].abs().max()
    return bool((own[0] - own[1]).abs().max() <= allowed)


@dataclass
class Tap:
    """Where the activations of a group's components are looked at.

    Attributes:
        place: the site.
        part: which of its channels come in one call.
        places: which components of the group have theirs there.
        channels: (num_components, size) of these components, within the part.
        layout: where the examples are; None: not known yet.
    """

    place: GatePlace
    part: slice
    places: NDArray[np.int64]
    channels: Tensor
    layout: Layout | None = None

    def activations(self, activation: Tensor, channel_axis: int) -> Tensor:
        """(n, num_components, *positions): of one channel as it is, of several their norm in float32."""
        assert self.layout is not None
        by_row = self.layout.by_row(activation, channel_axis)
        num, size = self.channels.shape
        channels = self.channels.reshape(-1)
        if not torch.equal(channels, torch.arange(by_row.shape[1])):
            by_row = by_row.index_select(1, channels.to(by_row.device))
        if size == 1:
            return by_row
        of_components = by_row.reshape(len(by_row), num, size, *by_row.shape[2:])
        norms: Tensor = torch.linalg.vector_norm(of_components, dim=2, dtype=torch.float32)
        return norms


def taps_of(place: GatePlace) -> list[Tap]:
    """The taps at one place of a group: one, or of q, k and v one each."""
    width = place.length // 3
    is_packed = place.kind == "projections"
    parts = [slice(i * width, (i + 1) * width) for i in range(3)] if is_packed else [slice(None)]
    starts = np.asarray(place.slices.starts, dtype=np.int64)
    taps = []
    for part in parts:
        first, end = part.start or 0, place.length if part.stop is None else part.stop
        inside = np.flatnonzero((starts >= first) & (starts + place.slices.size <= end))
        if inside.size:
            channels = torch.from_numpy(starts[inside, None] - first + np.arange(place.slices.size))
            taps.append(Tap(place, part, inside, channels))
    return taps


def watch(
    model: nn.Module, taps: Sequence[Tap], see: Callable[[Tap, Tensor, int], None], run: Callable[[], object]
) -> None:
    """Run the model while every tap shows what comes by; the model is as before on every exit.

    Args:
        model: in eval mode.
        taps: places that occur in several stand there once.
        see: given a tap, the activation of its part, which may be overwritten later, and its axis of channels.
        run: a forward pass, or several.
    """
    sites, by_place = Sites(model), dict[str, list[Tap]]()
    for tap in taps:
        by_place.setdefault(f"{site_name(tap.place)} {tap.place.kind}", []).append(tap)
    try:
        for here in by_place.values():
            place = here[0].place
            if place.kind == "routing":
                sites.at_experts(place, partial(_see_routing, here, see))
            else:
                sites.stand(place, partial(_see, here, see))
        with torch.no_grad(), modules_called():
            run()
    finally:
        sites.remove()


def _see(
    taps: Sequence[Tap], see: Callable[[Tap, Tensor, int], None], activation: Tensor, channel_axis: int, part: slice
) -> Tensor:
    for tap in taps:
        if tap.part == part:
            see(tap, activation, channel_axis)
    return activation


def _see_routing(
    taps: Sequence[Tap], see: Callable[[Tap, Tensor, int], None], _module: nn.Module, routing: Routing, _output: Tensor
) -> None:
    for tap in taps:
        see(tap, routing.of_experts(tap.place.length), -1)


def find_layouts(
    model: nn.Module, taps: Sequence[Tap], few: tuple[int, Callable[[], object]], more: tuple[int, Callable[[], object]]
) -> dict[int, str]:
    """Set the layout of every tap that has one.

    Args:
        model: in eval mode.
        taps: which ones.
        few, more: numbers of examples and passes of them, which begin with the same.

    Returns:
        By the number of each tap without a layout, why.
    """
    seen = _seen_together(model, taps, few[1], more[1])
    why: dict[int, str] = {}
    for number, tap in enumerate(taps):
        calls = seen[number]
        found = calls if isinstance(calls, str) else Layout.of(*calls, few[0], more[0])
        if isinstance(found, Layout):
            tap.layout = found
        else:
            why[number] = found
    return why


def _seen_together(
    model: nn.Module, taps: Sequence[Tap], *runs: Callable[[], object]
) -> list[tuple[list[Seen], list[Seen]] | str]:
    """Per tap its calls in each of two passes, or why it has none; where they fail, each tap is tried by itself."""
    numbers = {id(tap): number for number, tap in enumerate(taps)}
    calls: list[tuple[list[Seen], list[Seen]]] = [([], []) for _ in taps]
    try:
        for which, run in enumerate(runs):

            def note(tap: Tap, activation: Tensor, channel_axis: int, which: int = which) -> None:
                calls[numbers[id(tap)]][which].append(Seen.of(activation, channel_axis))

            watch(model, taps, note, run)
    except Exception as error:  # the user's own forward may raise anything where a tap stands in for what it calls
        if len(taps) == 1:
            return [f"the model fails where it is looked at: {in_one_line(error)}"]
        return [_seen_together(model, [tap], *runs)[0] for tap in taps]
    return list(calls)
