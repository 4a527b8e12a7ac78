"""Making an edit: a sweep over numbers of ablated components, a choice among them, and what it does to the model.

How many components is chosen on one part of the held-out examples and measured on the other; both look at the same
sweep of margins, which the fast engine runs.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from coar_dist.config.schema import ALL, kept_groups
from coar_dist.editing.choose_sizes import choose_sizes
from coar_dist.editing.criterion import describe, sizes
from coar_dist.editing.edit import Edit, Measured, values_of
from coar_dist.editing.edit_each import fix_each, sweep_name
from coar_dist.editing.held_out import HeldOut
from coar_dist.editing.model_work import Unedited, edited_outputs
from coar_dist.editing.sweep import Sweep
from coar_dist.report.drawing import save_figure
from coar_dist.report.edits import draw_edit_curves
from coar_dist.stages.edit_inputs import EditInputs
from coar_dist.stages.inputs import with_weights
from coar_dist.stages.sweep_run import SweepRun
from coar_dist.store.edits import MEASURE

_log = logging.getLogger(__name__)


def make_edit(inputs: EditInputs, unedited: Unedited, held_out: HeldOut, sweeps: SweepRun) -> Edit:
    """One edit for all targets; its curve and the edited weights are written.

    Args:
        inputs: what it is made from.
        unedited: what the unedited model said.
        held_out: the examples on which it is chosen and measured.
        sweeps: where margins come from, and where files go.
    """
    edit, selector = inputs.edit, inputs.selector
    orders = selector.orders(unedited.magnitudes, inputs.targets, inputs.references, inputs.max_components)
    sweep = Sweep.of(
        {name: found.order for name, found in orders.items()},
        sizes(inputs.max_components),
        inputs.run.components.num_components,
    )
    chosen = choose_sizes(held_out, edit, sweep, sweeps.margins(sweep))
    sweeps.edits.write_curve(chosen.curve)
    main = orders[selector.main]
    component_ids = main.order[: chosen.selected[selector.main].num_components]
    criterion = describe(edit.improve, kept_groups(edit), held_out.metric, edit.direction) + held_out.note
    made = _edit(inputs, unedited, held_out, sweeps, criterion, unablated=chosen.unablated, selected=chosen.selected)
    made = replace(
        made,
        component_ids=tuple(component_ids.tolist()),
        scores=None if main.scores is None else tuple(main.scores[component_ids].tolist()),
    )
    before = after = held_out.outputs
    if component_ids.size:
        ask = partial(edited_outputs, made, held_out.task, sweeps.edits)
        after, why_not_written = with_weights(sweeps.session, held_out.task.model, ask)
        if why_not_written is not None:
            _log.warning(
                "no edited weights are written: %s. edit.applied(model) has the measured outputs", why_not_written
            )
    parts = {group: held_out.part(group, MEASURE) for group in held_out.groups}
    measured = {
        group: Measured(len(ids), held_out.metrics(before[ids]), held_out.metrics(after[ids]))
        for group, ids in parts.items()
        if ids.size
    }
    if edit.pairs is not None:
        forms = edit.pairs, edit.improve[0]
        pair = held_out.paired_correlation(*forms, before), held_out.paired_correlation(*forms, after)
        made = replace(made, paired_correlation=pair)
    made = replace(made, measured=measured)
    save_figure(sweeps.storage, "curve", draw_edit_curves(made, chosen.curve))
    return made


def make_edit_of_each(inputs: EditInputs, unedited: Unedited, held_out: HeldOut, sweeps: SweepRun) -> Edit:
    """One edit for every target, which is to make it right; their sizes and components are written.

    Args:
        inputs: what they are made from.
        unedited: what the unedited model said.
        held_out: the examples on which they are chosen and measured.
        sweeps: where margins come from, and where files go.
    """
    selector, targets, size_limit = inputs.selector, inputs.targets, inputs.max_components
    orders = {
        sweep_name(selection, int(target)): found.order[:size_limit]
        for target in targets
        for selection, found in selector.orders(
            unedited.magnitudes, np.array([target]), inputs.references, size_limit
        ).items()
    }
    sweep = Sweep.of(orders, sizes(size_limit), inputs.run.components.num_components)
    limit = kept_groups(inputs.edit)[ALL]
    fixes = fix_each(held_out, targets, selector.names, sweep, sweeps.margins(sweep), limit)
    found = fixes[selector.main].columns
    component_ids = [
        orders[sweep_name(selector.main, int(target))][:size].tolist()
        for target, size in zip(targets, found["num_components"], strict=True)
    ]
    examples = {name: held_out.columns[name][targets] for name in ("label", "prediction")}
    sweeps.edits.write_each({"example_id": targets, **examples, **found}, component_ids)
    selected = {selection: fixes[selection].summary() for selection in selector.names}
    criterion = f"the target right at the least loss of accuracy, at most {limit:g}"
    made = _edit(inputs, unedited, held_out, sweeps, criterion, unablated={}, selected=selected)
    return replace(made, each={"num_targets": float(len(targets)), **selected[selector.main].values})


def _edit(
    inputs: EditInputs, unedited: Unedited, held_out: HeldOut, sweeps: SweepRun, criterion: str, **results: Any
) -> Edit:
    """An edit without components and measurements yet."""
    return Edit(
        read=unedited.read,
        values=values_of(inputs.run),
        name=inputs.edit.name,
        run=inputs.run.fingerprint,
        model_weights=inputs.run.identity["model.weights"],
        selection=inputs.selector.main,
        direction=inputs.edit.direction,
        targets=tuple(inputs.targets.tolist()),
        references=tuple(inputs.references.tolist()),
        component_ids=(),
        scores=None,
        max_components=inputs.max_components,
        metric=held_out.metric,
        criterion=criterion,
        measured={},
        paired_correlation=None,
        each=None,
        components=inputs.run.components,
        storage=str(sweeps.storage),
        **results,
    )
