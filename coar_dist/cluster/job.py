"""What every actor is told, as far as the driver and the base class of actors need to know it."""

from __future__ import annotations

from typing import Protocol

from coar_dist.cluster.ranges import WorkRange
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import Storage


class Job(Protocol):
    """What the driver and ``Worker`` ask a job; the rest is between the caller and its actors."""

    @property
    def storage(self) -> Storage | None:
        """The run directory that every actor must see; None where actors write nothing."""

    def store(self, name: str) -> ShardFolder:
        """The store that ranges call by this ``store_name``."""

    def num_margins(self, work_range: WorkRange) -> int:
        """Margins of a range; 0 where it has none."""
