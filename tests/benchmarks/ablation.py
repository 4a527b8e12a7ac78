"""Throughput of the ablation engine against the research code's loop and the bare forward pass.

    python -m tests.benchmarks.ablation                          ResNet-20, 512 examples, this machine
    python -m tests.benchmarks.ablation --model resnet50 --examples 256 --masks 4        (on a GPU, say)
    python -m tests.benchmarks.ablation --model gpt2 --examples 16 --masks 4

Every row of a table is measured in turns with the others, several rounds, and the smallest time of each counts: noise
only ever adds. One process with all cores; times include everything but the set-up. Weights are random unless
--checkpoint and --images name the CIFAR ResNet-20 and its images; the times do not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
import torch._inductor.config as inductor_config
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from coar_dist.ablation.calibration import choose_plan
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.folding import fold_batch_norms
from coar_dist.ablation.placement import native_precision
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Bernoulli
from coar_dist.tasks.checkpoints import load_checkpoint
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples import npz_images
from coar_dist.tasks.models import cifar_resnet20
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task, call_model
from tests.models import slow_margins

CONSOLE = Console(width=140)


def build_task(arguments: argparse.Namespace) -> tuple[Task, str]:
    torch.manual_seed(0)
    count = arguments.examples
    if arguments.model == "resnet20":
        model = cifar_resnet20()
        if arguments.checkpoint:
            load_checkpoint(model, arguments.checkpoint)
        if arguments.images:
            keys = ("test_images+train_images", "test_labels+train_labels")
            examples = npz_images(arguments.images, *keys, count, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        else:
            examples = ExampleSet(torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,)))
        return Task(model.eval(), examples, output_function("margin")), "conv_filters"
    if arguments.model == "resnet50":
        from transformers import ResNetConfig, ResNetForImageClassification

        model = ResNetForImageClassification(ResNetConfig(num_labels=1000))
        inputs = {"pixel_values": torch.randn(count, 3, 224, 224)}
        examples = ExampleSet(inputs, torch.randint(0, 1000, (count,)))
        return Task(model.eval(), examples, output_function("margin")), "conv_filters"
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config())
    tokens = torch.randint(0, 50257, (count, 128))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Task(
        model.eval(), ExampleSet(inputs, tokens), output_function("next_token_margin")
    ), "transposed_linear_inputs"


def research_loop(task: Task, components: ComponentIndex, masks: np.ndarray, device: str) -> np.ndarray:
    """The research code's loop, from its description: copy the model, walk its components in Python, DataLoader.

    Returns (num_masks, num_examples) float32.
    """
    names = [component.slices[0] for component in components]
    inputs = task.examples.inputs
    keys = sorted(inputs) if isinstance(inputs, dict) else []
    columns = [inputs[key] for key in keys] if isinstance(inputs, dict) else [inputs]
    loader = DataLoader(TensorDataset(*columns, task.examples.targets), batch_size=512)
    margins = []
    for mask in masks:
        model = copy.deepcopy(task.model)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for kept, (parameter, axis, start, size) in zip(mask, names, strict=True):
                if not kept:
                    parameters[parameter].narrow(axis, start, size).zero_()
            model = model.to(device).eval()
            for *batch, targets in loader:
                moved = [tensor.to(device) for tensor in batch]
                outputs = call_model(model, dict(zip(keys, moved, strict=True)) if keys else moved[0])
                margins.append(task.output_function(outputs, targets.to(device)).cpu())
    return torch.cat(margins).reshape(len(masks), -1).numpy()


class BareForward:
    """The unablated model in one of its forms, over all examples."""

    def __init__(self, task: Task, device: str, fastest: bool, precision: str, rows: int, frozen: bool = False) -> None:
        self.model: Callable[..., object] = copy.deepcopy(task.model).to(device).eval().requires_grad_(False)
        self.examples = task.examples.map(lambda tensor: tensor.to(device))
        self.device, self.precision, self.rows = device, precision, rows
        if fastest:
            assert isinstance(self.model, nn.Module)
            fold_batch_norms(self.model, ComponentIndex(()))
            if any(isinstance(module, nn.Conv2d) for module in self.model.modules()):
                self.model = self.model.to(memory_format=torch.channels_last)
                self.examples = self.examples.map(_channels_last)
            torch._dynamo.reset()
            self.model = torch.compile(self.model, dynamic=False)
            # Frozen weights become constants, laid out for the kernels once: a form that no ablated model can take.
            with inductor_config.patch(freezing=frozen):
                self()

    def __call__(self) -> None:
        with torch.no_grad(), torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            for start in range(0, len(self.examples), self.rows):
                call_model(self.model, self.examples.rows(start, start + self.rows).inputs)
        if self.device == "cuda":
            torch.cuda.synchronize()


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def new_engine(task: Task, components: ComponentIndex, device: str, precision: str) -> AblationEngine:
    torch._dynamo.reset()
    return AblationEngine(
        Task(copy.deepcopy(task.model), task.examples, task.output_function), components, device, precision
    )


def in_turns(
    work: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of each: the smallest of ``rounds``, measured in turns after one warm-up."""
    times = {name: float("inf") for name in work}
    for function in work.values():
        function()
    for _ in range(rounds):
        for name, function in work.items():
            started = clock()
            function()
            times[name] = min(times[name], clock() - started)
    return times


def show(
    title: str, times: dict[str, float], per: dict[str, int], reference: str, bare: str, num_examples: int
) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", "masks/s", "us per margin", f"x {reference}", f"x {bare}"):
        table.add_column(column, justify="left" if not column else "right")
    seconds = {name: value / per[name] for name, value in times.items()}
    for name, value in seconds.items():
        table.add_row(
            name,
            f"{1 / value:,.2f}",
            f"{value / num_examples * 1e6:,.0f}",
            f"{seconds[reference] / value:.2f}",
            f"{seconds[bare] / value:.2f}",
        )
    CONSOLE.print(table)


def many_examples(task: Task, components: ComponentIndex, arguments: argparse.Namespace) -> None:
    device, precision, count = arguments.device, arguments.precision, arguments.masks
    masks = Bernoulli(components.num_components, count, 0.05, 0).masks(0, count)
    work: dict[str, Callable[[], object]] = {
        "research loop (float32)": lambda: research_loop(task, components, masks, device),
        "bare forward, eager float32": BareForward(task, device, False, "float32", len(task.examples)),
    }
    per = {"research loop (float32)": count, "bare forward, eager float32": 1}
    fastest = {}
    for rows in arguments.rows:
        name = f"bare forward, folded, channels last, compiled, {precision}, {rows} rows"
        fastest[name] = BareForward(task, device, True, precision, min(rows, len(task.examples)))
    quick = in_turns(fastest, arguments.rounds)
    bare = min(quick, key=quick.__getitem__)
    work[bare], per[bare] = fastest[bare], 1
    rows = fastest[bare].rows
    work["the same with frozen weights"] = BareForward(task, device, True, precision, rows, frozen=True)
    per["the same with frozen weights"] = 1
    plans = {}
    for mode in ("weights", "rows"):
        for compiled in (False, True):
            engine = new_engine(task, components, device, precision)
            if mode == "rows" and engine.ungated:
                continue
            plan = choose_plan(engine, PlanPins(mode=mode, compiled=compiled), count).plan
            name = f"engine, {plan}, {precision}"
            work[name], per[name], plans[name] = (lambda engine=engine: engine.margins(masks)), count, plan
    times = in_turns(work, arguments.rounds)
    title = f"{len(task.examples)} examples, {components.num_components} components, {count} masks"
    show(title, times, per, "research loop (float32)", bare, len(task.examples))


def few_examples(task: Task, components: ComponentIndex, arguments: argparse.Namespace) -> None:
    table = Table(title="Few examples: masks/s", title_justify="left")
    for column in ("examples", "weights", "rows", "rows / weights", "auto", "auto / best", "plan of auto"):
        table.add_column(column, justify="right")
    for count in arguments.few:
        small = Task(task.model, task.examples.rows(0, count), task.output_function)
        num_masks = max(512 // count, 8)
        masks = Bernoulli(components.num_components, num_masks, 0.05, 0).masks(0, num_masks)
        work: dict[str, Callable[[], object]] = {}
        auto_plan = None
        for mode in ("weights", "rows", "auto"):
            engine = new_engine(small, components, arguments.device, arguments.precision)
            pins = PlanPins(mode=None if mode == "auto" else mode, compiled=arguments.compile_few)
            plan = choose_plan(engine, pins, num_masks).plan
            auto_plan = plan
            work[mode] = lambda engine=engine, masks=masks: engine.margins(masks)
        rates = {mode: num_masks / seconds for mode, seconds in in_turns(work, arguments.rounds).items()}
        best = max(rates["weights"], rates["rows"])
        table.add_row(
            str(count),
            f"{rates['weights']:,.1f}",
            f"{rates['rows']:,.1f}",
            f"{rates['rows'] / rates['weights']:.2f}",
            f"{rates['auto']:,.1f}",
            f"{rates['auto'] / best:.2f}",
            str(auto_plan),
        )
    CONSOLE.print(table)


def leave_one_out(task: Task, components: ComponentIndex, arguments: argparse.Namespace) -> None:
    """Twelve stretches of 16 single ablations, evenly over the model, with and without reuse of what lies before."""
    design, step = LeaveOneOut.of(components.num_components), max(components.num_components // 12, 16)
    stretches = [design.masks(start, start + 16) for start in range(step // 2, components.num_components - 15, step)]
    masks = np.concatenate(stretches)
    task = Task(task.model, task.examples.rows(0, 128), task.output_function)
    work: dict[str, Callable[[], object]] = {}
    for name in ("plain", "reused"):
        engine = new_engine(task, components, arguments.device, arguments.precision)
        choose_plan(engine, PlanPins(mode="weights", compiled=False), len(masks))
        if name == "plain":
            engine.reuse_activations = False
        work[name] = lambda engine=engine: engine.margins(masks)
    times = in_turns(work, max(arguments.rounds // 2, 1))
    rates = {name: len(masks) / seconds for name, seconds in times.items()}
    CONSOLE.print(
        f"Leave-one-out, {len(masks)} of {components.num_components} masks, {len(task.examples)} examples: "
        f"plain {rates['plain']:.2f} masks/s, "
        f"reusing activations {rates['reused']:.2f} masks/s, ratio {rates['reused'] / rates['plain']:.2f}"
    )


def exactness(task: Task, components: ComponentIndex, arguments: argparse.Namespace) -> None:
    """A few margins against the slow truth, which runs in float32 on the CPU."""
    num_masks, num_examples = arguments.exact
    task = Task(task.model, task.examples.rows(0, num_examples), task.output_function)
    masks = Bernoulli(components.num_components, num_masks, 0.05, 0).masks(0, num_masks)
    truth = slow_margins(task, components, masks)
    table = Table(title=f"Exactness: margins of standard deviation {truth.std():.2f}", title_justify="left")
    for column in ("mode", "precision", "largest difference", "mean correlation", "smallest correlation"):
        table.add_column(column, justify="right")
    for precision in ("float32", "bfloat16"):
        for mode in ("weights", "rows"):
            engine = new_engine(task, components, arguments.device, precision)
            if mode == "rows" and engine.ungated:
                continue
            engine.use(EnginePlan(mode, num_examples, compiled=False))
            margins = engine.margins(masks)
            correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(margins.T, truth.T, strict=True)]
            difference = np.abs(margins - truth).max()
            table.add_row(
                mode, precision, f"{difference:.2e}", f"{np.mean(correlations):.6f}", f"{min(correlations):.6f}"
            )
    CONSOLE.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("resnet20", "resnet50", "gpt2"), default="resnet20")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--masks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 128, 512], help="rows tried for the bare forward")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default=native_precision())
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile-few", action="store_true", help="compile in the table of few examples too")
    parser.add_argument("--few", type=int, nargs="+", default=[1, 4, 16, 64], help="example counts of that table")
    parser.add_argument("--exact", type=int, nargs=2, default=[24, 48], help="masks and examples held to the truth")
    parser.add_argument("--sections", nargs="+", default=["exact", "many", "few", "leave_one_out"])
    parser.add_argument("--checkpoint", help="ResNet-20 weights, .safetensors")
    parser.add_argument("--images", help="CIFAR-10 images, .npz")
    arguments = parser.parse_args()
    if arguments.checkpoint:
        from pathlib import Path

        arguments.checkpoint = Path(arguments.checkpoint)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(arguments.threads)
    task, selector = build_task(arguments)
    components = discover(task.model, selector)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    CONSOLE.print(
        f"{arguments.model} on {arguments.device} ({name}), {arguments.threads} threads, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {arguments.precision}"
    )
    sections = {"exact": exactness, "many": many_examples, "few": few_examples, "leave_one_out": leave_one_out}
    for section in arguments.sections:
        sections[section](task, components, arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    device_peak = f", device {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if arguments.device == "cuda" else ""
    CONSOLE.print(f"Peak memory: process {peak:.2f} GiB{device_peak}")


if __name__ == "__main__":
    main()
