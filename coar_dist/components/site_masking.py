"""Applying a mask to activations: those of ablated components are replaced by a value at their sites.

``SiteMasker`` replaces activations in hooks, whatever the value. ``BiasMasker`` does the same in the weights, where the
value is one constant per channel: zero times the weight, and the rest in the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from coar_dist.components.attention import PLACEMENTS
from coar_dist.components.gate_places import GatePlace
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import Masker, WeightMasker, on_devices
from coar_dist.components.mixture_sites import MixtureSites
from coar_dist.components.projections import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, dotted
from coar_dist.components.row_values import RowForward, row_hook
from coar_dist.components.sites import Sites, ValueOf, Values, placed, reads, site_name, sites_of, value_at


class SiteMasker(Masker):
    """Replaces activations at sites for the length of a ``with`` block.

    Args:
        model: gets hooks within calls, or from ``stay`` to ``leave``.
        components: the component index.
        values: of all sites; the model's ``RowForward`` where they differ from row to row.
        read: parameters that functions read themselves.
    """

    def __init__(
        self, model: nn.Module, components: ComponentIndex, values: Values | RowForward, read: Collection[str] = ()
    ) -> None:
        self._model, self._values, self._num = model, values, components.num_components
        self._sites: Sites | None = None
        # A place, its channels' components, and whether they are kept.
        self._channels: list[tuple[GatePlace, Tensor, Tensor]] = []
        for ids, places in zip(_ids_of_groups(components), sites_of(model, components, read), strict=True):
            for place in places:
                owners = place.slices.owners(place.length, self._num)
                owners[owners < self._num] += ids.start
                device = model.get_parameter(place.slices.parameter).device
                kept = torch.ones(place.length, dtype=torch.bool, device=device)
                self._channels.append((place, torch.from_numpy(owners).to(device), kept))
        self._devices = {kept.device for _, _, kept in self._channels}

    @override
    @contextmanager
    def ablating(self) -> Iterator[Callable[[NDArray[np.bool_]], None]]:
        stays = self._sites is not None
        try:
            self.stay()
            yield self._set
        finally:
            self._set(np.ones(self._num, np.bool_))
            if not stays:
                self.leave()

    def _set(self, mask: NDArray[np.bool_]) -> None:
        with_others = on_devices(np.append(mask, True), self._devices)
        for _, owners, kept in self._channels:
            torch.index_select(with_others[kept.device], 0, owners, out=kept)
        if isinstance(self._values, RowForward):
            self._values.set_mask(mask, self._channels[0][2].device)

    @override
    def stay(self) -> None:
        if self._sites is not None:
            return
        self._sites = Sites(self._model)
        for place, _, kept in self._channels:
            if place.kind == "routing":
                assert not isinstance(self._values, RowForward), "refused by ``activation_sites_of``"
                self._sites.replace_experts(place, kept, value_at(self._values, place).to(kept.device))
                continue
            self._sites.stand(place, partial(_kept_or, kept, self._value_of(place)))
        if isinstance(self._values, RowForward):
            self._values.enter()

    def _value_of(self, place: GatePlace) -> ValueOf:
        if isinstance(self._values, RowForward):
            return row_hook(self._values, place)
        device = self._model.get_parameter(place.slices.parameter).device
        return partial(_constant, value_at(self._values, place).to(device))

    @override
    def leave(self) -> None:
        if self._sites is not None:
            self._sites.remove()
            if isinstance(self._values, RowForward):
                self._values.leave()
        self._sites = None


def _constant(value: Tensor, activation: Tensor, channel_axis: int, part: slice) -> Tensor:
    return placed(value[..., part].to(activation.device), activation, channel_axis)


def _kept_or(kept: Tensor, value_of: ValueOf, activation: Tensor, channel_axis: int, part: slice) -> Tensor:
    value = value_of(activation, channel_axis, part)
    if value is None:
        return activation
    shape = [1] * activation.ndim
    shape[channel_axis] = -1
    kept = kept[part].reshape(shape).to(activation.device)  # a model may move while a masker stays
    return torch.where(kept, activation, value)


def _ids_of_groups(components: ComponentIndex) -> list[slice]:
    return [slice(int(first), int(stop)) for first, stop in pairwise(components.offsets)]


_OF_MIXTURES = ("routing", "block")
"""Kinds of places whose values no bias holds: zeros are in the weights alone."""
_PLAIN_FORWARDS = (nn.Linear.forward, *(kind.forward for kind in (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)))


def give_biases(model: nn.Module, all_places: Iterable[Iterable[GatePlace]]) -> None:
    """Give layers with sites a bias of zeros where they have none and their forward method would add one."""
    for place in (place for places in all_places for place in places):
        module = model.get_submodule(place.module)
        weight = module._parameters.get(place.parameter)
        if (
            weight is not None
            and place.kind in ("output", "input")
            and type(module).forward in _PLAIN_FORWARDS
            and module._parameters.get("bias", weight) is None
        ):
            num_outputs = weight.shape[1 if isinstance(module, TRANSPOSED_CONVOLUTIONS) else 0]
            module.bias = nn.Parameter(weight.new_zeros(num_outputs), requires_grad=False)


def why_not_in_biases(model: nn.Module, all_places: Iterable[Iterable[GatePlace]], values: Values) -> str | None:
    """Why ``BiasMasker`` cannot hold the values of some sites; None where it can.

    Whether the biases are added where the model's layers say so, a comparison with ``SiteMasker`` must tell.
    """
    biases = dict(model.named_parameters(remove_duplicate=False))
    for place in (place for places in all_places for place in places):
        value = value_at(values, place)
        if place.kind in _OF_MIXTURES:
            if value.any():
                return f"{site_name(place)} is a sum, where no one layer has a bias"
            if place.kind == "routing" and not MixtureSites(model).are_silenced(place):
                return f"zeroed weights leave something of {site_name(place)}"
            continue
        of_components = value[..., torch.from_numpy(place.slices.indices())] if value.ndim == 1 else value
        if not of_components.any() and (reads(place) or _bias_name(place) not in biases):
            continue  # zero times a weight is all there is
        if value.ndim > 1:
            return f"{site_name(place)} has a value for every position"
        if _bias_name(place) not in biases:
            return f"the layer of {site_name(place)} has no bias"
        if reads(place) and biases[place.slices.parameter].shape[2:].numel() != 1:
            return f"{site_name(place)} is read by a convolution, which pads it with zeros"
    return None


def _bias_name(place: GatePlace) -> str:
    if place.kind == "projections":
        return dotted(place.module, "in_proj_bias")
    return dotted(place.module, "out_proj" if place.kind in PLACEMENTS else "", "bias")


@dataclass(frozen=True)
class _BiasWrite:
    """What ablated components of one place do to a bias: they set entries of it, or add to all of it."""

    ids: slice
    place: GatePlace
    bias: str
    value: Tensor
    owners: Tensor

    @property
    def is_of_inputs(self) -> bool:
        return reads(self.place)


class BiasMasker(WeightMasker):
    """Zeroes slices of weights as ``WeightMasker``, and writes what the components' values add into the biases.

    Args:
        model: with a bias wherever a value is to be written; see ``why_not_in_biases``.
        components: the component index.
        values: one constant per channel, of all sites.
        read: parameters that functions read themselves.
    """

    def __init__(
        self, model: nn.Module, components: ComponentIndex, values: Values, read: Collection[str] = ()
    ) -> None:
        super().__init__(model, components)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        writes = []
        for ids, places in zip(_ids_of_groups(components), sites_of(model, components, read), strict=True):
            for place in places:
                bias, value = _bias_name(place), value_at(values, place)
                if bias in parameters and place.kind not in _OF_MIXTURES and not (reads(place) and not value.any()):
                    self._keep(bias, parameters[bias].detach())
                    value = value.to(parameters[bias].device, torch.float32)
                    owners = place.slices.owners(place.length, len(place.slices.starts))
                    writes.append(_BiasWrite(ids, place, bias, value, torch.from_numpy(owners).to(value.device)))
        # An output that is ablated has its value whatever its inputs are: it is written last.
        self._writes = sorted(writes, key=lambda write: not write.is_of_inputs)

    @override
    def _write_ablated(self, mask: NDArray[np.bool_]) -> None:
        super()._write_ablated(mask)
        touched = set[str]()
        for write in self._writes:
            ablated = np.flatnonzero(~mask[write.ids])
            if ablated.size == 0:
                continue
            live, part = self._live[write.bias], write.place.slices
            if write.bias not in touched:
                touched.add(write.bias)
                self._undo.append(partial(live.copy_, self._original[write.bias]))
            indices = torch.from_numpy(part.indices(ablated)).to(live.device)
            if write.is_of_inputs:
                weight = self._original[part.parameter].index_select(part.axis, indices)
                live.add_(_contribution(weight, part.axis, write.value[indices]).to(live.dtype))
            else:
                live.index_copy_(0, indices, write.value[indices].to(live.dtype))

    @override
    def _write_whole(self, kept: Mapping[torch.device, Tensor]) -> None:
        super()._write_whole(kept)
        for name in dict.fromkeys(write.bias for write in self._writes):
            self._live[name].copy_(self._original[name])
        for write in self._writes:
            live, part = self._live[write.bias], write.place.slices
            gates = kept[live.device][write.ids]
            is_kept = torch.cat([gates, gates.new_ones(1)])[write.owners]
            if write.is_of_inputs:
                value = torch.where(is_kept, 0.0, write.value)
                live.add_(_contribution(self._original[part.parameter], part.axis, value).to(live.dtype))
            else:
                torch.where(is_kept, live, write.value.to(live.dtype), out=live)


def _contribution(weight: Tensor, input_axis: int, value: Tensor) -> Tensor:
    """What a matrix, or a convolution of one place, makes of a constant input (num_inputs,)."""
    matrix = weight.reshape(weight.shape[:2]).float()
    return matrix @ value if input_axis == 1 else value @ matrix
