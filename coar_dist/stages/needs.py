"""What the stages after the ablate stage take: operations, memory, bytes and requests, from sizes alone.

Operations of products are counted as multiplications and additions. The factors below are rough: they are of the order
that ``tests.benchmarks.rehearsal`` and ``tests.benchmarks.regression`` show on 2 CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from coar_dist.config.schema import RegressionConfig
from coar_dist.regression.sizes import choose_solver, factor_bytes, num_deciding_blocks

_PROCESS_BYTES = 4e8
"""Of Python and torch, before any array."""
_EIGH = 10.0
"""Operations of a factorisation by the cube of its size, at the speed of products."""
_LASSO_STEPS = 100.0
"""Products with the Gram matrix on a path of penalties, for each example."""
_RANKED_S = 5e-7
"""Seconds to rank and compare one held-out margin, or to take it into the ceiling."""
_REPORT_S = 8.0
"""Figures, tables and page, whatever the run."""
_RESAMPLED_S = 2e-4
"""Of the report's intervals, for each example, method and held-out design."""
_READ_BYTES = 32.0
"""For each weight of a block that is read: the file, the table, and what is computed from it."""
_COPIES = 6.0
"""Arrays of a block's attributions in float64 that a fit has at a time."""


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
        """Of the weights of one method."""
        return 4.0 * self.num_examples * self.num_components

    @property
    def num_fitted(self) -> int:
        """Methods that a regression fits."""
        return (self.num_masks > 0) + (self.num_gradient_masks > 0)

    def bytes_of(self, num_masks: int) -> float:
        """Margins and masks of a design."""
        return num_masks * (self.margin_bytes * self.num_examples + self.num_components / 8)


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
    """

    stage: str
    seconds: float
    memory: float
    read: float
    written: float
    num_reads: int
    num_writes: int
    note: str = ""


def fit_need(sizes: Sizes, config: RegressionConfig, speed: Speed) -> Need:
    """Of the fit stage, all methods together."""
    d, n, plain, passes = sizes.num_components, sizes.num_examples, sizes.num_masks, sizes.num_gradient_masks
    seconds, memory, notes = 0.0, 0.0, []
    for num_masks, with_gradients in ((plain, False), (plain + passes, True)):
        if num_masks == 0 or (with_gradients and not passes):
            continue
        taken, peak, note = _of_method(num_masks, with_gradients, d, n, config, speed)
        seconds, memory = seconds + taken, max(memory, peak)
        notes.append(note)
    block = min(sizes.block_size, n) * d
    sums = 2.0 * sizes.num_gradient_shards * sizes.attribution_bytes
    # Masks and margins once, and, where gradients have a part, those of the blocks that decide once more.
    again = sizes.num_deciding if passes else 0
    read = sizes.num_fitted * sizes.bytes_of(plain) + (sizes.bytes_of(plain) + sums) * again / sizes.num_blocks + sums
    openings = (sizes.num_blocks + 1) * (sizes.num_fitted * sizes.num_shards + sizes.num_gradient_shards)
    num_reads = 2 * (openings + again * (sizes.num_shards + sizes.num_gradient_shards))
    written = sizes.attribution_bytes * (sizes.num_fitted + sizes.num_baselines)
    return Need(
        "fit",
        seconds + (read + written) / speed.verified + num_reads * speed.request_s,
        _PROCESS_BYTES + memory + 8.0 * _COPIES * block,
        read,
        written,
        num_reads,
        sizes.num_blocks * (sizes.num_fitted + sizes.num_baselines),
        "; ".join(filter(None, notes)),
    )


def _of_method(
    num_masks: int, with_gradients: bool, d: int, n: int, config: RegressionConfig, speed: Speed
) -> tuple[float, float, str]:
    """Seconds of the products, bytes of the factorisation, and what does not fit."""
    cross = 2.0 * num_masks * d * n
    if config.method == "lasso":
        exact = cross + _EIGH * d**3 + _LASSO_STEPS * 2.0 * d * d * n
        seconds = 2.0 * num_masks * d * d / speed.products + exact / speed.exact_products
        return seconds, factor_bytes("lasso", num_masks, d), ""
    solver, _ = choose_solver(num_masks, d, config.memory_gb * 1e9, with_gradients)
    factors = 2 if with_gradients else 1
    rank = min(num_masks, d)
    if solver == "iterative":
        least = min(factor_bytes(kind, num_masks, d, with_gradients) for kind in ("primal", "dual"))
        fate = (
            "gradient_ridge cannot be fitted" if with_gradients else "conjugate gradients, which take many times longer"
        )
        note = f"{fate}: a factorisation takes {least / 1e9:.1f} GB, and regression.memory_gb is {config.memory_gb:g}"
        return 2 * _LASSO_STEPS * cross / speed.exact_products, factor_bytes(solver, num_masks, d), note
    exact = factors * _EIGH * rank**3 + cross * (4.0 if with_gradients else 1.0) + 4.0 * rank * d * n
    products = factors * 2.0 * num_masks * d * rank
    memory = factor_bytes(solver, num_masks, d, with_gradients)
    return products / speed.products + exact / speed.exact_products, memory, ""


def evaluate_need(sizes: Sizes, shares: list[float], config: RegressionConfig, speed: Speed) -> Need:
    """Of the evaluate stage, with the curve of fewer masks."""
    d, n, methods = sizes.num_components, sizes.num_examples, sizes.num_fitted + sizes.num_baselines
    num_held_out, num_designs = sum(sizes.held_out), len(sizes.held_out)
    products = 2.0 * num_held_out * d * n * (methods + 1)
    seconds = products / speed.products + _RANKED_S * num_held_out * n * (methods + 1)
    read = (methods + 1) * (num_designs * sizes.attribution_bytes + sizes.bytes_of(num_held_out))
    num_reads = 2 * (methods + 1) * sizes.num_blocks * (sizes.num_held_out_shards + num_designs)
    memory = 0.0
    sample = min(n, 1024)
    for share in shares:
        for num_masks, with_gradients in ((sizes.num_masks, False), (sizes.num_masks + sizes.num_gradient_masks, True)):
            if num_masks and (not with_gradients or sizes.num_gradient_masks):
                taken, peak, _ = _of_method(round(share * num_masks), with_gradients, d, sample, config, speed)
                seconds, memory = seconds + taken, max(memory, peak)
        read += sizes.num_fitted * share * sizes.bytes_of(sizes.num_masks)
        num_reads += 2 * sizes.num_fitted * round(share * sizes.num_shards)
    block = min(sizes.block_size, n) * d
    written = num_designs * (methods + 1) * 60.0 * n
    return Need(
        "evaluate",
        seconds + read / speed.verified + num_reads * speed.request_s,
        _PROCESS_BYTES + memory + _READ_BYTES * block,
        read,
        written,
        num_reads,
        num_designs * (methods + 1) + (sizes.num_fitted if shares else 0),
    )


def report_need(sizes: Sizes, speed: Speed) -> Need:
    """Of the report stage."""
    methods = sizes.num_fitted + sizes.num_baselines
    read = sizes.attribution_bytes + sizes.bytes_of(max(sizes.held_out, default=0))
    seconds = _REPORT_S + _RESAMPLED_S * sizes.num_examples * methods * len(sizes.held_out)
    block = min(sizes.block_size, sizes.num_examples) * sizes.num_components
    num_reads = 2 * (sizes.num_blocks + sizes.num_held_out_shards)
    return Need(
        "report", seconds + read / speed.verified, _PROCESS_BYTES + _READ_BYTES * block, read, 5e6, num_reads, 30
    )
