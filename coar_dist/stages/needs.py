"""What the stages after the ablate stage take: operations, memory, bytes and requests, from sizes alone. The report
here; fits in ``needs_of_fits``, what runs the model in ``needs_of_passes``.

Operations of products are counted as multiplications and additions. The factors below are what processes of their own
took on a 2-core AMD EPYC, in seconds of CPU; ``tests.benchmarks.rehearsal`` prints the plan beside what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from coar_dist.regression.sizes import num_deciding_blocks

PROCESS_BYTES = 4e8
"""Of Python and torch, before any array."""
_REPORT_S = 4.0
"""Figures, tables and page, whatever the run, and loading what draws them."""
_SHOWN_S, _SHOWN_COMPONENTS = 6e-8, 2400
"""Of the report: of a weight of the components that it shows one by one; and how many these are at most."""
_ROW_BYTES, TABLE_ROW_BYTES = 45.0, 69.0
"""Of an example's attributions beside the weights; and of an example in a table of the evaluation."""
_SHOWN_BYTES = 16.0
"""For each weight of a block that is read for the report, as it is decoded some rows at a time."""
_PAGE_BYTES, _PAGE_FILES = 3.5e6, 11
"""Of the report."""
REQUESTS, FOOTER_BYTES = 2, 1e4
"""Of an opened file: for its footer and for its columns; and the former's size."""
CHECKS = 6
"""Openings of every block's attributions when a table is compared with what it would be made from."""
_LARGE_BYTES, _LARGE_S = 2**25, 6e-9
"""From so many bytes on, memory of an array is fresh each time; seconds more for a byte that is read into such arrays,
with what is computed from it."""
READ_BYTES = 32.0
"""For each weight of a block that is read: the file, the table, and what is computed from it."""


@dataclass(frozen=True)
class Sizes:
    """A run as it will be when all of its masks are there.

    Attributes:
        num_components: d.
        num_examples: n.
        block_size: examples of a block.
        num_masks: without gradients, of the train design.
        num_gradient_masks: with gradients.
        held_out: masks of every held-out design.
        num_shards: of the train design, and of those with gradients for every block.
        num_held_out_shards: of all held-out designs.
        margin_bytes: of a margin.
        num_baselines: methods that nothing is fitted for.
    """

    num_components: int
    num_examples: int
    block_size: int
    num_masks: int
    num_gradient_masks: int
    held_out: tuple[int, ...]
    num_shards: int
    num_gradient_shards: int
    num_held_out_shards: int
    margin_bytes: int
    num_baselines: int

    @property
    def num_blocks(self) -> int:
        """Blocks of examples."""
        return -(-self.num_examples // self.block_size)

    @property
    def num_deciding(self) -> int:
        """Blocks whose examples decide for all."""
        return num_deciding_blocks(self.num_blocks, self.block_size)

    @property
    def attribution_bytes(self) -> float:
        """Of the files of one method."""
        return self.num_examples * (4.0 * self.num_components + _ROW_BYTES)

    @property
    def sums_bytes(self) -> float:
        """Of the gradients' sums."""
        return 8.0 * self.num_gradient_shards * self.num_examples * self.num_components

    def in_large_arrays(self, read: float) -> float:
        """Seconds that ``read`` bytes of sums or attributions take more than others, where blocks are large."""
        return (
            _LARGE_S * read if 4 * min(self.block_size, self.num_examples) * self.num_components > _LARGE_BYTES else 0.0
        )

    @property
    def num_fitted(self) -> int:
        """Methods that a regression fits."""
        return (self.num_masks > 0) + (self.num_gradient_masks > 0)

    @property
    def num_methods(self) -> int:
        """All methods that the run has attributions of."""
        return self.num_fitted + self.num_baselines

    def bytes_of(self, num_masks: float, num_examples: int | None = None) -> float:
        """Margins of all or of so many examples, and masks, of a design."""
        examples = self.num_examples if num_examples is None else num_examples
        return num_masks * (self.margin_bytes * examples + self.num_components / 8)


@dataclass(frozen=True)
class Speed:
    """What was measured here.

    Attributes:
        products: multiplications and additions a second in float32.
        exact_products: in float64.
        verified: bytes a second that are read and hashed.
        request_s: seconds of a request to the storage, while others are under way.
    """

    products: float
    exact_products: float
    verified: float
    request_s: float


@dataclass(frozen=True)
class Need:
    """What one stage takes.

    Attributes:
        stage: its name.
        seconds: in one process at the measured speed.
        memory: of the process that needs most.
        read: bytes.
        written: bytes.
        num_reads: requests that read.
        num_writes: files written.
        note: what limits it, for people; empty where nothing does.
        passes: forward passes of one example each.
    """

    stage: str
    seconds: float
    memory: float
    read: float
    written: float
    num_reads: int
    num_writes: int
    note: str = ""
    passes: int = 0


def report_need(sizes: Sizes, speed: Speed) -> Need:
    """Of the report stage."""
    methods, num_designs = sizes.num_methods, len(sizes.held_out)
    # The weights of one method, for the layers and for what is shown; margins of shown examples; and all tables.
    tables = TABLE_ROW_BYTES * sizes.num_examples * num_designs * (methods + 1)
    read = sizes.attribution_bytes + sum(sizes.bytes_of(num) for num in sizes.held_out) + tables
    openings = (methods + 4 + num_designs) * sizes.num_blocks + (methods + 2) * num_designs
    read += FOOTER_BYTES * openings
    block = min(sizes.block_size, sizes.num_examples) * sizes.num_components
    return Need(
        "report",
        _REPORT_S
        + _SHOWN_S * sizes.num_examples * min(sizes.num_components, _SHOWN_COMPONENTS)
        + read / speed.verified
        + sizes.in_large_arrays(sizes.attribution_bytes)
        + REQUESTS * openings * speed.request_s,
        PROCESS_BYTES + _SHOWN_BYTES * block,
        read,
        _PAGE_BYTES,
        REQUESTS * openings,
        _PAGE_FILES,
    )
