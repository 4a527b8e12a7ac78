"""The result of an edit: tables in the terminal, and the curve over numbers of components as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from coar_dist.config.methods import label_of
from coar_dist.config.schema import ALL
from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table
from coar_dist.editing.edit import Edit
from coar_dist.errors import counted
from coar_dist.report.drawing import STYLE, looks_of
from coar_dist.report.numbers import number
from coar_dist.store.edits import MEASURE, CurvePoint

_GROUPS_SHOWN = 8
_DASHES = ("-", (0, (6, 3)), (0, (3, 4)), (0, (1, 4)), (2, (1, 6)))
"""Of lines that are drawn later, with more of those below between them."""


def in_words(edit: Edit) -> str:
    """What was asked for and by which criterion the components were chosen, in one or two sentences."""
    numbers = f"{counted(len(edit.targets), 'target')}, keep those of {counted(len(edit.references), 'other')}"
    text = f"{edit.direction} the outputs of {numbers}."
    if edit.each is not None:
        how = f"One edit for each target, chosen to make {edit.criterion}; costs are of accuracy on other examples."
    elif edit.component_ids:
        how = (
            f"Chosen, on held-out examples: {edit.criterion}. With the exported weights, on examples that chose "
            f"nothing, before and after:"
        )
    else:
        how = (
            f"No components are ablated: none give {edit.criterion}. More components (edit.max_components), a looser "
            f"limit (edit.keep), or fewer targets that are alike, may. The unedited model:"
        )
    if edit.paired_correlation is not None:
        before, after = (number(value) for value in edit.paired_correlation)
        text += f" Correlation of the outputs of both forms of an example: {before} -> {after}."
    return f"{text} {how}"


def print_edit(edit: Edit, terminal: Terminal) -> None:
    """Print what was ablated and what that changed."""
    terminal.print(f"\nEdit {edit.name!r}: {in_words(edit)}")
    if edit.each is not None:
        terminal.print_table(_table(*each_rows(edit)))
        return
    terminal.print_table(_measured(edit))
    terminal.print(
        f"\n{edit.metric} by what selected the components, and how many of {edit.components.num_components:,}:"
    )
    terminal.print_table(_table(*selection_rows(edit, list(edit.measured))))
    for note in notes_of(edit):
        terminal.print(note)


def notes_of(edit: Edit) -> list[str]:
    """What is to be known of the numbers of components that were chosen."""
    notes, selected = [], edit.selected.items()
    largest = [label_of(name) for name, found in selected if found.num_components == edit.max_components]
    if largest:
        notes.append(f"{', '.join(largest)}: the largest number that max_components lets it try; more may do better.")
    none = [label_of(name) for name, found in selected if found.num_components == 0]
    if none:
        notes.append(f"{', '.join(none)}: 0 components, as no number of them does better than none within the limits.")
    return notes


def draw_edit_curves(edit: Edit, points: Sequence[CurvePoint]) -> Figure:
    """The metric by number of components, one panel per group that counts, as in Figures 4 and 7 of Shah et al. (2024);
    marked is the number that the criterion chose."""
    groups = [name for name in edit.measured if name != ALL][:_GROUPS_SHOWN] or list(edit.measured)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(groups), 3.2), layout="constrained")
        panels = figure.subplots(1, len(groups), sharex=True, squeeze=False)[0]
        looks = looks_of(edit.selected)
        for axes, group in zip(panels, groups, strict=True):
            for i, (selection, found) in enumerate(edit.selected.items()):
                line = [
                    (point.num_components, point.value)
                    for point in points
                    if (point.selection, point.group, point.part) == (selection, group, MEASURE)
                ]
                sizes, values = np.array(line).T
                (colour, marker), label = looks[selection], label_of(selection) if axes is panels[0] else None
                dashes = _DASHES[i % len(_DASHES)]  # lines that lie on each other are all seen
                axes.plot(sizes, values, color=colour, linewidth=1.3, linestyle=dashes, label=label)
                at = sizes.tolist().index(found.num_components)
                axes.plot(sizes[at], values[at], color=colour, marker=marker, markersize=5)
            axes.set_title(f"{group} ({edit.measured[group].num_examples:,})", fontsize=9)
            axes.set_xlabel("components ablated")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if edit.metric == "accuracy":
                axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
        panels[0].set_ylabel(edit.metric)
        figure.legend(loc="outside upper center", ncols=min(len(edit.selected), 4))
    return figure


def _measured(edit: Edit) -> Table:
    metrics = list(next(iter(edit.measured.values())).before)
    table = new_table("group", "examples", *(f"mean {name}" if name == "output" else name for name in metrics))
    for name, found in edit.measured.items():
        cells = [f"{number(found.before[metric])} -> {number(found.after[metric])}" for metric in metrics]
        table.add_row(name, f"{found.num_examples:,}", *cells)
    return table


def selection_rows(edit: Edit, groups: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """What every selection of components came to: the columns but the first, and the rows."""
    shown = list(groups[:_GROUPS_SHOWN])
    rows = [["nothing", "0", *_cells(edit.unablated, shown)]]
    for name, found in edit.selected.items():
        rows.append([label_of(name), f"{found.num_components:,}", *_cells(found.values, shown)])
    return ["components", *shown], rows


def each_rows(edit: Edit) -> tuple[list[str], list[list[str]]]:
    """The same where every target has an edit of its own."""
    rows = [
        [
            label_of(name),
            f"{found.num_components:,}",
            *_cells(found.values, ("fixed", "median_cost", "worst_cost")),
        ]
        for name, found in edit.selected.items()
    ]
    return ["components, median", "made right", "cost, median", "cost, worst"], rows


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = new_table("selected by", *columns)
    for row in rows:
        table.add_row(*row)
    return table


def _cells(values: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [number(values[name]) for name in names]
