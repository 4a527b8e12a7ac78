"""Scores of rankings, held to scikit-learn and to a literal reading of the MIB benchmark."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from coar_dist.config.schema import MIB_SIZES
from coar_dist.evaluation.circuit import Circuits, Weights, scored
from coar_dist.evaluation.circuit_scores import (
    Ends,
    auroc,
    average_precision,
    cmd,
    cpr,
    faithfulness,
    num_kept,
    strongest_first,
)
from coar_dist.evaluation.necessary import masks_of_pairs, necessary
from coar_dist.store.circuits import MAGNITUDE, SIGNED

RANDOM = np.random.default_rng(0)


def test_known_components_are_scored_as_by_scikit_learn() -> None:
    is_known = RANDOM.random(40) < 0.2
    scores = np.abs(RANDOM.normal(size=(7, 40)).round(1)) + is_known * 0.5  # with ties
    assert len(np.unique(scores[0])) < 40
    np.testing.assert_allclose(auroc(scores, is_known), [roc_auc_score(is_known, row) for row in scores])
    wanted = [average_precision_score(is_known, row) for row in scores]
    np.testing.assert_allclose(average_precision(scores, is_known), wanted)
    assert auroc(np.array([is_known * 1.0]), is_known) == 1.0
    assert auroc(np.zeros((1, 40)), is_known) == 0.5
    for wrong in (np.full((1, 40), np.nan), np.full((1, 40), np.inf)):
        with pytest.raises(AssertionError):
            auroc(wrong, is_known)


def literal_mib(weights: np.ndarray, full: float, none: float, additive: np.ndarray) -> tuple[float, float]:
    """The benchmark's loop over percentages, for a model whose output is a sum over kept components."""
    areas = []
    for absolute in (False, True):
        values = []
        for share in MIB_SIZES:
            num = int(share * len(weights))
            key = np.abs(weights) if absolute else weights
            kept = sorted(range(len(weights)), key=lambda i: -key[i])[:num]
            values.append((none + additive[kept].sum() - none) / (full - none))
        under = from_one = 0.0
        for i in range(len(MIB_SIZES) - 1):
            width = MIB_SIZES[i + 1] - MIB_SIZES[i]
            from_one += width * (abs(1 - values[i]) + abs(1 - values[i + 1])) / 2
            under += width * (values[i] + values[i + 1]) / 2
        areas.append(from_one if absolute else under)
    return areas[0], areas[1]


def test_areas_are_those_of_the_benchmark() -> None:
    d = 300
    additive, weights = RANDOM.normal(size=d), RANDOM.normal(size=d)
    none, full = 1.7, 1.7 + additive.sum()
    found = {("mine", 0): Weights(weights, np.abs(weights), {})}
    circuits = Circuits.of(found, list(MIB_SIZES))
    outputs = {name: none + design.masks(0, design.num_masks) @ additive for name, design in circuits.designs.items()}
    scores = scored(circuits, found, outputs, Ends(full, none), None)
    wanted = literal_mib(weights, full, none, additive)
    assert scores.scores["mine"]["cpr"] == pytest.approx(wanted[0])
    assert scores.scores["mine"]["cmd"] == pytest.approx(wanted[1])
    assert scores.num_components.tolist() == [int(share * d) for share in MIB_SIZES]
    assert math.isnan(scores.scores["mine"]["auroc"])
    # Ranked by the truth itself, a signed circuit has every positive term and CPR is at its largest.
    perfect = {("mine", 0): Weights(additive, np.abs(additive), {})}
    circuits = Circuits.of(perfect, list(MIB_SIZES))
    outputs = {name: none + design.masks(0, design.num_masks) @ additive for name, design in circuits.designs.items()}
    best = scored(circuits, perfect, outputs, Ends(full, none), None)
    curve = best.outputs["mine", SIGNED]
    assert curve[-2] == pytest.approx(none + np.sort(additive)[::-1][: d // 2].sum())
    assert best.faithfulness["mine", SIGNED][-1] == 1.0
    assert not np.array_equal(curve, best.outputs["mine", MAGNITUDE])


def test_what_lowers_an_output_comes_first_where_the_whole_model_lowers_it() -> None:
    """As of a loss: the same circuits as of its negative."""
    weights = RANDOM.normal(size=20)
    found = {("mine", 0): Weights(weights, np.abs(weights), {})}
    negative = {("mine", 0): Weights(-weights, np.abs(weights), {})}
    of_loss, of_negative = Circuits.of(found, [0.2, 0.5], rises=False), Circuits.of(negative, [0.2, 0.5])
    assert of_loss.of_ranking == of_negative.of_ranking
    assert of_loss.of_ranking != Circuits.of(found, [0.2, 0.5]).of_ranking


def test_sizes_are_rounded_down_without_losing_one() -> None:
    assert num_kept(np.array(MIB_SIZES), 16).tolist() == [0, 0, 0, 0, 0, 0, 1, 3, 8, 16]
    assert num_kept(np.array([0.29]), 100).tolist() == [29]  # .29 * 100 is 28.999999999999996
    assert strongest_first(np.zeros(4), by_magnitude=True).tolist() == [0, 1, 2, 3]


def test_nothing_to_be_faithful_to_is_no_number() -> None:
    assert Ends(1.0, 1.0 + 1e-8).why_undefined is not None
    assert Ends(0.0, 0.0).why_undefined is not None
    assert Ends(1.0, 0.99).why_undefined is None
    sizes = np.array([0.1, 1.0])
    undefined = faithfulness(np.array([1.0, 1.0]), Ends(1.0, 1.0))
    assert np.isnan([*undefined, cpr(sizes, undefined), cmd(sizes, undefined)]).all()
    for outputs, full, none in (([np.nan], 1.0, 0.0), ([0.0], np.nan, 0.0), ([0.0], 1.0, np.inf)):
        with pytest.raises(AssertionError):
            faithfulness(np.array(outputs), Ends(full, none))


@pytest.mark.parametrize("offset", [0.0, -30.0, 1000.0])
def test_a_difference_that_is_noise_is_no_denominator(offset: float) -> None:
    """Over examples, or beside what masks of some components do; whatever is added to the outputs."""
    random = np.random.default_rng(1)
    effects = random.normal(size=400)
    base = random.normal(size=400)
    steady = random.normal(size=50) * 0.1

    def ends(effect: float, over_masks: np.ndarray = steady, num: int = 400) -> Ends:
        full = base[:num] + offset
        return Ends.of(np.stack([full + effects[:num] - effects[:num].mean() + effect, full]), over_masks + offset)

    assert ends(1.0).error == pytest.approx(effects.std(ddof=1) / 20)
    assert ends(1.0).spread == pytest.approx(steady.std())
    assert ends(0.15).why_undefined is None
    assert ends(-0.15).why_undefined is None
    assert "standard error of this difference is 0.0" in str(ends(0.05).why_undefined)
    assert "standard error" in str(ends(-0.05).why_undefined)
    assert "(standard deviation 0.92)" in str(ends(0.15, steady * 10).why_undefined)
    assert ends(0.15, np.empty(0)).why_undefined is None  # a run of gradients alone
    alone = ends(0.15, num=1)
    assert math.isnan(alone.error)
    assert alone.why_undefined is None
    assert np.isnan(faithfulness(np.array([offset]), ends(0.05))).all()


def test_outputs_between_both_ends_are_never_too_far_apart() -> None:
    random = np.random.default_rng(2)
    for _ in range(50):
        between = random.beta(0.2, 0.2, size=20)
        assert Ends.of(np.array([[1.0], [0.0]]), between).why_undefined is None


def outputs_under_pairs(model: object, d: int) -> np.ndarray:
    return np.array([model(*mask) for mask in masks_of_pairs(d).astype(float)])  # type: ignore[operator]


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (lambda a, b, c, _: a * b + 0.01 * c, [True, True, False, False]),  # both are needed
        (lambda a, b, _, __: max(a, b), [True, True, False, False]),  # either will do
        (lambda a, b, c, _: a + (1 - a) * 0.8 * b + 0.01 * c, [True, True, False, False]),  # a backup
        (lambda a, b, c, d: (a + b + c + d) / 4, [True, True, True, True]),
        (lambda a, b, c, d: 0.91 * a + 0.03 * (b + c + d), [True, False, False, False]),
    ],
)
def test_necessary_components_break_the_output_alone_or_in_pairs(model: object, wanted: list[bool]) -> None:
    outputs = outputs_under_pairs(model, 4)
    assert necessary(outputs, full=1.0, none=0.0, threshold=0.25).tolist() == wanted
    assert necessary(7 - outputs, full=6.0, none=7.0, threshold=0.25).tolist() == wanted
