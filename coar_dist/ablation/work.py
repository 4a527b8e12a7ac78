"""What a run still has to compute, in ranges of masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coar_dist.cluster.ranges import RangesToDo
from coar_dist.config.schema import Config
from coar_dist.designs.design import MaskDesign
from coar_dist.designs.given import Imported
from coar_dist.errors import MissingWorkError
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from coar_dist.store.run_directory import GRADIENT_DESIGN, RunDirectory

ROWS_KEY = "ablation.rows_per_forward"
"""The configuration key to lower where an engine runs out of memory."""
Stores = Mapping[str, tuple[MaskDesign, MarginStore | GradientStore]]
"""Masks, and where their margins or gate gradients go, by the ``store_name`` of their ranges."""


@dataclass(frozen=True)
class ExpectedMasks:
    """About how many masks, of all examples, are to be run, those that later calls will add among them.

    Attributes:
        plain: without gradients.
        with_gradients: with gradients.
    """

    plain: float
    with_gradients: float

    def shared_by(self, num_actors: int) -> ExpectedMasks:
        """The share of one actor."""
        return ExpectedMasks(self.plain / num_actors, self.with_gradients / num_actors)


@dataclass(frozen=True)
class MissingWork:
    """What is missing.

    Attributes:
        ranges: what is to be computed for all stores.
        plain_masks: masks to be run without gradients.
        gradient_masks: masks to be run with gradients, in masks of all examples.
    """

    ranges: RangesToDo
    plain_masks: float
    gradient_masks: float


def stores_of(run: RunDirectory) -> Stores:
    """All stores of a run's designs: first those of passes with gradients, an example block each."""
    stores: dict[str, tuple[MaskDesign, MarginStore | GradientStore]] = {}
    if GRADIENT_DESIGN in run.designs:
        for store in run.gradients(GRADIENT_DESIGN):
            first, end = store.block
            stores[f"{GRADIENT_DESIGN} of examples {first}..{end - 1}"] = run.design(GRADIENT_DESIGN), store
    for name, entry in run.designs.items():
        if entry.role != "gradients":
            stores[name] = entry.design, run.margins(name)
    return stores


def missing_work(run: RunDirectory, stores: Stores, config: Config) -> MissingWork:
    """What the stores lack, cut as the configuration says.

    Raises:
        MissingWorkError: an imported design lacks masks, which nobody can recompute.
    """
    gaps = {name: store.missing() for name, (_, store) in stores.items()}
    for name, (design, _) in stores.items():
        if isinstance(design, Imported) and gaps[name]:
            ranges = ", ".join(f"{start}..{stop - 1}" for start, stop in gaps[name][:10])
            raise MissingWorkError(
                f"design {name!r} was imported and lacks masks {ranges}: they are no function of a seed, so the ablate "
                f"stage cannot make them. Run the same import-research again."
            )
    sizes = dict.fromkeys(stores, config.ablation.masks_per_shard or default_masks_per_shard(run.num_examples))
    shard_seconds: dict[str, float] = {}
    plain_masks = gradient_masks = 0.0
    for name, (design, store) in stores.items():
        num_missing = sum(stop - start for start, stop in gaps[name])
        if isinstance(store, GradientStore):
            num_examples = store.block[1] - store.block[0]
            default = default_gradient_masks_per_shard(num_examples, design.masks_per_round)
            sizes[name] = config.gradients.masks_per_shard or default
            gradient_masks += num_missing * num_examples / run.num_examples
        else:
            plain_masks += num_missing
            if config.ablation.masks_per_shard is None:
                shard_seconds[name] = config.ablation.shard_seconds
    return MissingWork(RangesToDo(gaps, sizes, "masks", shard_seconds), plain_masks, gradient_masks)


def default_masks_per_shard(num_examples: int) -> int:
    """Masks that make about 8,192 margins, 64 to 1,024, where these take less than ``ablation.shard_seconds``: a
    function of the run alone, so that the shards of a fast run are the same each time."""
    return min(max(8192 // num_examples, 64), 1024)


def default_gradient_masks_per_shard(num_examples: int, masks_per_round: int) -> int:
    """Masks, in whole rounds of the design, that make about 16,384 margins of a block of so many examples.

    A gradient shard takes as much room as two attributions of its examples, however many masks it sums. The last bits
    of these float32 sums depend on how masks are shared by shards, so they are never cut by time.
    """
    return max(16384 // num_examples // masks_per_round, 1) * masks_per_round
