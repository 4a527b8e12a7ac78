"""What a section is given: the device, its time, and where its rows go."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from coar_dist.ablation.engine import AblationEngine
from tests.benchmarks.gpu.results import Results

_PACKAGES = ("torch", "numpy", "pyarrow", "triton", "ray", "hydra-core", "cuml-cu13", "cupy-cuda13x", "transformers")


@dataclass
class Section:
    """One section while it runs.

    Attributes:
        name: as on the command line.
        device: ``cuda`` or ``cpu``.
        is_tiny: whether sizes are those of a smoke test.
        deadline: ``time.monotonic`` at which no further measurement is begun.
        limits: what the machine was measured at: operations/s by dtype name, ``copy`` and ``upload`` in bytes/s.
        results: where rows go.
    """

    name: str
    device: str
    is_tiny: bool
    deadline: float
    limits: dict[str, float]
    results: Results
    started: float = field(default_factory=time.monotonic)

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def add(self, what: str, value: float | None, unit: str = "", **more: Any) -> None:
        self.results.add(self.name, what, value, unit, **more)

    def skip(self, what: str, why: str) -> None:
        self.results.skip(self.name, what, why)

    def fail(self, what: str, error: Exception) -> None:
        """Say that one measurement failed; the section goes on."""
        self.results.fail(f"{self.name}, {what}", f"{type(error).__name__}: {error}")
        traceback.print_exc()

    def is_over(self, what: str) -> bool:
        """Whether the section's time is over; then a row says what was left out."""
        if time.monotonic() < self.deadline:
            return False
        self.skip(f"{what}, and what follows", f"the section's time is over ({time.monotonic() - self.started:.0f} s)")
        return True

    def reset_peak(self) -> None:
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self.is_cuda else 0.0

    @contextlib.contextmanager
    def scarce_memory(self, engine: AblationEngine, rows_that_fit: int) -> Iterator[None]:
        """Leave so much memory that a few more than ``rows_that_fit`` rows of the engine's model fit.

        On a CPU the engine's model raises ``torch.OutOfMemoryError`` for more rows.
        """
        if not self.is_cuda:
            handle = engine.model.module.register_forward_pre_hook(_OutOfRows(rows_that_fit))
            try:
                yield
            finally:
                handle.remove()
            return
        torch.cuda.empty_cache()
        before, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
        self.reset_peak()
        engine.trial()
        of_a_row = (torch.cuda.max_memory_allocated() - before) / engine.plan.rows_per_forward
        torch.cuda.empty_cache()
        leave = int(of_a_row * rows_that_fit * 3) + 2**30
        ballast = torch.empty(max(free - leave, 0), dtype=torch.uint8, device=self.device)
        try:
            yield
        finally:
            del ballast
            torch.cuda.empty_cache()


class _OutOfRows:
    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(self, _module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        if len(arguments[0]) > self._most:
            raise torch.OutOfMemoryError(f"{len(arguments[0])} rows, {self._most} fit")


def seconds(function: Callable[[], object], device: str, rounds: int, *, warm_up: bool = True) -> float:
    """The median of ``rounds`` calls, after one more to warm up, each until the device is done."""
    times = []
    for _ in range(rounds + warm_up):
        if device == "cuda":
            torch.cuda.synchronize()  # not the end of what was begun before
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[warm_up:])[rounds // 2]


def measure_limits(device: str, is_tiny: bool) -> dict[str, float]:
    """Rates of large matrix products by dtype (operations/s), of a device copy and of an upload (bytes/s)."""
    limits: dict[str, float] = {}
    size = 256 if is_tiny else 8192
    torch.backends.cuda.matmul.allow_tf32 = False
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        n = size if dtype == torch.bfloat16 else size // 2
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        took = seconds(lambda a=a, b=b, out=out: [torch.mm(a, b, out=out) for _ in range(5)], device, 5) / 5
        limits[str(dtype).removeprefix("torch.")] = 2 * n**3 / took
    source = torch.randn(2**18 if is_tiny else 2**29, device=device)
    target = torch.empty_like(source)
    num_bytes = source.numel() * 4
    limits["copy"] = 2 * num_bytes / seconds(lambda: target.copy_(source), device, 5)
    host = torch.randn(2**18 if is_tiny else 2**26)
    if device == "cuda":
        host = host.pin_memory()
    limits["upload"] = host.numel() * 4 / seconds(lambda: host.to(device, copy=True), device, 5)
    return limits


def machine(device: str) -> dict[str, str]:
    """What the numbers were measured on."""
    found = {"cpu": platform.processor() or platform.machine(), "threads": str(torch.get_num_threads())}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = (
            f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        )
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
        except (OSError, subprocess.CalledProcessError) as error:
            found["driver"] = f"unknown ({error})"
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["device"] = "cpu: nothing here is a claim about a GPU"
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
