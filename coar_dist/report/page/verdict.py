"""The result of a run in one sentence, and whether it is good."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coar_dist.errors import counted
from coar_dist.report.numbers import Z95, number
from coar_dist.report.summary import MethodSummary, Summary
from coar_dist.store.ceilings import Ceiling, why_no_ceiling
from coar_dist.store.run_directory import RunDirectory

AS_GOOD, GOOD, FAIR = 0.95, 0.85, 0.6
"""Shares of the ceiling: from these on as good as any linear model, good, fair; below, weak."""
_LOW_CEILING = 0.8


@dataclass(frozen=True)
class Verdict:
    """What a reader should think of the run.

    Attributes:
        sentence: the result.
        judgement: whether that is good, and what to do about it.
        grade: ``good``, ``fair``, ``weak`` or ``unknown``.
    """

    sentence: str
    judgement: str
    grade: str


def verdict_of(run: RunDirectory, summary: Summary, unablated: str) -> Verdict:
    """The verdict on the first method, at the training fraction where that was held out.

    The judgement is relative to the ceiling of linear models: a share of .95 of it is within what is not known of the
    ceiling itself in most runs, and below .6 the weights explain less than .36 of what a linear model could.

    Args:
        run: evaluated.
        summary: of the run.
        unablated: what ends the judgement, of the model as it is.
    """
    column = summary.trained_column or 0
    method, ceiling = summary.methods[0], list(summary.ceilings.values())[column]
    mean = float(method.correlation.mean[column])
    components = counted(run.components.num_components, "component")
    of = f"that ablate {100 * summary.fractions[column]:.3g}% of the {components}"
    if not np.isfinite(mean):
        return Verdict(
            f"How well {method.label} predicts new ablations is undefined.",
            f"No example's output, or no prediction of one, changes under held-out masks {of}: there is nothing that "
            f"weights could explain. Ablate more components at once (design.ablation_fraction).",
            "unknown",
        )
    at_most = ""
    if ceiling is not None and np.isfinite(ceiling.mean):
        judgement, grade = _against(mean, ceiling)
        if grade != "unknown":
            at_most = f" of at most {_short(max(ceiling.mean, mean))}"  # the method is a linear model, too
    else:
        name = list(summary.held_out)[column]
        why = why_no_ceiling(summary.held_out[name]) or "it is undefined on these masks"
        judgement = (
            f"Whether more masks would help is not known, as there is no ceiling of linear models: {why}. The "
            f"predictions explain {_percent(max(mean, 0.0) ** 2)} of what the masks change."
        )
        grade = "unknown"
    judgement += f" Mean over {counted(int(method.correlation.num_defined[column]), 'example')}, on masks {of}."
    sentence = f"{method.label} predicts new ablations with correlation {_short(mean)}{at_most}."
    better = _better(summary, method, column)
    return Verdict(sentence, f"{judgement}{better} {unablated}", grade)


def _against(mean: float, ceiling: Ceiling) -> tuple[str, str]:
    half = Z95 * np.nan_to_num(ceiling.standard_error)
    low, high = (float(max(min(ceiling.mean + sign * half, 1.0), mean)) for sign in (-1.0, 1.0))
    if _step(mean, low) - _step(mean, high) > 1:
        explained = _percent(max(mean, 0.0) ** 2)
        return (
            f"Whether that is good is not known: by {ceiling.num_masks} held-out masks a linear model reaches between "
            f"{_short(low)} and {_short(high)} at best, and more of them tell it better (evaluation.num_masks). The "
            f"predictions explain {explained} of what the masks change.",
            "unknown",
        )
    share = _share(mean, ceiling.mean)
    if share >= AS_GOOD:
        text, grade = "That is as good as a linear model of these components gets: more masks would add little.", "good"
    elif share >= GOOD:
        text, grade = "That is good: weights and their order can be trusted, and more masks would add some.", "good"
    elif share >= FAIR:
        text, grade = (
            "That is fair: trust the strongest components, and not the order of weak ones; use more masks.",
            "fair",
        )
    else:
        text, grade = "That is weak: single weights are mostly noise. Use more masks, or passes with gradients.", "weak"
    most = max(ceiling.mean, mean)
    if most < _LOW_CEILING:
        text += (
            f" No linear model explains more than {_percent(most**2)} of what ablations do here: components "
            f"interact, and a weight is a mean over what else is ablated."
        )
    return text, grade


def _share(mean: float, ceiling: float) -> float:
    """Of a ceiling, which is at least what was reached, that was reached."""
    return max(mean, 0.0) / max(ceiling, mean, 1e-9)


def _step(mean: float, ceiling: float) -> int:
    """How good a correlation would be if this were the ceiling: from 0, weak, to 3, as good as any linear model."""
    return sum(_share(mean, ceiling) >= least for least in (FAIR, GOOD, AS_GOOD))


def _better(summary: Summary, shown: MethodSummary, column: int) -> str:
    """Whether another method predicts clearly better than the one that is shown."""
    best = max(summary.methods, key=lambda method: np.nan_to_num(method.correlation.mean[column], nan=-1.0))
    low = best.correlation.low[column]
    if best is shown or not low > np.nan_to_num(shown.correlation.high[column], nan=1.0):
        return ""
    return f" {best.label} predicts them better: {_short(float(best.correlation.mean[column]))}."


def _short(value: float) -> str:
    """Two decimals; three where two would say 1."""
    text = f"{value:.2f}" if abs(value) < 0.995 else number(value)
    return text.replace("0.", ".", 1)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
