"""A model's attention, MLPs and experts, with the layer and the name of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import nn

from coar_dist.components.attention_sites import AttentionSite, attention_sites
from coar_dist.components.expert_sites import ExpertSite, expert_sites
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.mlp_sites import MlpSite, mlp_sites
from coar_dist.components.places import Place, places

Site = AttentionSite | MlpSite | ExpertSite
_ATTENTION, _MLPS, _EXPERTS = "attention", "mlps", "experts"


class NamedSites:
    """A model's attention, MLPs and experts, with the place of each in its layers."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.attention, self.mlps, self.experts = attention_sites(model), mlp_sites(model), expert_sites(model)
        kinds: dict[str, Sequence[Site]] = {_ATTENTION: self.attention, _MLPS: self.mlps, _EXPERTS: self.experts}
        names = {kind: [_name(site) for site in sites] for kind, sites in kinds.items()}
        self._places = {kind: dict(zip(names[kind], found, strict=True)) for kind, found in places(names).items()}

    def place(self, site: Site) -> Place:
        """The layer and the tower of a site."""
        kind = {AttentionSite: _ATTENTION, MlpSite: _MLPS, ExpertSite: _EXPERTS}[type(site)]
        return self._places[kind][_name(site)]

    @cached_property
    def _layers(self) -> dict[tuple[str, str], int]:
        """The number of every layer within its tower: its own, or its rank where stages hold blocks."""
        found = {Place(place.tower, place.layer) for of_kind in self._places.values() for place in of_kind.values()}
        ranks: dict[str, int] = {}
        numbers = {}
        for tower, layer in ((place.tower, place.layer) for place in sorted(found, key=lambda place: place.order)):
            ranks[tower] = ranks.get(tower, -1) + bool(layer)
            numbers[tower, layer] = int(layer) if layer.isdecimal() else ranks[tower]
        return numbers

    def layer(self, place: Place) -> int | None:
        """The number of a place's layer; None of what is in no layer."""
        return self._layers[place.tower, place.layer] if place.layer else None

    def group(
        self, slices: Sequence[Slices], num: int, place: Place, letter: str, kind: str, units_of: str | None = None
    ) -> ComponentGroup:
        """Components ``L3H0``, ``L3H1``, ... of one kind in one place."""
        return ComponentGroup(tuple(slices), range(num), place.named(letter, "{}"), kind, self.layer(place), units_of)

    def units_of(self, site: MlpSite) -> str:
        """The module that people know neurons by: a transformer's MLP; the layer that gives them in a plain net, and
        where an MLP's linear maps are children of the block itself."""
        is_alone = sum(other.module == site.module for other in self.mlps) == 1
        is_block = not site.module or any(each.module.startswith(f"{site.module}.") for each in self.attention)
        return site.module if self.attention and is_alone and not is_block else site.inputs[0]

    def length(self, parameter: str, axis: int) -> int:
        """Indices along an axis of a parameter."""
        return self._model.get_parameter(parameter).shape[axis]

    def output(self, parameter: str, input_axis: int) -> list[Slices]:
        """All that a projection adds to what follows: its whole weight, and its bias."""
        weight, owner = self._model.get_parameter(parameter), parameter.rpartition(".")[0]
        whole = [Slices(parameter, 1 - input_axis, weight.shape[1 - input_axis], (0,))]
        bias = self._model.get_submodule(owner)._parameters.get("bias") if parameter.endswith(".weight") else None
        return whole if bias is None else [*whole, Slices(f"{owner}.bias", 0, len(bias), (0,))]


def _name(site: Site) -> str:
    """A plain net may have more than one layer of neurons in a module: each is called after what gives it."""
    return site.inputs[0] if isinstance(site, MlpSite) else site.module
