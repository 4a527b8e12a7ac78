"""A short trial of the engine with an actor's resources: how long a forward pass takes. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from coar_dist.ablation.actor import Choice, EngineActor
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.work import ExpectedMasks


@dataclass(frozen=True)
class Trial(Choice):
    """What a trial finds out.

    Attributes:
        seconds_per_margin: seconds of one forward pass of one example, with the plan.
    """

    seconds_per_margin: float


class TrialActor(EngineActor):
    """Takes an ``AblationActor``'s place where there is no range to compute: it is only asked for a plan."""

    @override
    def choose(self, request: ExpectedMasks, num_actors: int, plan: EnginePlan | None) -> Trial:
        """Choose the engine plan as a run would, or take over ``plan``, and time it."""
        chosen = self._choose(request, num_actors, plan)
        seconds = chosen.seconds_per_margin
        return Trial(chosen.plan, self.log.drain(), seconds * self._engine.num_examples, chosen.gradient_cost, seconds)
