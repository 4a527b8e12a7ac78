"""The choice of an engine plan by a short trial: how many rows share a forward pass, in which mode, compiled or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.components.gate_hooks import GateError

_ROW_COUNTS = (32, 128, 512, 2048, 8192)
_WORSE = 1.25
"""More rows are not tried once a step makes a margin this many times as costly as the best one."""
_CLOSE = 1.5
"""Plans within this factor of the best are timed once more."""
_MOST_COMPILED = 2
"""Row counts at which gradient passes are compiled: the best one when eager may not be the best when compiled."""
_LONGEST_FORWARD_S = 3.0
"""More rows are not tried where a pass would take longer than this."""
_COMPILE_PAYS_AFTER_S = {"cpu": 240.0, "cuda": 60.0}
"""Compiling a model of ``_FEW_LAYERS`` takes ten seconds (an H200's host) to a minute per actor, and saves a third
(CPU) to a half. It is tried where eager work takes longer than this, and as many times longer as there are more layers:
the 30 blocks of a language model of 135M parameters take minutes on a CPU."""
_COMPILED_GRADIENTS_PAY_AFTER_S = 240.0
"""The same for gradient passes: compiling one takes a minute for a ResNet-50."""
_FEW_LAYERS = 60
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenPlan:
    """The fastest plan, and what its trials took.

    Attributes:
        plan: how to run.
        seconds_per_margin: of passes without gradients.
        gradient_cost: what a gradient pass costs with it, in passes without gradients; None where there are none.
    """

    plan: EnginePlan
    seconds_per_margin: float
    gradient_cost: float | None


def choose_plan(
    engine: AblationEngine, pins: PlanPins, masks_per_actor: int, *, gradient_masks_per_actor: int = 0
) -> ChosenPlan:
    """Time short trials and leave the engine on the fastest plan.

    Args:
        engine: its plan is changed.
        pins: what is fixed.
        masks_per_actor: masks that one actor will compute: whether compiling pays depends on it.
        gradient_masks_per_actor: the same for gradient passes; 0 leaves them out of the plan.

    Returns:
        The plan; the log has the seconds per margin of every trial.

    Raises:
        ConfigError: mode ``rows`` is fixed, or there are gradient passes, and the model has no gated form.
    """
    most_rows = engine.most_rows()
    _log.info("at most %d rows of a forward pass fit in the memory that is free", most_rows)
    seconds = _choose_margins(engine, pins, masks_per_actor, most_rows)
    if gradient_masks_per_actor <= 0:
        return ChosenPlan(engine.plan, seconds, None)
    most_rows = engine.most_gradient_rows()
    _log.info("at most %d rows of a gradient pass fit in the memory that is free", most_rows)
    gradient_seconds = _choose_gradients(engine, pins, gradient_masks_per_actor, most_rows)
    return ChosenPlan(engine.plan, seconds, gradient_seconds / seconds)


def gradient_cost(engine: AblationEngine) -> float:
    """What a gradient pass costs with the engine's plan, in passes without gradients."""
    return engine.gradient_trial() / engine.trial()


def _choose_margins(engine: AblationEngine, pins: PlanPins, masks_per_actor: int, most_rows: int) -> float:
    """Leave the engine on the fastest plan, and give its seconds per margin."""
    modes = ["weights", "rows"] if len(engine.ungated) < len(engine.components.groups) else ["weights"]
    if pins.mode is not None:
        modes = [pins.mode]
    eager: dict[EnginePlan, float] = {}
    for mode in modes:
        counts = _row_counts(pins, masks_per_actor * engine.num_examples, most_rows)
        rows = [min(count, engine.num_examples) for count in counts] if mode == "weights" else counts
        plans = {EnginePlan(mode, count, compiled=False): count for count in rows}
        eager.update(_ladder(engine, plans, engine.trial))
    plan = _best_of_close(engine, eager, engine.trial)[0]
    work_s = eager[plan] * masks_per_actor * engine.num_examples
    modes = [mode for mode in modes if any(p.mode == mode for p in eager)]
    best_of_modes = [min((p for p in eager if p.mode == mode), key=eager.__getitem__) for mode in modes]
    times = {best: eager[best] for best in best_of_modes}
    recorded: dict[EnginePlan, float] = {}
    for best in best_of_modes:
        _try_recorded(engine, best, pins, recorded)
    pays_after_s = _COMPILE_PAYS_AFTER_S["cuda" if engine.device.type == "cuda" else "cpu"] * _size(engine)
    if pins.compiled or (pins.compiled is None and work_s > pays_after_s):
        compiled: dict[EnginePlan, float] = {}
        for best in best_of_modes:
            engine.use(replace(best, compiled=True))
            if engine.plan.compiled:
                compiled[engine.plan] = _logged(engine, engine.trial)
                _try_recorded(engine, engine.plan, pins, recorded)
        if compiled and pins.compiled:
            times, recorded = {}, {p: seconds for p, seconds in recorded.items() if p.compiled}
        times.update(compiled)
    times = recorded if pins.recorded and recorded else {**times, **recorded}
    fastest = min(times, key=times.__getitem__)
    engine.use(fastest)
    return times[fastest]


def _try_recorded(engine: AblationEngine, plan: EnginePlan, pins: PlanPins, times: dict[EnginePlan, float]) -> None:
    """Add the seconds per margin of ``plan`` as a CUDA graph, where that is allowed and possible."""
    if pins.recorded is False or (engine.why_not_recorded is not None and not pins.recorded):
        return
    engine.use(replace(plan, recorded=True))
    if engine.plan.recorded and engine.plan.rows_per_forward == plan.rows_per_forward:
        times[engine.plan] = _logged(engine, engine.trial)


def _choose_gradients(engine: AblationEngine, pins: PlanPins, masks_per_actor: int, most_rows: int) -> float:
    """The same for gradient passes, per margin."""
    counts = _row_counts(pins, masks_per_actor * engine.num_examples, most_rows)
    trial = engine.gradient_trial
    times = _ladder(engine, {replace(engine.plan, gradient_rows=count): count for count in counts}, trial)
    fastest = _best_of_close(engine, times, trial)
    work_s = times[fastest[0]] * masks_per_actor * engine.num_examples
    if pins.compiled or (pins.compiled is None and work_s > _COMPILED_GRADIENTS_PAY_AFTER_S * _size(engine)):
        compiled: dict[EnginePlan, float] = {}
        for plan in fastest[:_MOST_COMPILED]:
            engine.use(replace(plan, gradients_compiled=True))
            seconds = _logged(engine, trial)
            if not engine.plan.gradients_compiled:
                break
            compiled[engine.plan] = seconds
        times = compiled if pins.compiled and compiled else {**times, **compiled}
        fastest = _best_of_close(engine, times, trial)  # what is compiled stays so: the turns cost trials alone
    engine.use(fastest[0])
    if pins.recorded is False or (engine.why_not_recorded is not None and not pins.recorded):
        return times[fastest[0]]
    engine.use(replace(fastest[0], gradients_recorded=True))
    seconds = _logged(engine, trial)
    if engine.plan.gradient_rows == fastest[0].gradient_rows and (pins.recorded or seconds < times[fastest[0]]):
        return seconds
    engine.use(fastest[0])
    return times[fastest[0]]


def _size(engine: AblationEngine) -> float:
    """How many times as long the model takes to compile as one of few layers."""
    return max(engine.num_layers / _FEW_LAYERS, 1.0)


def _logged(engine: AblationEngine, trial: Callable[[], float]) -> float:
    """Seconds per margin with the engine's plan, as the log has them too."""
    seconds = trial()
    _log.info("trial %s: %.1f us per margin", engine.plan, seconds * 1e6)
    return seconds


def _best_of_close(
    engine: AblationEngine, times: dict[EnginePlan, float], trial: Callable[[], float]
) -> list[EnginePlan]:
    """The fastest plans, best first; they are timed once more, in turns: a moment of other work must not decide."""
    close = [plan for plan in times if times[plan] < _CLOSE * min(times.values())]
    for plan in close if len(close) > 1 else []:
        engine.use(plan)
        times[plan] = min(times[plan], trial())
    return sorted(close, key=times.__getitem__)


def _row_counts(pins: PlanPins, num_margins: int, most_rows: int) -> list[int]:
    """Rows to try: none that the margins to compute would not fill, nor that do not fit in the memory."""
    if pins.rows_per_forward is not None:
        return [pins.rows_per_forward]
    counts = [count for count in _ROW_COUNTS if count <= max(num_margins, _ROW_COUNTS[0]) and count <= most_rows]
    return counts or [max(most_rows, 1)]


def _ladder(
    engine: AblationEngine, plans: dict[EnginePlan, int], trial: Callable[[], float]
) -> dict[EnginePlan, float]:
    """Seconds per margin of plans with more and more rows (their values), as far as more rows may be better."""
    times: dict[EnginePlan, float] = {}
    for plan, num_rows in plans.items():
        if times and min(times.values()) * num_rows > _LONGEST_FORWARD_S:
            break
        try:
            engine.use(plan)
            seconds = _logged(engine, trial)
        except torch.OutOfMemoryError:
            if not times:
                raise
            break
        except GateError as error:  # these rows are not those that the probe saw
            _log.info("%s is not tried: %s", plan, error)
            break
        times[engine.plan] = seconds
        if (
            engine.plan != plan  # memory ran out
            or seconds > _WORSE * min(times.values())
        ):
            break
    return times
