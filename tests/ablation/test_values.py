"""Activations of ablated components are values at their sites: every form against hooks on one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.value import SiteValues
from coar_dist.components.discovery import by_rules, discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.components.projections import is_transposed_linear
from coar_dist.components.sites import site_name, sites_of
from coar_dist.config.schema import ComponentRule
from coar_dist.errors import ComponentMismatchError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task, call_model
from tests.models import random_masks, randomise, small_task

pytestmark = pytest.mark.filterwarnings("ignore")


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.3


def all_sites(task: Task, components: ComponentIndex) -> dict[str, int]:
    """Names of the sites, with their numbers of channels."""
    places = [place for found in sites_of(task.model, components) for place in found]
    return {site_name(place): place.length for place in places}


def random_values(task: Task, components: ComponentIndex) -> dict[str, Tensor]:
    """An offset value for every channel of every site."""
    sites = all_sites(task, components)
    return {name: noise(length, seed=seed) for seed, (name, length) in enumerate(sites.items())}


def replaced(model: nn.Module, component: Any, values: dict[str, Tensor]) -> list[Any]:
    """Hooks that put the values in the place of one component's activations, knowing nothing of the engine."""
    handles = []
    for parameter, axis, start, size in component.slices:
        module_name, _, name = parameter.rpartition(".")
        if name == "bias":
            continue
        module = model.get_submodule(module_name)
        output_axis = int(is_transposed_linear(module) or isinstance(module, nn.ConvTranspose2d))
        is_convolution = module.weight.ndim > 2
        side = "output" if axis == output_axis else "input"

        def put(x: Tensor, name: str = f"{module_name}.{side}", first: int = start, n: int = size) -> Tensor:
            x = x.clone()
            for channel in range(first, first + n):
                place = (slice(None), channel) if is_convolution else (..., channel)  # noqa: B023
                value = values[name]
                x[place] = value[channel] if value.ndim == 1 else value[place].expand_as(x[place])
            return x

        if side == "output":
            handles.append(module.register_forward_hook(lambda _m, _i, output, put=put: put(output)))
        else:
            handles.append(module.register_forward_pre_hook(lambda _m, inputs, put=put: (put(inputs[0]), *inputs[1:])))
    return handles


def brute_force(
    task: Task, components: ComponentIndex, values: dict[str, Tensor], masks: NDArray[np.bool_]
) -> NDArray[np.float64]:
    margins = np.empty((len(masks), len(task.examples)))
    for row, mask in enumerate(masks):
        model = copy.deepcopy(task.model).eval()
        for component in components:
            if not mask[component.id]:
                replaced(model, component, values)
        for example in range(len(task.examples)):
            one = task.examples.rows(example, example + 1)
            with torch.no_grad():
                margins[row, example] = float(task.output_function(call_model(model, one.inputs), one.targets))
    return margins


def masks_of(components: ComponentIndex) -> NDArray[np.bool_]:
    num = len(components)
    return np.concatenate([random_masks(6, num, 0.3), np.ones((1, num), np.bool_), np.zeros((1, num), np.bool_)])


def engine_of(task: Task, components: ComponentIndex, values: dict[str, Tensor], precision: str = "float32") -> Any:
    value = SiteValues(components, values=values)
    return AblationEngine(copy.deepcopy(task), components, "cpu", precision, value=value)


def check(task: Task, components: ComponentIndex, values: dict[str, Tensor], ungated: int = 0) -> AblationEngine:
    """Both modes, gradient passes and reused activations give what the hooks give."""
    masks = masks_of(components)
    alone = np.eye(len(components)) == 0
    masks = np.concatenate([masks, alone[np.linspace(0, len(components) - 1, 4).astype(int)]])
    expected = brute_force(task, components, values, masks)
    tolerance = 3e-6 * max(1.0, np.abs(expected).max())
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    engine = engine_of(task, components, values)
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=tolerance, err_msg=mode)
        for mask, margins in zip(masks[-4:], expected[-4:], strict=True):
            np.testing.assert_allclose(engine.margins(mask[None])[0], margins, rtol=0, atol=tolerance, err_msg=mode)
    gradients = engine.gate_gradients(masks, (0, len(task.examples)))
    np.testing.assert_allclose(gradients.margins, expected, rtol=0, atol=tolerance)
    engine.close()
    assert len(engine.ungated) == ungated, engine.ungated
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    return engine


def language_task(model: nn.Module) -> Task:
    ids = torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(1))
    return Task(model, ExampleSet({"input_ids": ids}, ids[:, -1]), output_function(last_margin))


def last_margin(outputs: Any, targets: Tensor) -> Tensor:
    logits = outputs.logits[:, -1]
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


def gpt2() -> Task:
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
    return language_task(randomise(GPT2LMHeadModel(config)))


def llama(**options: Any) -> Task:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return language_task(randomise(LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes, **heads, **options))))


def of_model(model: nn.Module, *shape: int) -> Task:
    return Task(
        randomise(model), ExampleSet(noise(5, *shape), torch.tensor([0, 1, 2, 0, 1])), output_function("margin")
    )


def test_filters_and_rows_with_batch_norm_folded() -> None:
    task = small_task(5)
    components = discover(task.model, ["conv_filters", "linear_rows"])
    engine = check(task, components, random_values(task, components))
    assert engine.model.value.in_biases
    assert isinstance(engine.model.module.bn1, nn.Identity)


def test_channels_of_a_convolution_have_no_bias_to_go_into() -> None:
    task = small_task(5)
    rules = [
        ComponentRule("conv2.weight", 1, 2),
        ComponentRule("linear.weight", 1, 1),
        ComponentRule("conv1.weight", 0, 1),
    ]
    components = ComponentIndex(tuple(by_rules(task.model, rules)))
    engine = check(task, components, random_values(task, components))
    assert not engine.model.value.in_biases


@pytest.mark.parametrize("selectors", [["heads", "neurons"], ["key_value_groups"], ["attention_blocks", "mlp_blocks"]])
@pytest.mark.parametrize(
    "make", [gpt2, llama, partial(llama, attention_bias=True, mlp_bias=True)], ids=["gpt2", "llama", "biases"]
)
def test_heads_neurons_and_blocks(make: Callable[[], Task], selectors: list[str]) -> None:
    task = make()
    components = discover(task.model, selectors)
    engine = check(task, components, random_values(task, components))
    assert engine.model.value.in_biases


def test_rows_and_columns_of_one_matrix() -> None:
    task = of_model(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)), 6)
    rules = [ComponentRule("2.weight", 0, 1), ComponentRule("2.weight", 1, 2), ComponentRule("4.weight", 1, 1)]
    components = ComponentIndex(tuple(by_rules(task.model, rules)))
    assert check(task, components, random_values(task, components)).model.value.in_biases


def test_a_subset_in_another_order_with_a_bias() -> None:
    task = of_model(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 6)
    with_bias = ComponentGroup((Slices("0.weight", 0, 2, (6, 0)), Slices("0.bias", 0, 2, (6, 0))), (3, 0), "pair{}")
    components = ComponentIndex((with_bias, ComponentGroup.of("0.weight", 0, 8).only([3])))
    check(task, components, random_values(task, components))


def test_transposed_convolutions() -> None:
    layers = [nn.ConvTranspose2d(2, 4, 3, bias=False), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.AdaptiveAvgPool2d(1)]
    task = of_model(nn.Sequential(*layers, nn.Flatten()), 2, 4, 4)
    components = discover(task.model, "conv_filters")
    check(task, components, random_values(task, components))


class Functional(nn.Module):
    """Reads its weights itself: no hook on the layers is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(
            functional.linear(x, self.first.weight, self.first.bias * 2).relu(), self.second.weight
        )


def test_weights_that_a_function_reads() -> None:
    task = of_model(Functional(), 6)
    twin = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    with torch.no_grad():
        twin[0].weight.copy_(task.model.first.weight)
        twin[0].bias.copy_(task.model.first.bias * 2)
        twin[2].weight.copy_(task.model.second.weight)
    rows, columns = ComponentGroup.of("first.weight", 0, 8), ComponentGroup.of("second.weight", 1, 8)
    components = ComponentIndex((rows, columns.only([1, 5])))
    values = {"first.output": noise(8), "second.input": noise(8, seed=4)}
    masks = masks_of(components)
    of_twin = ComponentIndex((ComponentGroup.of("0.weight", 0, 8), ComponentGroup.of("2.weight", 1, 8).only([1, 5])))
    of_sites = {"0.output": values["first.output"], "2.input": values["second.input"]}
    expected = brute_force(Task(twin, task.examples, task.output_function), of_twin, of_sites, masks)
    engine = engine_of(task, components, values)
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=3e-6)
    np.testing.assert_allclose(engine.gate_gradients(masks, (0, 5)).margins, expected, rtol=0, atol=3e-6)


class Attention(nn.Module):
    """``nn.MultiheadAttention`` written out, with the same parameters, in layers that are called."""

    def __init__(self, packed: nn.MultiheadAttention, head: nn.Linear) -> None:
        super().__init__()
        self.in_proj, self.out_proj, self.head = nn.Linear(8, 24), copy.deepcopy(packed.out_proj), copy.deepcopy(head)
        with torch.no_grad():
            self.in_proj.weight.copy_(packed.in_proj_weight)
            self.in_proj.bias.copy_(packed.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.in_proj(x).chunk(3, dim=-1))
        mixed = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
        output = functional.linear(mixed, torch.eye(8))  # what is read by ``out_proj`` is a tensor of its own
        return self.head(self.out_proj(output).mean(1))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_packed_attention() -> None:
    task = of_model(Packed(), 4, 8)
    twin = Task(Attention(task.model.attention, task.model.head).eval(), task.examples, task.output_function)
    slices = [("attention.in_proj_weight", 0, 24, 1), ("attention.out_proj.weight", 1, 2, 4)]
    slices.append(("attention.out_proj.weight", 0, 8, 1))
    components = ComponentIndex(tuple(ComponentGroup.of(name, axis, num, size) for name, axis, num, size in slices))
    of_twin = ComponentIndex(
        tuple(
            ComponentGroup.of(name.removeprefix("attention.").replace("_weight", ".weight"), axis, num, size)
            for name, axis, num, size in slices
        )
    )
    names = {"in_proj.output": 24, "out_proj.input": 8, "out_proj.output": 8}
    of_sites = {name: noise(length, seed=seed) for seed, (name, length) in enumerate(names.items())}
    values = {f"attention.{name}": value for name, value in of_sites.items()}
    masks = masks_of(components)
    expected = brute_force(twin, of_twin, of_sites, masks)
    engine = engine_of(task, components, values)
    assert engine.model.value.in_biases
    assert not engine.ungated
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=3e-6)
    np.testing.assert_allclose(engine.gate_gradients(masks, (0, 5)).margins, expected, rtol=0, atol=3e-6)


def test_a_value_for_every_position() -> None:
    task = llama()
    components = discover(task.model, ["neurons", "attention_blocks"])
    values = random_values(task, components)
    for seed, name in enumerate(values):
        values[name] = noise(1, 7, len(values[name]), seed=seed)
    engine = check(task, components, values)
    assert not engine.model.value.in_biases


def test_zero_is_zeroed_weights_where_there_is_no_bias() -> None:
    task = llama()
    components = discover(task.model, ["heads", "neurons"])
    zeros = {name: torch.zeros(length) for name, length in all_sites(task, components).items()}
    masks = masks_of(components)
    of_zeros = engine_of(task, components, zeros).margins(masks)
    of_weights = AblationEngine(copy.deepcopy(task), components, "cpu", "float32").margins(masks)
    np.testing.assert_array_equal(of_zeros, of_weights)


def test_gate_gradients_are_between_the_activation_and_the_value() -> None:
    """One layer behind a ReLU: its local secants are the exact effects."""
    task = of_model(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 6)
    components = ComponentIndex((ComponentGroup.of("0.weight", 0, 8),))
    values = random_values(task, components)
    engine = engine_of(Task(task.model, task.examples, _first_logit()), components, values)
    kept = np.ones((1, 8), np.bool_)
    found = engine.gate_gradients(kept, (0, 5)).kept
    alone = np.eye(8) == 0
    exact = engine.margins(kept) - engine.margins(alone)
    np.testing.assert_allclose(found, exact.T, rtol=0, atol=3e-6)


def _first_logit() -> Any:
    return output_function(lambda outputs, _targets: outputs[:, 0])


@pytest.mark.parametrize("whole", [True, False])
def test_bits_come_back_on_both_devices_ways(whole: bool) -> None:
    task = llama()
    components = (
        discover(task.model, ["heads", "neurons", "attention_blocks"])
        if False
        else discover(task.model, ["heads", "neurons"])
    )
    values = random_values(task, components)
    value = SiteValues(components, values=values).prepared(task.model)
    masks = masks_of(components)
    expected = brute_force(task, components, values, masks)
    before = {name: parameter.clone() for name, parameter in task.model.named_parameters()}
    masker: Any = value.masker(task.model)
    masker.writes_whole = whole
    found = []
    with torch.no_grad(), masker.ablating() as ablate:
        for mask in masks:
            ablate(mask)
            outputs = call_model(task.model, task.examples.inputs)
            found.append(task.output_function(outputs, task.examples.targets).numpy())
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    assert all(torch.equal(parameter, before[name]) for name, parameter in task.model.named_parameters())


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("embedding_rows", r"model.embed_tokens\[0\] .* has no site .* chosen by tokens"),
        ("recurrent_units", "LSTM has none"),
    ],
)
def test_components_without_a_site_are_refused_by_name(selector: str, message: str) -> None:
    model = llama().model if selector == "embedding_rows" else nn.LSTM(3, 4)
    with pytest.raises(ComponentMismatchError, match=message):
        sites_of(model, discover(model, selector))


def test_a_site_that_a_pass_never_reaches_is_refused_unless_nothing_depends_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unused(Functional):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 4)

    monkeypatch.setattr("coar_dist.ablation.effects.weights_read", lambda *_: frozenset())
    task = of_model(Unused(), 6)
    unused = ComponentIndex((ComponentGroup.of("unused.weight", 0, 4),))
    assert np.ptp(engine_of(task, unused, {"unused.output": noise(4)}).margins(masks_of(unused)), axis=0).max() == 0
    components = ComponentIndex((*unused.groups, ComponentGroup.of("first.weight", 0, 8)))
    with pytest.raises(ComponentMismatchError, match=r"first\[0\]: its weights have an effect, and its site first"):
        engine_of(task, components, {})
