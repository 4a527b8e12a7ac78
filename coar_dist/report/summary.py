"""What the report shows, read from the tables of a run: means over examples with their intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.methods import Origin, is_fitted, label_of, method_of
from coar_dist.designs.design import MaskDesign
from coar_dist.errors import MissingWorkError, counted
from coar_dist.evaluation.extrapolation import Extrapolation, extrapolate
from coar_dist.evaluation.intervals import FEWEST_EXAMPLES, Means, means_of
from coar_dist.report.numbers import half, half_95, number
from coar_dist.store.agreement import METRICS
from coar_dist.store.budget_curve import BudgetCurve, BudgetCurveTable
from coar_dist.store.ceilings import Ceiling, CeilingTable, why_no_ceiling
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.fingerprints import KnownFingerprints
from coar_dist.store.methods import methods_of
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory

NO_HELD_OUT = "has no held-out masks: run the stages ablate and evaluate, in Python run.evaluate()."
"""Said of a run that cannot be shown."""


@dataclass(frozen=True)
class MethodSummary:
    """One method on every held-out design.

    Attributes:
        method: name of its attributions.
        num_masks: how many masks they are of, in words.
        correlations: (num_examples, num_designs) float64, one column per held-out design in the run's order; NaN where
            undefined.
        correlation: means of its columns over examples.
        spearman: the same for rank correlations.
        medians: of ``r2``, ``slope`` and ``intercept`` over examples, one (num_designs,) array each; NaN where nothing
            is defined.
        num_undefined: of every metric, the values that are undefined, over all designs.
    """

    method: str
    num_masks: str
    correlations: NDArray[np.float64]
    correlation: Means
    spearman: Means
    medians: dict[str, NDArray[np.float64]]
    num_undefined: dict[str, int]

    @property
    def label(self) -> str:
        """Its name for people."""
        return label_of(self.method)


@dataclass(frozen=True)
class CurveSummary:
    """The budget curve of one method.

    Attributes:
        method: name of its attributions.
        curve: as stored.
        means: over the curve's examples, one column per number of masks.
        extrapolation: what it says about more masks.
    """

    method: str
    curve: BudgetCurve
    means: Means
    extrapolation: Extrapolation

    @property
    def label(self) -> str:
        """Its name for people."""
        return label_of(self.method)


@dataclass(frozen=True)
class Summary:
    """What the report shows.

    Attributes:
        held_out: the held-out designs by name, from the largest ablation fraction down.
        trained_at: the train design's ablation fraction.
        methods: every method of the run.
        ceilings: of linear models, by held-out design; None where none is estimated on its masks.
        curves: budget curves, where the run has any.
    """

    held_out: dict[str, MaskDesign]
    trained_at: float
    methods: list[MethodSummary]
    ceilings: dict[str, Ceiling | None]
    curves: list[CurveSummary]

    @property
    def fractions(self) -> list[float]:
        """Ablation fractions of the held-out designs."""
        return [design.ablation_fraction for design in self.held_out.values()]

    @property
    def trained_column(self) -> int | None:
        """The held-out design at the training fraction; None where there is none."""
        return self.fractions.index(self.trained_at) if self.trained_at in self.fractions else None

    @property
    def notes(self) -> list[str]:
        """What is to be said about intervals, ceilings and undefined values."""
        return [*_interval_notes(self), *_ceiling_notes(self), *_undefined(self)]


def mean_correlations(run: RunDirectory, methods: list[str]) -> dict[str, float]:
    """Means over examples, by ``correlation/<method>/<ablation fraction>``; those without a defined value are left out.

    Raises:
        MissingWorkError: a method has not been evaluated.
        DamagedFileError: a table is damaged.
    """
    found = {}
    for method in methods:
        for name, design in run.held_out.items():
            values = EvaluationTable(run, method, name).read()["correlation"]
            if np.isfinite(values).any():
                found[f"correlation/{method}/{design.ablation_fraction:g}"] = float(np.nanmean(values))
    return found


def summarise(run: RunDirectory) -> Summary:
    """Read a run's evaluation tables.

    Raises:
        MissingWorkError: the run has not been evaluated.
        DamagedFileError: a table is damaged.
    """
    held_out = run.held_out
    if not held_out:
        raise MissingWorkError(f"{run.storage} {NO_HELD_OUT}")
    methods = methods_of(run)
    fingerprints = KnownFingerprints(remembers=True)
    summaries = [_method(run, method, _metrics(run, method, list(held_out), fingerprints)) for method in methods]
    curves = [_curve(run, method, fingerprints) for method in filter(is_fitted, methods)]
    return Summary(
        held_out,
        run.design(TRAIN_DESIGN).ablation_fraction,
        summaries,
        {
            name: CeilingTable(run, name, fingerprints=fingerprints).read() if why_no_ceiling(design) is None else None
            for name, design in held_out.items()
        },
        [curve for curve in curves if curve is not None],
    )


def forecast_in_words(summary: CurveSummary, num_examples: int) -> str:
    """What the budget curve says about more masks; ``num_examples`` of the run."""
    curve, found = summary.curve, summary.extrapolation
    of = "" if len(curve.example_ids) == num_examples else f" on {len(curve.example_ids):,} sampled examples"
    text = f"{summary.label}, {counted(int(curve.num_masks[-1]), 'mask')}{of}: {number(found.measured[-1])}; "
    if found.twice is not None and found.num_examples < len(curve.example_ids):
        text += f"with the gain of the {found.num_examples:,} that have all points defined, "
    names = ("twice the masks about", "four times", "ever more")
    forecasts = zip(names, (found.twice, found.four_times, found.limit), strict=True)
    ahead = [f"{name} {number(forecast.value)} {half(forecast.half_width)}" for name, forecast in forecasts if forecast]
    return f"{text}{', '.join(ahead) or 'no forecast'}{f' ({found.why_not})' if found.why_not else ''}."


def _interval_notes(summary: Summary) -> list[str]:
    counts = np.concatenate([method.correlation.num_defined for method in summary.methods])
    if not ((counts > 0) & (counts < FEWEST_EXAMPLES)).any():
        return []
    return [f"No 95% intervals over fewer than {FEWEST_EXAMPLES} examples: they would cover too little."]


def _ceiling_notes(summary: Summary) -> list[str]:
    notes: dict[str, None] = {}
    for name, design in summary.held_out.items():
        found = summary.ceilings[name]
        if found is None:
            notes[f"No ceiling of linear models: {why_no_ceiling(design)}."] = None
        elif np.isfinite(found.lower) and np.isfinite(found.upper):
            notes[
                f"Ceiling at {design.ablation_fraction:g} by noise stability, {found.num_pairs:,} pairs: "
                f"{number(found.lower)} {half_95(found.lower_standard_error)} to "
                f"{number(found.upper)} {half_95(found.upper_standard_error)}."
            ] = None
    return list(notes)


def _undefined(summary: Summary) -> list[str]:
    """How many values are null, and why."""
    lines = []
    for method in summary.methods:
        counts = {name: count for name, count in method.num_undefined.items() if count}
        if counts:
            listed = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
            lines.append(
                f"{method.label}: undefined and not averaged, as outputs or predictions are constant: {listed}."
            )
    return lines


def _metrics(
    run: RunDirectory, method: str, held_out: list[str], fingerprints: KnownFingerprints
) -> dict[str, NDArray[np.float64]]:
    """For each name of ``METRICS`` (num_examples, num_designs)."""
    tables = [EvaluationTable(run, method, name, fingerprints).read() for name in held_out]
    return {name: np.stack([table[name] for table in tables], axis=1) for name in METRICS}


def _method(run: RunDirectory, method: str, metrics: dict[str, NDArray[np.float64]]) -> MethodSummary:
    return MethodSummary(
        method=method,
        num_masks=_num_masks(run, method),
        correlations=metrics["correlation"],
        correlation=means_of(metrics["correlation"]),
        spearman=means_of(metrics["spearman"]),
        medians={name: _medians(metrics[name]) for name in ("r2", "slope", "intercept")},
        num_undefined={name: int(np.isnan(values).sum()) for name, values in metrics.items()},
    )


def _medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.median(column) if column.size else np.nan for column in known])


def _num_masks(run: RunDirectory, name: str) -> str:
    """How many masks the attributions are of, or what takes their place."""
    method = method_of(name)
    assert method is not None
    match method.origin:
        case Origin.TRAIN:
            return f"{run.design(TRAIN_DESIGN).num_masks:,}"
        case Origin.GRADIENTS:
            return f"{run.design(GRADIENT_DESIGN).num_masks:,} + {run.design(TRAIN_DESIGN).num_masks:,}"
        case Origin.IMPORTED:
            return "imported"
        case Origin.ABLATION:
            return f"{run.design(name).num_masks:,}"
        case Origin.GRADIENT:
            return "1 gradient"
        case Origin.PATH:
            return f"{counted(run.baselines[name]['num_steps'], 'step')}"


def _curve(run: RunDirectory, method: str, fingerprints: KnownFingerprints) -> CurveSummary | None:
    design_name = run.held_out_as_trained()
    curve = None if design_name is None else BudgetCurveTable(run, method, design_name, fingerprints).read()
    if curve is None:
        return None
    return CurveSummary(
        method,
        curve,
        means_of(curve.correlations),
        extrapolate(curve.num_masks, curve.correlations, run.components.num_components),
    )
