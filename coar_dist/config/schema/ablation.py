"""How the forward passes are run and stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from coar_dist.config.schema.task import ExamplesConfig
from coar_dist.config.schema.values import Count, Part, Positive, one_of

ZERO_WEIGHTS, ZERO, MEAN, CONSTANTS = "zero_weights", "zero", "mean", "constants"
RESAMPLE, COUNTERFACTUAL = "resample", "counterfactual"
ALL_POSITIONS, POSITION = "all", "position"
_BLOCK_BYTES, _MOST_EXAMPLES = 2**28, 1024


@dataclass
class AblationConfig(Part):
    """What ablated components are replaced by, and how the forward passes are run and stored."""

    value: Annotated[str, one_of(ZERO_WEIGHTS, ZERO, MEAN, RESAMPLE, COUNTERFACTUAL, CONSTANTS)] = ZERO_WEIGHTS
    """``zero_weights``: a component's slices of the weights are zero, its bias stays (the paper's). The others replace
    its activation: by ``zero``, by its ``mean`` over the reference, by that of another example, drawn for every mask
    (``resample``), or of the example's own ``counterfactual``, or by ``constants`` of your own."""
    mean_over: str = ALL_POSITIONS
    """Of ``value=mean``: the mean over ``all`` examples and positions, or one for every ``position`` of inputs of one
    length, or the name of a column of the examples (``label`` among them): the mean of the example's own class."""
    reference: ExamplesConfig = field(default_factory=ExamplesConfig)
    """Of ``value=mean`` and ``resample``: the examples whose mean it is, or that are drawn; no source: the run's
    own."""
    constants: str | None = None
    """Of ``value=constants``: a safetensors file with a tensor (num_channels,) for every site, by its name."""
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
    few examples still fill the forward passes of a shard, or fewer, as ``shard_seconds`` says."""
    shard_seconds: Positive = 60.0
    """Seconds of work in one shard at most, about, where ``masks_per_shard`` is None: a slow actor gets a half, a
    quarter, ... of a shard, by its own speed. Margins do not depend on it. Shards of gradients are whole, for the last
    bits of their sums depend on the cutting."""
    examples_per_block: Count | None = None
    """Examples in one margin column of a shard, and in one block of the regression. None: 1,024, or fewer where their
    attributions would take more than 256 MB, as of many components."""
    margins_dtype: Annotated[str, one_of("float32", "float16")] = "float32"


def block_size(ablation: AblationConfig, num_components: int) -> int:
    """Examples of a block. Files and memory of many stages have room for a few times a block's attributions.

    Example:
        >>> [block_size(AblationConfig(), num_components) for num_components in (22_720, 82_944, 460_000)]
        [1024, 512, 128]
    """
    if ablation.examples_per_block is not None:
        return ablation.examples_per_block
    fitting = max(_BLOCK_BYTES // (4 * num_components), 1)
    return int(min(2 ** (fitting.bit_length() - 1), _MOST_EXAMPLES))


def is_of_classes(ablation: AblationConfig) -> bool:
    """Whether every class of examples has a mean of its own."""
    return ablation.mean_over not in (ALL_POSITIONS, POSITION)


def differs_by_example(ablation: AblationConfig) -> bool:
    """Whether what takes the place of a component depends on the example."""
    return ablation.value in (RESAMPLE, COUNTERFACTUAL) or is_of_classes(ablation)
