"""Sections on whole runs in this process, on ablation values, and on where a pass's time goes."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coar_dist.ablation.calibration import choose_plan
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.placement import on_host
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import AblationValue, SiteValues, ZeroWeights
from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.task import Task
from tests.benchmarks.gpu.engine_sections import FLOAT32_ERROR, copy_of, masks_of
from tests.benchmarks.gpu.models import BareForward, build
from tests.benchmarks.gpu.sections import Section, seconds
from tests.models import local_storage, slow_margins

STAGES = ("ablate", "fit", "evaluate")
SETUP_B_IMAGES, SETUP_B_PLAIN, SETUP_B_WITH_GRADIENTS = 50_000, 500 + 4 * 100, 100
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


def config_of(
    folder: str, stages: tuple[str, ...], masks: tuple[int, int, int], cluster: dict[str, Any], **ablation: Any
) -> Any:
    """A run with so many masks without gradients, with them, and of every held-out fraction."""
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
        cluster=ClusterConfig(**cluster),
        baselines=[],
    )


def small_run(section: Section, folder: str, stages: tuple[str, ...], cluster: dict[str, Any]) -> Any:
    """Task, components and configuration of a run whose engine plan is fixed, so that it has one result."""
    num_examples, masks = (16, (16, 20, 8)) if section.is_tiny else (128, (100, 20, 50))
    task, components = build("resnet50", num_examples, section.is_tiny, section.device)
    plan = {"mode": "weights", "rows_per_forward": 16, "compile": False, "cuda_graphs": section.is_cuda}
    return task, components, config_of(folder, stages, masks, cluster, **plan)


def opened(folder: str) -> RunDirectory:
    return RunDirectory.open(local_storage(Path(folder)))


def whole_run(section: Section) -> None:
    """Ablate, fit and evaluate, twice: the same margins, sums and attributions, byte for byte."""
    found: list[dict[str, bytes]] = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            task, components, config = small_run(section, folder, STAGES, {"where": "process"})
            started = time.perf_counter()
            run(task, components, config)
            took = time.perf_counter() - started
            found.append(files_of(Path(folder)))
            plan = opened(folder).engine_plan
    different = [name for name in found[0] | found[1] if found[0].get(name) != found[1].get(name)]
    section.add("ablate, fit, evaluate", took, "s", note=f"the second of two; {len(found[0])} files compared; {plan}")
    section.add(
        "files of two runs", float(len(different)), "differ", limit=0.0, limit_name="allowed", kind="error",
        note=", ".join(different[:4]),
    )  # fmt: skip


def shared_gpu(section: Section) -> None:
    """Two actors on Ray that share the GPU, half each: the margins and weights of a run in this process."""
    found = []
    share = {"where": "ray", "gpus_per_actor": 0.5 if section.is_cuda else 0.0, "min_actors": 2, "max_actors": 2}
    for cluster in ({"where": "process"}, share):
        if section.is_over(str(cluster)):
            return
        with tempfile.TemporaryDirectory() as folder:
            task, components, config = small_run(section, folder, STAGES[:2], cluster)
            started = time.perf_counter()
            run(task, components, config)
            took = time.perf_counter() - started
            reader = RunReader(opened(folder))
            found.append((reader.margins()[1], reader.weights(method="gradient_ridge")))
    section.add("two actors that share the GPU: ablate and fit", took, "s", note="with Ray's start")
    for what, one, other in zip(("margins", "weights with gradients"), *found, strict=True):
        different = float((one != other).sum())
        about = f"{what} of a run in this process and of two actors"
        section.add(about, different, "differ", limit=0.0, limit_name="allowed", kind="error")


@contextlib.contextmanager
def moments() -> Iterator[dict[str, float]]:
    """When the log said that an actor has started, and that the first one has chosen an engine plan."""
    found: dict[str, float] = {}

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            for words in ("has started", "engine plan: "):
                if words in message:
                    found.setdefault(words, time.perf_counter())

    clock, logger = Clock(logging.INFO), logging.getLogger("coar_dist")
    logger.addHandler(clock)
    try:
        yield found
    finally:
        logger.removeHandler(clock)


def setup_b(section: Section) -> None:
    """A tenth of setup B's images through the pipeline: seconds by stage, all of it at these rates, and what the plan
    says of such a run.

    All of it would compile, as it takes long enough: so this does. The plan comes last, when the compiler's cache has
    what it needs.
    """
    num_images, masks = (16, (12, 20, 4)) if section.is_tiny else (5000, (100, 30, 10))
    pins = {"mode": "weights", "rows_per_forward": 8 if section.is_tiny else 256, "compile": section.is_cuda}
    task, components = build("resnet50", num_images, section.is_tiny, section.device)
    about = f"{num_images:,} images, {components.num_components:,} filters, {masks[1]} + {masks[0]} masks"
    taken: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = f"{root}/run"
        for stage in STAGES:
            if section.is_over(f"{about}, {stage}"):
                return
            section.reset_peak()
            with moments() as moment:
                started = time.perf_counter()
                run(task, components, config_of(folder, (stage,), masks, {"where": "process"}, **pins))
                taken[stage] = time.perf_counter() - started
            section.add(f"{about}, {stage}", taken[stage], "s", note=f"peak {section.peak_gib():.1f} GiB of the GPU")
            if stage == "ablate":
                work_s = started + taken[stage] - moment["engine plan: "]
                choice_s = moment["engine plan: "] - moment["has started"]
                cost = opened(folder).gradient_cost or 0.0
                plan = opened(folder).engine_plan
                units = masks[0] + 4 * masks[2] + cost * masks[1]
                rate = units / work_s
                section.add(
                    f"{about}, ablate without its start", work_s, "s", note=f"the plan took {choice_s:.1f} s: {plan}"
                )
                section.add(
                    f"{about}, passes", rate, "masks/s", note=f"a pass with gradients counted as {cost:.2f}"
                )  # fmt: skip
        more = SETUP_B_IMAGES / num_images
        all_units = SETUP_B_PLAIN + cost * SETUP_B_WITH_GRADIENTS
        seconds_of_all = taken["ablate"] - work_s + more * (all_units / rate + taken["fit"] + taken["evaluate"])
        section.add(
            "all of setup B, at these rates", seconds_of_all / 3600, "hours", limit=SETUP_B_HOURS,
            limit_name="aimed at", kind="cost",
        )  # fmt: skip
        if section.is_over(f"{about}, the plan"):
            return
        planned = run(task, components, config_of(f"{root}/plan", ("plan",), masks, {"where": "process"}, **pins))
        section.add(f"{about}, the plan", None, note=" / ".join(line.strip() for line in planned.split("\n")[-14:]))


def values(section: Section) -> None:
    """A pass with means in the place of components, in passes of zeroed weights; and its margins against hooks."""
    for name, selector in (("resnet50", "conv_filters"), ("gpt2", "heads")):
        num_examples = 8 if section.is_tiny else {"resnet50": 256, "gpt2": 64}[name]
        task, components = build(name, num_examples, section.is_tiny, section.device)
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
    """Models of the shape of Llama and GPT-2: exactness, masks/s, and what of a pass with gradients is its download."""
    for name, count in (("llama", 16), ("gpt2", 64)):
        count = 4 if section.is_tiny else count
        task, components = build(name, count, section.is_tiny, section.device)
        few, masks = Task(task.model, task.examples.rows(0, 4), task.output_function), masks_of(components, 3)
        if section.is_over(name):
            return
        truth = slow_margins(few, components, masks).astype(np.float64)
        effects = np.linalg.norm(truth - truth.mean(axis=0))
        engine = AblationEngine(copy_of(few), components, section.device, "float32")
        for mode in ("weights", "rows"):
            engine.use(EnginePlan(mode, 4, compiled=False))
            error = float(np.linalg.norm(engine.margins(masks) - truth) / effects)
            what = f"{name}, {components.num_components:,} components, float32, {mode}"
            section.add(what, error, "of the effects", limit=FLOAT32_ERROR, limit_name="allowed", kind="error")
        engine.close()
        del engine
        if section.is_over(f"{name}, speed"):
            return
        bare = seconds(BareForward(task, section.device, "bfloat16"), section.device, 3)
        engine = AblationEngine(copy_of(task), components, section.device, "bfloat16")
        for recorded in (False, True) if section.is_cuda else (False,):
            form = f"eager{', CUDA graph' * recorded}"
            engine.use(
                EnginePlan(
                    "weights", count, compiled=False, recorded=recorded, gradient_rows=count,
                    gradients_recorded=recorded,
                )
            )  # fmt: skip
            forward = seconds(partial(engine.margins, masks), section.device, 3) / len(masks)
            section.add(
                f"{name}, {count} examples, {form}", 1 / forward, "masks/s", limit=1 / bare,
                limit_name="bare forward, eager", group=name, note=str(engine.plan),
            )  # fmt: skip
            took = seconds(partial(engine.gate_gradients, masks, (0, count)), section.device, 3) / len(masks)
            download = downloaded(section, 2 * count * components.num_components)
            section.add(
                f"{name}, {count} examples, pass with gradients, {form}", took / forward, "forward passes", limit=3.0,
                limit_name="one forward, one backward", kind="cost", group=f"{name}, gradients",
                note=f"{took * 1e3:.1f} ms; the download of its sums, once for {len(masks)} of them, "
                f"{download * 1e3:.1f} ms; {engine.plan}",
            )  # fmt: skip
        engine.close()


def downloaded(section: Section, num_values: int) -> float:
    """Seconds in which so many float32 come to the host, as gradient passes bring them."""
    source = torch.randn(num_values, device=section.device)
    return seconds(lambda: on_host(source), section.device, 3)


def gap(section: Section) -> None:
    """Where an ablated pass, and one with gradients, spends more than the bare forward: by kernel, and outside them.

    Margins and gradients are of so many masks at once that their download does not count.
    """
    for name, count in (("resnet50", 512), ("vit_b16", 256)):
        count = 8 if section.is_tiny else count
        task, components = build(name, count, section.is_tiny, section.device)
        masks = masks_of(components, 2 if section.is_tiny else 8)
        engine = AblationEngine(copy_of(task), components, section.device, "bfloat16")
        compiled = section.is_cuda and not section.is_tiny
        engine.use(
            EnginePlan(
                "weights", count, compiled=compiled, recorded=section.is_cuda, gradient_rows=count // 2,
                gradients_recorded=section.is_cuda,
            )
        )  # fmt: skip
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
            note = f"{inside * 1e3:.2f} in kernels: {note}"
            if what != "bare forward":
                note = f"{engine.plan}; {note}"
            section.add(f"{name}, {count} examples, {what}", took * 1e3, "ms", note=note)
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
