"""What a stage is: the options that it reads, what it checks beforehand, and what it does.

Importing a stage's declaration loads neither torch nor Ray nor matplotlib: what is heavy is imported where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

from coar_dist.config.schema import Config

if TYPE_CHECKING:  # who asks what a stage reads needs no run directory
    from coar_dist.stages.session import Session


OF_PASSES = (
    "task",
    "train",
    "run.previews",
    "ablation.masks_per_shard",
    "ablation.shard_seconds",
    "ablation.mode",
    "ablation.rows_per_forward",
    "ablation.compile",
    "ablation.cuda_graphs",
    "ablation.device_map",
    "cluster",
)
"""What a stage reads that runs passes of its own in a run that is there."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as in ``Config.stages``.
        reads: the options that it reads, as dotted keys; a key such as ``cluster`` stands for everything below it.
        run: does what is still to be done.
        check: raises for everything that can be known to be wrong before any stage runs. It writes nothing.
        reads_with: options that it reads only where another one is set, by that other one's key.
    """

    name: str
    reads: tuple[str, ...]
    run: Callable[[Session], None]
    check: Callable[[Session], None] | None = None
    reads_with: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def keys_read(self, config: Config) -> tuple[str, ...]:
        """The options that it reads in a run with this configuration."""
        optional = (keys for other, keys in self.reads_with.items() if reduce(getattr, other.split("."), config))
        return (*self.reads, *(key for keys in optional for key in keys))

    @property
    def all_keys(self) -> tuple[str, ...]:
        """The options that it reads in some run."""
        return (*self.reads, *(key for keys in self.reads_with.values() for key in keys))


def covers(keys: Iterable[str], key: str) -> bool:
    """Whether an option, or a part of the configuration, is among ``keys``, or holds one of them.

    Example:
        >>> covers(["cluster", "evaluation.curve_shares"], "cluster.address")
        True
        >>> covers(["cluster", "evaluation.curve_shares"], "evaluation")
        True
        >>> covers(["cluster", "evaluation.curve_shares"], "evaluation.seed")
        False
    """
    return any(f"{key}.".startswith(f"{read}.") or f"{read}.".startswith(f"{key}.") for read in keys)
