"""Gradient baselines of every component kind, held to what ``literal`` writes out; and what they refuse."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from captum.attr import InternalInfluence, LayerConductance
from torch import Tensor, nn

from coar_dist.baselines import gradient_baselines
from coar_dist.baselines.gradient_baselines import GradientBaselines, check_gradient_baselines
from coar_dist.components.discovery import SELECTORS, discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.config.methods import GRADIENT_BASELINES, PATH_BASELINES
from coar_dist.errors import ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import OutputFunction, output_function
from coar_dist.tasks.task import Task
from tests.ablation.test_engine_kinds import Reused, gpt2_task, transformer_task
from tests.baselines import literal
from tests.models import randomise, small_task

STEPS = 4
GP = "gradient_x_parameter"
CPU = torch.device("cpu")


def linear_task() -> Task:
    """A plain net, with an activation that works in place."""
    model = randomise(
        nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    )
    inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(3)) + 0.5
    return Task(model, ExampleSet(inputs, torch.arange(4) % 3), output_function("margin"))


def of_selectors(task: Task, *selectors: str, exclude: tuple[str, ...] = ()) -> ComponentIndex:
    found = [group for name in selectors for group in SELECTORS[name](task.model) if group.parameter not in exclude]
    return ComponentIndex(tuple(found))


def problems() -> dict[str, tuple[Task, ComponentIndex, literal.Forward]]:
    conv, linear, gpt2 = small_task(4), linear_task(), gpt2_task()
    attention, sequence_first = transformer_task(), transformer_task(batch_first=False, bias=False)
    filters = ComponentIndex(
        (*of_selectors(conv, "conv_filters", "linear_rows").groups, ComponentGroup.of("linear.weight", 1, 4))
    )
    inputs = ComponentIndex((ComponentGroup.of("0.weight", 0, 4, 2), ComponentGroup.of("2.weight", 1, 8)))
    kinds = ("linear_rows", "heads", "embedding_rows")
    both = of_selectors(gpt2, "transposed_linear_outputs", "heads", exclude=("lm_head.weight",))
    return {
        "conv filters": (conv, filters, literal.small_resnet),
        "linear rows and columns": (linear, inputs, literal.hooked),
        "attention": (attention, of_selectors(attention, *kinds), literal.transformer),
        "attention, sequence first": (sequence_first, of_selectors(sequence_first, *kinds), literal.transformer),
        "transposed inputs": (gpt2, of_selectors(gpt2, "transposed_linear_inputs"), literal.hooked),
        "transposed outputs and heads": (gpt2, both, literal.hooked),
    }


PROBLEMS = problems()


def baselines_of(task: Task, components: ComponentIndex, rows: int | None = None, *methods: str) -> GradientBaselines:
    return GradientBaselines(task, components, methods or GRADIENT_BASELINES, STEPS, rows, CPU)


def assert_close(found: np.ndarray, truth: np.ndarray, message: str = "") -> None:
    scale = np.abs(truth).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=2e-5 * scale, err_msg=message)


@pytest.mark.parametrize("name", PROBLEMS)
def test_weights_are_what_is_written_out(name: str) -> None:
    task, components, forward = PROBLEMS[name]
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    truths = {method: literal.along_path(method, forward, task, components, STEPS) for method in PATH_BASELINES}
    truths[GP] = literal.gradient_x_parameter(task, components)
    for rows in (None, 3, 11):  # all at once; an example's path in parts; two examples at a time
        baselines = baselines_of(task, components, rows)
        for method, truth in truths.items():
            weights = baselines.weights(method, task.examples)
            assert weights.dtype == np.float32
            assert_close(weights, truth, f"{method} with {rows} rows")
    assert_untouched(task.model, before)


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
        assert not any("component" in name for name in (*module._buffers, *module._parameters))


def test_all_layers_at_once_are_captum_layer_by_layer() -> None:
    task = small_task(3)
    components = discover(task.model, "conv_filters")
    found = baselines_of(task, components)
    for method, kind in zip(PATH_BASELINES, (LayerConductance, InternalInfluence), strict=True):

        def margins(images: Tensor, labels: Tensor) -> Tensor:
            return task.output_function(task.model(images), labels)

        layers = (task.model.conv1, task.model.conv2, task.model.grouped)
        arguments = {"additional_forward_args": (task.examples.targets,), "n_steps": STEPS}
        maps = [kind(margins, layer).attribute(task.examples.inputs, **arguments) for layer in layers]
        truth = torch.cat([layer_map.sum(dim=(2, 3)) for layer_map in maps], dim=1).detach().numpy()
        assert_close(found.weights(method, task.examples), truth)


def test_conductance_of_a_layer_adds_up_to_the_margins_change() -> None:
    """What flows through the first layer is all that the margin has over that of a zero input."""
    task = linear_task()
    task.model[1] = nn.Tanh()
    components = of_selectors(task, "linear_rows", exclude=("2.weight", "4.weight"))
    baselines = GradientBaselines(task, components, ["neuron_conductance"], 800, None, CPU)
    with torch.no_grad():
        change = task.output_function(task.model(task.examples.inputs), task.examples.targets)
        change -= task.output_function(task.model(torch.zeros(4, 5)), task.examples.targets)
    total = baselines.weights("neuron_conductance", task.examples).sum(axis=1)
    np.testing.assert_allclose(total, change.numpy(), rtol=2e-2, atol=2e-2)


def test_a_set_of_slices_of_one_weight_has_the_sum_of_their_weights() -> None:
    task = linear_task()
    rows = ComponentIndex((ComponentGroup.of("0.weight", 0, 8),))
    pairs = tuple(Slices("0.weight", 0, 1, range(first, first + 4)) for first in (0, 4))
    sets = ComponentIndex((ComponentGroup(pairs, range(4), "pair {}"),))
    for method in GRADIENT_BASELINES:
        one, other = (baselines_of(task, index).weights(method, task.examples) for index in (rows, sets))
        assert_close(other, one[:, :4] + one[:, 4:], method)


def test_two_cuts_of_one_attention_have_no_taps() -> None:
    task = transformer_task()
    (heads, *_) = discover(task.model, "heads").groups
    halves = ComponentIndex((heads.only([0]), heads.only([1])))
    with pytest.raises(ConfigError, match="cut twice"):
        baselines_of(task, halves).weights(PATH_BASELINES[0], task.examples)


def test_components_without_a_gate_have_their_parameters_gradients() -> None:
    task = gpt2_task()
    tied = discover(task.model, "embedding_rows", include=["*wte*"])  # the output layer reads it, too
    assert check_gradient_baselines(task, tied, [GP]) is None  # its gates stand wherever it is read
    assert_close(
        baselines_of(task, tied, None, GP).weights(GP, task.examples), literal.gradient_x_parameter(task, tied)
    )
    conv = small_task(3)
    columns = ComponentIndex((ComponentGroup.of("conv2.weight", 2, 3), ComponentGroup.of("conv1.weight", 0, 2, 2)))
    found = baselines_of(conv, columns, None, GP).weights(GP, conv.examples)
    assert_close(found, literal.gradient_x_parameter(conv, columns))
    with pytest.raises(ConfigError, match=r"neuron_conductance.*conv2\.weight: axis 2 of a Conv2d has no gated form"):
        baselines_of(conv, columns)


def reused_task(read: bool) -> Task:
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    model = randomise(Reused(1.0 if read else None))
    return Task(model, ExampleSet(inputs, torch.arange(3)), output_function("margin"))


@pytest.mark.parametrize(
    ("read", "message"), [(False, "shared .*called more than once"), (True, "other effects than zeroed weights")]
)
def test_layers_called_twice_or_not_at_all(read: bool, message: str) -> None:
    """Every use counts in a gradient; there is no one activation to look at."""
    task = reused_task(read)
    components = discover(task.model, "linear_rows")
    found = baselines_of(task, components, None, GP).weights(GP, task.examples)
    assert_close(found, literal.gradient_x_parameter(task, components))
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        baselines_of(task, components)
    assert_untouched(task.model, before)


class Branched(nn.Module):
    """A layer that is not called, and one that is called for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.vain, self.used, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(torch.tanh(self.used(x))), self.vain(x)


def test_layers_that_the_margin_does_not_depend_on_have_weights_of_zero() -> None:
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    task = Task(randomise(Branched()), ExampleSet(inputs, torch.arange(3)), output_function("margin"))
    components = discover(task.model, "linear_rows")
    for method in GRADIENT_BASELINES:
        weights = baselines_of(task, components).weights(method, task.examples)
        assert not weights[:, :12].any()
        assert np.abs(weights[:, 12:]).max() > 1e-3


@pytest.mark.parametrize("method", GRADIENT_BASELINES)
@pytest.mark.parametrize("task", [small_task(3), transformer_task(), gpt2_task()], ids=["conv", "attention", "gpt2"])
def test_the_model_is_as_before_after_an_error(task: Task, method: str) -> None:
    selector = "conv_filters" if hasattr(task.model, "conv1") else "heads"
    baselines = baselines_of(task, discover(task.model, selector))
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    last = list(task.model.modules())[-1]
    handle = last.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(TaskError, match=f"{method} of .*ZeroDivisionError"):
        baselines.weights(method, task.examples)
    handle.remove()
    assert_untouched(task.model, before)


def test_memory_that_runs_out_halves_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task(4)
    components = discover(task.model, "conv_filters")
    baselines = baselines_of(task, components, 16, GP)
    real = gradient_baselines.by_gates

    def greedy(model: Any, index: Any, function: Any, examples: ExampleSet) -> Tensor:
        if len(examples) > 2:
            raise torch.OutOfMemoryError("too many")
        return real(model, index, function, examples)

    monkeypatch.setattr(gradient_baselines, "by_gates", greedy)
    assert_close(baselines.weights(GP, task.examples), literal.gradient_x_parameter(task, components))


class Bytes(nn.Module):
    """Takes bytes as they are, or as images in 0..1 that it scales itself."""

    def __init__(self, inner: nn.Module, scaled: bool) -> None:
        super().__init__()
        self.inner, self.scaled = inner, scaled

    def forward(self, images: Tensor) -> Tensor:
        as_float = images.float()
        if self.scaled and images.dtype == torch.uint8:
            as_float = as_float / 255
        return self.inner(as_float if self.scaled else as_float / 255)


@pytest.mark.parametrize("scaled", [False, True])
def test_bytes_are_scaled_as_the_model_takes_them(scaled: bool) -> None:
    plain = small_task(3)
    pixels = torch.randint(0, 256, (3, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    as_floats = Task(plain.model, ExampleSet(pixels.float() / 255, plain.examples.targets), plain.output_function)
    as_bytes = Task(
        Bytes(plain.model, scaled).eval(), ExampleSet(pixels, plain.examples.targets), plain.output_function
    )
    for method in GRADIENT_BASELINES:
        truth = baselines_of(as_floats, discover(as_floats.model, "conv_filters")).weights(method, as_floats.examples)
        found = baselines_of(as_bytes, discover(as_bytes.model, "conv_filters")).weights(method, as_bytes.examples)
        assert_close(found, truth)


def ranked(outputs: Any, _targets: Tensor) -> Tensor:
    return outputs.argsort(dim=1)[:, 0].float()


def one_hot_task() -> Task:
    class OneHot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.linear(nn.functional.one_hot(tokens, 5).float().mean(dim=1))

    tokens = torch.tensor([[0, 1, 4], [3, 3, 2]])
    return Task(randomise(OneHot()), ExampleSet(tokens, torch.tensor([0, 2])), output_function("margin"))


def not_differentiable() -> Task:
    task = linear_task()
    return Task(task.model, task.examples, OutputFunction("ranked", ranked, lambda *_: None))


@pytest.mark.parametrize(
    ("make", "methods", "message"),
    [
        (not_differentiable, [GP], "'ranked' gives margins without a gradient"),
        (not_differentiable, PATH_BASELINES, "'ranked' gives margins without a gradient"),
        (one_hot_task, PATH_BASELINES, r"'torch\.int64'.* no nn\.Embedding reads"),
        (lambda: reused_task(False), ["internal_influence"], "called more than once"),
    ],
)
def test_what_cannot_be_had_is_refused(make: Callable[[], Task], methods: list[str], message: str) -> None:
    task = make()
    task.model.train()
    with pytest.raises(ConfigError, match=message):
        check_gradient_baselines(task, discover(task.model, "linear_rows"), methods)
    assert task.model.training


def test_captum_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task(1)
    components = discover(task.model, "conv_filters")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert check_gradient_baselines(task, components, [GP]) is None
    with pytest.raises(ConfigError, match=r"pip install 'coar-dist\[baselines\]'"):
        check_gradient_baselines(task, components, ["internal_influence"])


def test_a_model_spread_by_accelerate() -> None:
    """On one CPU; that several GPUs share a model is not shown here."""
    task, components, _ = PROBLEMS["transposed inputs"]
    spread = copy.deepcopy(task.model)
    dispatch_model(spread, {name: "cpu" for name, _ in spread.named_children()}, force_hooks=True)
    there = Task(spread, task.examples, task.output_function)
    for method in GRADIENT_BASELINES:
        truth = baselines_of(task, components).weights(method, task.examples)
        assert_close(baselines_of(there, components).weights(method, task.examples), truth)
