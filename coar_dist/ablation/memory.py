"""Measure what a forward pass takes of memory before many rows are tried: a CPU says "out of memory" too late."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch.autograd.profiler import profile  # torch.profiler's loads the compiler, which takes seconds

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes when it starts and stops to the terminal
_SHARE_OF_CPU, _SHARE_OF_GPU = 0.5, 0.9
"""Of the memory that is free, what forward passes may take; the rest is for what else runs there."""


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors made by ``run`` take at a time, in bytes.

    Args:
        run: a forward or gradient pass; it is run once.
        device: where its tensors lie.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000) + torch.ones(1000), torch.device("cpu"))
        12000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(use_kineto=True, profile_memory=True) as measured:
        run()
    total = most = 0
    results = measured.kineto_results
    for event in results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    return most


def rows_that_fit(bytes_per_row: float, device: torch.device) -> int:
    """Rows of a pass that one actor has the memory for now, at least 1; ``bytes_per_row`` is what each takes."""
    return max(int(allowed_bytes(device, torch.get_num_threads()) / bytes_per_row), 1)


def allowed_bytes(device: torch.device, num_threads: int) -> float:
    """What one actor's forward passes may take: its share of the memory that is free now.

    Args:
        device: where they run.
        num_threads: threads of the actor; on a CPU as many actors share the memory as have room beside it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return _SHARE_OF_GPU * (free + reserved)
    num_actors = max((os.cpu_count() or 1) // max(num_threads, 1), 1)
    return _SHARE_OF_CPU * _available_bytes() / num_actors


def _available_bytes() -> float:
    """Memory of this machine that is free, or that its container may still take."""
    with open("/proc/meminfo") as file:
        found = {line.partition(":")[0]: float(line.split()[1]) * 1024 for line in file}
    free = found["MemAvailable"]
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as current:
            free = min(free, float(limit.read()) - float(current.read()))
    except (OSError, ValueError):  # no cgroup of version 2, or no limit ("max")
        return free
    return free
