"""The edits of a run as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass

from coar_dist.editing.edit import Edit
from coar_dist.editing.edit_record import load_edit
from coar_dist.report.drawing import inline_svg, svg_of
from coar_dist.report.edits import draw_edit_curves, each_rows, in_words, notes_of, selection_rows
from coar_dist.store.edits import EDITS, EditStore, edit_names
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory


@dataclass(frozen=True)
class MeasuredRow:
    """One group of held-out examples.

    Attributes:
        group: its name.
        num_examples: in it.
        cells: per metric the value before and after.
    """

    group: str
    num_examples: int
    cells: list[tuple[float, float]]


@dataclass(frozen=True)
class ShownEdit:
    """One edit.

    Attributes:
        name: of its folder.
        text: what was asked for, and by which criterion.
        metrics: of ``measured``.
        measured: before and after by group.
        figure: the curves over numbers of components, an ``<svg>`` element; empty where every target has its own edit.
        columns: of ``selected``, but the first.
        selected: what every selection of components came to.
        components: names of what is ablated.
        notes: on the numbers of components that were chosen.
    """

    name: str
    text: str
    metrics: list[str]
    measured: list[MeasuredRow]
    figure: str
    columns: list[str]
    selected: list[list[str]]
    components: list[str]
    notes: list[str]


def gather_edits(run: RunDirectory) -> list[ShownEdit]:
    """Read the finished edits of a run.

    Raises:
        DamagedFileError: a file of one is damaged.
    """
    base = f"{run.storage.location.rstrip('/')}/{EDITS}"
    return [_shown(load_edit(f"{base}/{name}"), f"{base}/{name}") for name in edit_names(run.storage)]


def _shown(edit: Edit, folder: str) -> ShownEdit:
    if edit.each is not None:
        columns, rows = each_rows(edit)
        return ShownEdit(edit.name, in_words(edit), [], [], "", columns, rows, [], [])
    groups = list(edit.measured)
    metrics = list(next(iter(edit.measured.values())).before)
    measured = [
        MeasuredRow(group, found.num_examples, [(found.before[metric], found.after[metric]) for metric in metrics])
        for group, found in edit.measured.items()
    ]
    columns, rows = selection_rows(edit, groups)
    curve = EditStore(RunDirectory.open(storage_at(folder))).read_curve()
    return ShownEdit(
        edit.name,
        in_words(edit),
        ["mean output" if metric == "output" else metric for metric in metrics],
        measured,
        inline_svg(svg_of(draw_edit_curves(edit, curve)), f"{edit.metric} by number of ablated components"),
        columns,
        rows,
        [edit.components.name_of(component) for component in edit.component_ids],
        notes_of(edit),
    )
