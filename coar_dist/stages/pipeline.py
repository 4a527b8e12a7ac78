"""The stages in their order. The command line and ``attribute`` both end here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from coar_dist.config.combinations import validate
from coar_dist.config.schema import Config
from coar_dist.console.saying import Terminal
from coar_dist.console.tracking import check_tracking
from coar_dist.report.page import PAGE
from coar_dist.stages.ablate import ABLATE
from coar_dist.stages.circuit import CIRCUIT_STAGE
from coar_dist.stages.edit import EDIT
from coar_dist.stages.evaluate import EVALUATE
from coar_dist.stages.fit import FIT
from coar_dist.stages.plan import PLAN_STAGE
from coar_dist.stages.report import REPORT
from coar_dist.stages.session import Session
from coar_dist.stages.train import TRAIN

if TYPE_CHECKING:
    from torch import Tensor

    from coar_dist.components.index import ComponentIndex
    from coar_dist.tasks.example_set import ExampleSet
    from coar_dist.tasks.task import Task

PIPELINE = (PLAN_STAGE, TRAIN, ABLATE, FIT, EVALUATE, CIRCUIT_STAGE, EDIT, REPORT)
"""All stages in the order in which they run; a plan is always alone."""
_SHOWN = ("circuit", "edit")
"""Stages before the report whose results a page that is there does not show yet."""


def run_stages(
    config: Config,
    console: Console | None = None,
    task: Task | None = None,
    components: ComponentIndex | None = None,
    held_out: ExampleSet | None = None,
    reference: ExampleSet | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Run the stages that ``config.stages`` names, in the pipeline's order, whatever their order there.

    Every stage's checks come before the first stage runs, and before anything is written.

    Args:
        config: the whole configuration; it is validated first.
        console: where progress and results are printed; None is standard output.
        task: what to explain; None builds it from ``config.task``.
        components: the component index; None discovers it by ``config.components``.
        held_out: examples on which an edit is chosen and measured, in the place of ``config.edit.examples``.
        reference: examples whose means take the place of components, in the place of ``config.ablation.reference``.
        values: what takes the place of components, by site, in the place of ``config.ablation.constants``.

    Raises:
        CoarDistError: anything that a user can put right; the message says how. What is finished stays.
    """
    config = validate(config)
    stages = [stage for stage in PIPELINE if stage.name in config.stages]
    with Session(config, Terminal(console), task, components, held_out, reference, values) as session:
        check_tracking(config.tracking, session.storage)
        for stage in stages:
            if stage.check is not None:
                stage.check(session)
        for stage in stages:
            session.begin(stage.name)
            stage.run(session)
        made = [name for name in _SHOWN if name in config.stages]
        if made and "report" not in config.stages and session.storage.size(PAGE) is not None:
            where = session.storage.where(PAGE)
            session.terminal.say(
                f"{where} is as it was; it shows the {' and the '.join(made)} after stages=[report], or in Python "
                f"run.write_report()."
            )
