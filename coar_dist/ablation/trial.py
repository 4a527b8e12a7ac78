"""A short trial of the engine with an actor's resources: what a forward pass takes, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from coar_dist.ablation.actor import Choice, EngineActor
from coar_dist.ablation.plan import EnginePlan


@dataclass(frozen=True)
class Trial(Choice):
    """What a trial finds out.

    Attributes:
        seconds_per_margin: of one forward pass of one example, with the plan.
    """

    seconds_per_margin: float


class TrialActor(EngineActor):
    """In the place of an ``AblationActor`` where there is no range to run: ``start`` is all that it is asked."""

    def start(self, masks_per_actor: int, gradient_masks_per_actor: int, plan: EnginePlan | None) -> Trial:
        """Choose the engine plan as a run would, or take over ``plan``, and time it."""
        chosen, cost = self._choose(masks_per_actor, gradient_masks_per_actor, plan)
        return Trial(chosen, cost, self._log.drain(), self._engine.trial())
