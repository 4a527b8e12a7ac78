"""Ablation values that depend on the example: another example's activation, a paired input's, the mean of a class."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from coar_dist.ablation.folding import Folded, folded_values
from coar_dist.ablation.held_donors import held_donors
from coar_dist.ablation.memory import allowed_bytes
from coar_dist.ablation.value import AtSites
from coar_dist.components.masking import Masker
from coar_dist.components.row_values import EXAMPLE, ONLY_INPUT, RowForward, RowSource, rows_of
from coar_dist.components.site_masking import SiteMasker
from coar_dist.components.sites import activation_sites_of
from coar_dist.errors import ComponentMismatchError, TaskError
from coar_dist.tasks.example_set import ExampleSet, Inputs

_HELD_SHARE = 0.25
"""Of the memory that passes may take, what donors' activations may."""
_log = logging.getLogger(__name__)
_MULTIPLIERS = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Odd numbers of splitmix64, as signed integers: of the sequence, and of the two rounds of mixing."""


@dataclass(frozen=True)
class Paired(RowSource):
    """``counterfactual``: every example has a donor of its own."""

    @override
    def entries(self, examples: Tensor, masks: Tensor) -> Tensor:
        return examples


@dataclass(frozen=True)
class Resampled(RowSource):
    """``resample``: a donor is drawn for every pair of a mask and an example, by a hash of both and a seed.

    Attributes:
        seed: of the draws.
        num_donors: how many there are.
        are_examples: whether they are the examples themselves, of which none is its own donor.
    """

    seed: int
    num_donors: int
    are_examples: bool

    @override
    def mask_terms(self, num_components: int) -> NDArray[np.int64]:
        return _mask_terms(self.seed, num_components)

    @override
    def entries(self, examples: Tensor, masks: Tensor) -> Tensor:
        mixed = _mixed(_mixed(masks + self.seed * 2) + (examples + 1) * _MULTIPLIERS[0])
        positive = mixed & (2**63 - 1)
        if not self.are_examples:
            return positive % self.num_donors
        drawn = positive % (self.num_donors - 1)
        return drawn + (drawn >= examples).long()


@lru_cache(maxsize=4)  # every mask asks for them
def _mask_terms(seed: int, num_components: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    return generator.integers(-(2**63), 2**63 - 1, num_components, dtype=np.int64, endpoint=True)


def _mixed(value: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele, Lea and Flood 2014), which spreads every bit over all."""
    for shift, multiplier in ((30, _MULTIPLIERS[1]), (27, _MULTIPLIERS[2])):
        value = (value ^ _shifted(value, shift)) * multiplier
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """To the right, with zeros before it."""
    return (value >> by) & ((1 << (64 - by)) - 1)


@dataclass(frozen=True, eq=False)
class ClassMeans(RowSource):
    """``mean`` over a column of the examples: the mean activation of an example's class.

    Attributes:
        means: per site (num_classes, num_channels) float32.
        classes: (num_examples,) int64, each example's place among the classes.
    """

    means: Mapping[str, Tensor]
    classes: Tensor

    @property
    @override
    def tables(self) -> Mapping[str, Tensor]:
        return self.means

    @override
    def entries(self, examples: Tensor, masks: Tensor) -> Tensor:
        return self.classes.to(examples.device).index_select(0, examples)


@dataclass(frozen=True, eq=False, kw_only=True)
class RowValues(AtSites):
    """A component's activation is replaced by what belongs to the row's example.

    Attributes:
        source: where that comes from.
        reference: the donors of ``resample``; None is the examples.
    """

    source: RowSource
    reference: ExampleSet | None = None

    @property
    @override
    def differs_by_row(self) -> bool:
        return True

    @override
    def told(self, _model: nn.Module, examples: ExampleSet) -> ExampleSet:
        """Make ``_model`` one that is told its rows.

        Args:
            _model: gets another forward method.
            examples: all of them.

        Returns:
            The examples as the model takes them now, without columns.

        Raises:
            TaskError: an example has no donor.
        """
        forward = RowForward(_model, self.source)
        if isinstance(self.source, Paired):
            if examples.counterfactual is None:
                raise TaskError(
                    "ablation.value=counterfactual needs a counterfactual for every example, and the examples have "
                    "none. Give ExampleSet(..., counterfactual=...), or use ablation.value=resample."
                )
            forward.donors = _by_keyword(examples.counterfactual)
        elif isinstance(self.source, Resampled):
            donors = examples if self.reference is None else self.reference
            if len(donors) < 2 or len(donors) != self.source.num_donors:
                raise TaskError(f"ablation.value=resample needs two donors at least, and there are {len(donors)}.")
            forward.donors = _by_keyword(donors.inputs)
        _model.forward = forward
        ids = torch.arange(len(examples), device=examples.targets.device)
        return ExampleSet({**_by_keyword(examples.inputs), EXAMPLE: ids}, examples.targets)

    @override
    def check(self, model: nn.Module, margins: Callable[[], Tensor]) -> None:
        activation_sites_of(model, self.components, self.read)
        super().check(model, margins)

    def make_fast(
        self,
        model: nn.Module,
        device: torch.device,
        place: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        why_wrong: Callable[[], str | None],
    ) -> None:
        """Hold the donors' activations where memory allows and the effects stay what they are; else their inputs.

        Args:
            model: the prepared model.
            device: where it takes its inputs.
            place: puts inputs where they are read fastest.
            why_wrong: what differs from the effects of the plainest way; None where nothing does.

        Raises:
            ComponentMismatchError: examples that share a pass get other values.
        """
        rows = rows_of(model)
        if rows.donors is not None:
            sites = activation_sites_of(model, self.components, self.read)
            places = [place for found in sites for place in found]
            most = _HELD_SHARE * allowed_bytes(device, torch.get_num_threads())
            rows.held = held_donors(model, places, rows.donors, device, most)
            if rows.held is not None:
                why = why_wrong()
                if why is None:
                    rows.donors = None
                    return
                _log.info("donors' activations are not held: %s", why)
                rows.held = None
            _log.info("donors' activations are computed in every pass, which doubles its cost")
            rows.donors = place(rows.donors)
        why = why_wrong()
        if why is not None:
            raise ComponentMismatchError(
                f"values that differ by example cannot be put in place where several examples share a pass: {why}. "
                f"Leave these components out (components.exclude), or use ablation.value=mean."
            )

    @override
    def runs_donors(self, _model: nn.Module) -> bool:
        return rows_of(_model).donors is not None

    @override
    def at_sites(self, model: nn.Module) -> RowForward:
        return rows_of(model).use(self.source)

    @override
    def truth(self, model: nn.Module) -> Masker:
        return self.masker(model)

    @override
    def masker(self, model: nn.Module) -> Masker:
        return SiteMasker(model, self.components, self.at_sites(model), self.read)

    @override
    def prepared(self, model: nn.Module) -> Self:
        return self

    @override
    def folded(self, folded: Mapping[str, Folded]) -> Self:
        if not isinstance(self.source, ClassMeans):
            return self  # donors run through the folded layers too
        return replace(self, source=replace(self.source, means=folded_values(self.source.means, folded)))


def _by_keyword(inputs: Inputs) -> dict[str, Any]:
    return dict(inputs) if isinstance(inputs, dict) else {ONLY_INPUT: inputs}
