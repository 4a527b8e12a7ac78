"""What fits take: the fit stage, and the evaluate stage with its curve of fewer masks. As in ``stages.needs``."""

from __future__ import annotations

from coar_dist.config.schema import RegressionConfig
from coar_dist.regression.sizes import MOST_EXAMPLES, are_few, choose_solver, factor_bytes, fewest_masks, num_judges
from coar_dist.stages.needs import (
    CHECKS,
    FOOTER_BYTES,
    PROCESS_BYTES,
    READ_BYTES,
    REQUESTS,
    TABLE_ROW_BYTES,
    Need,
    Sizes,
    Speed,
)

_EIGH = 5.0
"""Operations of a factorisation by the cube of its size, at the speed of products; 4 where it fits the caches."""
_LASSO_STEPS = 150.0
"""Products with the Gram matrix on a path of penalties, for each example."""
_RANKED_S, _CEILING_S = 1.3e-7, 1.8e-7
"""Seconds to rank and compare one held-out margin, and to take it into the ceiling."""
_STATISTICS_S, _STATISTICS_BYTES = 2.7e-9, 56.0
"""Of the statistics of components: seconds for a weight, and bytes for a component."""
_CURVE_BLOCKS, _CURVE_EXAMPLES = 8, 1024
"""What a point of the curve of fewer masks reads and fits, at most."""
_COPIES = 6.0
"""Arrays of a block's attributions in float64 that a fit has at a time."""


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
    read, num_reads = read + FOOTER_BYTES * openings, REQUESTS * openings
    seconds += sizes.in_large_arrays(sums * (1.0 + again / sizes.num_blocks))
    errors = 4.0 * n * d * sizes.num_fitted if config.standard_errors else 0.0
    written = sizes.attribution_bytes * sizes.num_methods + errors
    return Need(
        "fit",
        seconds + (read + written) / speed.verified + num_reads * speed.request_s,
        PROCESS_BYTES + memory + 8.0 * _COPIES * block,
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
    # Masks left out: their coordinates once, and their errors at every penalty.
    judged = 2.0 * num_judges(num_masks, rank) * rank * (n + tried + (d * factors if solver == "primal" else 0))
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
    read_attributions = (methods + 1) * sizes.attribution_bytes  # for all tables of a method, and for all ceilings
    read = read_attributions + (methods + 1) * sizes.bytes_of(num_held_out)
    seconds += sizes.in_large_arrays(read_attributions) + _STATISTICS_S * methods * n * d
    openings = sizes.num_blocks * (methods + 1) * (sizes.num_held_out_shards + 1)
    openings += CHECKS * methods * (num_designs + 1) * (sizes.num_blocks + 1)
    memory, read_of_curve, openings_of_curve = 0.0, 0.0, 0
    points = [share for share in shares if share * sizes.num_masks >= fewest_masks(d, config)]
    for share in points:
        taken, peak, of_point, openings_of_point = _of_point(share, sizes, config, speed)
        seconds, memory = seconds + taken, max(memory, peak)
        read_of_curve, openings_of_curve = read_of_curve + of_point, openings_of_curve + openings_of_point
    openings += openings_of_curve
    read += read_of_curve + FOOTER_BYTES * openings
    num_curves = sizes.num_fitted if shares and sizes.num_masks else 0
    curves = num_curves * min(n, _CURVE_EXAMPLES) * 8.0 * (len(points) + 2)
    block = min(sizes.block_size, n) * d
    return Need(
        "evaluate",
        seconds + read / speed.verified + REQUESTS * openings * speed.request_s,
        PROCESS_BYTES
        + memory
        + (8.0 * _COPIES if points else READ_BYTES) * block,  # a point is fitted as all masks are
        read,
        num_designs * (methods + 1) * TABLE_ROW_BYTES * n + methods * _STATISTICS_BYTES * d + curves,
        REQUESTS * openings,
        num_designs * (methods + 1) + 2 * methods + num_curves,
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
    seconds += sizes.in_large_arrays(2.0 * sizes.sums_bytes * num_blocks / sizes.num_blocks)
    return seconds, memory, read, openings
