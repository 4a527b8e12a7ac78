"""How the forward passes of a run are run, and what the user fixed of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class EnginePlan:
    """How the forward passes are run; chosen once per run, so that results do not depend on who computes them.

    Attributes:
        mode: ``weights`` or ``rows``.
        rows_per_forward: rows of one forward pass at most.
        compiled: whether the model is compiled.
        gradient_rows: rows of one gradient pass at most; None where none was planned.
        gradients_compiled: whether gradient passes are compiled.
        recorded: whether forward passes are CUDA graphs.
        gradients_recorded: whether gradient passes are CUDA graphs.
    """

    mode: str
    rows_per_forward: int
    compiled: bool
    gradient_rows: int | None = None
    gradients_compiled: bool = False
    recorded: bool = False
    gradients_recorded: bool = False

    def __str__(self) -> str:
        text = f"mode={self.mode}, {self.rows_per_forward} rows per forward, {_how(self.compiled, self.recorded)}"
        if self.gradient_rows is None:
            return text
        how = _how(self.gradients_compiled, self.gradients_recorded)
        return f"{text}; {self.gradient_rows} rows per gradient pass, {how}"

    def margins_as(self, other: EnginePlan) -> bool:
        """Whether margins are computed as by ``other``, whatever gradient passes do."""
        return self._without_gradients() == other._without_gradients()

    def _without_gradients(self) -> EnginePlan:
        return replace(self, gradient_rows=None, gradients_compiled=False, gradients_recorded=False)

    def to_json(self) -> dict[str, Any]:
        """As in ``run.json``."""
        return asdict(self)


def _how(compiled: bool, recorded: bool) -> str:
    return ("compiled" if compiled else "eager") + (", CUDA graph" if recorded else "")


@dataclass(frozen=True)
class PlanPins:
    """What the user fixed of the plan; None is chosen by trial."""

    mode: str | None = None
    rows_per_forward: int | None = None
    compiled: bool | None = None
    recorded: bool | None = None

    def allow(self, plan: EnginePlan) -> bool:
        """Whether ``plan`` has everything that is fixed."""
        return (
            self.mode in (None, plan.mode)
            and self.rows_per_forward in (None, plan.rows_per_forward)
            and self.compiled in (None, plan.compiled)
            and self.recorded in (None, plan.recorded)
        )
