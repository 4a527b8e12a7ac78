"""Sites of mixtures: an expert's is its weighted output, a block's what the module gives that adds its experts up."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property

from torch import nn

from coar_dist.components.attention_sites import attention_sites
from coar_dist.components.expert_sites import ExpertSite, expert_sites
from coar_dist.components.gate_places import GatePlace, places_of
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.components.mlp_sites import MlpSite, mlp_sites

_NUM_INPUTS = 3
"""Of a module that weighs its experts: tokens, the experts of each, and their weights."""


class MixtureSites:
    """Finds the sites of a model's mixtures.

    Args:
        model: on any device, "meta" included.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._mixtures = model, expert_sites(model)

    @cached_property
    def _attention(self) -> list[str]:
        return [site.module for site in attention_sites(self._model)]

    @cached_property
    def _mlps(self) -> list[MlpSite]:
        return mlp_sites(self._model)

    def of(
        self, components: ComponentIndex, found: Sequence[list[GatePlace]], read: Collection[str]
    ) -> list[list[GatePlace]]:
        """Per group the places of its sites, where ``found`` are the places of its gates.

        A component that has all experts of a mixture, and all MLPs beside them, has one site for them: at the module
        that gives their sum. Places at the experts themselves get their width.
        """
        if not self._mixtures:
            return list(found)
        sites = list(found)
        blocks = {
            number: of_group for number, group in enumerate(components.groups) if (of_group := self._blocks(group))
        }
        rest = {number: self._outside(components.groups[number], of_group) for number, of_group in blocks.items()}
        outside = {number: group for number, group in rest.items() if group is not None}
        others = places_of(self._model, ComponentIndex(tuple(outside.values())), read) if outside else []
        of_rest = dict(zip(outside, others, strict=True))
        for number, of_group in blocks.items():
            has_sites = number not in outside or of_rest[number]
            sites[number] = [*of_group, *of_rest.get(number, [])] if has_sites else []
        return [[self._with_width(place) for place in places] for places in sites]

    def _outside(self, group: ComponentGroup, blocks: Sequence[GatePlace]) -> ComponentGroup | None:
        """What the group has outside the modules of its blocks, such as an attention's output projection."""
        inside = tuple(f"{block.module}." for block in blocks)
        rest = tuple(part for part in group.slices if not part.parameter.startswith(inside))
        return replace(group, slices=rest) if rest else None

    def _with_width(self, place: GatePlace) -> GatePlace:
        if place.kind != "routing":
            return place
        # Experts whose rows stand one after another are in a child of the module that weighs them.
        known = [each.width for each in self._mixtures if each.module in (place.module, place.slices.module)]
        return replace(place, width=known[0] or 0) if known else place

    def _blocks(self, group: ComponentGroup) -> list[GatePlace]:
        """The sites of the mixtures that the group's one component has as a whole."""
        if group.num_components != 1:
            return []
        sizes = ((part, self._model.get_parameter(part.parameter).shape[part.axis]) for part in group.slices)
        whole = {(part.parameter, part.axis) for part, size in sizes if part.size == size}
        blocks: dict[str, GatePlace] = {}  # two mixtures may be in one module
        for mixture in self._mixtures:
            holder = self._holder(mixture, whole) if _is_whole(mixture, whole) else None
            if holder is not None and mixture.width is not None:
                channels = Slices(mixture.slices[0][0][0], 0, mixture.width, (0,))
                blocks[holder] = GatePlace(holder, "block", -1, "", channels, mixture.width)
        return list(blocks.values())

    def _holder(self, mixture: ExpertSite, whole: Collection[tuple[str, int]]) -> str | None:
        """The module that gives the sum of a mixture's experts, and of others and MLPs beside them that are ``whole``.

        That it gives nothing else is for a pass to tell.
        """
        for name in (mixture.module.rpartition(".")[0], mixture.module):
            mlps = [each for each in self._mlps if each.parameter.startswith(f"{name}.")]
            beside = [each for each in mlps if not each.parameter.startswith(f"{mixture.module}.")]
            if (
                name
                and not _is_list(self._model, name)
                and not any(module.startswith(f"{name}.") for module in self._attention)
                and all((each.parameter, 1 - each.axis) in whole for each in beside)
                and all(_is_whole(each, whole) for each in self._mixtures if each.module.startswith(f"{name}."))
            ):
                return name
        return None

    def are_silenced(self, place: GatePlace) -> bool:
        """Whether zeroed weights of a place's experts, and their biases where they have some, leave nothing of them."""
        outputs = {mixture.slices[0][0][0]: len(mixture.slices[0]) > 1 for mixture in self._mixtures}
        has_biases = outputs.get(place.slices.parameter)
        return has_biases is not None and (place.with_bias or not has_biases)

    def leaving_biases(self, found: Sequence[Sequence[GatePlace]]) -> list[int]:
        """The groups whose zeroed weights leave a bias of their experts, which gates on the routing would take away."""
        with_biases = {each.module for each in self._mixtures if len(each.slices[0]) > 1}
        return [
            number
            for number, places in enumerate(found)
            if any(
                place.kind == "routing" and place.module in with_biases and not self.are_silenced(place)
                for place in places
            )
        ]

    def listed(self, sites: Sequence[Sequence[GatePlace]]) -> dict[int, str]:
        """The groups of single experts that are modules in a list, by their place, with the list's name.

        Such a module sees the tokens of its expert alone, and its weight is applied outside.
        """
        lists = [each for each in self._mixtures if _is_list(self._model, each.module)]
        outputs = {of_expert[0][:2]: mixture.module for mixture in lists for of_expert in mixture.slices}
        return {
            number: outputs[place.slices.parameter, place.slices.axis]
            for number, places in enumerate(sites)
            for place in places
            if (place.slices.parameter, place.slices.axis) in outputs
            and place.slices.size == place.length
            and place.kind != "block"
        }


def _is_whole(mixture: ExpertSite, whole: Collection[tuple[str, int]]) -> bool:
    if mixture.slices[0][0][:2] not in whole:
        return False
    return all((parameter, axis) in whole for of_expert in mixture.slices for parameter, axis, *_ in of_expert)


def in_lists_of_experts(model: nn.Module) -> tuple[str, ...]:
    """What the names of experts that are modules in a list, and of their parts, begin with."""
    return tuple(f"{each.module}." for each in expert_sites(model) if _is_list(model, each.module))


def _is_list(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.ModuleList | nn.ModuleDict)


def why_not_weighed(model: nn.Module, place: GatePlace) -> str | None:
    """Why the experts at a routing place have no site; None where they may have one."""
    module = model.get_submodule(place.module)
    if not place.width:
        return f"{type(module).__name__} is no mixture of experts of a known form"
    given = inspect.signature(module.forward).parameters.values()
    if len(given) < _NUM_INPUTS and not any(each.kind is each.VAR_POSITIONAL for each in given):
        return f"{type(module).__name__} is not given the weights of its tokens' experts"
    return None
