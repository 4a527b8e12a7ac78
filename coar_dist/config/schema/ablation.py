"""How and where the forward passes run: the engine's options and the cluster's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from coar_dist.config.schema.values import Count, NonNegative, Part, Positive, Rule, one_of

NumGpus = Annotated[
    float,
    Rule(
        lambda gpus: 0.0 <= gpus <= 1.0 or (gpus > 1.0 and gpus.is_integer()),  # Ray cannot share several
        "a share of one GPU, 0 to 1, or a whole number of GPUs",
    ),
]


@dataclass
class AblationConfig(Part):
    """How the forward passes are run and stored."""

    precision: Annotated[str, one_of("float32", "bfloat16", "auto")] = "float32"
    """``float32``, ``bfloat16`` (autocast), or ``auto``: bfloat16 where the actors' device computes it natively. What
    ``auto`` gave is part of the run's identity."""
    device_map: str | None = None
    """For Hugging Face models larger than one device: how accelerate spreads the model over an actor's GPUs, e.g.
    ``auto``. Set cluster.gpus_per_actor to their number."""
    mode: Annotated[str, one_of("weights", "rows")] | None = None
    """``weights`` (one mask at a time, its weights zeroed) or ``rows`` (every row carries its own mask); None: the
    faster of the two in a short trial."""
    rows_per_forward: Count | None = None
    """Rows of one forward pass at most; None: by the same trial. Halved where memory runs out."""
    compile: bool | None = None
    """Whether the model is compiled; None: where an actor has enough work for it to pay, and it is faster."""
    cuda_graphs: bool | None = None
    """Whether passes are recorded as CUDA graphs; None: on CUDA devices, where that is faster."""
    masks_per_shard: Count | None = None
    """Masks in one shard: the unit of work, of failure and of resume. None: 64 to 1,024, about 8,192 margins, so that
    few examples still fill the forward passes of a shard."""
    examples_per_block: Count = 1024
    """Examples in one margin column of a shard, and in one block of the regression."""
    margins_dtype: Annotated[str, one_of("float32", "float16")] = "float32"


@dataclass
class ClusterConfig(Part):
    """Where the actors run."""

    address: str | None = None
    """Ray address to join; None: the cluster that RAY_ADDRESS names, else one started here."""
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
    """What an actor costs, in USD per hour; ``stages=[plan]`` then also estimates the run's price."""
