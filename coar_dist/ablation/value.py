"""What an ablated component is replaced by. Whatever runs ablated models gets its masks and gates here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from coar_dist.ablation.folding import Folded, folded_values
from coar_dist.components.gate_hooks import GateOutput
from coar_dist.components.gate_places import GatePlace
from coar_dist.components.gates import GatedModel, plain_gate_output
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import Masker, WeightMasker
from coar_dist.components.routing import NOT_ADDED_UP, Routing, adds_up
from coar_dist.components.row_values import RowForward
from coar_dist.components.site_masking import BiasMasker, SiteMasker, give_biases, why_not_in_biases
from coar_dist.components.sites import Sites, Values, site_name, sites_of
from coar_dist.errors import ComponentMismatchError
from coar_dist.tasks.example_set import ExampleSet


@dataclass(frozen=True)
class AblationValue(ABC):
    """What ablated components are replaced by.

    ``truth``, ``masker`` and ``gated`` give the same margins, by three means: the plainest, the fastest with one mask
    for all rows, and a mask for each row.

    Attributes:
        components: what can be ablated.
        read: parameters that a forward method reads itself: they are gated there.
    """

    components: ComponentIndex
    read: frozenset[str] = frozenset()

    @property
    def differs_by_row(self) -> bool:
        """Whether what takes the place of a component depends on the example."""
        return False

    @abstractmethod
    def at_sites(self, model: nn.Module) -> Values | RowForward | None:
        """What takes the place of the activations of ``model``; None where weights are zeroed."""

    def told(self, _model: nn.Module, examples: ExampleSet) -> ExampleSet:
        """The examples, without columns, as ``_model`` takes them from now on; it may get another forward method."""
        return examples.without_columns()

    def runs_donors(self, _model: nn.Module) -> bool:
        """Whether every pass of ``_model`` runs other examples before it."""
        return False

    @abstractmethod
    def truth(self, model: nn.Module) -> Masker:
        """Ablates ``model`` in the plainest way; all other ways are held to it."""

    @abstractmethod
    def masker(self, model: nn.Module) -> Masker:
        """Applies one mask at a time to ``model``, in place."""

    def gated(
        self,
        model: nn.Module,
        num_rows: int,
        device: torch.device,
        gate_output: GateOutput = plain_gate_output,
        without: Collection[int] = (),
        called: set[int] | None = None,
    ) -> GatedModel:
        """Gates on ``model``, which stay until they are removed.

        Args:
            model: the prepared model.
            num_rows: rows of every forward pass.
            device: where the gates lie.
            gate_output: how a linear map's output, its gate and its bias are put together.
            without: groups that get no gates.
            called: takes the groups whose gates are passed.
        """
        values = self.at_sites(model)
        return GatedModel(model, self.components, num_rows, device, gate_output, without, called, self.read, values)

    @abstractmethod
    def prepared(self, model: nn.Module) -> Self:
        """The value as it can be written fastest into ``model``, which may get biases of zeros; ``read`` is known."""

    @abstractmethod
    def folded(self, folded: Mapping[str, Folded]) -> Self:
        """The value for a model in which BatchNorms are folded into the layers of these names."""

    @abstractmethod
    def check(self, model: nn.Module, margins: Callable[[], Tensor]) -> None:
        """Check on a few examples that the plainest way acts on every component.

        Args:
            model: the untouched model.
            margins: runs it on the examples.

        Raises:
            ComponentMismatchError: a component's weights have an effect, and its site is never reached.
        """

    def held_by(self, groups: Collection[int]) -> NDArray[np.bool_]:
        """(num_components,) the components of some groups."""
        held = np.zeros(self.components.num_components, np.bool_)
        for number in groups:
            held[self.components.offsets[number] : self.components.offsets[number + 1]] = True
        return held


def _noted(reached: set[str], name: str, activation: Tensor, _channel_axis: int, _part: slice) -> Tensor:
    reached.add(name)
    return activation


def _added_up(reached: set[str], name: str, module: nn.Module, routing: Routing, output: Tensor) -> None:
    """Held to two halves of the experts, which is all but as good as each alone."""
    reached.add(name)
    is_first = torch.arange(int(routing.chosen.max()) + 1, device=output.device) % 2 == 0
    if not adds_up(routing.output(module, is_first) + routing.output(module, ~is_first), output):
        raise ComponentMismatchError(f"{name}: {NOT_ADDED_UP}")


def _gives(given: dict[str, bool], name: str, activation: Tensor, _channel_axis: int, _part: slice) -> Tensor:
    given[name] = given.get(name, False) or bool(activation.any())
    return activation


@dataclass(frozen=True)
class ZeroWeights(AblationValue):
    """The paper's ablation value: a component's slices of the weights are zero, its bias stays."""

    @override
    def at_sites(self, model: nn.Module) -> None:
        return None

    @override
    def truth(self, model: nn.Module) -> Masker:
        return WeightMasker(model, self.components)

    @override
    def masker(self, model: nn.Module) -> Masker:
        return WeightMasker(model, self.components)

    @override
    def check(self, model: nn.Module, margins: Callable[[], Tensor]) -> None:
        """Nothing: weights are zeroed wherever they are read."""

    @override
    def prepared(self, model: nn.Module) -> Self:
        return self

    @override
    def folded(self, folded: Mapping[str, Folded]) -> Self:
        return self


class AtSites(AblationValue):
    """A component's activation is replaced at its sites."""

    @override
    def check(self, model: nn.Module, margins: Callable[[], Tensor]) -> None:
        found, reached, sites = sites_of(model, self.components, self.read), set[str](), Sites(model)
        try:
            for place in (place for places in found for place in places):
                if place.kind == "routing":
                    sites.at_experts(place, partial(_added_up, reached, site_name(place)))
                else:
                    sites.stand(place, partial(_noted, reached, site_name(place)))
            unablated = margins()
        finally:
            sites.remove()
        for number, places in enumerate(found):
            missed = [site_name(place) for place in places if site_name(place) not in reached]
            if not missed:
                continue
            with WeightMasker(model, self.components).ablated(~self.held_by([number])):
                has_effect = not torch.equal(margins(), unablated)
            if has_effect:
                raise ComponentMismatchError(
                    f"{self.components.name_of(int(self.components.offsets[number]))}: its weights have an effect, and "
                    f"its site {missed[0]} is not reached: the model reads {self.components.groups[number].parameter} "
                    f"in a way of its own. Leave it out (components.exclude), or use ablation.value=zero_weights."
                )

        self._check_blocks(model, found, margins)

    def _check_blocks(self, model: nn.Module, found: list[list[GatePlace]], margins: Callable[[], Tensor]) -> None:
        """With all that a block has set to zero, the module that is said to give it gives nothing."""
        blocks = {number: place for number, places in enumerate(found) for place in places if place.kind == "block"}
        if not blocks:
            return
        given, sites = dict[str, bool](), Sites(model)
        try:
            for place in blocks.values():
                sites.stand(place, partial(_gives, given, site_name(place)))
            with WeightMasker(model, self.components).ablated(~self.held_by(blocks)):
                margins()
        finally:
            sites.remove()
        for number, place in blocks.items():
            if given.get(site_name(place), False):
                name = self.components.name_of(int(self.components.offsets[number]))
                raise ComponentMismatchError(
                    f"{name} has no site: {place.module} gives more than its experts' outputs. Leave it out "
                    f"(components.exclude), or use ablation.value=zero_weights."
                )


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteValues(AtSites):
    """A component's activation is replaced by constants at its sites: zeros, means, or a user's own.

    Attributes:
        values: per site (``sites.site_name``) one constant per channel, or one per position and channel.
        in_biases: whether masks are written into weights and biases; else activations are replaced in hooks.
    """

    values: Values
    in_biases: bool = False

    @override
    def at_sites(self, model: nn.Module) -> Values:
        return self.values

    @override
    def truth(self, model: nn.Module) -> Masker:
        return SiteMasker(model, self.components, self.values, self.read)

    @override
    def masker(self, model: nn.Module) -> Masker:
        kind = BiasMasker if self.in_biases else SiteMasker
        return kind(model, self.components, self.values, self.read)

    @override
    def prepared(self, model: nn.Module) -> Self:
        places = sites_of(model, self.components, self.read)
        give_biases(model, places)
        return replace(self, in_biases=True) if why_not_in_biases(model, places, self.values) is None else self

    @override
    def folded(self, folded: Mapping[str, Folded]) -> Self:
        return replace(self, values=folded_values(self.values, folded))
