"""The budget curve: what the correlation would have been with fewer masks, from the shards that are there.

The masks of a design are a function of their index, so its first m masks are the design of m masks. Attributions are
fitted from such prefixes by the fit stage's own code, and compared with the truth on the held-out masks of the training
masks' ablation fraction. No forward pass is run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.cluster.execution import Execute, in_this_process
from coar_dist.config.methods import GRADIENT_RIDGE, LEAVE_ONE_OUT
from coar_dist.config.schema import RegressionConfig
from coar_dist.errors import CoarWarning
from coar_dist.evaluation.correlation import predictions_and_truth
from coar_dist.evaluation.sample import Sample, SampledAttributions, SampledGradients, SampledMargins, draw_sample
from coar_dist.regression.backends import choose_backend, device
from coar_dist.regression.fit import make_plan, solver_of
from coar_dist.regression.gate_sources import GateSources
from coar_dist.regression.observations import Observations
from coar_dist.regression.sizes import fewest_masks
from coar_dist.store.agreement import correlation_of
from coar_dist.store.budget_curve import BudgetCurve, BudgetCurveTable
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory
from coar_dist.store.tables import AttributionTable

_log = logging.getLogger(__name__)
MOST_EXAMPLES = 1024
_MOST_BLOCKS = 8
_SEED = 0


def why_no_curve(run: RunDirectory) -> str | None:
    """Why a run has no budget curve; None where it has one."""
    if run.design(TRAIN_DESIGN).num_masks == 0:
        return "all passes of the run are with gradients (design.num_masks=0), and it varies the others"
    if run.held_out_as_trained() is None:
        return "it takes held-out masks at design.ablation_fraction"
    return None


def evaluate_budgets(
    run: RunDirectory,
    methods: Sequence[str],
    shares: Sequence[float],
    regression: RegressionConfig,
    on_progress: Callable[[int], None],
    most_examples: int = MOST_EXAMPLES,
    execute: Execute = in_this_process,
) -> bool:
    """Write the budget curve of every method, where it is not there already.

    Every curve is made with the regression settings that the attributions were fitted with. For large example sets a
    fixed random sample is looked at. ``gradient_ridge`` keeps all of its passes with gradients.

    Args:
        run: an evaluated run that ``why_no_curve`` has nothing against.
        methods: names of attributions that are fitted from the train design.
        shares: of the train design's masks, ascending, below 1.
        regression: backend and memory; all else is as stored with the attributions.
        on_progress: called after every fit with the number of (method, share) pairs done.
        most_examples: in the sample.
        execute: who runs the parts, one per point of a curve.

    Returns:
        Whether anything had to be computed.

    Raises:
        MissingWorkError: margins, gradients or evaluations are missing.
        ConfigError, ConvergenceError: as the fit stage.
    """
    design_name = run.held_out_as_trained()
    assert design_name is not None
    computed, num_done = False, 0
    for method in methods:
        train = run.margins(TRAIN_DESIGN)
        stored = AttributionTable(run, method).settings(train.blocks[0])
        own = {field.name for field in fields(RegressionConfig)} & stored.keys() - {"backend"}
        config = replace(regression, **{**{name: stored[name] for name in own}, "standard_errors": False})
        numbers = _numbers_of_masks(train, shares, config)
        table = BudgetCurveTable(run, method, design_name)
        settings: dict[str, Any] = {"masks": numbers, "examples": most_examples, "seed": _SEED}
        if not table.is_complete(settings):
            table.set_aside_wrong()
            sample = draw_sample(train.blocks, most_examples, _MOST_BLOCKS, _SEED)
            example_ids = np.concatenate([block[0] + rows for block, rows in sample.items()])
            found: dict[int, NDArray[np.float64]] = {}
            for number, correlations in execute(_point, (run, method, config, sample, design_name), numbers):
                found[number] = correlations
                on_progress(num_done + len(found))
            columns = [found[number] for number in numbers]
            columns.append(EvaluationTable(run, method, design_name).read()["correlation"][example_ids])
            curve = BudgetCurve(example_ids, np.array([*numbers, train.num_masks]), np.stack(columns, axis=1))
            table.write(curve, settings)
            computed = True
        num_done += len(shares)
        on_progress(num_done)
    return computed


def _numbers_of_masks(train: MarginStore, shares: Sequence[float], config: RegressionConfig) -> list[int]:
    """How many masks are fitted, besides all: no fewer than the regression can be fitted from."""
    fewest = fewest_masks(train.num_components, config)
    while fewest < train.num_masks and _are_equal(next(train.read(None, fewest, (0, fewest)))[0]):
        fewest *= 2
    numbers = {round(train.num_masks * share) for share in shares}
    return sorted(number for number in numbers if fewest <= number < train.num_masks)


def _are_equal(masks: NDArray[np.bool_]) -> bool:
    return bool((masks == masks[0]).all())


def _point(
    shared: tuple[RunDirectory, str, RegressionConfig, Sample, str], num_masks: int
) -> tuple[int, NDArray[np.float64]]:
    """The number, and correlations of the sampled examples (n,), by attributions from so many masks, the first."""
    run, method, config, sample, design_name = shared
    train = SampledMargins.of(replace(run.margins(TRAIN_DESIGN), num_masks=num_masks), sample)
    sources = None
    if method == GRADIENT_RIDGE:
        stores = (store for store in run.gradients(GRADIENT_DESIGN) if store.block in sample)
        gradients = tuple(SampledGradients.of(store, sample) for store in stores)
        baseline = SampledAttributions(run, LEAVE_ONE_OUT, sample) if LEAVE_ONE_OUT in run.designs else None
        sources = GateSources(gradients, baseline)
    observations = Observations(train, () if sources is None else sources.gradients)
    solver, sizes = solver_of(observations, config)
    backend, _ = choose_backend(config.backend, config.method, solver)
    _log.info("%s from %d masks: %s (%s)", method, num_masks, solver, sizes)
    held_out = SampledMargins.of(run.margins(design_name), sample)
    with warnings.catch_warnings():
        # Of few masks: that they leave components out or do not determine the weights is what the curve shows.
        warnings.simplefilter("ignore", CoarWarning)
        plan = make_plan(observations, sources, config, solver, backend, in_this_process)
        parts = []
        for block in sample:
            fitted = plan.fit(observations, block, device()).attributions
            sides = predictions_and_truth(held_out, block, fitted.weights, fitted.intercepts)
            parts.append(correlation_of(*sides))
    return num_masks, np.concatenate(parts)
