"""One edit for all targets: how many components every selection is given, and what that comes to."""

from __future__ import annotations

from dataclasses import dataclass

from coar_dist.config.schema import EditConfig, kept_groups
from coar_dist.editing.criterion import choose
from coar_dist.editing.edit import Selected
from coar_dist.editing.held_out import HeldOut
from coar_dist.editing.sweep import Sweep, group_means
from coar_dist.store.edits import CHOICE, MEASURE, CurvePoint
from coar_dist.store.margins import MarginStore


@dataclass(frozen=True)
class Chosen:
    """What a sweep says.

    Attributes:
        unablated: the metric by group, where the edit is measured.
        selected: what each selection came to.
        curve: the whole sweep.
    """

    unablated: dict[str, float]
    selected: dict[str, Selected]
    curve: list[CurvePoint]


def choose_sizes(held_out: HeldOut, edit: EditConfig, sweep: Sweep, store: MarginStore) -> Chosen:
    """Choose how many components each selection ablates, on one part of the held-out examples.

    Args:
        held_out: the examples.
        edit: the criterion.
        sweep: an order of components per selection.
        store: its margins.
    """
    ids = {(group, part): held_out.part(group, part) for group in held_out.groups for part in (CHOICE, MEASURE)}
    filled = {f"{group}/{part}": of for (group, part), of in ids.items() if of.size}
    means = group_means(store, held_out.metric, filled)
    selected, curve, unablated = {}, [], {}
    for selection, masks in sweep.masks.items():
        by_part = {
            part: {group: means[f"{group}/{part}"][masks] for group in held_out.groups if ids[group, part].size}
            for part in (CHOICE, MEASURE)
        }
        keep, metric = kept_groups(edit), held_out.metric
        choice = choose(by_part[CHOICE], sweep.sizes, edit.improve, keep, edit.direction, metric)
        measured = by_part[MEASURE]
        selected[selection] = Selected(
            choice.num_components, {group: float(values[choice.index]) for group, values in measured.items()}
        )
        unablated = {group: float(values[0]) for group, values in measured.items()}
        curve += [
            CurvePoint(selection, size, group, part, len(ids[group, part]), float(value))
            for part, groups in by_part.items()
            for group, values in groups.items()
            for size, value in zip(sweep.sizes, values, strict=True)
        ]
    return Chosen(unablated, selected, curve)
