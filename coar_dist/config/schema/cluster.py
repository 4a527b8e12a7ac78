"""Where the actors run, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from coar_dist.config.schema.values import Count, NonNegative, Part, Positive, Rule, one_of

NumGpus = Annotated[
    float,
    Rule(
        lambda gpus: 0.0 <= gpus <= 1.0 or (gpus > 1.0 and gpus.is_integer()),  # Ray cannot share several
        "a share of one GPU, 0 to 1, or a whole number of GPUs",
    ),
]


AUTO, PROCESS, RAY = "auto", "process", "ray"
_OF_RAY = (
    "address",
    "min_actors",
    "max_actors",
    "gpus_per_actor",
    "placement",
    "start_timeout_s",
    "ranges_in_flight",
)


@dataclass
class ClusterConfig(Part):
    """Where the actors run."""

    address: str | None = None
    """Ray address to join; None: the cluster that RAY_ADDRESS names, else one started here."""
    where: Annotated[str, one_of(AUTO, PROCESS, RAY)] = AUTO
    """``process``: in the calling process, which is the only actor then; ``ray``: on Ray; ``auto``: in the calling
    process where that takes less than about a minute, unless Ray is asked for by another option or by RAY_ADDRESS, is
    up in the process already, or has several GPUs to share the work."""
    min_actors: Count = 1
    """Fewer for longer than ``start_timeout_s`` are an error."""
    max_actors: Count | None = None
    """Actors asked for: where a cluster has no room for so many, they wait for nodes that an autoscaler adds. None: as
    many as the nodes' CPUs (or GPUs, where there are any) have room for, more when nodes join."""
    cpus_per_actor: Count = 1
    """CPUs and torch threads of one actor. Thread counts can change the last bits of float32 sums."""
    gpus_per_actor: NumGpus | None = None
    """None: 1 where the cluster has GPUs, else 0. A fraction shares a GPU, several are for ablation.device_map."""
    placement: Annotated[str, one_of("pack", "spread")] | None = None
    """``pack``: fill one node after another, so that an autoscaler can take idle ones away; ``spread``: as evenly over
    the nodes as they have room, for the most memory and network an actor; None: as Ray sees fit."""
    start_timeout_s: Positive = 120.0
    ranges_in_flight: Count = 2
    """Ranges handed to one actor at a time, so that it never waits for the driver."""
    max_attempts: Count = 3
    """How often one range may fail, each time on another actor where there is one, before the run stops."""
    price_per_hour: NonNegative | None = None
    """What an actor costs, in USD per hour, for the estimate of ``stages=[plan]`` alone."""


def asked_of_ray(config: ClusterConfig) -> dict[str, Any]:
    """The options that are set and that Ray alone has a use for, with their values."""
    default = ClusterConfig()
    values = {name: getattr(config, name) for name in _OF_RAY}
    wanted = {name: value for name, value in values.items() if value != getattr(default, name)}
    if config.max_actors == 1:  # which the calling process is, too
        del wanted["max_actors"]
    return wanted
