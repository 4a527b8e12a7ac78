"""The result of an edit: tables in the terminal, and the curve over numbers of components as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from coar_dist.config import ALL
from coar_dist.editing.edit import Edit
from coar_dist.report.figures import COLOURS, MARKERS, STYLE, save_figure
from coar_dist.report.summary import label_of
from coar_dist.report.tables import new_table, print_whole
from coar_dist.store.edits import MEASURE, CurvePoint
from coar_dist.store.storage import Storage

_GROUPS_SHOWN = 8


def print_edit(edit: Edit, console: Console) -> None:
    """Print what was ablated and what that changed."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    numbers = f"{len(edit.targets):,} targets, keep those of {len(edit.references):,} others"
    say(f"\nEdit {edit.name!r}: {edit.direction} the outputs of {numbers}.")
    if edit.each is not None:
        say(f"One edit for each target, chosen to make {edit.criterion}; costs are of accuracy on other examples:")
        print_whole(console, _each(edit))
        return
    groups = list(edit.measured)
    if edit.component_ids:
        say(f"Chosen, on held-out examples: {edit.criterion}. On others, by the exported weights, before and after:")
    else:
        say(f"No components are ablated: none give {edit.criterion}. The unedited model:")
    print_whole(console, _measured(edit))
    if edit.paired_correlation is not None:
        before, after = edit.paired_correlation
        say(f"Correlation of the margins of both forms of an example: {_number(before)} -> {_number(after)}.")
    say(f"\n{edit.metric} by what selected the components, and how many of {edit.components.num_components:,}:")
    print_whole(console, _selections(edit, groups))
    largest = [label_of(name) for name, found in edit.selected.items() if found.num_components == edit.max_components]
    if largest:
        say(f"{', '.join(largest)}: the largest number tried; raise edit.max_components to try more.")
    if any(found.num_components == 0 for found in edit.selected.values()):
        say("0 components: no number of them does better than none within the limits.")


def write_edit_figure(storage: Storage, edit: Edit, points: Sequence[CurvePoint]) -> None:
    """Draw ``curve.png`` and ``curve.svg``: the metric by number of components, one panel per group that counts.

    Raises:
        StorageError: they cannot be written.
    """
    groups = [name for name in edit.measured if name != ALL][:_GROUPS_SHOWN] or list(edit.measured)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(groups), 3.2), layout="constrained")
        panels = figure.subplots(1, len(groups), sharex=True, squeeze=False)[0]
        for axes, group in zip(panels, groups, strict=True):
            for i, (selection, found) in enumerate(edit.selected.items()):
                line = [
                    (point.num_components, point.value)
                    for point in points
                    if (point.selection, point.group, point.part) == (selection, group, MEASURE)
                ]
                sizes, values = np.array(line).T
                colour, label = COLOURS[i % len(COLOURS)], label_of(selection) if axes is panels[0] else None
                axes.plot(sizes, values, color=colour, linewidth=1.3, label=label)
                at = sizes.tolist().index(found.num_components)
                axes.plot(sizes[at], values[at], color=colour, marker=MARKERS[i % len(MARKERS)], markersize=5)
            axes.set_title(f"{group} ({edit.measured[group].num_examples:,})", fontsize=9)
            axes.set_xlabel("components ablated")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel(edit.metric)
        figure.legend(loc="outside upper center", ncols=min(len(edit.selected), 4))
        save_figure(storage, "curve", figure)


def _measured(edit: Edit) -> Table:
    metrics = list(next(iter(edit.measured.values())).before)
    table = new_table("group", "examples", *(f"mean {name}" if name == "output" else name for name in metrics))
    for name, found in edit.measured.items():
        cells = [f"{_number(found.before[metric])} -> {_number(found.after[metric])}" for metric in metrics]
        table.add_row(name, f"{found.num_examples:,}", *cells)
    return table


def _selections(edit: Edit, groups: Sequence[str]) -> Table:
    shown = groups[:_GROUPS_SHOWN]
    table = new_table("selected by", "components", *shown)
    table.add_row("nothing", "0", *_cells(edit.unablated, shown))
    for name, found in edit.selected.items():
        table.add_row(label_of(name), f"{found.num_components:,}", *_cells(found.values, shown))
    return table


def _each(edit: Edit) -> Table:
    table = new_table("selected by", "components, median", "made right", "cost, median", "cost, worst")
    for name, found in edit.selected.items():
        cells = _cells(found.values, ("fixed", "median_cost", "worst_cost"))
        table.add_row(label_of(name), f"{found.num_components:,}", *cells)
    return table


def _cells(values: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [_number(values[name]) for name in names]


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "undefined"
