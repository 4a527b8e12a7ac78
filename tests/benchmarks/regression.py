"""Speed of the regression against other libraries, and of the whole fit stage at the paper's size.

    python -m tests.benchmarks.regression                              12,000 masks x 688 components x 512 examples
    python -m tests.benchmarks.regression --sections setup_a           50,000 x 2,304 x 10,000, from shards on the disk
    python -m tests.benchmarks.regression --sections solvers --components 22720 --masks 100000 --examples 1024

himalaya and celer are compared with where they are installed (pip install himalaya celer). What takes one example at a
time is measured on ``--sample`` examples and scaled to all; the table says so. Every row starts from masks and
margins in memory, and includes the choice of a penalty per example from a grid.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import RegressionConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.regression import cross_validation, lasso, ridge
from coar_dist.regression.backends import RIDGE_BACKENDS
from coar_dist.regression.factor import Factor, factorise
from coar_dist.regression.fit import fit
from coar_dist.regression.statistics import MASKS_PER_BATCH, Gram, MarginStatistics, gram, margin_statistics
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.models import local_storage

CONSOLE = Console(width=140)
Arrays = tuple[NDArray[np.bool_], NDArray[np.float32]]


def synthetic(arguments: argparse.Namespace) -> Arrays:
    """Masks at alpha .05, and margins with a known linear part, noise and offsets of their own."""
    random = np.random.default_rng(0)
    masks = random.random((arguments.masks, arguments.components)) > 0.05
    weights = known_weights(arguments.components, arguments.examples)
    margins = masks.astype(np.float32) @ weights + 3 * random.standard_normal(
        (arguments.masks, arguments.examples), dtype=np.float32
    )
    return masks, margins + np.linspace(-50, 50, arguments.examples, dtype=np.float32)


def known_weights(num_components: int, num_examples: int) -> NDArray[np.float32]:
    """Few components matter much, as in real nets."""
    random = np.random.default_rng(1)
    scale = 3 * random.random((num_components, 1), dtype=np.float32) ** 4
    return random.standard_normal((num_components, num_examples), dtype=np.float32) * scale


def statistics(arrays: Arrays, device: str) -> tuple[Gram, MarginStatistics]:
    masks, margins = arrays
    starts = range(0, len(masks), MASKS_PER_BATCH)
    batches = [slice(start, start + MASKS_PER_BATCH) for start in starts]
    whole = gram((masks[rows] for rows in batches), device)
    return whole, margin_statistics(((masks[rows], margins[rows]) for rows in batches), device)


def grid_of(factor: Factor, count: int) -> NDArray[np.float64]:
    return cross_validation.penalty_grid(float(factor.values.sum()) / factor.num_components, count, (1e-3, 1e3))


def our_ridge(
    arrays: Arrays, num_penalties: int, device: str, backend: str = "torch"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    whole, margins = statistics(arrays, device)
    factor = factorise(whole, device)
    projected = ridge.project(factor, whole.design, margins)
    grid = grid_of(factor, num_penalties)
    penalties = cross_validation.best_penalties(cross_validation.gcv_scores(factor, projected, grid), grid)
    return RIDGE_BACKENDS[backend](factor, projected, penalties), penalties


def our_lasso_path(arrays: Arrays, num_penalties: int, tolerance: float, device: str) -> torch.Tensor:
    """The same work as the libraries' paths: every point of the path to the tolerance, for every example."""
    whole, margins = statistics(arrays, device)
    problem = lasso.problem_of(whole, lasso.extremes_of(whole, device), margins, device)
    rough, largest = problem.to(torch.float32), lasso.largest_alphas(problem, 1.0)
    weights = torch.zeros_like(rough.cross)
    for ratio in np.geomspace(1.0, 1e-3, num_penalties):
        weights = lasso.solve(rough, largest * float(ratio), 1.0, weights, tolerance).weights
    return weights


def seconds(function: Callable[[], Any], rounds: int = 1) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def show(title: str, times: dict[str, tuple[float, str]], reference: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "seconds", f"times {reference}", "measured"):
        table.add_column(column, justify="left" if column in ("", "measured") else "right")
    for name, (value, how) in times.items():
        table.add_row(name, f"{value:,.3f}", f"{value / times[reference][0]:,.1f}", how)
    CONSOLE.print(table)


def ridge_section(arguments: argparse.Namespace) -> None:
    from sklearn.linear_model import RidgeCV

    arrays = synthetic(arguments)
    masks, margins = arrays
    x, y = masks.astype(np.float64), margins.astype(np.float64)
    whole, _ = statistics(arrays, arguments.device)
    grid = grid_of(factorise(whole, arguments.device), arguments.penalties)
    ours: list[Any] = []

    def work() -> None:
        ours.append(our_ridge(arrays, arguments.penalties, arguments.device))

    work()
    times = {"coar_dist": (seconds(work, 5), "best of 5")}
    reference = RidgeCV(alphas=grid, alpha_per_target=True)
    times["scikit-learn RidgeCV(alpha_per_target=True)"] = (seconds(lambda: reference.fit(x, y)), "once")
    if importlib.util.find_spec("himalaya"):
        from himalaya.backend import set_backend
        from himalaya.ridge import RidgeCV as HimalayaRidgeCV

        backend = set_backend("torch_cuda" if arguments.device == "cuda" else "torch")
        x32, y32 = backend.asarray(x.astype(np.float32)), backend.asarray(margins)
        model = HimalayaRidgeCV(alphas=grid.astype(np.float32), cv=5)
        times["himalaya RidgeCV(cv=5), torch, float32"] = (seconds(lambda: model.fit(x32, y32)), "once")
    if arguments.device == "cuda" and importlib.util.find_spec("cuml"):
        times["coar_dist, backend cuml"] = (
            seconds(lambda: our_ridge(arrays, arguments.penalties, "cuda", "cuml"), 3),
            "best of 3",
        )
    show(f"Ridge, {arguments.penalties} penalties, one per example; {shape(arguments)}", times, "coar_dist")
    weights, penalties = ours[0]
    same = np.isclose(
        penalties, reference.alpha_
    )  # leave-one-out and generalised cross-validation may differ by a step
    difference = np.abs(weights.T - reference.coef_)[same].max() / np.abs(reference.coef_).max()
    CONSOLE.print(
        f"{same.sum()} of {len(same)} examples have scikit-learn's penalty (exact leave-one-out against generalised "
        f"cross-validation); the largest difference of their weights, over the largest weight, is {difference:.1e}\n"
    )


def lasso_section(arguments: argparse.Namespace) -> None:
    from sklearn.linear_model import lasso_path

    arrays = synthetic(arguments)
    masks, margins = arrays
    x = np.asfortranarray(masks - masks.mean(axis=0, dtype=np.float64))
    y = margins.astype(np.float64) - margins.mean(axis=0, dtype=np.float64)
    products, cross = x.T @ x, x.T @ y
    ratios, tolerance = np.geomspace(1.0, 1e-3, arguments.penalties), 1e-4
    ours: list[Any] = []

    def work() -> None:
        ours.append(our_lasso_path(arrays, arguments.penalties, tolerance, arguments.device))

    work()
    times = {"coar_dist": (seconds(work, 3), "best of 3, with the statistics")}
    sample = np.linspace(0, arguments.examples - 1, arguments.sample).astype(int)
    scale, how = arguments.examples / arguments.sample, f"{arguments.sample} examples, scaled"
    paths: dict[int, Any] = {}

    def by_sklearn() -> None:
        for column in sample:
            alphas = np.abs(cross[:, column]).max() / len(x) * ratios
            paths[column] = lasso_path(
                x, y[:, column], alphas=alphas, precompute=products, Xy=cross[:, column], tol=tolerance
            )[1]

    times["scikit-learn lasso_path, precomputed Gram"] = (seconds(by_sklearn) * scale, how)
    if importlib.util.find_spec("celer"):
        from celer import celer_path

        def by_celer() -> None:
            for column in sample[:3]:
                alphas = np.abs(cross[:, column]).max() / len(x) * ratios
                celer_path(x, y[:, column], pb="lasso", alphas=alphas, tol=tolerance)

        times["celer_path"] = (seconds(by_celer) * arguments.examples / 3, "3 examples, scaled")
    show(
        f"Lasso path of {arguments.penalties} penalties, duality gap {tolerance:g} of y'y; {shape(arguments)}",
        times,
        "coar_dist",
    )
    last = ours[0].numpy()
    difference = max(np.abs(last[:, column] - path[:, -1]).max() for column, path in paths.items())
    CONSOLE.print(f"Largest difference to scikit-learn's weights at the path's end: {difference:.1e}")
    stored = stored_sizes(arrays)
    CONSOLE.print(f"Lasso weights chosen on held-out masks, in Parquet: {stored}\n")


def stored_sizes(arrays: Arrays) -> str:
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder), [arrays], len(arrays[0]), arrays[1].shape[1])
        fit(run, RegressionConfig(method="lasso"), lambda _: None)
        weights = RunReader(run).weights(method="coar_lasso")
        num_bytes = sum(path.stat().st_size for path in (Path(folder) / "attributions").iterdir())
        share = (weights != 0).mean()
        return f"{share:.0%} nonzero, {num_bytes / 2**20:.2f} MiB against {weights.nbytes / 2**20:.2f} MiB dense"


def setup_a_section(arguments: argparse.Namespace) -> None:
    """The whole fit stage from shards on the disk, ridge with a penalty per example."""
    num_masks, num_components, num_examples = arguments.setup_a
    design = Bernoulli(num_components, num_masks, 0.1, 0)
    weights = known_weights(num_components, num_examples)

    def shards() -> Iterator[Arrays]:
        for start in range(0, num_masks, 64):
            masks = design.masks(start, min(start + 64, num_masks))
            noise = np.random.default_rng(start).standard_normal((len(masks), num_examples), dtype=np.float32)
            yield masks, masks.astype(np.float32) @ weights + 3 * noise

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        started = time.perf_counter()
        run = write_run(Path(folder), shards(), num_masks, num_examples)
        written = time.perf_counter() - started
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            took = seconds(lambda: fit(run, RegressionConfig(), lambda _: None))
        found, quality = RunReader(run).weights(range(0, num_examples, 50)), RunReader(run).quality()
    correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found, weights.T[::50], strict=True)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    CONSOLE.print(
        f"Setup A: {num_masks:,} masks x {num_components:,} components x {num_examples:,} examples; shards written in "
        f"{written:.0f} s; fit stage {took:.0f} s, peak memory of the process {peak:.2f} GiB; mean R2 "
        f"{np.nanmean(quality['r2']):.4f}, estimated on new masks {np.nanmean(quality['r2_new']):.4f}; correlation of "
        f"found and true weights {correlation:.4f}\n"
    )


def write_run(root: Path, shards: Any, num_masks: int, num_examples: int) -> RunDirectory:
    run, position = None, 0
    for masks, margins in shards:
        if run is None:
            identity = {"ablation.examples_per_block": 1024, "ablation.margins_dtype": "float32"}
            components = ComponentIndex((ComponentGroup.of("a.weight", 0, masks.shape[1]),))
            run = RunDirectory.create(local_storage(root), identity, components, num_examples)
            design = Bernoulli(masks.shape[1], num_masks, 0.1, 0)
            run.set_designs({"train": RunDesign("train", design)})
            store = run.margins("train")
        store.write(position, masks, margins, {})
        position += len(masks)
    assert run is not None
    return run


def solvers_section(arguments: argparse.Namespace) -> None:
    """The parts of a ridge fit beside the machine's own matrix products."""
    arrays, device = synthetic(arguments), arguments.device
    m, d, n = arguments.masks, arguments.components, arguments.examples
    size = min(d, 8192)
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    peaks = {}
    for dtype in (torch.float32, torch.float64):
        a, b = left.to(dtype), right.to(dtype)
        peaks[dtype] = 2 * size**3 / seconds(lambda a=a, b=b: a @ b, 3)
    whole, margins = statistics(arrays, device)
    factor = factorise(whole, device)
    projected = ridge.project(factor, whole.design, margins)
    grid = grid_of(factor, arguments.penalties)
    batches = [slice(start, start + MASKS_PER_BATCH) for start in range(0, m, MASKS_PER_BATCH)]
    masks, values = arrays
    parts = {
        "X'X": (lambda: gram((masks[rows] for rows in batches), device), 2 * m * d * d, torch.float32),
        "X'Y": (
            lambda: margin_statistics(((masks[rows], values[rows]) for rows in batches), device),
            2 * m * d * n,
            torch.float64,
        ),
        "eigh": (lambda: factorise(whole, device), 0, torch.float64),
        "V'X'y": (lambda: ridge.project(factor, whole.design, margins), 2 * d * d * n, torch.float64),
        "GCV": (lambda: cross_validation.gcv_scores(factor, projected, grid), 2 * d * n * len(grid), torch.float64),
        "weights": (lambda: ridge.solve(factor, projected, np.full(n, grid[3])), 2 * d * d * n, torch.float64),
    }
    table = Table(title=f"Parts of a ridge fit; {shape(arguments)}", title_justify="left")
    for column in ("", "seconds", "GFLOP/s", "of the machine's product"):
        table.add_column(column, justify="right" if column else "left")
    for name, (function, operations, dtype) in parts.items():
        took = seconds(function, 3)
        rate = operations / took
        share = f"{rate / peaks[dtype]:.0%} of {str(dtype).removeprefix('torch.')}" if operations else ""
        table.add_row(name, f"{took:.3f}", f"{rate / 1e9:,.0f}" if operations else "", share)
    CONSOLE.print(table)


def shape(arguments: argparse.Namespace) -> str:
    return f"{arguments.masks:,} masks x {arguments.components:,} components x {arguments.examples:,} examples"


SECTIONS = {"ridge": ridge_section, "lasso": lasso_section, "solvers": solvers_section, "setup_a": setup_a_section}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=12_000)
    parser.add_argument("--components", type=int, default=688)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--penalties", type=int, default=20)
    parser.add_argument("--sample", type=int, default=16, help="examples given to what takes one at a time")
    parser.add_argument("--setup-a", type=int, nargs=3, default=[50_000, 2304, 10_000])
    parser.add_argument("--folder", help="where setup A's shards are written; 2.1 GB")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    arguments = parser.parse_args()
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    CONSOLE.print(
        f"Regression on {arguments.device} ({name}), {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    for section in arguments.sections:
        SECTIONS[section](arguments)


if __name__ == "__main__":
    main()
