"""The circuit stage: what the strongest components of every method do alone, and whether they are the known ones."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from coar_dist.components.masks import mask_without
from coar_dist.config.methods import label_of
from coar_dist.config.schema import NECESSARY, RANDOM, CircuitConfig
from coar_dist.console.tables import new_table
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError, RunNotFoundError, counted, listed
from coar_dist.report.numbers import number
from coar_dist.stages.session import Session
from coar_dist.stages.stage import OF_PASSES, Stage
from coar_dist.store.circuits import CIRCUIT_FOLDER, SIGNED, CircuitScores, CircuitTable
from coar_dist.store.methods import fitted_methods
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory

if TYPE_CHECKING:
    from coar_dist.components.index import ComponentIndex
    from coar_dist.evaluation.circuit_scores import Ends
    from coar_dist.stages.circuit_run import CircuitRun

_ENDS, _PAIRS = "ends", "pairs"
"""Designs: the whole model and none of it; every component and every pair ablated."""


def _check(session: Session) -> None:
    """Check names of components and methods, where the run or the ablate stage's check tells which there are.

    Raises:
        ConfigError: there is no such component or method.
    """
    config, components, methods = session.config.circuit, session.components, None
    try:
        run = session.open_run()
        components = run.components
        if not {"ablate", "fit"} & set(session.config.stages):
            methods = fitted_methods(run)
    except (RunNotFoundError, DamagedFileError, MissingWorkError):
        pass  # the stage itself says so
    if components is not None:
        known_ids(config, components)
        _require_some(config, components.num_components)
    if methods is not None:
        _chosen(config, methods)


def known_ids(config: CircuitConfig, components: ComponentIndex) -> NDArray[np.bool_] | None:
    """Which components are known (num_components,) bool; None where none are named, or ``necessary`` has to find them.

    Raises:
        ConfigError: there is no such component, all are named, or pairs are too many.
    """
    if config.known is None:
        return None
    d = components.num_components
    if config.known == NECESSARY:
        from coar_dist.evaluation.necessary import MOST_COMPONENTS

        if d > MOST_COMPONENTS:
            raise ConfigError(
                f"circuit.known={NECESSARY} ablates every pair of components, and there are {d:,}. It takes at most "
                f"{MOST_COMPONENTS}: name those that are known, or make a run of fewer components, e.g. of heads."
            )
        return None
    is_known = ~mask_without(components, config.known, "circuit.known")
    if is_known.all():
        raise ConfigError(f"circuit.known={config.known}: these are all {d:,} components. Name some of them.")
    return is_known


def _require_some(config: CircuitConfig, num_components: int) -> None:
    """Refuse sizes none of which holds a component."""
    if config.sizes[-1] * num_components < 1.0:
        raise ConfigError(
            f"circuit.sizes={list(config.sizes)}: none of them holds one of {num_components:,} components. The "
            f"smallest that does is {1 / num_components:.2g}."
        )


def _chosen(config: CircuitConfig, there: list[str]) -> list[str]:
    if config.methods is None:
        return there
    if not config.methods:
        raise ConfigError("circuit.methods=[]: name some of the run's methods, or leave it out for all.")
    unknown = [name for name in config.methods if name not in there]
    if unknown:
        raise ConfigError(
            f"circuit.methods={config.methods}: there are no attributions of {listed(unknown, 5)}, only of "
            f"{listed(there, 10) or 'nothing yet'}. (Random rankings are circuit.random_draws.)"
        )
    return config.methods


def _run(session: Session) -> None:
    """Score the circuits of the run's methods, where that is not done yet.

    Raises:
        MissingWorkError: nothing is fitted.
        ConfigError: as the check; or the mean output breaks without all or none of the components.
        RunMismatchError: model, examples or reference are not those of the run.
    """
    from coar_dist.cluster.dispatch import connected  # ray and matplotlib take seconds to load
    from coar_dist.cluster.place import may_be_here
    from coar_dist.report.circuit_figures import draw_circuit
    from coar_dist.report.drawing import save_figure
    from coar_dist.stages.circuit_inputs import checked_task
    from coar_dist.stages.circuit_run import CircuitRun

    config, terminal = session.config.circuit, session.terminal
    run = session.open_run()
    session.take()
    methods = _chosen(config, fitted_methods(run))
    if not methods:
        raise MissingWorkError(f"{run.storage} has no attributions to rank components by: run the fit stage.")
    is_known = known_ids(config, run.components)
    _require_some(config, run.components.num_components)
    settings, table = _settings(config), CircuitTable(run)
    if table.is_complete(settings, methods):
        terminal.say(f"{run.storage.where(table.file)} is there already.")
    else:
        if not may_be_here(session.config.cluster):
            session.keep(connected(session.config.cluster))  # for the ends, and then for what they decide
        circuit_run = CircuitRun(session, run, checked_task(session, run))
        _say_replaced(session, run, table, {**settings, "methods": methods})
        start = time.monotonic()
        table.write(_scored(config, run, circuit_run, methods, is_known), settings, methods)
        of_what = f"{counted(len(methods), 'method')} at {counted(len(config.sizes), 'size')}"
        terminal.say(f"circuits of {of_what} in {time.monotonic() - start:.1f} s.")
    found = table.read()
    save_figure(run.storage, f"{CIRCUIT_FOLDER}/faithfulness", draw_circuit(found))
    means = {
        f"{name}/{method}": value
        for method, values in found.scores.items()
        for name, value in values.items()
        if np.isfinite(value)
    }
    session.tracking.log(means, run.num_masks)
    print_circuit(session, run, found)


def _say_replaced(session: Session, run: RunDirectory, table: CircuitTable, settings: dict[str, Any]) -> None:
    """Say of a table that is there with what it was made, and how it can be had again."""
    former = table.settings()
    if former is None:
        return
    where = run.storage.where(table.file)
    try:
        table.read()
    except (MissingWorkError, DamagedFileError):
        session.terminal.say(f"{where} was of earlier attributions and is replaced.")
        return
    changed = {name: value for name, value in settings.items() if former.get(name) != value}
    were, now = (listed([f"circuit.{name}={of.get(name)}" for name in changed], 10) for of in (former, settings))
    session.terminal.say(
        f"{where} was of {were} and is replaced, now of {now}. Its margins stay: asking for it again takes no pass."
    )


def _settings(config: CircuitConfig) -> dict[str, Any]:
    """What scores depend on besides attributions."""
    return {name: value for name, value in asdict(config).items() if name != "methods"}


def _scored(
    config: CircuitConfig,
    run: RunDirectory,
    circuit_run: CircuitRun,
    methods: list[str],
    is_known: NDArray[np.bool_] | None,
) -> CircuitScores:
    from coar_dist.designs.given import Listed, packed
    from coar_dist.evaluation.circuit import Circuits, Weights, masks_of_ends, scored
    from coar_dist.evaluation.circuit_scores import Ends
    from coar_dist.evaluation.necessary import masks_of_pairs
    from coar_dist.stages.circuit_run import outputs_over_masks

    d = run.components.num_components
    pairs = {_PAIRS: Listed.of(packed(masks_of_pairs(d)), d)} if config.known == NECESSARY else {}
    outputs = circuit_run.mean_outputs({_ENDS: masks_of_ends(d), **pairs})
    ends = Ends.of(circuit_run.outputs(_ENDS), outputs_over_masks(run.margins(TRAIN_DESIGN)))
    if pairs:
        is_known = _necessary(config, run, ends, outputs[_PAIRS])
    weights = {(method, 0): Weights.of(run, method, is_known) for method in methods}
    for draw in range(config.random_draws):
        weights[RANDOM, draw] = Weights.random(d, config.seed, draw, is_known)
    circuits = Circuits.of(weights, config.sizes, rises=ends.full >= ends.none)
    outputs = circuit_run.mean_outputs({_ENDS: masks_of_ends(d), **circuits.designs})
    return scored(circuits, weights, outputs, ends, is_known)


def _necessary(
    config: CircuitConfig, run: RunDirectory, ends: Ends, of_pairs: NDArray[np.float64]
) -> NDArray[np.bool_]:
    from coar_dist.evaluation.necessary import necessary

    full, none = ends.full, ends.none
    if ends.why_undefined is not None:
        raise ConfigError(
            f"circuit.known={NECESSARY}: {ends.why_undefined}. Or name the components, or leave circuit.known out."
        )
    found = necessary(of_pairs, full, none, config.threshold)
    if not 0 < found.sum() < len(found):
        which = "every" if found.all() else "no"
        raise ConfigError(
            f"circuit.known={NECESSARY}: the mean output of {run.storage} breaks without {which} component, alone or "
            f"in pairs: it goes from {full:.4g} to {none:.4g} without all. Set another circuit.threshold (now "
            f"{config.threshold:g}), or name the components."
        )
    return found


def print_circuit(session: Session, run: RunDirectory, found: CircuitScores) -> None:
    """Print what the circuits came to."""
    terminal, d = session.terminal, run.components.num_components
    if found.known is not None:
        names = listed([run.components.name_of(component_id) for component_id in found.known], 10)
        terminal.print(f"\n{counted(len(found.known), 'component')} of {d:,} known to do the work: {names}.")
    if found.reason is not None:
        terminal.print(f"Faithfulness, CPR and CMD are undefined: {found.reason}.", "yellow")
    terminal.print(
        f"\nCircuits of the strongest components, all others ablated. Mean output {found.full:.4g} of the whole model, "
        f"{found.none:.4g} without any component.\nCPR (higher is better) by signed, CMD (0 is best) by absolute mean "
        f"weight, as in the MIB benchmark{'' if found.sizes[-1] == 1.0 else f'; areas up to size {found.sizes[-1]:g}'}."
    )
    terminal.print_table(_scores(found))
    if found.reason is None:
        terminal.print("\nFaithfulness by number of components, by signed mean weight:")
        terminal.print_table(_curve(found))


def _scores(found: CircuitScores) -> Table:
    of_known = found.known is not None
    headers = ["AUROC", "per example", "precision", "per example"] if of_known else []
    table = new_table("method", *headers, "CPR", "CMD")
    for method, values in found.scores.items():
        names = ("auroc", "auroc_per_example", "average_precision", "average_precision_per_example") if of_known else ()
        table.add_row(label_of(method), *(number(values[name]) for name in (*names, "cpr", "cmd")))
    return table


def _curve(found: CircuitScores) -> Table:
    """One column for each number of components that there is."""
    places = [i for i, count in enumerate(found.num_components) if count not in found.num_components[:i]]
    table = new_table("components", *(f"{found.num_components[i]:,}" for i in places))
    for method, ranking in found.faithfulness:
        if ranking == SIGNED:
            table.add_row(label_of(method), *(number(found.faithfulness[method, ranking][i]) for i in places))
    return table


CIRCUIT_STAGE = Stage(
    "circuit",
    reads=("circuit", *OF_PASSES),
    run=_run,
    check=_check,
    reads_with={"ablation.reference.source": ("ablation.reference",)},
)
