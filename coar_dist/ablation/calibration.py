"""The choice of an engine plan by a short trial: how many rows share a forward pass, in which mode, compiled or not."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan, PlanPins

_ROW_COUNTS = (32, 128, 512, 2048, 8192)
_WORSE = 1.25
"""A ladder of row counts is left where a step makes a margin so much dearer than the best one."""
_CLOSE = 1.5
"""Plans within this factor of the best are timed twice."""
_LONGEST_FORWARD_S = 3.0
COMPILE_PAYS_AFTER_S = 240.0
"""Compiling takes ten seconds to minutes per actor, and saves a third or so: tried where eager work is longer."""
_log = logging.getLogger(__name__)


def choose_plan(engine: AblationEngine, pins: PlanPins, masks_per_actor: int) -> EnginePlan:
    """Time short trials and leave the engine on the fastest plan.

    Args:
        engine: its plan is changed.
        pins: what is fixed.
        masks_per_actor: masks that one actor will compute: whether compiling pays depends on it.

    Returns:
        The plan; the log has the seconds per margin of every trial.

    Raises:
        ConfigError: mode ``rows`` is fixed and the model has no gated form.
    """
    modes = ["weights"] if engine.why_not_gated else ["weights", "rows"]
    if pins.mode is not None:
        modes = [pins.mode]
    elif engine.why_not_gated:
        _log.info("mode rows is not tried: %s", engine.why_not_gated)
    eager: dict[EnginePlan, float] = {}
    for mode in modes:
        eager.update(_ladder(engine, mode, pins, most_rows=max(masks_per_actor * engine.num_examples, _ROW_COUNTS[0])))
    close = [plan for plan in eager if eager[plan] < _CLOSE * min(eager.values())]
    for candidate in close if len(close) > 1 else []:
        engine.use(candidate)  # once more, in turns: a moment of other work on the machine must not decide
        eager[candidate] = min(eager[candidate], engine.trial())
    plan = min(eager, key=eager.__getitem__)
    work_s = eager[plan] * masks_per_actor * engine.num_examples
    if pins.compiled or (pins.compiled is None and work_s > COMPILE_PAYS_AFTER_S):
        compiled = {}
        for mode in modes:
            best = min((p for p in eager if p.mode == mode), key=eager.__getitem__)
            engine.use(replace(best, compiled=True))
            if engine.plan.compiled:
                compiled[engine.plan] = engine.trial()
                _log.info("trial %s: %.1f us per margin", engine.plan, compiled[engine.plan] * 1e6)
        if compiled and (pins.compiled or min(compiled.values()) < eager[plan]):
            plan = min(compiled, key=compiled.__getitem__)
    if engine.plan != plan:
        engine.use(plan)
    return engine.plan


def _ladder(engine: AblationEngine, mode: str, pins: PlanPins, most_rows: int) -> dict[EnginePlan, float]:
    times: dict[EnginePlan, float] = {}
    for count in [pins.rows_per_forward] if pins.rows_per_forward else _ROW_COUNTS:
        rows = min(count, engine.num_examples) if mode == "weights" else count
        if rows > most_rows and pins.rows_per_forward is None:
            break
        plan = EnginePlan(mode, rows, compiled=False)
        if plan in times:
            break
        try:
            engine.use(plan)
            times[plan] = engine.trial()
        except torch.OutOfMemoryError:
            if not times:
                raise
            break
        _log.info("trial %s: %.1f us per margin", plan, times[plan] * 1e6)
        if times[plan] > _WORSE * min(times.values()) or times[plan] * rows > _LONGEST_FORWARD_S:
            break
    return times
