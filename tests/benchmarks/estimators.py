"""What passes with gradients save: correlation and cost of ``gradient_ridge`` against plain COAR, on several models.

    python -m tests.benchmarks.estimators                                                   the digits preset
    python -m tests.benchmarks.estimators --models digits vit --leave-one-out --folder estimators
    python -m tests.benchmarks.estimators --models resnet20 resnet56 --checkpoint W.safetensors --images CIFAR.npz
    python -m tests.benchmarks.estimators --models gpt2 --text TEXT.txt

M passes with gradients and m plain masks reach a correlation on held-out masks; plain COAR, with the better of one
penalty per example and one for all, needs so many masks for the same (log-linear between measured numbers). A pass
costs its seconds compiled, as the engine's own trial finds it best, measured in turns with the other kind, smallest of
several rounds. Costs are in passes of plain masks; the last column counts seconds, with the fit stage.
Models without a checkpoint are trained first. All seeds take their masks from the same ones, each other stretches; the
spread is of plain masks and passes, not of held-out masks. --folder keeps weights, margins and gradients between calls.
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.ablation.calibration import choose_plan
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.placement import native_precision
from coar_dist.ablation.plan import PlanPins
from coar_dist.ablation.work import default_gradient_masks_per_shard, default_masks_per_shard
from coar_dist.baselines.leave_one_out import fit_leave_one_out
from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import GRADIENT_RIDGE, LEAVE_ONE_OUT
from coar_dist.config.schema import RegressionConfig, TrainConfig
from coar_dist.designs.given import LeaveOneOut
from coar_dist.designs.independent import Bernoulli
from coar_dist.designs.subsets import Balanced
from coar_dist.evaluation.correlation import evaluate
from coar_dist.regression.fit import fit
from coar_dist.store.evaluations import EvaluationTable
from coar_dist.store.examples import ExampleTable
from coar_dist.store.gradients import GateGradients
from coar_dist.store.record import fingerprint_of
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDesign, RunDirectory
from coar_dist.tasks import examples
from coar_dist.tasks.checkpoints import load_checkpoint
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.models import CifarResNet, cifar_resnet20, digits_resnet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from coar_dist.tasks.training import accuracy, train_model
from tests.benchmarks.ablation import in_turns
from tests.models import local_storage

CONSOLE = Console(width=140)
ALPHA = 0.05
ROUND = round(1 / ALPHA)
NORMALISED = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
Arrays = Mapping[str, NDArray[Any]]


def digits(arguments: argparse.Namespace) -> Task:
    config = TrainConfig(epochs=arguments.epochs or 20, batch_size=64, learning_rate=0.05)
    test = examples.digits("test")
    model, measured = train_model(digits_resnet, examples.digits("train"), test, config, lambda *_: None)
    CONSOLE.print(f"digits: accuracy {measured:.3f}")
    return Task(model, test, output_function("margin"))


def resnet20(arguments: argparse.Namespace) -> Task:
    model = cifar_resnet20()
    load_checkpoint(model, arguments.checkpoint)
    keys = ("test_images+train_images", "test_labels+train_labels")
    images = examples.npz_images(arguments.images, *keys, 512, *NORMALISED)
    return Task(model.eval(), images, output_function("margin"))


def resnet56(arguments: argparse.Namespace) -> Task:
    """Its stem has stride 2, for time's sake; explained on images that it was trained on."""
    model = CifarResNet(num_blocks=9, num_classes=10)
    model.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
    train, test = (
        examples.npz_images(arguments.images, f"{split}_images", f"{split}_labels", None, *NORMALISED)
        for split in ("train", "test")
    )

    def loss(rows: Tensor) -> Tensor:
        batch = train.select(rows).map(lambda tensor: tensor.to(arguments.device))
        is_flipped = torch.rand(len(rows), 1, 1, 1, device=batch.targets.device) < 0.5
        images = torch.where(is_flipped, batch.inputs.flip(3), batch.inputs)
        down, right = (int(shift) for shift in torch.randint(-3, 4, (2,)))
        return functional.cross_entropy(model(images.roll((down, right), (2, 3))), batch.targets)

    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    trained(arguments, "resnet56", model, loss, len(train), 24, optimizer)
    CONSOLE.print(f"resnet56: accuracy {accuracy(model, test):.3f}")
    return Task(model, train.rows(0, 256), output_function("margin"))


class SmallTransformer(nn.Module):
    """A vision transformer on 8x8 grey images: 16 patches, 4 layers of width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, nn.LayerNorm(64), enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.layers(tokens).mean(dim=1))


def vit(arguments: argparse.Namespace) -> Task:
    model, train, test = SmallTransformer(), examples.digits("train"), examples.digits("test")

    def loss(rows: Tensor) -> Tensor:
        batch = train.select(rows).map(lambda tensor: tensor.to(arguments.device))
        return functional.cross_entropy(model(batch.inputs), batch.targets)

    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    trained(arguments, "vit", model, loss, len(train), 60, optimizer)
    CONSOLE.print(f"vit: accuracy {accuracy(model, test):.3f}")
    return Task(model, test.rows(0, 256), output_function("margin"))


def gpt2(arguments: argparse.Namespace) -> Task:
    """Three layers on the characters of a text; explained on sequences of its last tenth, trained on the rest."""
    from transformers import GPT2Config, GPT2LMHeadModel

    text = np.frombuffer(arguments.text.read_bytes(), np.uint8)
    tokens = torch.from_numpy(np.unique(text, return_inverse=True)[1].astype(np.int64))
    sequences = tokens[: len(tokens) // 64 * 64].reshape(-1, 64)
    split = int(0.9 * len(sequences))
    sizes = {"n_layer": 3, "n_embd": 96, "n_head": 4, "n_positions": 64, "vocab_size": int(tokens.max()) + 1}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **quiet, bos_token_id=0, eos_token_id=0))

    def loss(rows: Tensor) -> Tensor:
        batch = sequences[rows].to(arguments.device)
        return model(input_ids=batch, labels=batch).loss

    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    trained(arguments, "gpt2", model, loss, split, 8, optimizer)
    held_out = sequences[split : split + 128]
    return Task(model, ExampleSet({"input_ids": held_out}, held_out), output_function("next_token_margin"))


MODELS: dict[str, tuple[Callable[[argparse.Namespace], Task], str, tuple[str, ...]]] = {
    "digits": (digits, "conv_filters", ()),
    "resnet20": (resnet20, "conv_filters", ("checkpoint", "images")),
    "vit": (vit, "linear_rows", ()),
    "gpt2": (gpt2, "transposed_linear_inputs", ("text",)),
    "resnet56": (resnet56, "conv_filters", ("images",)),
}
"""By name: what makes the task, its components, the options without which it is left out."""


def tasks_of(arguments: argparse.Namespace) -> Iterator[tuple[str, Task, str]]:
    """Name, task and components of every model that is asked for; those whose options are not given are left out."""
    for name in arguments.models:
        make, selector, needs = MODELS[name]
        missing = missing_options(arguments, needs)
        if missing:
            CONSOLE.print(f"{name} is left out: {missing} not given")
            continue
        torch.manual_seed(0)
        task = make(arguments)
        count = min(arguments.examples or len(task.examples), len(task.examples))
        yield name, Task(task.model, task.examples.rows(0, count), task.output_function), selector


def trained(
    arguments: argparse.Namespace,
    name: str,
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    num_rows: int,
    epochs: int,
    optimizer: torch.optim.Optimizer,
) -> None:
    """One cycle of the optimizer's learning rate in batches of 64 rows, or what --folder has of an earlier call."""
    path = arguments.folder and arguments.folder / f"{name}.pt"
    if path and path.is_file():
        load_checkpoint(model.eval(), path)
        return
    rate, steps, started = optimizer.param_groups[0]["lr"], epochs * (num_rows // 64), time.perf_counter()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.to(arguments.device).train()
    for _ in range(epochs):
        for rows in torch.randperm(num_rows)[: num_rows // 64 * 64].split(64):
            with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.precision == "bfloat16"):
                value = loss(rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    model.cpu().eval()
    CONSOLE.print(f"{name}: {epochs} epochs in {time.perf_counter() - started:.0f} s, last loss {value.item():.3f}")
    if path:
        torch.save(model.state_dict(), path)


@dataclass(frozen=True)
class Pool:
    """What all runs take theirs from.

    Attributes:
        components: the component index.
        plain, held_out: ``masks`` and ``margins``.
        gradients: masks and sums of every shard; one round of a balanced design each.
        alone: ``margins`` of leave-one-out, of the ``unablated`` model and the ``seconds`` it took; None without.
        seconds: of a plain mask and of a pass with gradients.
        alpha: ablation fraction.
    """

    components: ComponentIndex
    plain: Arrays
    held_out: Arrays
    gradients: list[tuple[NDArray[np.bool_], GateGradients]]
    alone: Arrays | None
    seconds: tuple[float, float]
    alpha: float = ALPHA

    @property
    def per_round(self) -> int:
        """Masks of a round of the balanced design."""
        return round(1 / self.alpha)

    def seed(self, number: int, num_seeds: int) -> Pool:
        """What one of several seeds takes: another stretch of the plain masks, every so manieth round."""
        shift = -number * len(self.plain["masks"]) // num_seeds
        plain = {part: np.roll(values, shift, axis=0) for part, values in self.plain.items()}
        return replace(self, plain=plain, gradients=self.gradients[number::num_seeds])


def collect(name: str, task: Task, selector: str, arguments: argparse.Namespace) -> Pool:
    """Time both kinds of passes, and run all masks."""
    components = discover(task.model, selector)
    size = components.num_components
    of_task = fingerprint_of({**task.identity(), "precision": arguments.precision})[-8:]
    engine = AblationEngine(task, components, arguments.device, arguments.precision)
    pins = PlanPins(compiled=not arguments.eager)
    num_masks, num_passes = max(arguments.plain_masks), arguments.seeds * max(arguments.gradient_masks)
    plan = choose_plan(engine, pins, num_masks, gradient_masks_per_actor=num_passes).plan
    seconds = timed(engine, num_masks, num_passes, arguments.rounds)
    CONSOLE.print(
        f"{name}: {engine.num_examples} examples, {size} components, alpha {ALPHA}; {plan}\n{seconds[0] * 1e3:.1f} ms "
        f"per plain mask, {seconds[1] * 1e3:.1f} ms per pass with gradients: ratio {seconds[1] / seconds[0]:.2f}"
    )

    def kept(part: str, count: int, compute: Callable[[], Arrays]) -> Arrays:
        path = arguments.folder and arguments.folder / f"{name}_{of_task}_{part}_{count}.npz"
        if path and path.is_file():
            return dict(np.load(path))
        arrays = compute()
        if path:
            np.savez(path, **arrays)
        return arrays

    def margins(part: str, count: int, seed: int) -> Arrays:
        masks = Bernoulli(size, count, ALPHA, seed).masks(0, count)
        return kept(part, count, lambda: {"masks": masks, "margins": engine.margins(masks)})

    def gradients() -> Arrays:
        masks = Balanced(size, num_passes, ALPHA, 2_000_000).masks(0, num_passes)
        shards = masks.reshape(-1, ROUND, size)
        found = [engine.gate_gradients(shard, (0, engine.num_examples)) for shard in shards]
        sums = {field.name: np.stack([getattr(sums, field.name) for sums in found]) for field in fields(GateGradients)}
        return {"masks": shards, **sums}

    def alone() -> Arrays:
        unablated, started = engine.margins(np.ones((1, size), np.bool_))[0], time.perf_counter()
        values = engine.margins(~np.eye(size, dtype=np.bool_))
        return {"margins": values, "unablated": unablated, "seconds": np.array(time.perf_counter() - started)}

    held_out, shards = margins("held_out", arguments.held_out, 1_000_000), kept("gradients", num_passes, gradients)
    without_one = kept("leave_one_out", size, alone) if arguments.leave_one_out else None
    sums = [GateGradients(*arrays) for arrays in zip(*(shards[f.name] for f in fields(GateGradients)), strict=True)]
    plain = margins("plain", num_masks, 0)
    return Pool(components, plain, held_out, list(zip(shards["masks"], sums, strict=True)), without_one, seconds)


def timed(engine: AblationEngine, num_masks: int, num_passes: int, rounds: int) -> tuple[float, float]:
    """Seconds of a plain mask and of a pass with gradients, by shards: rows that their last pass wastes cost, too."""
    count, mask = engine.num_examples, np.arange(engine.components.num_components) % ROUND != 0
    plain = min(default_masks_per_shard(count), num_masks)
    gradient = min(default_gradient_masks_per_shard(count, ROUND), num_passes)
    work: dict[str, Callable[[], object]] = {
        "plain": lambda: engine.margins(np.tile(mask, (plain, 1))),
        "gradient": lambda: engine.gate_gradients(np.tile(mask, (gradient, 1)), (0, count)),
    }
    times = in_turns(work, rounds)
    return times["plain"] / plain, times["gradient"] / gradient


class SeedRun:
    """The run directory of one seed's pool, which is given more and fewer masks."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        self._pool = pool
        num_masks, num_examples = pool.plain["margins"].shape
        identity = {"ablation.examples_per_block": num_examples, "ablation.margins_dtype": "float32"}
        self.directory = run = RunDirectory.create(local_storage(folder), identity, pool.components, num_examples)
        self._set(num_masks, len(pool.gradients) * pool.per_round, pool.alone is not None)
        run.margins(TRAIN_DESIGN).write(0, pool.plain["masks"], pool.plain["margins"], {})
        run.margins("held_out").write(0, pool.held_out["masks"], pool.held_out["margins"], {})
        for number, shard in enumerate(pool.gradients):
            run.gradients(GRADIENT_DESIGN)[0].write(number * pool.per_round, *shard, {})
        if pool.alone is not None:
            run.margins(LEAVE_ONE_OUT).write(
                0, ~np.eye(pool.components.num_components, dtype=bool), pool.alone["margins"], {}
            )
            ExampleTable(run).write(None, None, pool.alone["unablated"])

    def _set(self, num_masks: int, num_passes: int, leave_one_out: bool) -> None:
        size, num_held = self._pool.components.num_components, len(self._pool.held_out["masks"])
        alpha = self._pool.alpha
        designs = {
            TRAIN_DESIGN: RunDesign("train", Bernoulli(size, num_masks, alpha, 0)),
            "held_out": RunDesign("evaluation", Bernoulli(size, num_held, alpha, 1)),
        }
        if num_passes:
            designs[GRADIENT_DESIGN] = RunDesign("gradients", Balanced(size, num_passes, alpha, 2))
        if leave_one_out:
            designs[LEAVE_ONE_OUT] = RunDesign("baseline", LeaveOneOut.of(size))
        self.directory.set_designs(designs)

    def result(self, num_masks: int, num_passes: int, leave_one_out: bool, shared_penalty: bool) -> tuple[float, float]:
        """Mean correlation on the held-out masks, and seconds of the fit stage: of gradients alone, where the call
        before had as many masks without."""
        method, took = self.fit(num_masks, num_passes, leave_one_out, RegressionConfig(shared_penalty=shared_penalty))
        return float(np.nanmean(self.evaluation(method)["correlation"])), took

    def fit(
        self, num_masks: int, num_passes: int, leave_one_out: bool, regression: RegressionConfig
    ) -> tuple[str, float]:
        """The method that was fitted, and the seconds of it."""
        self._set(num_masks, num_passes, leave_one_out)
        if leave_one_out:
            fit_leave_one_out(self.directory)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there are components that none of few masks ablates
            fit(self.directory, regression, lambda _: None)
        took = time.perf_counter() - started
        return GRADIENT_RIDGE if num_passes else "coar", took

    def evaluation(self, method: str) -> dict[str, NDArray[np.float64]]:
        """How well the last fit predicts the held-out masks, per example."""
        evaluate(self.directory, [method], lambda _: None)
        return EvaluationTable(self.directory, method, "held_out").read()


def measure(pool: Pool, arguments: argparse.Namespace) -> None:
    """Fit everything, and print plain COAR's curve and every budget's equivalent on it."""
    # By (leave-one-out, M, m) and by (m, shared penalty): a correlation and seconds per seed.
    found: dict[tuple[bool, int, int], list[tuple[float, float]]] = defaultdict(list)
    plain: dict[tuple[int, bool], list[tuple[float, float]]] = defaultdict(list)
    counts = sorted({*arguments.plain_masks, *arguments.train_masks} - {0})
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = SeedRun(Path(folder), pool.seed(seed, arguments.seeds))
            for m in [0, *counts]:
                for shared in (True, False) if m else ():
                    plain[m, shared].append(run.result(m, 0, False, shared))
                for alone in (False, True) if pool.alone is not None else (False,):
                    for passes in arguments.gradient_masks if m in arguments.train_masks else ():
                        found[alone, passes, m].append(run.result(m, passes, alone, False))
    table = new_table("Plain COAR: correlation", "m", "penalty per example", "one penalty", "fit s")
    for m in counts:
        own, shared = (plain[m, is_shared] for is_shared in (False, True))
        table.add_row(f"{m:,}", spread(own), spread(shared), f"{seconds(own):.2f}")
    CONSOLE.print(table)
    # What few masks reach by chance must not hide that more are needed.
    curve = np.maximum.accumulate([max(mean(plain[m, shared]) for shared in (False, True)) for m in counts])
    fits, logs = [seconds(plain[m, False]) for m in counts], np.log(counts)
    columns = ("M", "m", "leave-one-out", "cost", "correlation", "plain needs", "ratio", "fit s", "ratio in seconds")
    table = new_table("gradient_ridge: correlation", *columns)
    for (alone, passes, m), values in sorted(found.items()):
        spent = m * pool.seconds[0] + passes * pool.seconds[1]
        spent += float(pool.alone["seconds"]) if alone and pool.alone is not None else 0.0
        reached = mean(values)
        needed = np.interp(reached, curve, logs)
        sign = ">" if reached > curve[-1] else "<" if reached < curve[0] else ""
        plain_s = np.exp(needed) * pool.seconds[0]
        with_fits = (plain_s + np.interp(needed, logs, fits)) / (spent + seconds(values))
        numbers = (f"{sign}{np.exp(needed):,.0f}", f"{sign}{plain_s / spent:.1f}", f"{seconds(values):.2f}")
        what = (str(passes), f"{m:,}", "yes" if alone else "", f"{spent / pool.seconds[0]:,.0f}", spread(values))
        table.add_row(*what, *numbers, f"{sign}{with_fits:.1f}")
    CONSOLE.print(table)


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=f"{title} on held-out masks, mean of examples and seeds", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def mean(values: list[tuple[float, float]]) -> float:
    return float(np.mean([correlation for correlation, _ in values]))


def seconds(values: list[tuple[float, float]]) -> float:
    return min(took for _, took in values)


def spread(values: list[tuple[float, float]]) -> str:
    correlations = [correlation for correlation, _ in values]
    return f"{mean(values):.3f}" + (f" +-{np.std(correlations, ddof=1):.3f}" if len(values) > 1 else "")


def add_options(
    parser: argparse.ArgumentParser, gradient_masks: list[int], train_masks: list[int], plain_masks: list[int]
) -> None:
    """The options of models and of what they run, with the default numbers of masks."""
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=["digits"])
    parser.add_argument("--gradient-masks", type=int, nargs="+", default=gradient_masks, help="M, by rounds")
    parser.add_argument("--train-masks", type=int, nargs="+", default=train_masks, help="m beside M")
    parser.add_argument("--plain-masks", type=int, nargs="+", default=plain_masks)
    parser.add_argument("--held-out", type=int, default=400, help="masks")
    parser.add_argument("--leave-one-out", action="store_true", help="also with leave-one-out beside the gradients")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--examples", type=int, help="take the first so many")
    parser.add_argument("--epochs", type=int, help="of training the digits preset")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default=native_precision())
    parser.add_argument("--folder", type=Path, help="what has been computed is kept here")
    parser.add_argument("--checkpoint", type=Path, help="ResNet-20 weights, .safetensors")
    parser.add_argument("--images", help="CIFAR-10 images, .npz")
    parser.add_argument("--text", type=Path, help="what gpt2 is trained on")


def missing_options(arguments: argparse.Namespace, needs: tuple[str, ...]) -> str:
    """The options without which a model is left out, in words."""
    return " and ".join(f"--{option}" for option in needs if getattr(arguments, option) is None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, [20, 40, 100, 200], [0, 200, 500, 1000, 2000], [250, 500, 1000, 2000, 4000, 8000])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    CONSOLE.print(
        f"Estimators on {arguments.device} ({machine}), {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {arguments.precision}"
    )
    for name, task, selector in tasks_of(arguments):
        measure(collect(name, task, selector, arguments), arguments)


if __name__ == "__main__":
    main()
