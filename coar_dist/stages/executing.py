"""Where fits run, and what is computed from their results: here, or on the workers of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from typing_extensions import override

from coar_dist.cluster.execution import Execute, Kept, in_this_process
from coar_dist.cluster.place import joins_a_cluster
from coar_dist.config.schema import Config

_LESS_MEMORY = "Lower regression.memory_gb or ablation.examples_per_block, or give the workers more memory."


@contextlib.contextmanager
def executing_fits(config: Config) -> Iterator[Execute]:
    """How parts of fits and of their evaluation are run, for the length of a ``with`` block.

    A cluster is joined, or started, when the first part is to run: where all is there already, none is needed. The
    ``Execute`` then raises as ``on_cluster``.
    """
    if not are_distributed(config):
        yield in_this_process
        return
    with contextlib.ExitStack() as stack:
        yield _OnACluster(config, stack)


class _OnACluster(Execute):
    """Parts on a cluster, to which the first of them connects.

    Args:
        config: of the run.
        connected: what ends the connection.
    """

    def __init__(self, config: Config, connected: contextlib.ExitStack) -> None:
        self._config, self._connected = config, connected

    @cached_property
    def _execute(self) -> Execute:
        from coar_dist.cluster.ray_tasks import on_cluster  # Ray takes seconds to load

        return self._connected.enter_context(on_cluster(self._config.cluster, _LESS_MEMORY))

    @property
    @override
    def width(self) -> int:
        return self._execute.width

    @override
    def __call__(self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        return self._execute(function, shared, items) if items else iter(())

    @override
    def keep(self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> list[Kept[Any]]:
        return self._execute.keep(function, shared, items)


def are_distributed(config: Config) -> bool:
    """Whether fits run on a cluster's workers."""
    if config.regression.distributed is not None:
        return config.regression.distributed
    return joins_a_cluster(config.cluster)
