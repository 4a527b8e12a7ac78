"""How the forward passes are run and stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from coar_dist.config.schema.values import Count, Part, one_of


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
