"""A finished edit: which components it ablates, what that changed, and how to do it to a model, and undo it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coar_dist.components.discovery import check_components
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import Masker, WeightMasker
from coar_dist.components.plain_model import is_plain, plain_model
from coar_dist.components.site_masking import BiasMasker, SiteMasker, why_not_in_biases
from coar_dist.components.sites import Values, sites_of
from coar_dist.components.stale_values import forget_as_in_training
from coar_dist.errors import (
    ComponentMismatchError,
    ConfigError,
    counted,
    listed,
    shortened,
)
from coar_dist.store.edits import EditStore
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import values_of_run
from coar_dist.tasks.elsewhere import weights_of

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Measured:
    """One group of held-out examples, none of which chose the edit.

    Attributes:
        num_examples: in the group.
        before: metrics of the unedited model by name: ``accuracy``, where there is one, and ``output``, the mean of the
            output function.
        after: of the edited model.
    """

    num_examples: int
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclass(frozen=True)
class Selected:
    """What one selection of components came to.

    Attributes:
        num_components: how many the criterion chose.
        values: its metric by group on the examples that did not choose it.
    """

    num_components: int
    values: Mapping[str, float]


@dataclass(frozen=True, repr=False)
class Edit:
    """A finished edit.

    Attributes:
        name: of its folder.
        run: fingerprint of the run whose attributions it is of.
        model_weights: fingerprint of the unedited model's weights.
        selection: what selected the components.
        direction: ``raise`` or ``lower``.
        targets: example ids (num_targets,) of the run.
        references: example ids (num_references,) of the run.
        component_ids: the ablated components, in the order of selection; empty where the criterion allows none, or with
            ``each``.
        scores: of ``component_ids``; None where the selection has none.
        max_components: the largest number that was tried.
        metric: what the criterion looks at.
        criterion: in words.
        unablated: the metric by group before the edit, on the examples that did not choose it, as ``selected`` has it.
        selected: what ``selection`` and those that it was compared with came to, by name.
        measured: before and after by group, by the models as they are.
        paired_correlation: of the margins of two forms of the same examples, before and after; None without pairs.
        each: of edits of one target each: number of targets, of those that became right, and their costs.
        read: parameters that the model's forward methods read themselves, where ``values`` stand at their uses.
        components: the component index.
        storage: where it lies.
        values: what takes the place of the components' activations, by site; None is zeroed weights.
    """

    name: str
    run: str
    model_weights: str
    selection: str
    direction: str
    targets: tuple[int, ...]
    references: tuple[int, ...]
    component_ids: tuple[int, ...]
    scores: tuple[float, ...] | None
    max_components: int
    metric: str
    criterion: str
    unablated: Mapping[str, float]
    selected: Mapping[str, Selected]
    measured: Mapping[str, Measured]
    paired_correlation: tuple[float, float] | None
    each: Mapping[str, float] | None
    components: ComponentIndex
    storage: str
    read: tuple[str, ...] = ()
    values: Values | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        what = f"{self.direction}s {counted(len(self.targets), 'target')}"
        if self.each is None:
            names = listed([self.components.name_of(component_id) for component_id in self.component_ids], most=5)
            what += f", ablates {len(self.component_ids)} of {counted(len(self.components), 'component')}"
            what += f" ({names})" if names else ""
        changes = [
            f"{group} {name} {before:.3g} -> {measured.after[name]:.3g}"
            for group, measured in list(self.measured.items())[:3]
            for name, before in measured.before.items()
        ]
        return f"Edit({self.name!r} in {self.storage!r}: {what}; {'; '.join(changes)})"

    def to_pandas(self) -> DataFrame:
        """What was measured, before and after.

        Returns:
            A data frame with a row per ``group``: ``num_examples`` and, for each metric (``accuracy`` where there is
            one, and ``output``), ``before`` and ``after``.

        Example:
            >>> edit.to_pandas()["output"].loc["targets", "after"]  # doctest: +SKIP
            -2.076
        """
        from pandas import DataFrame, Index, MultiIndex

        metrics = list(next(iter(self.measured.values())).before)
        columns = [("num_examples", ""), *((name, when) for name in metrics for when in ("before", "after"))]
        rows = [
            (group.num_examples, *(side[name] for name in metrics for side in (group.before, group.after)))
            for group in self.measured.values()
        ]
        return DataFrame(rows, index=Index(self.measured, name="group"), columns=MultiIndex.from_tuples(columns))

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(num_components,) bool, False where a component is ablated."""
        mask = np.ones(self.components.num_components, dtype=np.bool_)
        mask[list(self.component_ids)] = False
        return mask

    @contextmanager
    def applied(self, model: nn.Module, example_id: int | None = None) -> Iterator[nn.Module]:
        """``model`` edited for the length of a ``with`` block; every exit restores its exact bits.

        Args:
            model: with the weights that the edit was made for.
            example_id: with ``each``, the target whose edit it is.

        Raises:
            ComponentMismatchError: the model has other weights.
            ConfigError: ``example_id`` is missing, or is no target of an edit of its own.

        Example:
            >>> with edit.applied(model):  # doctest: +SKIP
            ...     model(images)
        """
        if not is_plain(model):
            raise ConfigError(
                f"{type(model).__name__} computes weights from others (parametrisations, pruning, adapters), so they "
                f"cannot be edited in place. Use edit.edited(model), which gives a copy with plain weights."
            )
        plain = plain_model(model)
        self._check(plain)
        with self._applied(plain, SiteMasker, example_id):
            yield model

    @contextmanager
    def _applied(self, model: nn.Module, kind: type[SiteMasker | BiasMasker], example_id: int | None) -> Iterator[None]:
        """``kind`` applies values, where the edit has some."""
        mask = self._mask_of(example_id)
        if self.values is None:
            masker: Masker = WeightMasker(model, self.components)
        else:
            masker = kind(model, self.components, self.values, self.read)
        try:
            with masker.ablated(mask):
                forget_as_in_training(model)
                yield
        finally:
            forget_as_in_training(model)

    def edited(self, model: nn.Module, example_id: int | None = None) -> nn.Module:
        """A copy of ``model`` with the components ablated for good; ``model`` itself stays as it is.

        The copy is without wrappers (``torch.compile``, ``DataParallel``), and holds effective weights as parameters.
        Values that take the place of activations are in its biases.

        Args: as ``applied``.

        Raises:
            ComponentMismatchError: as ``applied``.
            ConfigError: as ``applied``, or weights cannot hold the values; ``why_not_in_weights`` says why.
        """
        plain = plain_model(model)
        self._check(plain)
        why = self.why_not_in_weights(plain)
        if why is not None:
            raise ConfigError(
                f"the edit {self.name!r} cannot be written into weights: {why}. Use edit.applied(model), which "
                f"replaces activations."
            )
        with self._applied(plain, BiasMasker, example_id):
            return copy.deepcopy(plain)

    def why_not_in_weights(self, model: nn.Module) -> str | None:
        """Why ``edited`` cannot be had of a model; None where it can."""
        if self.values is None:
            return None
        places = sites_of(plain_model(model), self.components, self.read)
        return why_not_in_biases(plain_model(model), places, self.values)

    def _mask_of(self, example_id: int | None) -> NDArray[np.bool_]:
        if (example_id is None) != (self.each is None):
            raise ConfigError(
                f"example_id={example_id}: the edit {self.name!r} "
                f"{'is one for all its targets. Leave it out' if self.each is None else 'has one edit per target'}."
            )
        if example_id is None:
            return self.mask
        table = EditStore(RunDirectory.open(storage_at(self.storage))).read_each()
        rows = np.flatnonzero(table["example_id"] == example_id)
        if not rows.size:
            raise ConfigError(f"example_id={example_id}: the targets of {self.name!r} are {list(self.targets)}.")
        mask = np.ones(self.components.num_components, dtype=np.bool_)
        mask[table["components"][int(rows[0])]] = False
        return mask

    def _check(self, model: nn.Module) -> None:
        check_components(model, self.components)
        found = weights_of(model)
        if found != self.model_weights:
            raise ComponentMismatchError(
                f"the edit {self.name!r} in {self.storage} was made for a model with weights "
                f"{shortened(self.model_weights)}, but this {type(model).__name__} has {shortened(found)}. Load the "
                f"checkpoint that the run explains, or edit again."
            )


def values_of(run: RunDirectory) -> Values | None:
    """What takes the place of a run's ablated activations, by site; None is zeroed weights.

    Raises:
        MissingWorkError, DamagedFileError: they are not there, or damaged.
    """
    arrays = values_of_run(run.storage, run.identity)
    return None if arrays is None else {name: torch.from_numpy(array) for name, array in arrays.items()}
