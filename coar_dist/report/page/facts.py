"""What the page says of the run besides its results: what was found wrong, what it cost, what it is."""

from __future__ import annotations

import numpy as np

from coar_dist.config.methods import is_fitted
from coar_dist.errors import counted, listed
from coar_dist.report import numbers
from coar_dist.report.inspection import files_set_aside
from coar_dist.report.judged import Judged
from coar_dist.report.output_names import OutputName
from coar_dist.report.page.gather import Gathered
from coar_dist.report.page.history import History
from coar_dist.report.summary import Summary
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory

_MAX_LISTED = 20


def tiles_of(run: RunDirectory, summary: Summary, history: History) -> list[tuple[str, str]]:
    """Numbers at a glance, and what they are."""
    column = summary.trained_column or 0
    at = f"at {summary.fractions[column]:g}"
    tiles = [(numbers.mean_of(method.correlation, column), f"{method.label} {at}") for method in summary.methods[:3]]
    ceiling = list(summary.ceilings.values())[column]
    if ceiling is not None:
        tiles.append((numbers.ceiling_of(ceiling), f"the ceiling of linear models {at}"))
    ablated = history.stages.get("ablate")
    masks = f"masks in {counted(len(run.designs), 'design')}"
    if ablated is not None and ablated.has_worked and ablated.seconds:
        masks += f", {numbers.in_time(ablated.seconds)} to collect, {run.num_masks / ablated.seconds:,.1f} masks/s"
    tiles.append((f"{run.num_masks:,}", masks))
    seconds = sum(stage.seconds for stage in history.stages.values())
    if seconds:
        tiles.append((numbers.in_time(seconds), "for all stages"))
    return tiles


def unablated_of(found: Gathered, output: OutputName) -> str:
    """How large outputs are, beside which effects are, and how good the model is: a sentence."""
    margins = found.table["margin"].astype(np.float64)
    known = margins[np.isfinite(margins)]
    size = f"the mean {output.one} is {numbers.signed(known.mean(), '-')}" if known.size else ""
    right = _right(found)
    said = ", and ".join(filter(None, [size, right and f"the {right}"]))
    return f"Without ablation {said}." if said else ""


def _right(found: Gathered) -> str:
    """How often the model is right; empty where examples have no classes, or none are predicted."""
    judged = Judged.of(found.table)
    if not judged.is_known.all():
        return ""
    num_right = int((~judged.is_wrong).sum())
    return f"model is right on {num_right:,} of {counted(found.run.num_examples, 'example')}"


def findings_of(found: Gathered, summary: Summary, history: History, output: OutputName) -> list[str]:
    """What is to be known about the data before the results are trusted."""
    texts, run = [], found.run
    right = _right(found)
    if right:
        texts.append(f"The unablated {right}.")
    for method in summary.methods:
        if is_fitted(method.method):
            constant = np.flatnonzero(np.isnan(RunReader(run).quality(method=method.method)["r2"]))
            if constant.size:
                those = f"{counted(constant.size, 'example')} ({listed(constant.tolist(), _MAX_LISTED)})"
                texts.append(
                    f"{method.label}: the {output.many} of {those} never change under the training masks; their "
                    f"weights are 0."
                )
            else:
                texts.append(f"{method.label}: every example's {output.one} changes under the training masks.")
    undefined = {method.label: method.num_undefined["correlation"] for method in summary.methods}
    texts += [f"{label}: {count:,} correlations are undefined." for label, count in undefined.items() if count]
    aside = files_set_aside(run)
    if aside:
        names = listed(aside, _MAX_LISTED)
        texts.append(f"{len(aside):,} damaged or foreign files were set aside and made again: {names}.")
    texts += found.damaged if aside or found.damaged else ["No file was damaged."]
    if history.num_unreadable:
        texts.append(f"unreadable: {counted(history.num_unreadable, 'line')} of the logs.")
    return texts


def facts_of(run: RunDirectory, history: History) -> list[tuple[str, str]]:
    """What was run, by name."""
    facts = [("run directory", str(run.storage)), ("made", run.created)]
    task = history.configuration.get("task") or {}
    for part in ("model", "examples"):
        asked = task.get(part) or {}
        if asked.get("source"):
            given = {name: value for name, value in (asked.get("arguments") or {}).items() if value is not None}
            facts.append(
                (part, ", ".join([str(asked["source"]), *(f"{name} {value}" for name, value in given.items())]))
            )
    groups = run.components.groups
    facts.append(("components", f"{run.components.num_components:,} in {counted(len(groups), 'parameter')}"))
    if run.engine_plan is not None:
        facts.append(("forward passes", ", ".join(f"{name} {value}" for name, value in run.engine_plan.items())))
    return facts


def identity_of(run: RunDirectory) -> list[tuple[str, str]]:
    """What the run's margins depend on, and the versions that it was made with."""
    versions = [(f"version of {name}", str(value)) for name, value in run.versions.items()]
    return [(name, str(value)) for name, value in run.identity.items()] + versions
