"""The memory that a fit takes on a worker, which factorisation fits, and how many blocks decide for all.

Bytes at the peak, on a CPU, of the arrays that are there together; d components, m masks. Another device's solver may
take other work space.
"""

from __future__ import annotations

import math

from coar_dist.config.schema import RegressionConfig

NUM_PROBES = 32
"""Random vectors by which conjugate gradients estimate traces."""
ITERATIVE_VALUES = 2**25
"""Of the masks, which are unpacked together by conjugate gradients, in float64."""
_WORK_BYTES = 2 * 2**24
"""Unpacked masks, or rows of V, and their products, a block at a time."""
_FEWEST_BLOCKS = 8
MOST_EXAMPLES = 1024
"""How many decide together for all."""

_FEWEST_MASKS = 16
"""Fewest masks that are fitted to show what fewer would have given."""
FEWEST_JUDGES = 32
"""Masks that must be left out in turn to choose a penalty, or to tell an R2."""
FEWEST_OF_NOISE = 64
"""The same for standard errors, which need a variance."""
_MOST_JUDGES = 2048
_MOST_COORDINATES = 2**25
"""Of the judges; 256 MB."""
_FEW = 4.0
"""Masks per component below which examples share a penalty, and masks left out choose it: alone, an example cannot
choose well."""


def fewest_masks(num_components: int, config: RegressionConfig) -> int:
    """Masks from which a point of the curve of fewer masks can be fitted."""
    if config.regularisation is None and config.selection == "bic":
        return max(_FEWEST_MASKS, num_components + 1)
    if config.regularisation is None and config.method == "lasso":
        share = min(config.held_out_fraction, 1.0 - config.held_out_fraction)
        return max(_FEWEST_MASKS, math.ceil(4.0 / share))
    return _FEWEST_MASKS


def are_few(num_masks: int, num_components: int) -> bool:
    """Whether examples share a penalty, which masks left out choose, unless the configuration says otherwise."""
    return num_masks < _FEW * num_components


def num_judges(num_masks: int, rank: int) -> int:
    """Masks that are left out in turn, of so many: 2,048, or all, and of very large factors fewer."""
    return min(num_masks, _MOST_JUDGES, max(_MOST_COORDINATES // max(rank, 1), FEWEST_JUDGES))


def num_deciding_blocks(num_blocks: int, block_size: int) -> int:
    """Blocks whose examples decide together for all: 8, or as many as have 1,024 examples, or all."""
    return min(max(_FEWEST_BLOCKS, -(-MOST_EXAMPLES // block_size)), num_blocks)


def factor_bytes(
    solver: str, num_masks: int, num_components: int, with_gradients: bool = False, needs_vectors: bool = False
) -> float:
    """What is made once for all examples.

    Args:
        solver: ``primal``, ``dual``, ``iterative`` or ``lasso``.
        num_masks: m.
        num_components: d.
        with_gradients: whether two factors are compared, and X'X is kept for the second.
        needs_vectors: whether a backend takes the components' eigenvectors, which torch does without in the dual.
    """
    masks = num_masks * num_components / 8
    if solver in ("primal", "dual"):
        d = num_components if solver == "primal" else num_masks  # of the matrix that is factorised
        judges = 8.0 * num_judges(num_masks, min(num_masks, num_components)) * d  # their coordinates
        # The matrix, its eigenvectors and work space; with gradients also X'X in float32 and the first factor.
        made = {"primal": (17.5, 28.0), "dual": (19.0, 27.0)}[solver][with_gradients] * d**2
        if with_gradients:  # while the second of two factors is tried
            used = (20.0 if solver == "primal" else 16.0) * d**2 + 2.0 * judges
        else:
            used = 8.0 * d**2 + judges
        vectors = 24.0 * num_masks * num_components if needs_vectors and solver == "dual" else 0.0
        return masks + max(made, used + _WORK_BYTES) + vectors
    if solver == "lasso":  # X'X of all and of the held-out masks in float32, both centred, and work space; measured
        return masks + 28.0 * num_components**2
    return masks + 9.0 * min(num_masks * num_components, ITERATIVE_VALUES) + 16.0 * NUM_PROBES * num_components


def choose_solver(
    num_masks: int,
    num_components: int,
    memory_bytes: float,
    with_gradients: bool = False,
    needs_vectors: bool = False,
) -> tuple[str, str]:
    """How ridge systems are solved, and why: ``primal``, ``dual`` or ``iterative``.

    ``primal`` decomposes the Gram matrix of the components, ``dual`` that of the masks where these are fewer; where
    neither fits, conjugate gradients.
    """
    primal, dual = (
        factor_bytes(solver, num_masks, num_components, with_gradients, needs_vectors) for solver in ("primal", "dual")
    )
    sizes = (
        f"{num_masks} masks, {num_components} components; primal {primal / 1e9:.2f} GB, dual {dual / 1e9:.2f} GB, "
        f"regression.memory_gb={memory_bytes / 1e9:g}"
    )
    if num_masks < num_components and dual <= memory_bytes:
        return "dual", sizes
    if primal <= memory_bytes:
        return "primal", sizes
    return "iterative", sizes
