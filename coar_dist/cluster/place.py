"""Where work runs: in the calling process as its one actor, or on Ray's actors. Nothing here needs Ray."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from coar_dist.config.schema import AUTO, PROCESS, ClusterConfig, asked_of_ray

Predict = Callable[[], float]
"""About how many seconds some work takes in the calling process, or more; asked only where that matters."""
_log = logging.getLogger(__name__)
_SMALL_S = 60.0
"""What takes less runs in the calling process: about where several actors make up for Ray's start."""


def may_be_here(config: ClusterConfig) -> bool:
    """Whether work runs in this process if it is small: nothing asks for Ray."""
    if config.where != AUTO:
        return config.where == PROCESS
    if joins_a_cluster(config) or asked_of_ray(config) or _ray_is_up():
        return False
    import torch  # which takes seconds to load

    return torch.cuda.device_count() <= 1


def is_here(config: ClusterConfig, predict: Predict) -> bool:
    """Whether work runs in this process.

    Args:
        config: the cluster; ``where`` decides, if it is not ``auto``.
        predict: how long the work takes.
    """
    if config.where == PROCESS or not may_be_here(config):
        return config.where == PROCESS
    seconds = predict()
    _log.info("about %.1f s in this process; what takes less than %.0f s is computed here", seconds, _SMALL_S)
    return seconds < _SMALL_S


def joins_a_cluster(config: ClusterConfig) -> bool:
    """Whether the configuration or the environment names a Ray cluster to join."""
    return config.where != PROCESS and bool(config.address or os.environ.get("RAY_ADDRESS"))


def _ray_is_up() -> bool:
    """Whether this process is connected to a Ray cluster already."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
