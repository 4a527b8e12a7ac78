"""The ablate stage: margins, and gate gradients, of everything that the run lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coar_dist.console.tables import new_table
from coar_dist.stages.session import Session
from coar_dist.stages.stage import Stage
from coar_dist.store.gradients import GradientStore
from coar_dist.store.run_directory import GRADIENT_DESIGN, RunDirectory

if TYPE_CHECKING:
    from rich.table import Table

    from coar_dist.components.index import ComponentIndex
    from coar_dist.config.schema import Config
    from coar_dist.stages.collect import Missing
    from coar_dist.tasks.task import Task


def _check(session: Session) -> None:
    from coar_dist.stages.checks import check_ablate_stage  # torch takes seconds to load

    check_ablate_stage(session)


def _run(session: Session) -> None:
    """Collect what is missing; with a budget first its pilot, then what the pilot says."""
    from coar_dist.stages.budget import with_chosen_passes
    from coar_dist.stages.inputs import components_of, task_of

    config = session.config
    task = task_of(session)
    components = components_of(session, task.model)
    run = _collect(session, config, task, components)
    if config.budget is not None:
        _collect(session, with_chosen_passes(session, config.budget, run), task, components)


def _collect(session: Session, config: Config, task: Task, components: ComponentIndex) -> RunDirectory:
    """Collect what is missing of the designs of ``config``, once all input is checked."""
    from coar_dist.stages.baselines import MissingBaselines, compute_baselines
    from coar_dist.stages.budget import expected_masks
    from coar_dist.stages.class_names import checked_class_names, keep_class_names
    from coar_dist.stages.collect import Missing, collect
    from coar_dist.stages.inputs import identity_of
    from coar_dist.stages.mask_designs import designs_of
    from coar_dist.stages.previews import write_previews
    from coar_dist.stages.responses import write_responses
    from coar_dist.stages.values import check_value, identity_of_value

    designs = designs_of(config, components.num_components)
    probe_margins = task.check()
    check_value(session, task, components)
    class_names = checked_class_names(session, task)
    session.take()
    identity = {**identity_of(session, task, components), **identity_of_value(session, task, components)}
    run = RunDirectory.create(session.storage, identity, components, len(task.examples), probe_margins)
    run.set_designs(designs)
    keep_class_names(session, run, class_names)
    baselines = MissingBaselines.of(run, session)
    baselines.check(task, components, session)  # refused now, not after hours of ablation
    missing = Missing.of(run, session)
    if missing:
        session.terminal.show_table(_designs(run, missing))
    collect(session, run, task, components, missing, expected_masks(config, missing.work), session.tracking)
    if config.run.previews:
        write_previews(session, run, task.examples)
    if config.run.previews and config.run.responses_mb > 0:
        write_responses(session, run, task, components)
    compute_baselines(session, run, task, components, baselines)
    return run


def _designs(run: RunDirectory, missing: Missing) -> Table:
    """What the run is asked for and lacks; masks with gradients, whose examples are apart, count by the share of the
    examples."""
    from coar_dist.stages.mask_designs import ROLE_WORDS

    lacking = dict.fromkeys(run.designs, 0.0)
    for name, (_, store) in missing.stores.items():
        num_missing = sum(stop - start for start, stop in missing.work.ranges.gaps[name])
        if isinstance(store, GradientStore):
            lacking[GRADIENT_DESIGN] += num_missing * (store.block[1] - store.block[0]) / run.num_examples
        else:
            lacking[name] += num_missing
    table = new_table("design", "for", "masks", "ablated", "there", "new", num_text=2)
    for name, num_new in lacking.items():
        role, design = run.designs[name].role, run.designs[name].design
        counts = (f"{count:,.0f}" for count in (design.num_masks - num_new, num_new))
        table.add_row(name, ROLE_WORDS[role], f"{design.num_masks:,}", f"{design.ablation_fraction:.3g}", *counts)
    return table


_PILOT_READS = (
    "regression.backend",
    "regression.memory_gb",
    "regression.method",
    "regression.regularisation",
    "regression.num_penalties",
    "regression.penalty_range",
    "regression.selection",
    "regression.standard_errors",
    "regression.distributed",
)
"""A budget's pilot is fitted before the rest of the budget is spent."""
ABLATE = Stage(
    "ablate",
    reads=(
        "task",
        "train",
        "components",
        "design",
        "budget",
        "gradients",
        "baselines",
        "baseline_settings",
        "evaluation",
        "ablation",
        "cluster",
        "run.previews",
        "run.responses_mb",
    ),
    run=_run,
    check=_check,
    reads_with={"budget": _PILOT_READS},
)
