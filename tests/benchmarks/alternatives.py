"""Throughput of the ablation engine beside what else ablates: forward hooks, Captum, the research code's loop.

    python -m tests.benchmarks.alternatives                            ResNet-20 and a small GPT-2, this machine
    python -m tests.benchmarks.alternatives --models gpt2 --eager      without compiled forms

All have the same model, examples, masks, output function, float32 and threads, in inference or no-grad mode. Hooks stay
registered while their masks change: the fastest form of what TransformerLens's HookPoints and most scripts do, one mask
at a time, or several by gates for every row of a pass. Each contender has the rows per forward pass and the memory
format at which a trial finds it fastest. All margins are held to the slow truth, or the benchmark ends. Contenders are
measured in turns, several rounds, and the smallest time of each counts; with --threads 1 it is the process's CPU time,
which other work on the machine disturbs less. Weights are random.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from itertools import product

import numpy as np
import torch
from captum.attr import LayerFeatureAblation
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from coar_dist.ablation.calibration import choose_plan
from coar_dist.ablation.plan import PlanPins
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ComponentRule
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Bernoulli
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.models import cifar_resnet20
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task, call_model
from tests.benchmarks.ablation import CONSOLE, in_turns, new_engine, research_loop
from tests.models import slow_margins

Masks = NDArray[np.bool_]
Margins = NDArray[np.float32]
Contender = Callable[[], Margins]
TOLERANCE = 1e-3
"""Largest difference from the slow truth, in standard deviations of what the masks do to a margin."""


def resnet20(num_examples: int, tiny: bool) -> tuple[Task, ComponentIndex]:
    """CIFAR's ResNet-20 and its 688 convolution filters; ``tiny`` has smaller images."""
    torch.manual_seed(0)
    model = cifar_resnet20().eval()
    side = 8 if tiny else 32
    examples = ExampleSet(torch.randn(num_examples, 3, side, side), torch.randint(0, 10, (num_examples,)))
    return Task(model, examples, output_function("margin")), discover(model, "conv_filters")


def gpt2(num_examples: int, tiny: bool) -> tuple[Task, ComponentIndex]:
    """Six layers of GPT-2, 256 wide, on 64 tokens: 48 attention heads and 6,144 neurons; ``tiny`` has two, 64 wide."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    width, layers, length, vocabulary = (64, 2, 8, 64) if tiny else (256, 6, 64, 2048)
    size = {"vocab_size": vocabulary, "n_positions": length, "n_embd": width, "n_layer": layers, "n_head": width // 32}
    settings = GPT2Config(**size, use_cache=False, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(settings).eval()
    tokens = torch.randint(0, vocabulary, (num_examples, length))
    rules = [ComponentRule("*.attn.c_proj.weight", 0, 32), ComponentRule("*.mlp.c_proj.weight", 0)]
    components = discover(model, "rules", rules=rules)
    return Task(model, ExampleSet({"input_ids": tokens}, tokens), output_function("next_token_margin")), components


MODELS = {"resnet20": resnet20, "gpt2": gpt2}


@dataclass(frozen=True)
class Form:
    """How a contender runs its forward passes."""

    rows: int
    channels_last: bool
    compiled: bool = False

    def __str__(self) -> str:
        layout = ", channels last" if self.channels_last else ""
        return f"{self.rows} rows{layout}, {'compiled' if self.compiled else 'eager'}"


def is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def placed(task: Task, channels_last: bool) -> Task:
    """A copy of the model, and examples, as a contender wants them."""
    model, examples = copy.deepcopy(task.model).requires_grad_(False), task.examples
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        examples = examples.map(
            lambda tensor: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        )
    return Task(model, examples, task.output_function)


class HookedModel:
    """Forward hooks where the components' layers write (convolutions) or read (GPT-2) that zero what masks ablate.

    One mask at a time sets the ablated channels to zero in place; a batch of masks, and what is compiled, multiplies by
    gates, one row of them for every (mask, example) pair of the pass.
    """

    def __init__(self, task: Task, components: ComponentIndex, batched: bool, form: Form) -> None:
        self.task, self.components, self.form = placed(task, form.channels_last), components, form
        num_examples = len(task.examples)
        self.masks_per_pass = max(form.rows // num_examples, 1) if batched else 1
        self.step = min(form.rows, num_examples)
        self.gated = batched or form.compiled
        examples = self.task.examples
        if self.masks_per_pass > 1:
            examples = examples.map(lambda tensor: tensor.repeat(self.masks_per_pass, *[1] * (tensor.ndim - 1)))
            self.step = len(examples)
        self.batches = [examples.rows(start, start + self.step) for start in range(0, len(examples), self.step)]
        self.ablated: list[Tensor] = []
        self.gates: list[Tensor] = []
        for i, group in enumerate(components.groups):
            module = self.task.model.get_submodule(group.module)
            rows = 1 if self.masks_per_pass == 1 else self.step
            size = group.num_components * group.slices[0].size
            self.ablated.append(torch.empty(0, dtype=torch.int64))
            if is_convolution(module):
                self.gates.append(torch.ones(rows, size, 1, 1))
                module.register_forward_hook(lambda _, __, output, i=i: self._zero(output, i, 1))
            else:
                self.gates.append(torch.ones(rows, 1, size))
                module.register_forward_pre_hook(lambda _, inputs, i=i: self._zero(inputs[0], i, 2))
        self.model: Callable[..., object] = self.task.model
        if form.compiled:
            torch._dynamo.reset()
            self.model = torch.compile(self.task.model, dynamic=False)

    def _zero(self, activation: Tensor, i: int, axis: int) -> Tensor:
        if self.gated:
            return activation * self.gates[i] if self.form.compiled else activation.mul_(self.gates[i])
        return activation.index_fill_(axis, self.ablated[i], 0.0)

    def _set(self, masks: Masks) -> None:
        for i, group in enumerate(self.components.groups):
            start, stop = self.components.offsets[i : i + 2]
            kept = torch.from_numpy(masks[:, start:stop]).repeat_interleave(group.slices[0].size, dim=1)
            if self.gated:
                pairs = kept.repeat_interleave(len(self.gates[i]) // len(kept), dim=0)
                self.gates[i].copy_(pairs.reshape(self.gates[i].shape))
            else:
                self.ablated[i] = (~kept[0]).nonzero().squeeze(1)

    def margins(self, masks: Masks) -> Margins:
        """(num_masks, num_examples) float32."""
        assert len(masks) % self.masks_per_pass == 0
        found = []
        with torch.no_grad() if self.form.compiled else torch.inference_mode():
            for start in range(0, len(masks), self.masks_per_pass):
                self._set(masks[start : start + self.masks_per_pass])
                for batch in self.batches:
                    found.append(self.task.output_function(call_model(self.model, batch.inputs), batch.targets))
        return torch.cat(found).reshape(len(masks), -1).numpy()


class CaptumLeaveOneOut:
    """``LayerFeatureAblation`` of one layer after another; ``form.rows`` bounds its ``perturbations_per_eval``."""

    def __init__(self, task: Task, components: ComponentIndex, form: Form) -> None:
        self.task, self.components = placed(task, form.channels_last), components
        self.perturbations = max(form.rows // len(task.examples), 1)

    def _forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.output_function(self.task.model(inputs), targets)

    def margins(self) -> Margins:
        """Of all single ablations (num_components, num_examples) float32: Captum gives what each takes away."""
        inputs, targets = self.task.examples.inputs, self.task.examples.targets
        tensor = inputs["input_ids"] if isinstance(inputs, dict) else inputs
        with torch.inference_mode():
            whole = self._forward(tensor, targets)
            lost = [self._of_layer(group, tensor, targets) for group in self.components.groups]
        return (whole - torch.cat(lost)).numpy()

    def _of_layer(self, group: ComponentGroup, inputs: Tensor, targets: Tensor) -> Tensor:
        module = self.task.model.get_submodule(group.module)
        reads = not is_convolution(module)
        ids = torch.arange(group.num_components).repeat_interleave(group.slices[0].size)
        found = LayerFeatureAblation(self._forward, module).attribute(
            inputs,
            additional_forward_args=(targets,),
            layer_mask=ids[None, None, :] if reads else ids[None, :, None, None],
            attribute_to_layer_input=reads,
            perturbations_per_eval=self.perturbations,
        )
        found = found[0] if isinstance(found, tuple) else found
        units = found[:, 0, :] if reads else found[:, :, 0, 0]
        return units[:, :: group.slices[0].size].T


def fastest(make: Callable[[Form], Contender], candidates: Sequence[Form]) -> Form:
    """The form with the smallest time."""
    if len(candidates) == 1:
        return candidates[0]
    by_name = {str(form): form for form in candidates}
    return by_name[quickest(in_turns({name: make(form) for name, form in by_name.items()}, 2, clock()))]


def quickest(times: dict[str, float]) -> str:
    return min(times, key=times.__getitem__)


def clock() -> Callable[[], float]:
    """One thread's time is its process's: what else runs on the machine counts little."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def forms(task: Task, rows: Sequence[int]) -> list[Form]:
    layouts = (False, True) if any(map(is_convolution, task.model.modules())) else (False,)
    return [Form(count, layout) for count, layout in product(rows, layouts)]


def engine(task: Task, components: ComponentIndex, masks: Masks, compiled: bool) -> tuple[str, Contender]:
    ours = new_engine(task, components, "cpu", "float32")
    plan = choose_plan(ours, PlanPins(compiled=compiled), len(masks)).plan
    return f"engine, {plan}", partial(ours.margins, masks)


def compare(title: str, contenders: dict[str, Contender], masks: Masks, truth: Margins, rounds: int) -> None:
    """Measure, check and print.

    Raises:
        SystemExit: a contender's margins are not the truth.
    """
    spread = (truth - truth.mean(axis=0)).std()
    differences = {name: float(np.abs(run() - truth).max() / spread) for name, run in contenders.items()}
    wrong = [f"{name} is {value:.1e} off" for name, value in differences.items() if not value < TOLERANCE]
    if wrong:
        raise SystemExit(f"Not the margins of the slow truth, in standard deviations: {'; '.join(wrong)}.")
    rates = {name: len(masks) / seconds for name, seconds in in_turns(dict(contenders), rounds, clock()).items()}
    reference = next(iter(contenders))
    table = Table(title=title, title_justify="left")
    for column in ("", "masks/s", f"x {reference.rpartition(' [')[0]}", "off the truth, in std"):
        table.add_column(column, justify="left" if not column else "right")
    for name, rate in rates.items():
        table.add_row(escape(name), f"{rate:,.2f}", f"{rate / rates[reference]:.2f}", f"{differences[name]:.0e}")
    CONSOLE.print(table)


def random_masks(name: str, num_examples: int, num_masks: int, arguments: argparse.Namespace) -> None:
    """A twentieth of all components ablated at random, over all layers at once."""
    task, components = MODELS[name](num_examples, arguments.tiny)
    masks = Bernoulli(components.num_components, num_masks, 0.05, 0).masks(0, num_masks)
    contenders: dict[str, Contender] = {}

    def hooks(batched: bool, form: Form) -> Contender:
        return partial(HookedModel(task, components, batched, form).margins, masks)

    kinds = {False: [rows for rows in arguments.rows if rows < num_examples] + [num_examples]}
    several = [rows for rows in arguments.rows if rows // num_examples > 1 and num_masks % (rows // num_examples) == 0]
    if several:
        kinds[True] = several
    for batched, rows in kinds.items():
        form = fastest(partial(hooks, batched), forms(task, rows))
        what = f"hooks, {form.rows // num_examples} masks at a time" if batched else "hooks, one mask at a time"
        for compiled in (False,) if arguments.eager else (False, True):
            form = replace(form, compiled=compiled)
            contenders[f"{what} [{form}]"] = hooks(batched, form)
    contenders["research code's loop"] = partial(research_loop, task, components, masks, "cpu")
    for compiled in (False,) if arguments.eager else (False, True):
        plan, contender = engine(task, components, masks, compiled)
        contenders[plan] = contender
    title = f"{name}: {num_examples} examples, {components.num_components} components, {num_masks} random masks"
    compare(title, contenders, masks, slow_margins(task, components, masks), arguments.rounds)


def leave_one_out(name: str, num_examples: int, arguments: argparse.Namespace) -> None:
    """Every filter, or every attention head, alone: the one design that all of them have."""
    task, components = MODELS[name](num_examples, arguments.tiny)
    groups = tuple(group for group in components.groups if ".mlp." not in group.parameter)
    step = -(-len(groups) // arguments.layers) if arguments.layers else 1
    components, few = ComponentIndex(groups[::step]), ComponentIndex(groups[:: max(step, len(groups) // 3)])

    def captum(index: ComponentIndex, form: Form) -> Contender:
        return CaptumLeaveOneOut(task, index, form).margins

    def hooks(index: ComponentIndex, form: Form) -> Contender:
        masks = LeaveOneOut.of(index.num_components).masks(0, index.num_components)
        return partial(HookedModel(task, index, False, form).margins, masks)

    rows = [num_examples, *(rows for rows in arguments.rows if num_examples < rows <= num_examples * 8)]
    contenders: dict[str, Contender] = {}
    form = fastest(partial(captum, few), forms(task, rows))
    contenders[f"Captum LayerFeatureAblation [{form}]"] = captum(components, form)
    form = fastest(partial(hooks, few), forms(task, [num_examples]))
    contenders[f"hooks, one mask at a time [{form}]"] = hooks(components, form)
    masks = LeaveOneOut.of(components.num_components).masks(0, components.num_components)
    plan, contender = engine(task, components, masks, compiled=False)
    contenders[plan] = contender
    title = f"{name}: {num_examples} examples, leave-one-out of {components.num_components} components"
    compare(title, contenders, masks, slow_margins(task, components, masks), max(arguments.rounds // 2, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--many", type=int, nargs=2, default=[256, 8], help="examples and masks of the first table")
    parser.add_argument("--few", type=int, nargs=2, default=[8, 64], help="examples and masks of the second")
    parser.add_argument("--single", type=int, default=64, help="examples of leave-one-out")
    parser.add_argument("--layers", type=int, default=0, help="layers of leave-one-out, 0 for all")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 128, 512], help="rows tried for a forward pass")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="smaller images and a smaller GPT-2, to try the command")
    parser.add_argument("--sections", nargs="+", choices=("many", "few", "single"), default=["many", "few", "single"])
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(arguments.threads)
    name = platform.processor() or platform.machine()
    CONSOLE.print(
        f"{name}, {arguments.threads} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
        f"captum {metadata.version('captum')}, float32"
    )
    for model in arguments.models:
        if "many" in arguments.sections:
            random_masks(model, *arguments.many, arguments)
        if "few" in arguments.sections:
            random_masks(model, *arguments.few, arguments)
        if "single" in arguments.sections:
            leave_one_out(model, arguments.single, arguments)


if __name__ == "__main__":
    main()
