"""How the forward passes of a run are run, and what the user fixed of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from coar_dist.config.schema.values import Count, one_of
from coar_dist.errors import counted


@dataclass(frozen=True)
class EnginePlan:
    """How the forward passes are run. It is chosen once per run: results do not depend on which actor computes them.

    Attributes:
        mode: ``weights`` or ``rows``.
        rows_per_forward: rows of one forward pass at most.
        compiled: whether the model is compiled.
        gradient_rows: rows of one gradient pass at most; None where none was planned.
        gradients_compiled: whether gradient passes are compiled.
        recorded: whether forward passes are CUDA graphs.
        gradients_recorded: whether gradient passes are CUDA graphs.
    """

    mode: Annotated[str, one_of("weights", "rows")]
    rows_per_forward: Count
    compiled: bool
    gradient_rows: Count | None = None
    gradients_compiled: bool = False
    recorded: bool = False
    gradients_recorded: bool = False

    def __str__(self) -> str:
        rows = counted(self.rows_per_forward, "row")
        text = f"mode={self.mode}, {rows} per forward, {_how(self.compiled, self.recorded)}"
        if self.gradient_rows is None:
            return text
        how = _how(self.gradients_compiled, self.gradients_recorded)
        return f"{text}; {counted(self.gradient_rows, 'row')} per gradient pass, {how}"

    def has_form_of(self, other: EnginePlan) -> bool:
        """Whether the model is prepared as for ``other``, whatever is recorded and whatever gradient passes do."""
        return (self.mode, self.rows_per_forward, self.compiled) == (other.mode, other.rows_per_forward, other.compiled)

    def to_json(self) -> dict[str, Any]:
        """The plan as ``run.json`` and the metadata of shards hold it."""
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
