"""Where fits run, and what is computed from their results: here, or on the workers of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from coar_dist.cluster.execution import Execute, in_this_process
from coar_dist.cluster.place import joins_a_cluster
from coar_dist.config.schema import Config

_LESS_MEMORY = "Lower regression.memory_gb or ablation.examples_per_block, or give the workers more memory."


@contextlib.contextmanager
def executing_fits(config: Config) -> Iterator[Execute]:
    """How parts of fits and of their evaluation are run, for the length of a ``with`` block.

    Raises:
        ClusterError: as of ``on_cluster``.
    """
    if not are_distributed(config):
        yield in_this_process
        return
    from coar_dist.cluster.ray_tasks import on_cluster  # Ray takes seconds to load

    with on_cluster(config.cluster, _LESS_MEMORY) as execute:
        yield execute


def are_distributed(config: Config) -> bool:
    """Whether fits run on a cluster's workers."""
    if config.regression.distributed is not None:
        return config.regression.distributed
    return joins_a_cluster(config.cluster)
