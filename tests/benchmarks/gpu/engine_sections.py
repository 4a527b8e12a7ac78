"""Sections on the ablation engine."""

from __future__ import annotations

import copy
import dataclasses
import logging
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.ablation.calibration import choose_plan, gradient_cost
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.independent import Bernoulli
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.task import Task
from tests.benchmarks.gpu.models import MODELS, BareForward, build
from tests.benchmarks.gpu.sections import Section, seconds
from tests.models import slow_margins

FLOAT32_ERROR, BFLOAT16_CORRELATION = 1e-3, 0.99


def masks_of(components: ComponentIndex, count: int, alpha: float = 0.05) -> NDArray[np.bool_]:
    return Bernoulli(components.num_components, count, alpha, 0).masks(0, count)


def new_engine(task: Task, components: ComponentIndex, section: Section, precision: str) -> AblationEngine:
    copied = Task(copy.deepcopy(task.model), task.examples, task.output_function)
    return AblationEngine(copied, components, section.device, precision)


def forms(section: Section, compiled: bool) -> list[tuple[str, dict[str, bool]]]:
    """Names of the forms of a pass, and what they set in a plan."""
    found: list[tuple[str, dict[str, bool]]] = [("eager", {"compiled": False})]
    if section.is_cuda:
        found.append(("CUDA graph", {"compiled": False, "recorded": True}))
    if compiled:
        found.append(("compiled", {"compiled": True}))
        if section.is_cuda:
            found.append(("compiled, CUDA graph", {"compiled": True, "recorded": True}))
    return found


def took_up(engine: AblationEngine, plan: EnginePlan) -> bool:
    """Use a plan; whether the engine runs it as it is, or had to leave something out."""
    engine.use(plan)
    return engine.plan == plan


def exactness(section: Section) -> None:
    """Every form of the engine against zeroed weights, one mask at a time, float32, on the CPU."""
    num_examples, num_masks = 4, 4
    compiled_modes = {"resnet50": ("weights",), "vit_b16": ("rows",), "gpt2": ("weights",)}
    for name in MODELS:
        task, components = build(name, num_examples, section.is_tiny, section.device)
        masks = masks_of(components, num_masks)
        truth = slow_margins(task, components, masks).astype(np.float64)
        about = f"{name}, {components.num_components:,} components"
        for precision in ("float32", "bfloat16"):
            for mode in ("weights", "rows"):
                engine = new_engine(task, components, section, precision)
                for form, settings in forms(section, mode in compiled_modes[name] and not section.is_tiny):
                    what = f"{about}, {precision}, {mode}, {form}"
                    if section.is_over(what):
                        return
                    if not took_up(engine, EnginePlan(mode, 4 if mode == "weights" else 8, **settings)):
                        section.skip(what, "the engine fell back to another form; see the log")
                        continue
                    compare(section, what, engine.margins(masks), truth, precision)


def compare(section: Section, what: str, margins: NDArray[Any], truth: NDArray[Any], precision: str) -> None:
    """Rows for margins (num_masks, num_examples) against the truth, about each example's mean."""
    effects = truth - truth.mean(axis=0)
    error = float(np.linalg.norm(margins - truth) / np.linalg.norm(effects))
    if precision == "float32":
        section.add(what, error, "of the effects", limit=FLOAT32_ERROR, limit_name="allowed", kind="error")
        return
    correlation = float(np.corrcoef((margins - margins.mean(axis=0)).ravel(), effects.ravel())[0, 1])
    note = f"correlation {correlation:.5f}, relative error {error:.2g}"
    limit = 1 - BFLOAT16_CORRELATION
    section.add(what, 1 - correlation, "off 1", limit=limit, limit_name="allowed", kind="error", note=note)


def throughput(section: Section) -> None:
    """Masks/s of every form beside the fastest bare forward pass over the same examples, and peak memory."""
    counts = {"resnet50": 512, "vit_b16": 256, "gpt2": 64}
    for name in MODELS:
        num_examples, num_masks = (8, 2) if section.is_tiny else (counts[name], 3)
        task, components = build(name, num_examples, section.is_tiny, section.device)
        about = f"{name}, {num_examples} examples"
        bare = bare_forward(section, task, about, compiled=not section.is_tiny)
        masks = masks_of(components, num_masks)
        for mode in ("weights", "rows"):
            engine = new_engine(task, components, section, "bfloat16")
            for form, settings in forms(section, compiled=not section.is_tiny):
                what = f"{about}, {mode}, {form}"
                if section.is_over(what):
                    return
                if not took_up(engine, EnginePlan(mode, num_examples, **settings)):
                    section.skip(what, "the engine fell back to another form; see the log")
                    continue
                section.reset_peak()
                took = seconds(partial(engine.margins, masks), section.device, 3) / num_masks
                peak = section.peak_gib()
                section.add(
                    what, 1 / took, "masks/s", limit=1 / bare, limit_name="bare forward", group=name,
                    note=f"peak {peak:.2f} GiB",
                )  # fmt: skip
            if mode == "weights":
                write_masks(section, engine, masks, about)
            engine.close()


def write_masks(section: Section, engine: AblationEngine, masks: NDArray[np.bool_], about: str) -> None:
    """The time in which a mask's weights are written, beside that of copying them."""
    masker = engine.model.value.masker(engine.model.module)
    weights = [engine.model.module.get_parameter(group.parameter) for group in engine.components.groups]
    num_bytes = sum(2 * weight.numel() * weight.element_size() for weight in weights)
    with masker.ablating() as zero:
        took = seconds(lambda: [zero(mask) for mask in masks], section.device, 5) / len(masks)
    section.add(
        f"{about}, writing a mask's weights", took, "s", limit=num_bytes / section.limits["copy"],
        limit_name="s, copy bandwidth", kind="cost",
    )  # fmt: skip


def bare_forward(section: Section, task: Task, about: str, *, compiled: bool) -> float:
    """Seconds of the fastest form of the bare forward pass in bfloat16; a row for each."""
    best = float("inf")
    for is_compiled in (False, True) if compiled else (False,):
        bare = BareForward(task, section.device, "bfloat16")
        form = "compiled" if is_compiled else "eager"
        try:
            if is_compiled:
                bare.compile()
            for is_recorded in (False, True) if section.is_cuda else (False,):
                if is_recorded:
                    bare.record()
                    form += ", CUDA graph"
                took = seconds(bare, section.device, 5)
                note = f"{took * 1e3:.2f} ms"
                section.add(f"{about}, bare forward, {form}", 1 / took, "passes/s", note=note)
                best = min(best, took)
        except Exception as error:  # compilers and recordings fail in their own ways: the next form is tried
            section.skip(f"{about}, bare forward, {form}", f"{type(error).__name__}: {error}")
    return best


def few_examples(section: Section) -> None:
    """Many masks per forward for few examples: both modes, what ``auto`` takes, and where they cross."""
    name, most, num_examples = "resnet50", 8 if section.is_tiny else 256, 8 if section.is_tiny else 64
    task, components = build(name, most, section.is_tiny, section.device)
    bare = bare_forward(section, task, f"{name}, {most} rows", compiled=False) / most
    crossover = []
    for count in (1, 4, 16, 64):
        if section.is_over(f"{count} examples"):
            return
        count = min(count, num_examples)
        small = Task(task.model, task.examples.rows(0, count), task.output_function)
        num_masks = max(most * 4 // count, 4)
        masks, rates = masks_of(components, num_masks), {}
        for mode in ("weights", "rows", "rows, CUDA graph", "auto"):
            if "graph" in mode and not section.is_cuda:
                continue
            engine = new_engine(small, components, section, "bfloat16")
            if mode == "auto":
                choose_plan(engine, PlanPins(compiled=False), num_masks)
            else:
                kind, _, recorded = mode.partition(", ")
                rows = count if kind == "weights" else most
                engine.use(EnginePlan(kind, rows, compiled=False, recorded=bool(recorded)))
            rates[mode] = num_masks / seconds(partial(engine.margins, masks), section.device, 3)
            section.add(
                f"{count} examples, {mode}", rates[mode], "masks/s", limit=1 / (bare * count),
                limit_name="bare forward, by rows", note=str(engine.plan), group=f"{count} examples",
            )  # fmt: skip
        crossover.append(f"{count}: {rates['rows'] / rates['weights']:.2f}")
    section.add("rows / weights by number of examples", None, note="; ".join(crossover))


def gradients(section: Section) -> None:
    """A pass with gate gradients, in passes without."""
    for name, rows in (("resnet50", 256), ("vit_b16", 128)):
        num_examples = 8 if section.is_tiny else rows
        task, components = build(name, num_examples, section.is_tiny, section.device)
        masks, block = masks_of(components, 2 if section.is_tiny else 8), (0, num_examples)
        engine = new_engine(task, components, section, "bfloat16")
        for compiled in (False,) if section.is_tiny else (False, True):
            if section.is_over(f"{name}, compiled {compiled}"):
                return
            engine.use(EnginePlan("weights", num_examples, compiled=compiled, recorded=section.is_cuda))
            forward = seconds(partial(engine.margins, masks), section.device, 3) / len(masks)
            for recorded in (False, True) if section.is_cuda else (False,):
                how = dataclasses.replace(
                    engine.plan, gradient_rows=num_examples, gradients_compiled=compiled, gradients_recorded=recorded
                )
                engine.use(how)
                what = f"{name}, {num_examples} rows, {'compiled' if compiled else 'eager'}{', CUDA graph' * recorded}"
                section.reset_peak()
                took = seconds(partial(engine.gate_gradients, masks, block), section.device, 3) / len(masks)
                if engine.plan != how:
                    section.skip(what, f"the engine fell back to {engine.plan}")
                    continue
                note = f"{took * 1e3:.1f} ms against {forward * 1e3:.1f} ms, peak {section.peak_gib():.2f} GiB"
                section.add(
                    what, took / forward, "forward passes", limit=2.0, limit_name="one forward, one backward",
                    kind="cost", note=note, group=name,
                )  # fmt: skip
        if section.is_tiny:
            section.add(f"{name}, gradient_cost as planned", gradient_cost(engine), "forward passes")


def out_of_memory(section: Section) -> None:
    """Too many rows for the memory that is left: halved until they fit, with the same margins."""
    task, components = build("resnet50", 16, section.is_tiny, section.device)
    masks = masks_of(components, 64 if section.is_cuda else 4)
    for recorded in (False, True) if section.is_cuda else (False,):
        engine = new_engine(task, components, section, "float32")
        engine.use(EnginePlan("rows", 16, compiled=False))
        expected = engine.margins(masks)
        too_many = len(masks) * 16
        what = f"{too_many} rows{', CUDA graph' * recorded}"
        heard = Heard()
        logging.getLogger("coar_dist.ablation").addHandler(heard)
        try:
            with section.scarce_memory(engine, rows_that_fit=64 if section.is_cuda else 16):
                engine.use(EnginePlan("rows", too_many, compiled=False, recorded=recorded))
                margins = engine.margins(masks)
        finally:
            logging.getLogger("coar_dist.ablation").removeHandler(heard)
        halvings = sum("out of memory" in line for line in heard.lines)
        error = float(np.abs(margins - expected).max() / np.abs(expected - expected.mean(axis=0)).max())
        note = f"{halvings} halvings, {engine.plan} in the end"
        section.add(what, error, "of the effects", limit=FLOAT32_ERROR, limit_name="allowed", kind="error", note=note)
        enough = engine.plan.rows_per_forward < too_many
        section.add(f"{what}: rows were halved", 0.0 if enough else 1.0, limit=0.0, limit_name="allowed", kind="error")
        engine.close()


class Heard(logging.Handler):
    """Keeps log lines."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def identical(section: Section) -> None:
    """Two engines, the same masks: the same bits, in every form.

    Attention over more tokens than a block of its backward kernel holds may add up in any order.
    """
    cases = [("gpt2", "bfloat16"), ("vit_b16", "bfloat16"), ("resnet50", "bfloat16"), ("resnet50", "float32")]
    for name, precision in cases:
        task, components = build(name, 8, section.is_tiny, section.device, length=768)
        masks = masks_of(components, 4)
        for mode in ("weights", "rows"):
            for form, settings in forms(section, compiled=False):
                what = f"{name}, {precision}, {mode}, {form}"
                if section.is_over(what):
                    return
                runs: list[tuple[Any, ...]] = []
                for _ in range(2):
                    engine = new_engine(task, components, section, precision)
                    recorded = settings.get("recorded", False)
                    engine.use(EnginePlan(mode, 8, **settings, gradient_rows=8, gradients_recorded=recorded))
                    gradient = engine.gate_gradients(masks, (0, 8))
                    runs.append((engine.margins(masks), gradient.margins, gradient.kept, gradient.ablated))
                    engine.close()
                different = [i for i, (a, b) in enumerate(zip(*runs, strict=True)) if not np.array_equal(a, b)]
                names = ("margins", "margins of gradient passes", "gradients at kept gates", "at ablated gates")
                section.add(
                    f"{what}: margins and gradients of two runs", float(len(different)), "arrays differ", limit=0.0,
                    limit_name="allowed", kind="error", note="; ".join(names[i] for i in different),
                )  # fmt: skip


def copy_of(task: Task) -> Task:
    examples = ExampleSet(task.examples.inputs, task.examples.targets)
    return Task(copy.deepcopy(task.model), examples, task.output_function)
