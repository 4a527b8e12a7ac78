"""Sections on the regression: sufficient statistics, ridge, lasso, and a whole fit from shards."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import RegressionConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.regression import cuml_backend, lasso, reduced, ridge
from coar_dist.regression.factor import Factor, factorise
from coar_dist.regression.fit import fit
from coar_dist.regression.masks import PackedMasks
from coar_dist.regression.statistics import MASKS_PER_BATCH, Gram, MarginStatistics, gram, margin_statistics
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from tests.benchmarks.gpu.sections import Section, seconds
from tests.models import local_storage

Arrays = tuple[NDArray[np.bool_], NDArray[np.float32]]
RIDGE_ERROR = 1e-6
"""Allowed residual of the normal equations, relative, in float64."""


def synthetic(num_masks: int, num_components: int, num_examples: int) -> Arrays:
    """Masks at alpha .05, margins with a known linear part, noise and offsets of their own."""
    random = np.random.default_rng(0)
    masks = random.random((num_masks, num_components), dtype=np.float32) > 0.05
    scale = 3 * random.random((num_components, 1), dtype=np.float32) ** 4
    weights = random.standard_normal((num_components, num_examples), dtype=np.float32) * scale
    device = "cuda" if torch.cuda.is_available() else "cpu"
    linear = torch.from_numpy(masks).to(device).float() @ torch.from_numpy(weights).to(device)
    noise = 3 * random.standard_normal((num_masks, num_examples), dtype=np.float32)
    return masks, linear.cpu().numpy() + noise + np.linspace(-50, 50, num_examples, dtype=np.float32)


def batches(arrays: Arrays) -> list[slice]:
    return [slice(start, start + MASKS_PER_BATCH) for start in range(0, len(arrays[0]), MASKS_PER_BATCH)]


def packed(masks: NDArray[np.bool_]) -> PackedMasks:
    """As a fit has them."""
    return PackedMasks(np.packbits(masks, axis=1, bitorder="little"), masks.shape[1])


def of_packed(masks: PackedMasks, device: str) -> Gram:
    return gram(masks.parts(MASKS_PER_BATCH), device)


def products(arrays: Arrays, device: str) -> Gram:
    return of_packed(packed(arrays[0]), device)


def cross_products(arrays: Arrays, device: str) -> MarginStatistics:
    margins = (arrays[1][rows] for rows in batches(arrays))
    return margin_statistics(zip(packed(arrays[0]).parts(MASKS_PER_BATCH), margins, strict=True), device)


def statistics(arrays: Arrays, device: str) -> tuple[Gram, MarginStatistics]:
    return products(arrays, device), cross_products(arrays, device)


def sufficient_statistics(section: Section) -> None:
    """X'X and X'Y from packed masks on the host, as a share of the slower of products and upload."""
    sizes = [(600, 40, 8)] if section.is_tiny else [(50_000, 2304, 1024), (20_000, 22_720, 1024)]
    of_gram, name = ("bfloat16", "bfloat16 product") if section.is_cuda else ("float32", "float32 product")
    for m, d, n in sizes:
        if section.is_over(f"{d} components"):
            return
        arrays = synthetic(m, d, n)
        about = f"{m:,} masks x {d:,} components"
        few = arrays[0][:, : min(d, 512)].astype(np.float32)
        known = few.T @ few  # ones are exact in float32
        found = of_packed(packed(arrays[0]), section.device).products[: len(known), : len(known)]
        different = float((known != found).sum())
        section.add(f"X'X, {about}: of its first", different, "differ", limit=0.0, limit_name="allowed", kind="error")
        took, _ = timed(section, 2, of_packed, packed(arrays[0]), section.device)
        bound, what = bounds(section, 2 * m * d * d / section.limits[of_gram], name, m * d / 8 + 4 * d * d)
        section.add(f"X'X, {about}", took, "s", limit=bound, limit_name=what, kind="cost")

        took, _ = timed(section, 2, cross_products, arrays, section.device)
        product = 2 * m * d * n / section.limits["float64"]
        bound, what = bounds(section, product, "float64 product", m * d / 8 + 4 * m * n + 8 * d * n)
        section.add(f"X'Y, {about} x {n:,} examples", took, "s", limit=bound, limit_name=what, kind="cost")


def bounds(section: Section, product: float, name: str, num_bytes: float) -> tuple[float, str]:
    """The larger of the product's time and the time of what crosses between host and device."""
    upload = num_bytes / section.limits["upload"] if section.is_cuda else 0.0
    return max((product, f"s, {name}"), (upload, "s, upload and download"))


def ridge_section(section: Section) -> None:
    """Solvers of one ridge problem with one penalty for all: time, and the normal equations' residual in float64."""
    sizes = [(400, 30, 8)] if section.is_tiny else [(12_000, 688, 512), (30_000, 2304, 512), (40_000, 22_720, 1024)]
    for m, d, n in sizes:
        if section.is_over(f"{d} components"):
            return
        whole, margins = statistics(synthetic(m, d, n), section.device)
        matrix = whole.centred(whole.design.mean, section.device)
        cross = torch.from_numpy(margins.centred_cross(whole.design)).to(section.device)
        problem = RidgeProblem(section, f"{d:,} components, {n:,} examples", matrix, cross)
        rounds = 1 if d > 10_000 else 3
        product = section.limits["float64"]
        took, factor = timed(section, rounds, factorise, whole, section.device)
        projected = ridge.project(factor, whole.design, margins)
        penalties = np.full(n, problem.penalty)
        solve, weights = timed(section, 2, ridge.solve, factor, projected, penalties)
        problem.report("torch eigh", took + solve, weights, (9 * d**3 + 4 * d * d * n) / product)
        section.add(f"of it, weights of one more penalty, {problem.about}", solve, "s")
        took, weights = timed(section, rounds, by_cholesky, problem)
        problem.report("torch Cholesky", took, weights, (d**3 / 3 + 2 * d * d * n) / product)
        reason = why_no_cuml(section)
        if reason:
            section.skip(f"cuML, {problem.about}", reason)
            continue
        try:
            ridge_by_cuml(problem, factor, projected, solve)
        except Exception as failure:  # a library that does not work here leaves the rest to be measured
            section.fail(f"cuML, {problem.about}", failure)


def ridge_by_cuml(problem: RidgeProblem, factor: Factor, projected: ridge.Projected, torch_s: float) -> None:
    """A penalty for each example, beside float64 in torch: with the pieces that are used, and with other ones."""
    section = problem.section
    of_each = np.geomspace(problem.penalty / 100, problem.penalty * 100, len(projected.squares))
    known = ridge.solve(factor, projected, of_each)
    used = cuml_backend._PIECE
    is_large = factor.rank > 10_000
    for piece in (used,) if is_large else (used, 16, 256):
        what = f"cuML, a penalty for each example, pieces of {piece}, {problem.about}"
        if piece > factor.rank or section.is_over(what):
            continue
        cuml_backend._PIECE = piece
        try:
            rounds = 1 if is_large else 2
            took, weights = timed(section, rounds, cuml_backend.cuml_ridge, factor, projected, of_each)
        finally:
            cuml_backend._PIECE = used
        error = float(np.abs(weights - known).max() / np.abs(known).max())
        limit_name = "s, torch's of one penalty"
        section.add(what, took, "s", limit=torch_s, limit_name=limit_name, kind="cost", group=problem.about)
        section.add(f"{what}: error", error, limit=RIDGE_ERROR, limit_name="allowed", kind="error")


@dataclass(frozen=True)
class RidgeProblem:
    """Normal equations (d, d) and (d, n) in float64 on the device, and how a solution of them is reported."""

    section: Section
    about: str
    matrix: torch.Tensor
    cross: torch.Tensor

    @property
    def penalty(self) -> float:
        return float(self.matrix.diagonal().mean())

    def report(self, what: str, took: float, weights: Any, limit: float | None) -> None:
        found = torch.as_tensor(weights, dtype=torch.float64, device=self.matrix.device)
        known = self.cross[:, : found.shape[1]]
        residual = float((self.matrix @ found + self.penalty * found - known).norm() / known.norm())
        name = "s, its operations at the float64 product's rate" if limit else ""
        what = f"{what}, {self.about}"
        self.section.add(what, took, "s", limit=limit, limit_name=name, kind="cost")
        self.section.add(f"{what}: residual", residual, limit=RIDGE_ERROR, limit_name="allowed", kind="error")


def by_cholesky(problem: RidgeProblem) -> torch.Tensor:
    shifted = problem.matrix.clone()
    shifted.diagonal().add_(problem.penalty)
    return torch.cholesky_solve(problem.cross, torch.linalg.cholesky(shifted))


def timed(section: Section, rounds: int, function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds, and what came out: of the first call where ``rounds`` is 1, else the median after a warm-up."""
    results = []
    took = seconds(lambda: results.append(function(*arguments)), section.device, rounds, warm_up=rounds > 1)
    return took, results[-1]


def why_no_cuml(section: Section) -> str | None:
    if not section.is_cuda:
        return "no CUDA device"
    return None if importlib.util.find_spec("cuml") else "cuml is not installed"


def lasso_section(section: Section) -> None:
    """Lasso of every example at a tenth of its largest penalty: batched torch, and cuML one target at a time."""
    sizes = [(400, 30, 8)] if section.is_tiny else [(12_000, 688, 1024), (30_000, 2304, 1024)]
    tolerance = 1e-6
    for m, d, n in sizes:
        if section.is_over(f"{d} components"):
            return
        whole, margins = statistics(synthetic(m, d, n), section.device)
        extremes = lasso.extremes_of(whole, section.device)
        problem = lasso.problem_of(whole, extremes, margins, section.device)
        alphas = lasso.largest_alphas(problem, 1.0) / 10
        start = torch.zeros_like(problem.cross)
        took, solution = timed(section, 2, lasso.solve, problem, alphas, 1.0, start, tolerance)
        gap = float(lasso.exact_gaps(problem, solution.weights, alphas, 1.0).max())
        products = 2 * d * d * n * solution.num_steps / section.limits["float64"]
        about = f"{d:,} components, {n:,} examples"
        section.add(
            f"torch, {about}", took, "s", limit=products, limit_name="s, its float64 products", kind="cost",
            note=f"{solution.num_steps} steps",
        )  # fmt: skip
        section.add(
            f"torch, {about}: duality gap", gap, "of y'y", limit=2 * tolerance, limit_name="allowed", kind="error"
        )
        reason = why_no_cuml(section)
        if reason or section.is_over(f"cuML, {about}"):
            section.skip(f"cuML, {about}", reason or "no time")
            continue
        few = problem.of(torch.arange(4, device=section.device))
        target = reduced.LassoTarget(few, alphas[:4], 1.0, start[:, :4], tolerance)
        factor = factorise(whole, section.device)
        try:
            took, weights = timed(section, 1, cuml_backend.cuml_lasso, factor, target)
        except Exception as error:  # as above
            section.fail(f"cuML, {about}", error)
            continue
        gap = float(lasso.exact_gaps(few, weights, alphas[:4], 1.0).max())
        known = solution.weights[:, :4]
        difference = float((weights - known).norm() / known.norm())
        note = f"duality gap {gap:.1e}, {difference:.1e} from torch's weights"
        section.add(f"cuML, {d:,} components, per example", took / 4, "s", note=note)


def whole_fit(section: Section) -> None:
    """Two fits from the same shards on this device: the same bits; and ridge by cuML beside torch's weights."""
    m, d, n = (300, 30, 12) if section.is_tiny else (20_000, 2304, 2048)
    masks, margins = synthetic(m, d, n)
    for method, backend in (("ridge", "torch"), ("lasso", "torch"), ("ridge", "cuml")):
        about = f"{method} by {backend}, {m:,} masks x {d:,} components x {n:,} examples, from shards"
        if section.is_over(about):
            return
        reason = why_no_cuml(section) if backend == "cuml" else None
        if reason:
            section.skip(about, reason)
            continue
        try:
            different = float(not np.array_equal(*fitted_twice(section, about, method, backend, (masks, margins))))
        except Exception as error:  # as above
            section.fail(about, error)
            continue
        section.add(f"{about}: two fits", different, "differ", limit=0.0, limit_name="allowed", kind="error")


def fitted_twice(section: Section, about: str, method: str, backend: str, arrays: Arrays) -> list[NDArray[np.float32]]:
    """Weights of two fits; a row for the time of the second, and one for the error against float64 on the CPU."""
    found = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            run = written(Path(folder), *arrays)
            config = RegressionConfig(method=method, backend=backend)
            took, _ = timed(section, 1, fit, run, config, lambda _: None)
            reader = RunReader(run)
            name = "coar" if method == "ridge" else "coar_lasso"
            found.append(reader.weights(method=name))
            quality = reader.quality(method=name)
    section.add(about, took, "s", note=f"the second of two; {arrays[1].shape[1] / took:,.0f} examples/s")
    if method == "ridge":
        few = slice(0, 4)
        known = by_normal_equations(arrays[0], arrays[1][:, few], quality["regularisation"][few])
        error = float(np.abs(found[-1][few] - known).max() / np.abs(known).max())
        section.add(f"{about}: error", error, limit=1e-5, limit_name="allowed, float32", kind="error")
    return found


def by_normal_equations(
    masks: NDArray[np.bool_], margins: NDArray[np.float32], penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ridge's weights (n, d) in float64 on the CPU."""
    x, y = masks.astype(np.float64), margins.astype(np.float64)
    x -= x.mean(axis=0)
    y -= y.mean(axis=0)
    gram, cross = x.T @ x, x.T @ y
    solved = [np.linalg.solve(gram + p * np.eye(len(gram)), q) for p, q in zip(penalties, cross.T, strict=True)]
    return np.stack(solved)


def written(root: Path, masks: NDArray[np.bool_], margins: NDArray[np.float32]) -> RunDirectory:
    """A run directory with these margins in shards of 1,024 masks."""
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, masks.shape[1]),))
    identity = {"ablation.examples_per_block": 1024, "ablation.margins_dtype": "float32"}
    run = RunDirectory.create(local_storage(root), identity, components, margins.shape[1])
    design = Bernoulli(masks.shape[1], len(masks), 0.05, 0)
    run.set_designs({"train": RunDesign("train", design)})
    store = run.margins("train")
    for start in range(0, len(masks), 1024):
        rows = slice(start, start + 1024)
        store.write(start, masks[rows], margins[rows], {})
    return run
