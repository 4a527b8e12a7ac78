"""What the stages after the ablate stage take: operations, memory, bytes and requests, from sizes alone.

Operations of products are counted as multiplications and additions. The factors below are what processes of their own
took on a 2-core AMD EPYC, in seconds of CPU; ``tests.benchmarks.rehearsal`` prints the plan beside what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from coar_dist.config.schema import EditConfig, RegressionConfig
from coar_dist.editing.criterion import sizes as tried_sizes
from coar_dist.regression.sizes import (
    MOST_EXAMPLES,
    are_few,
    choose_solver,
    factor_bytes,
    num_deciding_blocks,
    num_judges,
)
from coar_dist.stages.edit_inputs import most_components

EDIT, EDIT_OF_ONE = "edit", "edit, a target"
"""The edit stage; of one target where nobody knows yet how many have an edit of their own."""
_PROCESS_BYTES = 4e8
"""Of Python and torch, before any array."""
_EIGH = 5.0
"""Operations of a factorisation by the cube of its size, at the speed of products; 4 where it fits the caches."""
_LASSO_STEPS = 150.0
"""Products with the Gram matrix on a path of penalties, for each example."""
_RANKED_S, _CEILING_S = 1.3e-7, 1.8e-7
"""Seconds to rank and compare one held-out margin, and to take it into the ceiling."""
_REPORT_S = 2.5
"""Figures, tables and page, whatever the run, and loading what draws them."""
_ROW_BYTES, _TABLE_ROW_BYTES = 45.0, 69.0
"""Of an example's attributions beside the weights; and of an example in a table of the evaluation."""
_PAGE_BYTES, _PAGE_FILES = 1.8e6, 11
"""Of the report."""
_REQUESTS, _FOOTER_BYTES = 2, 1e4
"""Of an opened file: for its footer and for its columns; and the former's size."""
_CHECKS = 6
"""Openings of every block's attributions when a table is compared with what it would be made from."""
_CURVE_BLOCKS, _CURVE_EXAMPLES = 8, 1024
"""What a point of the curve of fewer masks reads and fits, at most."""
_PLAIN_PASSES, _MODELS = 2, 4.0
"""Of an edit's held-out examples by the model as it was and as it is; and copies while edited weights are written."""
_SHARD_MASKS, _EDIT_FILES = 64, 8
"""Masks of a shard of an edit's, the fewest; and files beside the shards."""
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
        """Of the files of one method."""
        return self.num_examples * (4.0 * self.num_components + _ROW_BYTES)

    @property
    def sums_bytes(self) -> float:
        """Of the gradients' sums."""
        return 8.0 * self.num_gradient_shards * self.num_examples * self.num_components

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
    """

    stage: str
    seconds: float
    memory: float
    read: float
    written: float
    num_reads: int
    num_writes: int
    note: str = ""


@dataclass(frozen=True)
class EditPasses:
    """What an edit runs.

    Attributes:
        num_examples: held out, under every mask.
        start_s: seconds until an actor can begin.
        seconds_per_pass: of one actor, for one example under one mask.
        model_bytes: of the weights.
    """

    num_examples: int
    start_s: float
    seconds_per_pass: float
    model_bytes: float


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
    sums = sizes.sums_bytes
    # Masks and margins once, and, where some examples decide for all, those of their blocks once more.
    again = sizes.num_deciding if passes or _is_chosen_by_few(plain, d, config) else 0
    read = sizes.num_fitted * sizes.bytes_of(plain) + (sizes.bytes_of(plain) + sums) * again / sizes.num_blocks + sums
    openings = (sizes.num_blocks + 1) * (sizes.num_fitted * sizes.num_shards + sizes.num_gradient_shards)
    openings += again * (sizes.num_shards + sizes.num_gradient_shards)
    read, num_reads = read + _FOOTER_BYTES * openings, _REQUESTS * openings
    errors = 4.0 * n * d * sizes.num_fitted if config.standard_errors else 0.0
    written = sizes.attribution_bytes * sizes.num_methods + errors
    return Need(
        "fit",
        seconds + (read + written) / speed.verified + num_reads * speed.request_s,
        _PROCESS_BYTES + memory + 8.0 * _COPIES * block,
        read,
        written,
        num_reads,
        sizes.num_blocks * sizes.num_methods,
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
    # In the dual, weights are products of masks and margins' coefficients; no sum of margins by components is made.
    solved = 4.0 * rank * n * (num_masks if solver == "dual" else d)
    vectors = 2.0 * rank * d * num_masks if solver == "dual" and config.standard_errors else 0.0
    num_trials = 4 if with_gradients else _is_chosen_by_few(num_masks, d, config)  # priors, each with all penalties
    tried = num_trials * config.num_penalties * min(n, MOST_EXAMPLES)
    judged = 2.0 * num_judges(num_masks, rank) * rank * (n + tried)  # masks left out
    exact = factors * _EIGH * rank**3 + cross * (4.0 if with_gradients else 1.0) + solved + vectors + judged
    products = factors * 2.0 * num_masks * d * rank
    memory = factor_bytes(solver, num_masks, d, with_gradients)
    return products / speed.products + exact / speed.exact_products, memory, ""


def _is_chosen_by_few(num_masks: int, d: int, config: RegressionConfig) -> bool:
    """Whether some examples are tried first, to choose one penalty for all."""
    is_shared = are_few(num_masks, d) if config.shared_penalty is None else config.shared_penalty
    return is_shared and (config.method, config.regularisation) == ("ridge", None)


def evaluate_need(sizes: Sizes, shares: list[float], config: RegressionConfig, speed: Speed) -> Need:
    """Of the evaluate stage, with the curve of fewer masks."""
    d, n, methods = sizes.num_components, sizes.num_examples, sizes.num_methods
    num_held_out, num_designs = sum(sizes.held_out), len(sizes.held_out)
    pairs = sum(num_masks**2 for num_masks in sizes.held_out)  # of which the ceiling is made
    products = 2.0 * num_held_out * d * n * (methods + 1) + 2.0 * pairs * d * sizes.num_blocks
    seconds = products / speed.products + 2.0 * pairs * n / speed.exact_products
    seconds += (_RANKED_S * methods + _CEILING_S) * num_held_out * n
    read = (methods + 1) * (num_designs * sizes.attribution_bytes + sizes.bytes_of(num_held_out))
    openings = (methods + 1) * sizes.num_blocks * (sizes.num_held_out_shards + num_designs)
    openings += _CHECKS * methods * num_designs * (sizes.num_blocks + 1)
    memory, read_of_curve, openings_of_curve = 0.0, 0.0, 0
    for share in shares:
        taken, peak, of_point, openings_of_point = _of_point(share, sizes, config, speed)
        seconds, memory = seconds + taken, max(memory, peak)
        read_of_curve, openings_of_curve = read_of_curve + of_point, openings_of_curve + openings_of_point
    openings += openings_of_curve
    read += read_of_curve + _FOOTER_BYTES * openings
    num_curves = sizes.num_fitted if shares else 0
    curves = num_curves * min(n, _CURVE_EXAMPLES) * 8.0 * (len(shares) + 2)
    block = min(sizes.block_size, n) * d
    return Need(
        "evaluate",
        seconds + read / speed.verified + _REQUESTS * openings * speed.request_s,
        _PROCESS_BYTES + memory + _READ_BYTES * block,
        read,
        num_designs * (methods + 1) * _TABLE_ROW_BYTES * n + curves,
        _REQUESTS * openings,
        num_designs * (methods + 1) + num_curves,
    )


def _of_point(share: float, sizes: Sizes, config: RegressionConfig, speed: Speed) -> tuple[float, float, float, int]:
    """Seconds of the products, bytes of the factorisation, bytes read and files opened for one point of all curves."""
    num_blocks = min(_CURVE_BLOCKS, sizes.num_blocks)
    num_examples = min(sizes.num_examples, num_blocks * sizes.block_size)
    num_masks, num_shards = round(share * sizes.num_masks), round(share * sizes.num_shards)
    read = sizes.num_fitted * sizes.bytes_of(num_masks, num_examples)
    read += 2.0 * sizes.sums_bytes * num_blocks / sizes.num_blocks  # a point keeps all passes with gradients
    openings = (num_blocks + 1) * sizes.num_fitted * num_shards + 2 * num_blocks * sizes.num_gradient_shards
    seconds, memory = 0.0, 0.0
    for passes, with_gradients in ((0, False), (sizes.num_gradient_masks, True)):
        if sizes.num_masks and (passes or not with_gradients):
            fitted = min(sizes.num_examples, _CURVE_EXAMPLES)
            taken, peak, _ = _of_method(num_masks + passes, with_gradients, sizes.num_components, fitted, config, speed)
            seconds, memory = seconds + taken, max(memory, peak)
    return seconds, memory, read, openings


def report_need(sizes: Sizes, speed: Speed) -> Need:
    """Of the report stage."""
    methods, num_designs = sizes.num_methods, len(sizes.held_out)
    # The weights of one method, for the layers and for the galleries; margins of shown examples; and all tables.
    tables = _TABLE_ROW_BYTES * sizes.num_examples * num_designs * (methods + 1)
    read = 2.0 * sizes.attribution_bytes + sizes.bytes_of(max(sizes.held_out, default=0)) + tables
    openings = (_CHECKS * methods + 8) * sizes.num_blocks + (methods + 2) * num_designs + sizes.num_held_out_shards
    read += _FOOTER_BYTES * openings
    block = min(sizes.block_size, sizes.num_examples) * sizes.num_components
    return Need(
        "report",
        _REPORT_S + read / speed.verified + _REQUESTS * openings * speed.request_s,
        _PROCESS_BYTES + _READ_BYTES * block,
        read,
        _PAGE_BYTES,
        _REQUESTS * openings,
        _PAGE_FILES,
    )


def edit_need(sizes: Sizes, edit: EditConfig, passes: EditPasses, speed: Speed) -> Need:
    """Of the edit stage; with ``edit.each``, of as many targets as are known beforehand, else of one.

    Args:
        sizes: of the run.
        edit: the settings.
        passes: what is run.
        speed: of this process.
    """
    known_targets = edit.target.sample or len(edit.target.ids or [])
    num_targets = max(known_targets, 1) if edit.each else 1
    num_selections = 1 + len(edit.compare)
    num_sizes = len(tried_sizes(most_components(edit, sizes.num_components))) - 1  # all share the whole model's mask
    num_masks = num_targets * num_selections * num_sizes + 1
    block = min(sizes.block_size, sizes.num_examples) * sizes.num_components
    margins = sizes.bytes_of(num_masks, passes.num_examples)
    num_shards = -(-num_masks // _SHARD_MASKS)
    # Attributions of the targets and of the references, and margins.
    openings = (num_targets + 1) * num_selections * sizes.num_blocks + num_shards
    read = (1 + min(num_targets, sizes.num_blocks)) * num_selections * sizes.attribution_bytes + margins
    read += _FOOTER_BYTES * openings
    num_forwards = num_masks + (1 if edit.each else _PLAIN_PASSES)
    return Need(
        EDIT if known_targets or not edit.each else EDIT_OF_ONE,
        passes.start_s
        + num_forwards * passes.num_examples * passes.seconds_per_pass
        + read / speed.verified
        + _REQUESTS * openings * speed.request_s,
        _PROCESS_BYTES + (1.0 if edit.each else _MODELS) * passes.model_bytes + _READ_BYTES * block,
        read,
        margins + (0.0 if edit.each else passes.model_bytes),
        _REQUESTS * openings,
        num_shards + _EDIT_FILES,
    )
