"""The mean activations of the unablated model at the sites of components, in one streamed pass over a reference."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.ablation.placement import modules_called
from coar_dist.components.gate_places import GatePlace, weights_read
from coar_dist.components.index import ComponentIndex
from coar_dist.components.mixture_sites import in_lists_of_experts
from coar_dist.components.routing import NOT_ADDED_UP, Routing, adds_up
from coar_dist.components.sites import Sites, Values, site_name, valued_sites_of
from coar_dist.errors import ComponentMismatchError, TaskError, listed
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.task import call_model

_NUM_ROWS = 32
_log = logging.getLogger(__name__)


def site_means(
    model: nn.Module, components: ComponentIndex, examples: ExampleSet, device: torch.device, by_position: bool
) -> Values:
    """Mean activations at the sites of ``components``, over examples and, unless by position, positions.

    Positions that an ``attention_mask`` among the inputs leaves out (padding) do not count.

    Args:
        model: in eval mode, on ``device``; it is as before on every exit.
        components: whose sites.
        examples: the reference; their targets are not read.
        device: where the model takes its inputs.
        by_position: a mean for every position, of examples of one length.

    Returns:
        Per site (num_channels,) float32, or (k, ...) by position; of experts one for each, as ``Values``.

    Raises:
        ComponentMismatchError: a component has no site, or experts do not add up.
        TaskError: padding, or positions, cannot be told at a site; a mean is not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> hidden = ComponentIndex((ComponentGroup.of("2.weight", 1, 4),))
        >>> examples = ExampleSet(torch.rand(5, 3), torch.zeros(5))
        >>> {name: tuple(value.shape) for name, value in site_means(model, hidden, examples, "cpu", False).items()}
        {'2.input': (4,)}
    """

    def run(batch: ExampleSet) -> None:
        own = batch.map(lambda tensor: tensor.to(device, copy=True))  # the model may change its inputs
        with torch.no_grad(), modules_called():
            call_model(model, own.inputs)

    read = weights_read(model, components, lambda: run(examples.rows(0, 1)))
    places = {site_name(place): place for found in valued_sites_of(model, components, read) for place in found}
    in_lists = in_lists_of_experts(model)
    sums: dict[str, _Sum | _ExpertSums] = {}
    sites = Sites(model)
    try:
        for name, place in places.items():
            if place.kind == "routing":
                of_experts = sums[name] = _ExpertSums(name, place, by_position)
                sites.at_experts(place, of_experts.add)
            else:
                total = sums[name] = _Sum(name, place.length, by_position, place.module.startswith(in_lists))
                sites.stand(place, partial(_noted, total))
        start, num_rows = 0, _NUM_ROWS
        while start < len(examples):
            batch = examples.rows(start, start + num_rows).map(lambda tensor: tensor.to(device))
            for each in sums.values():
                each.begin(len(batch), batch.inputs)
            try:
                run(batch)
            except torch.OutOfMemoryError:
                if num_rows == 1:
                    raise
                num_rows //= 2
                continue
            for each in sums.values():
                each.end()
            start += num_rows
    finally:
        sites.remove()
    unread = [name for name, each in sums.items() if not each.is_reached]
    if unread:
        _log.warning("not reached by any example of the reference, and zero there: %s", listed(unread))
    return {name: each.mean() for name, each in sums.items()}


def padding_of(inputs: Inputs, is_in_decoder: bool) -> Tensor | None:
    """Which tokens count, by an ``attention_mask`` among the inputs: (num_rows, length) bool; None where all do."""
    if not isinstance(inputs, dict):
        return None
    has_two = any(name.startswith("decoder_") for name in inputs)
    mask = inputs.get("decoder_attention_mask" if has_two and is_in_decoder else "attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool((mask != 0).all()):
        return None
    return mask != 0


def _noted(total: _Sum, activation: Tensor, channel_axis: int, part: slice) -> Tensor:
    total.add(activation, channel_axis, part)
    return activation


class _Sum:
    """The sum of a site's activations over a reference; what a batch adds counts once its pass is done."""

    def __init__(self, name: str, length: int, by_position: bool, is_chosen: bool = False) -> None:
        """With ``is_chosen`` a module may see some of the tokens alone, those that a router sends it."""
        self._name, self._length, self._by_position, self._is_chosen = name, length, by_position, is_chosen
        self._is_in_decoder = "decoder" in name
        self._parts: dict[tuple[int | None, int | None], tuple[Tensor, int]] = {}

    @property
    def is_reached(self) -> bool:
        return bool(self._parts)

    def begin(self, num_rows: int, inputs: Inputs) -> None:
        """A pass of so many rows begins."""
        self._num_rows, self._padding = num_rows, padding_of(inputs, self._is_in_decoder)
        self._added: list[tuple[Tensor, int, slice]] = []

    def add(self, activation: Tensor, channel_axis: int, part: slice) -> None:
        """An activation of the pass."""
        if self._is_chosen and activation.ndim == 2:
            if self._by_position or self._padding is not None:
                what = "position" if self._by_position else "padding"
                raise TaskError(
                    f"{self._name}: a router sends this module some of the tokens, whose {what} cannot be told. Leave "
                    f"these components out (components.exclude), or use another ablation.mean_over or reference."
                )
        elif len(activation) % self._num_rows:
            raise TaskError(
                f"{self._name}: an activation of shape {tuple(activation.shape)} has not a row per example, so that no "
                f"mean can be had. Leave its components out (components.exclude)."
            )
        if self._by_position:
            if self._padding is not None:
                raise TaskError(
                    "ablation.mean_over=position needs inputs of one length, and the reference has padding. Use "
                    "ablation.mean_over=all, or another ablation.reference."
                )
            of_rows = activation.detach().reshape(self._num_rows, -1, *activation.shape[1:])
            self._added.append((of_rows.double().sum(dim=0), self._num_rows, part))
            return
        channels = activation.detach().movedim(channel_axis, -1)
        flat = channels[self._counted(channels)] if self._padding is not None else channels.flatten(0, -2)
        self._added.append((flat.double().sum(dim=0), len(flat), part))

    def _counted(self, channels: Tensor) -> Any:
        """Which entries of (num_rows * k, ...) are no padding."""
        lengths, padding = channels.shape[:-1], self._padding
        assert padding is not None
        if lengths == (self._num_rows,):  # what is pooled has no positions
            return slice(None)
        if lengths not in (padding.shape, (padding.numel(),)):
            raise TaskError(
                f"{self._name}: padding cannot be told in an activation of shape {tuple(channels.shape)}. Give a "
                f"reference without padding (ablation.reference), or leave these components out (components.exclude)."
            )
        return padding.reshape(lengths)

    def end(self) -> None:
        """The pass is done."""
        for added, count, part in self._added:
            key = part.start, part.stop
            total, num = self._parts.get(key, (torch.zeros_like(added), 0))
            if total.shape != added.shape:
                raise TaskError(
                    f"ablation.mean_over=position needs inputs of one length: {self._name} has activations of shapes "
                    f"{tuple(total.shape)} and {tuple(added.shape)}. Use ablation.mean_over=all."
                )
            self._parts[key] = total + added, num + count

    def mean(self) -> Tensor:
        """(num_channels,) float32, or (k, ...) by position; zeros where nothing came by."""
        if not self._parts:
            return torch.zeros(self._length)
        means = [total / num for _, (total, num) in sorted(self._parts.items(), key=lambda item: item[0][0] or 0)]
        mean = (means[0] if len(means) == 1 else torch.cat(means, dim=-1)).float().cpu()
        if not bool(mean.isfinite().all()):
            raise TaskError(f"the mean activation at {self._name} is not finite. Look at ablation.reference.")
        return mean


class _ExpertSums:
    """The sums of the experts' weighted outputs: what their module gives where all others are weighed by zero."""

    def __init__(self, name: str, place: GatePlace, by_position: bool) -> None:
        self._name = name
        self._of_experts = [_Sum(name, place.width, by_position) for _ in range(place.length)]

    @property
    def is_reached(self) -> bool:
        return self._of_experts[0].is_reached

    def begin(self, num_rows: int, inputs: Inputs) -> None:
        for each in self._of_experts:
            each.begin(num_rows, inputs)

    def add(self, module: nn.Module, routing: Routing, output: Tensor) -> None:
        """A call of the module."""
        added = torch.zeros_like(output, dtype=torch.float64)
        for expert, total in enumerate(self._of_experts):
            part = routing.weighted_output(module, expert, output)
            total.add(part, -1, slice(None))
            added += part
        if not adds_up(added, output):
            raise ComponentMismatchError(f"{self._name}: {NOT_ADDED_UP}")

    def end(self) -> None:
        for each in self._of_experts:
            each.end()

    def mean(self) -> Tensor:
        """(num_experts, width) float32, or (num_experts, k, ..., width) by position."""
        return torch.stack([each.mean() for each in self._of_experts])
