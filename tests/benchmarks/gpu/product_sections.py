"""Sections on whole runs in this process, on ablation values, and on where a pass's time goes."""

from __future__ import annotations

import io
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coar_dist.ablation.calibration import choose_plan
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import AblationValue, SiteValues, ZeroWeights
from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.tasks.task import Task
from tests.benchmarks.gpu.engine_sections import FLOAT32_ERROR, copy_of, masks_of
from tests.benchmarks.gpu.models import BareForward, build
from tests.benchmarks.gpu.sections import Section, seconds
from tests.models import slow_margins

STAGES = ("ablate", "fit", "evaluate")
SETUP_B_IMAGES, SETUP_B_PASSES = 50_000, 500 + 100 + 4 * 100
SETUP_B_HOURS = 1.0
"""All of setup B on one H200; its published 100,000 masks take 53 hours there."""


def files_of(folder: Path) -> dict[str, bytes]:
    """The files that no run may have otherwise, by name."""
    parts = ("margins", "gradients", "attributions", "evaluation")
    paths = [path for part in parts for path in (folder / part).rglob("*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def run(task: Task, components: ComponentIndex, config: Any) -> str:
    """Run stages of the product in this process; what they print."""
    from rich.console import Console

    from coar_dist.stages.pipeline import run_stages

    printed = io.StringIO()
    run_stages(config, Console(file=printed, width=120), copy_of(task), components)
    return printed.getvalue()


def config_of(folder: str, stages: tuple[str, ...], masks: tuple[int, int, int], **ablation: Any) -> Any:
    """A run in this process with so many masks without gradients, with them, and of every held-out fraction."""
    from coar_dist.config.schema import (
        AblationConfig,
        ClusterConfig,
        Config,
        DesignConfig,
        EvaluationConfig,
        GradientsConfig,
        RunConfig,
    )

    plain, passes, held_out = masks
    return Config(
        stages=list(stages),
        run=RunConfig(folder, previews=False, responses_mb=0),
        design=DesignConfig(num_masks=plain),
        gradients=GradientsConfig(num_masks=passes),
        evaluation=EvaluationConfig(num_masks=held_out),
        ablation=AblationConfig(**ablation),
        cluster=ClusterConfig(where="process"),
        baselines=[],
    )


def whole_run(section: Section) -> None:
    """Ablate, fit and evaluate, twice: the same margins, sums and attributions, byte for byte."""
    num_examples, masks = (16, (16, 20, 8)) if section.is_tiny else (128, (100, 20, 50))
    task, components = build("resnet50", num_examples, section.is_tiny)
    found: list[dict[str, bytes]] = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run(task, components, config_of(folder, STAGES, masks, mode="weights", rows_per_forward=16, compile=False))
            took = time.perf_counter() - started
            found.append(files_of(Path(folder)))
    different = [name for name in found[0] | found[1] if found[0].get(name) != found[1].get(name)]
    section.add("ablate, fit, evaluate", took, "s", note=f"the second of two; {len(found[0])} files compared")
    section.add(
        "files of two runs", float(len(different)), "differ", limit=0.0, limit_name="allowed", kind="error",
        note=", ".join(different[:4]),
    )  # fmt: skip


def setup_b(section: Section) -> None:
    """A tenth of setup B through the pipeline: seconds by stage, what the plan said, and all of it at this rate."""
    num_images, masks = (16, (12, 20, 4)) if section.is_tiny else (5000, (200, 60, 25))
    task, components = build("resnet50", num_images, section.is_tiny)
    about = f"{num_images:,} images, {components.num_components:,} filters, {masks[1]} + {masks[0]} masks"
    with tempfile.TemporaryDirectory() as folder:
        planned = run(task, components, config_of(f"{folder}/run", ("plan",), masks))
        section.add(f"{about}: the plan", None, note=" / ".join(line.strip() for line in planned.split("\n")[-12:]))
        hours = 0.0
        for stage in STAGES:
            if section.is_over(f"{about}, {stage}"):
                return
            section.reset_peak()
            started = time.perf_counter()
            run(task, components, config_of(f"{folder}/run", (stage,), masks))
            took = time.perf_counter() - started
            section.add(f"{about}, {stage}", took, "s", note=f"peak {section.peak_gib():.1f} GiB of the GPU")
            share = SETUP_B_PASSES / (masks[0] + masks[1] + 4 * masks[2]) if stage == "ablate" else 1.0
            hours += took / 3600 * SETUP_B_IMAGES / num_images * share
        section.add(
            "all of setup B, at these rates", hours, "hours", limit=SETUP_B_HOURS, limit_name="aimed at", kind="cost"
        )


def values(section: Section) -> None:
    """A pass with means in the place of components, in passes of zeroed weights; and its margins against hooks."""
    for name, selector in (("resnet50", "conv_filters"), ("gpt2", "heads")):
        num_examples = 8 if section.is_tiny else {"resnet50": 256, "gpt2": 64}[name]
        task, components = build(name, num_examples, section.is_tiny)
        if name == "resnet50":
            components = discover(task.model, selector)
        masks = masks_of(components, 4)
        took = {}
        for kind in ("zero weights", "mean"):
            if section.is_over(f"{name}, {kind}"):
                return
            copied = copy_of(task)
            value: AblationValue = ZeroWeights(components)
            if kind == "mean":
                model = copied.model.to(section.device)
                means = site_means(model, components, copied.examples, torch.device(section.device), by_position=False)
                value = SiteValues(components, values=means)
            engine = AblationEngine(copied, components, section.device, "bfloat16", value=value)
            choose_plan(engine, PlanPins(compiled=False), len(masks))
            took[kind] = seconds(partial(engine.margins, masks), section.device, 3) / len(masks)
            engine.close()
        section.add(f"{name}, {num_examples} examples, mean", took["mean"] / took["zero weights"], "of zeroed weights")


def language(section: Section) -> None:
    """Models of the shape of Llama: exactness, masks/s, and what of a pass with gradients is its download."""
    num_examples = 4
    task, components = build("llama", num_examples, section.is_tiny)
    masks = masks_of(components, 3)
    truth = slow_margins(task, components, masks).astype(np.float64)
    effects = np.linalg.norm(truth - truth.mean(axis=0))
    for mode in ("weights", "rows"):
        engine = AblationEngine(copy_of(task), components, section.device, "float32")
        engine.use(EnginePlan(mode, 4, compiled=False))
        error = float(np.linalg.norm(engine.margins(masks) - truth) / effects)
        what = f"llama, {components.num_components:,} components, float32, {mode}"
        section.add(what, error, "of the effects", limit=FLOAT32_ERROR, limit_name="allowed", kind="error")
        engine.close()
    for name, count in (("llama", 16), ("gpt2", 64)):
        if section.is_over(name):
            return
        count = 4 if section.is_tiny else count
        task, components = build(name, count, section.is_tiny)
        engine = AblationEngine(copy_of(task), components, section.device, "bfloat16")
        engine.use(EnginePlan("weights", count, compiled=False, gradient_rows=count))
        masks = masks_of(components, 4)
        bare = seconds(BareForward(task, section.device, "bfloat16"), section.device, 3)
        forward = seconds(partial(engine.margins, masks), section.device, 3) / len(masks)
        section.add(
            f"{name}, {count} examples, eager", 1 / forward, "masks/s", limit=1 / bare, limit_name="bare forward, eager"
        )
        took = seconds(partial(engine.gate_gradients, masks, (0, count)), section.device, 3) / len(masks)
        download = downloaded(section, 2 * count * components.num_components)
        section.add(
            f"{name}, {count} examples, pass with gradients", took / forward, "forward passes", limit=3.0,
            limit_name="one forward, one backward", kind="cost",
            note=f"{took * 1e3:.1f} ms; the download of its sums, once a shard, {download * 1e3:.1f} ms",
        )  # fmt: skip
        engine.close()


def downloaded(section: Section, num_values: int) -> float:
    """Seconds in which so many float32 go to pinned memory of the host."""
    source = torch.randn(num_values, device=section.device)
    target = torch.empty(num_values, pin_memory=section.is_cuda)
    return seconds(lambda: target.copy_(source, non_blocking=True), section.device, 3)


def gap(section: Section) -> None:
    """Where an ablated pass, and one with gradients, spends more than the bare forward: by kernel, and outside them."""
    for name, count in (("resnet50", 512), ("vit_b16", 256)):
        count = 8 if section.is_tiny else count
        task, components = build(name, count, section.is_tiny)
        masks = masks_of(components, 2)
        engine = AblationEngine(copy_of(task), components, section.device, "bfloat16")
        compiled = section.is_cuda and not section.is_tiny
        engine.use(EnginePlan("weights", count, compiled=compiled, recorded=section.is_cuda, gradient_rows=count))
        bare = BareForward(task, section.device, "bfloat16")
        if compiled:
            bare.compile()
        if section.is_cuda:
            bare.record()
        works = {
            "bare forward": (bare, 1),
            "ablated": (partial(engine.margins, masks), len(masks)),
            "with gradients": (partial(engine.gate_gradients, masks, (0, count)), len(masks)),
        }
        for what, (work, number) in works.items():
            if section.is_over(f"{name}, {what}"):
                return
            took = seconds(work, section.device, 3) / number
            kernels = by_kernel(section, work)
            inside = sum(kernels.values()) / number
            largest = sorted(kernels, key=lambda kernel: -kernels[kernel])[:6]
            note = "; ".join(f"{kernels[kernel] / number * 1e3:.2f} ms {kernel[:60]}" for kernel in largest)
            section.add(
                f"{name}, {count} examples, {what}", took * 1e3, "ms", note=f"{inside * 1e3:.2f} in kernels: {note}"
            )
        engine.close()


def by_kernel(section: Section, work: Any) -> dict[str, float]:
    """Seconds of a call by kernel, or on a CPU by operation."""
    activity = torch.profiler.ProfilerActivity.CUDA if section.is_cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        work()
        if section.is_cuda:
            torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in profile.key_averages():
        took = event.self_device_time_total if section.is_cuda else event.self_cpu_time_total
        found[event.key] = found.get(event.key, 0.0) + took / 1e6
    return found
