"""What an engine plan says and is compared by, and how the fastest one is chosen from what each takes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coar_dist.ablation.calibration import choose_plan, gradient_cost
from coar_dist.ablation.form import smallest_of_trials
from coar_dist.ablation.plan import EnginePlan, PlanPins

PLAN = EnginePlan("rows", 512, compiled=True)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (PLAN, "mode=rows, 512 rows per forward, compiled"),
        (EnginePlan("weights", 1, compiled=False, recorded=True), "mode=weights, 1 row per forward, eager, CUDA graph"),
        (
            replace(PLAN, gradient_rows=8, gradients_recorded=True),
            "mode=rows, 512 rows per forward, compiled; 8 rows per gradient pass, eager, CUDA graph",
        ),
        (
            replace(PLAN, compiled=False, gradient_rows=1, gradients_compiled=True),
            "mode=rows, 512 rows per forward, eager; 1 row per gradient pass, compiled",
        ),
    ],
)
def test_plans_in_words_and_as_json(plan: EnginePlan, text: str) -> None:
    assert str(plan) == text
    assert EnginePlan(**plan.to_json()) == plan


CHANGES: dict[str, Any] = {"mode": "weights", "rows_per_forward": 32, "compiled": False, "recorded": True}


@pytest.mark.parametrize("name", CHANGES)
def test_a_pin_allows_its_value_alone(name: str) -> None:
    other = replace(PLAN, **{name: CHANGES[name]})
    assert PlanPins().allow(PLAN)
    assert PlanPins(**{name: getattr(PLAN, name)}).allow(PLAN)
    assert not PlanPins(**{name: getattr(PLAN, name)}).allow(other)
    assert PLAN.has_form_of(other) == (name == "recorded")


class Timed:
    """An engine whose passes take what ``seconds`` and ``gradient_seconds`` say of their plans, per margin."""

    num_examples, device, components = 100, torch.device("cpu"), SimpleNamespace(groups=[0, 1])

    def __init__(
        self,
        seconds: Any,
        gradient_seconds: Any = None,
        rows: int = 10_000,
        num_ungated: int = 0,
        why_not: str | None = "no",
        num_layers: int = 9,
    ) -> None:
        self.num_layers = num_layers
        self.trial, self.gradient_trial = lambda: seconds(self.plan), lambda: gradient_seconds(self.plan)
        self.most_rows = self.most_gradient_rows = lambda: rows
        self.ungated, self.why_not_recorded = [0, 1][:num_ungated], why_not
        self.plan = EnginePlan("weights", 1, compiled=False)
        self.tried: list[EnginePlan] = []

    def use(self, plan: EnginePlan) -> None:
        self.plan = plan
        self.tried.append(plan)


def chosen(engine: Timed, pins: PlanPins = PlanPins(), num_masks: int = 1000, **options: int) -> EnginePlan:  # noqa: B008
    found = choose_plan(engine, pins, num_masks, **options)  # type: ignore[arg-type]
    assert engine.plan == found.plan
    cost = engine.gradient_trial() / engine.trial() if options.get("gradient_masks_per_actor") else None
    assert found.gradient_cost == (cost if cost is None else pytest.approx(cost))
    return found.plan


def by_rows(best: int, mode: str = "rows") -> Any:
    """Cheapest with ``best`` rows in one mode; the other mode takes twice as long."""
    return lambda plan: 1e-6 * (1 + abs(plan.rows_per_forward - best) / 100) * (1 + (plan.mode != mode))


@pytest.mark.parametrize(
    ("engine", "pins", "num_masks", "expected"),
    [
        (Timed(by_rows(512)), PlanPins(), 1000, ("rows", 512)),
        (Timed(by_rows(90, "weights")), PlanPins(), 1000, ("weights", 100)),  # no more rows than examples
        (Timed(by_rows(512)), PlanPins(mode="weights"), 1000, ("weights", 100)),
        (Timed(by_rows(512)), PlanPins(rows_per_forward=77), 1000, ("rows", 77)),
        (Timed(by_rows(512)), PlanPins(), 2, ("rows", 128)),  # 200 margins fill no more
        (Timed(by_rows(512), rows=200), PlanPins(), 1000, ("rows", 128)),
        (Timed(by_rows(512), rows=20), PlanPins(), 1000, ("rows", 20)),
        (Timed(by_rows(512), num_ungated=2), PlanPins(), 1000, ("weights", 100)),
        (Timed(by_rows(512), num_ungated=1), PlanPins(), 1000, ("rows", 512)),
        (Timed(by_rows(8192)), PlanPins(), 1000, ("rows", 8192)),
        (
            Timed(lambda plan: 4e-3 / (1 + plan.rows_per_forward / 1e4)),
            PlanPins(mode="rows"),
            1000,
            ("rows", 512),
        ),  # 2,048 would take 7 s
    ],
)
def test_the_fastest_plan_is_chosen(engine: Timed, pins: PlanPins, num_masks: int, expected: tuple[str, int]) -> None:
    found = chosen(engine, pins, num_masks)
    assert found == EnginePlan(*expected, compiled=False)


def test_passes_that_would_take_long_are_not_tried() -> None:
    engine = Timed(lambda plan: 0.05, lambda plan: 0.2)
    found = chosen(engine, PlanPins(compiled=False), gradient_masks_per_actor=10)
    assert (found.rows_per_forward, found.gradient_rows) == (32, 32)
    assert {plan.rows_per_forward for plan in engine.tried} == {32}
    assert {plan.gradient_rows for plan in engine.tried} == {None, 32}


@pytest.mark.parametrize(("seconds", "num_runs"), [(0.01, 4), (0.4, 4), (0.6, 3), (1.5, 2), (60.0, 2)])
def test_what_takes_long_is_tried_less(seconds: float, num_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on with every measurement; the first is to warm up, and the longest."""
    now, taken = [0.0], []

    def measure() -> float:
        taken.append(seconds if taken else 10 * seconds)
        now[0] += taken[-1]
        return taken[-1] + 0.1 * seconds * (len(taken) == 2)

    monkeypatch.setattr("coar_dist.ablation.form.time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert smallest_of_trials(measure) == pytest.approx(seconds if num_runs > 2 else 1.1 * seconds)
    assert len(taken) == num_runs


def test_more_rows_are_not_tried_once_they_cost_more() -> None:
    engine = Timed(lambda plan: 1e-6 * (1.2 if plan.rows_per_forward == 128 else 1.3) ** (plan.rows_per_forward > 32))
    chosen(engine, PlanPins(mode="rows"))
    assert {plan.rows_per_forward for plan in engine.tried} == {32, 128, 512}


@pytest.mark.parametrize(
    ("num_masks", "factor", "pin", "is_compiled"),
    [
        (23_000, 0.5, None, False),  # 230 s of work do not pay for it
        (25_000, 0.5, None, True),
        (25_000, 1.5, None, False),
        (10, 1.5, True, True),
        (25_000, 0.5, False, False),
    ],
)
def test_compiling_pays_after_a_while(num_masks: int, factor: float, pin: bool | None, is_compiled: bool) -> None:
    engine = Timed(lambda plan: 1e-4 * (factor if plan.compiled else 1.0))
    pins = PlanPins("rows", 32, compiled=pin)
    assert chosen(engine, pins, num_masks) == EnginePlan("rows", 32, compiled=is_compiled)
    engine = Timed(lambda plan: 1e-7, lambda plan: 1e-4 * (factor if plan.gradients_compiled else 1.0))
    assert chosen(engine, pins, 1, gradient_masks_per_actor=num_masks).gradients_compiled == is_compiled


@pytest.mark.parametrize(("num_masks", "is_compiled"), [(119_000, False), (121_000, True)])
def test_compiling_many_layers_pays_later(num_masks: int, is_compiled: bool) -> None:
    """300 layers take five times as long as 60."""

    def seconds(plan: EnginePlan) -> float:
        return 1e-4 * (0.5 if plan.compiled else 1.0)

    def gradient_seconds(plan: EnginePlan) -> float:
        return 1e-4 * (0.5 if plan.gradients_compiled else 1.0)

    pins = PlanPins("rows", 32)
    assert chosen(Timed(seconds, num_layers=300), pins, num_masks).compiled == is_compiled
    engine = Timed(lambda plan: 1e-9, gradient_seconds, num_layers=300)
    assert chosen(engine, pins, 1, gradient_masks_per_actor=num_masks).gradients_compiled == is_compiled


@pytest.mark.parametrize(
    ("why_not", "factor", "pin", "is_recorded"),
    [
        (None, 0.5, None, True),
        (None, 1.5, None, False),
        (None, 1.5, True, True),
        (None, 0.5, False, False),
        ("no", 0.5, None, False),
    ],
)
def test_passes_are_recorded_where_that_is_faster(
    why_not: str | None, factor: float, pin: bool | None, is_recorded: bool
) -> None:
    engine = Timed(
        lambda plan: 1e-6 * (factor if plan.recorded else 1.0),
        lambda plan: 1e-6 * (factor if plan.gradients_recorded else 1.0),
        why_not=why_not,
    )
    found = chosen(engine, PlanPins("rows", 32, compiled=False, recorded=pin), 10, gradient_masks_per_actor=10)
    assert (found.recorded, found.gradients_recorded) == (is_recorded, is_recorded)


def test_gradient_passes_have_rows_of_their_own() -> None:
    engine = Timed(by_rows(512), lambda plan: 3e-6 * (1 + abs((plan.gradient_rows or 0) - 32) / 10))
    found = chosen(engine, gradient_masks_per_actor=100)
    assert found == EnginePlan("rows", 512, compiled=False, gradient_rows=32)
    assert gradient_cost(engine) == pytest.approx(3.0)  # type: ignore[arg-type]
