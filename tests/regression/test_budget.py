from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coar_dist.regression import budget as budget_module
from coar_dist.regression.budget import Passes, spend
from coar_dist.regression.gate_sources import SourceStatistics
from coar_dist.regression.planning import PriorDecision

COMPONENTS, ALPHA, PILOT, COST = 200, 0.05, (40, 100), 2.5


def pilot(
    misfit: float, informative: bool = True, noise: float = 0.3, per_pass: float = 0.02, alpha: float = ALPHA
) -> PriorDecision:
    """What a pilot finds in a world where everything is as the formulas say."""
    counts = np.array([np.full(COMPONENTS, 38.0), np.full(COMPONENTS, 2.0)])
    freedom = 10 * (40 - 2)
    nothing = np.zeros((2, 2))
    statistics = SourceStatistics(
        nothing,
        np.zeros(2),
        np.zeros((2, 2, COMPONENTS)),
        np.full(COMPONENTS, per_pass * freedom * 7.0),
        counts,
        70.0,
        10,
        np.ones(COMPONENTS, np.bool_),
    )
    coefficients = np.array([0.6, 0.4])
    sampling = per_pass / 40 * (0.36 / (1 - alpha) + 0.16 / alpha)
    prior = sampling + misfit if informative else 0.01
    a = alpha * (1 - alpha)
    error = noise + a * COMPONENTS / (1 / prior + a * sum(PILOT) / noise)
    return PriorDecision(
        statistics,
        coefficients,
        np.ones(COMPONENTS),
        noise / prior,
        error,
        informative,
        has_variances=True,
        is_at_end=False,
    )


def test_the_pilot_s_error_is_taken_apart() -> None:
    """With no money left the expected error is the pilot's own, but for the gate's ends counting alike by then."""
    fit = pilot(misfit=0.001)
    passes = spend(fit, PILOT, ALPHA, 20, COST, budget=200.0)
    assert (passes.with_gradients, passes.without) == PILOT
    assert passes.error == pytest.approx(fit.error, rel=0.03)


def test_more_misfit_asks_for_more_masks_without_gradients() -> None:
    plans = [spend(pilot(misfit), PILOT, ALPHA, 20, COST, budget=3000.0) for misfit in (0.0, 0.002, 0.02)]
    with_gradients = [plan.with_gradients for plan in plans]
    assert with_gradients[0] > with_gradients[1] > with_gradients[2]
    assert with_gradients[0] > 1000
    for plan in plans:
        assert plan.with_gradients % 20 == 0
        assert 2900 < COST * plan.with_gradients + plan.without <= 3000
    richer = spend(pilot(0.002), PILOT, ALPHA, 20, COST, budget=6000.0)
    assert 0.3 < richer.error < plans[1].error < pilot(0.002).error


def test_the_best_of_all_splits_is_found() -> None:
    fit, budget = pilot(0.004), 2000.0
    found = spend(fit, PILOT, ALPHA, 20, COST, budget)
    a, noise = ALPHA * (1 - ALPHA), 0.3
    errors = {}
    for masks in range(40, 761, 20):
        prior = 0.02 / masks * (0.25 / 0.95 + 0.25 / 0.05) + 0.004
        others = int(budget - COST * masks)
        errors[masks] = noise + a * COMPONENTS / (1 / prior + a * (masks + others) / noise)
    assert found.with_gradients == min(errors, key=errors.__getitem__)
    assert found.error == pytest.approx(min(errors.values()), rel=1e-3)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 0.7])
@pytest.mark.parametrize("budget", [200.0, 500.0, 2000.0])
def test_the_expected_error_is_that_of_the_formula(alpha: float, budget: float) -> None:
    found = spend(pilot(0.004, alpha=alpha), PILOT, alpha, 20, COST, budget)
    prior = 0.02 / found.with_gradients * (0.25 / (1 - alpha) + 0.25 / alpha) + 0.004
    a, masks = alpha * (1 - alpha), found.with_gradients + found.without
    assert found.error == pytest.approx(0.3 + a * COMPONENTS / (1 / prior + a * masks / 0.3), rel=1e-9)
    assert found.without == int(budget - COST * found.with_gradients)


@pytest.mark.parametrize(("budget", "step"), [(2e4, 20), (49_000.0, 20), (52_600.0, 20), (1.1e5, 40), (1e6, 380)])
def test_a_large_budget_is_tried_in_about_a_thousand_steps(
    budget: float, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousandth of what the budget can pay is 8, 19.5, 21, 44 or 400 masks; rounds have 20."""
    tried: list[int] = []

    def noted(masks: int, others: int, error: float) -> Passes:
        tried.append(masks)
        return Passes(masks, others, error)

    monkeypatch.setattr(budget_module, "Passes", noted)
    spend(pilot(0.004), PILOT, ALPHA, 20, COST, budget)
    most = int((budget - 100) / COST)
    assert tried == list(range(40, most + 1, step))


@pytest.mark.parametrize(("masks", "noise"), [((40, 100), 140 / 340), ((10, 20), 30 / 230), ((5, 10), 0.1)])
def test_noise_is_what_the_errors_of_the_weights_leave(masks: tuple[int, int], noise: float) -> None:
    """The pilot's error is 1. With almost no penalty the weights have variance noise / masks each, or each of 200
    components adds 1 / masks of the noise: more than the noise itself where the masks are fewer. A tenth is the least.
    """
    fit = pilot(0.0, informative=False)
    fit = replace(fit, error=1.0, penalty=1e-9)
    found = spend(fit, masks, ALPHA, 5, COST, budget=1000.0)
    others = masks[0] + int(1000 - COST * masks[0])
    assert found.error == pytest.approx(noise * (1 + COMPONENTS / others), rel=1e-6)


def test_where_gradients_say_nothing_the_rest_goes_without() -> None:
    passes = spend(pilot(0.0, informative=False), PILOT, ALPHA, 20, COST, budget=1000.0)
    assert (passes.with_gradients, passes.without) == (40, 900)
    a = ALPHA * (1 - ALPHA)
    assert passes.error == pytest.approx(0.3 + a * COMPONENTS / (1 / 0.01 + a * 940 / 0.3), rel=1e-6)
