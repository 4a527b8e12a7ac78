"""Every component kind and many random architectures, held to the slow truth in both modes."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import ComponentRule
from coar_dist.designs.given import LeaveOneOut
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import random_masks, randomise, slow_margins, small_task
from tests.untimed import UNTIMED


def assert_exact(task: Task, components: ComponentIndex, masks: np.ndarray, rows: int = 3) -> None:
    truth = slow_margins(task, components, masks)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    for mode in ("weights", "rows"):
        engine = AblationEngine(
            Task(copy.deepcopy(task.model), task.examples, task.output_function), components, "cpu", "float32"
        )
        engine.use(EnginePlan(mode, rows, compiled=False))
        scale = 1 + np.abs(truth).max()
        np.testing.assert_allclose(engine.margins(masks), truth, rtol=1e-4, atol=2e-5 * scale, err_msg=mode)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())


class TransformerClassifier(nn.Module):
    """An embedding, nn.MultiheadAttention with masks, and a MLP."""

    def __init__(self, batch_first: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=bias)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        x = self.embedding(tokens)
        causal = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        inputs = x if self.attention.batch_first else x.transpose(0, 1)
        mixed, weights = self.attention(inputs, inputs, inputs, key_padding_mask=padding, attn_mask=causal)
        x = x + (mixed if self.attention.batch_first else mixed.transpose(0, 1)) + weights[:, :, :1]
        return self.head((x + self.mlp(self.norm(x))).mean(dim=1))


def transformer_task(**options: bool) -> Task:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 11, (5, 6), generator=generator)
    padding = torch.zeros(5, 6, dtype=torch.bool)
    padding[2, 4:] = True
    model = randomise(TransformerClassifier(**options))
    inputs = {"tokens": tokens, "padding": padding}
    return Task(model, ExampleSet(inputs, torch.arange(5) % 4), output_function("margin"))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("selector", ["linear_rows", "heads", "embedding_rows"])
def test_attention_and_embeddings(selector: str, batch_first: bool, bias: bool) -> None:
    task = transformer_task(batch_first=batch_first, bias=bias)
    components = discover(task.model, selector)
    counts = {"linear_rows": 24 + 8 + 12 + 8 + 4, "heads": 2, "embedding_rows": 11}
    assert components.num_components == counts[selector]
    assert_exact(task, components, random_masks(6, components.num_components, 0.3))


def test_heads_of_the_packed_projection_by_a_rule() -> None:
    task = transformer_task()
    rules = [ComponentRule("*in_proj_weight", 0, 4), ComponentRule("mlp.*.weight", 1, 2)]
    components = discover(task.model, "rules", rules=rules)
    assert [group.num_components for group in components.groups] == [6, 4, 6]
    assert_exact(task, components, random_masks(6, 16, 0.3))


def gpt2_task() -> Task:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=23, n_positions=12, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = randomise(GPT2LMHeadModel(config))
    tokens = torch.randint(0, 23, (4, 9), generator=torch.Generator().manual_seed(1))
    attention = torch.ones(4, 9, dtype=torch.long)
    attention[1, 5:] = 0
    labels = tokens.masked_fill(attention == 0, -100)
    inputs = {"input_ids": tokens, "attention_mask": attention}
    return Task(model, ExampleSet(inputs, labels), output_function("next_token_margin"))


@pytest.mark.parametrize(
    ("selector", "count"),
    [
        ("transposed_linear_inputs", 2 * (8 + 8 + 8 + 32)),
        ("transposed_linear_outputs", 2 * (24 + 8 + 32 + 8)),
        ("heads", 4),
    ],
)
def test_gpt2(selector: str, count: int) -> None:
    task = gpt2_task()
    task.check()
    components = discover(task.model, selector)
    assert components.num_components == count
    assert_exact(task, components, random_masks(5, count, 0.2))


def test_tied_embeddings_are_gated_wherever_they_are_read() -> None:
    task = gpt2_task()
    components = discover(task.model, "embedding_rows", include=["*wte*"])
    assert_exact(task, components, random_masks(4, 23, 0.2))


def test_padding_does_not_change_a_margin() -> None:
    task = gpt2_task()
    engine = AblationEngine(task, discover(task.model, "heads"), "cpu", "float32")
    short = {"input_ids": task.examples.inputs["input_ids"][1:2, :5]}
    with torch.no_grad():
        logits = task.model(**short).logits[0]
    labels = short["input_ids"][0, 1:]
    expected = np.mean(
        [float(logits[t, label] - logits[t].index_fill(0, label, -1e9).max()) for t, label in enumerate(labels)]
    )
    assert engine.unablated().margins[1] == pytest.approx(expected, abs=1e-4)


class Reused(nn.Module):
    """One module called twice, and one whose weight is read without calling it, as it is or doubled."""

    def __init__(self, factor: float | None) -> None:
        super().__init__()
        self.shared, self.other, self.factor = nn.Linear(6, 6), nn.Linear(6, 6), factor
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        if self.factor is None:
            return self.head(self.other(x))
        weight = self.other.weight if self.factor == 1 else self.other.weight * self.factor
        return self.head(functional.linear(x, weight, self.other.bias))


@pytest.mark.parametrize(("factor", "ungated"), [(None, []), (1.0, []), (2.0, ["other.weight"])])
def test_modules_called_twice_or_not_at_all(factor: float | None, ungated: list[str]) -> None:
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    task = Task(randomise(Reused(factor)), ExampleSet(inputs, torch.arange(5) % 3), output_function("margin"))
    components = discover(task.model, "linear_rows")
    assert_exact(task, components, random_masks(6, components.num_components, 0.3))
    found = AblationEngine(task, components, "cpu", "float32").ungated
    assert [components.groups[number].parameter for number in found] == ungated
    assert all(
        re.match(r"its gates have other effects than zeroed weights: .* by \S+, and .* size \S+$", why)
        for why in found.values()
    )


class Sometimes(nn.Module):
    """A layer that only large inputs come to."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.seldom = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.always(x)
        large = x.amax(dim=1) > 100
        return torch.where(large[:, None], self.seldom(outputs), outputs) if large.any() else outputs


def test_a_layer_that_no_example_of_the_probe_comes_to_gets_no_gates() -> None:
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(2))
    inputs[37] = 200.0
    task = Task(randomise(Sometimes()), ExampleSet(inputs, torch.arange(60) % 3), output_function("margin"))
    components = discover(task.model, "linear_rows")
    masks = random_masks(4, 6, 0.3)
    truth = slow_margins(task, components, masks)
    engine = AblationEngine(task, components, "cpu", "float32", EnginePlan("rows", 7, compiled=False))
    assert engine.ungated == {1: "its module is not called on the examples of the probe"}
    np.testing.assert_allclose(engine.margins(masks), truth, rtol=1e-4, atol=1e-4)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Random chains of convolutions in one or two dimensions, with norms, groups, strides and shortcuts."""
    dimensions = draw(st.sampled_from([1, 2]))
    conv = nn.Conv1d if dimensions == 1 else nn.Conv2d
    norm = nn.BatchNorm1d if dimensions == 1 else nn.BatchNorm2d
    layers: list[nn.Module] = []
    channels = draw(st.sampled_from([1, 2, 4]))
    first = channels
    for _ in range(draw(st.integers(1, 4))):
        groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
        out = groups * draw(st.integers(1, 3))
        stride, kernel = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3]))
        bias = draw(st.booleans())
        layers.append(conv(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=bias))
        if draw(st.booleans()):
            layers.append(norm(out, affine=draw(st.booleans())))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.GELU(), nn.Identity()])))
        channels = out
    pool = nn.AdaptiveAvgPool1d(1) if dimensions == 1 else nn.AdaptiveAvgPool2d(1)
    model = nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels, 3))
    shape = (draw(st.integers(1, 5)), first, *[9] * dimensions)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) + 0.5
    return randomise(model, draw(st.integers(0, 99))), inputs


@settings(UNTIMED, max_examples=40)
@given(network=networks(), rows=st.integers(1, 6), alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0]), data=st.data())
def test_random_networks_selectors_and_masks(
    network: tuple[nn.Module, Tensor], rows: int, alpha: float, data: st.DataObject
) -> None:
    model, inputs = network
    components = data.draw(
        st.sampled_from(
            [
                discover(model, "conv_filters"),
                ComponentIndex((*discover(model, "conv_filters").groups, *discover(model, "linear_rows").groups)),
                ComponentIndex((ComponentGroup.of(f"{len(model) - 1}.weight", 1, model[-1].in_features),)),
            ]
        )
    )
    task = Task(model, ExampleSet(inputs, torch.arange(len(inputs)) % 3), output_function("margin"))
    assert_exact(task, components, random_masks(4, components.num_components, alpha), rows=rows)


@pytest.mark.parametrize("rows", [2, 3, 16])
def test_leave_one_out_reuses_what_a_mask_leaves_untouched(rows: int) -> None:
    task = small_task(num_examples=5)
    components = discover(task.model, "conv_filters")
    masks = LeaveOneOut.of(components.num_components).masks(0, components.num_components)
    masks = np.concatenate([masks, np.ones((1, len(masks[0])), dtype=bool), random_masks(3, len(masks[0]))])
    truth = slow_margins(task, components, masks)
    for mode in ("weights", "rows"):
        engine = AblationEngine(
            copy.deepcopy(task), components, "cpu", "float32", EnginePlan(mode, rows, compiled=False)
        )
        many = np.tile(masks, (8, 1))
        _, by_cut = engine._form.split(many, 5, engine._cuts)
        assert sum(len(rows_of_cut) for _, rows_of_cut in by_cut) >= 8 * 9  # conv2, grouped, and the one of all ones
        np.testing.assert_allclose(engine.margins(many), np.tile(truth, (8, 1)), rtol=1e-4, atol=2e-5)


def test_activations_are_reused_only_where_masks_are_enough_to_gain_by_it() -> None:
    task = small_task(num_examples=5)
    components = discover(task.model, "conv_filters")
    one = LeaveOneOut.of(components.num_components).masks(components.num_components - 1, components.num_components)
    for mode, rows in (("weights", 5), ("rows", 16)):
        engine = AblationEngine(
            copy.deepcopy(task), components, "cpu", "float32", EnginePlan(mode, rows, compiled=False)
        )
        # The first part and the rest cost what the whole costs.
        assert engine._form.split(one, 5, engine._cuts) == ([0], [])
        assert engine._form.split(np.repeat(one, 12, axis=0), 5, engine._cuts)[0] == []
        np.testing.assert_allclose(engine.margins(one), slow_margins(task, components, one), rtol=1e-4, atol=2e-5)
        engine.margins(random_masks(9, components.num_components, 0.9))
        assert not [cut for cut in engine._cuts.all if cut.held]  # none of these masks spares the first layer
        engine.margins(np.repeat(one, 12, axis=0))
        assert [cut.held for cut in engine._cuts.all] == [False, True]


@pytest.mark.parametrize("mode", ["weights", "rows"])
def test_margins_are_the_same_bits_however_masks_are_cut(mode: str) -> None:
    """What is reused of a part follows from all masks, as a compiled model would not give the bits of the cut one."""
    task = small_task(num_examples=5)
    components = discover(task.model, "conv_filters")
    num_components = components.num_components
    singles = np.tile(LeaveOneOut.of(num_components).masks(0, num_components), (4, 1))
    masks = np.concatenate([singles, random_masks(9, num_components, 0.2)])
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", EnginePlan(mode, 7, compiled=False))
    whole = engine.margins(masks)
    for size in (1, 4, 30):
        parts = [engine.margins(masks[i : i + size], among=masks) for i in range(0, len(masks), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    last = num_components - 1
    assert engine._form.split(masks[[last]], 5, engine._cuts) == ([0], [])
    ((_, rows),) = engine._form.split(masks[[last]], 5, engine._cuts, among=masks)[1]
    assert rows == [0]


def test_a_model_spread_by_accelerate() -> None:
    """On one CPU; that several GPUs share a model is not shown here."""
    task = gpt2_task()
    components = discover(task.model, "transposed_linear_inputs")
    masks = random_masks(4, components.num_components, 0.2)
    truth = slow_margins(task, components, masks)
    spread = copy.deepcopy(task.model)
    dispatch_model(spread, {name: "cpu" for name, _ in spread.named_children()}, force_hooks=True)
    assert spread.hf_device_map
    for mode in ("weights", "rows"):
        engine = AblationEngine(
            Task(spread, task.examples, task.output_function), components, "cpu", "float32", EnginePlan(mode, 3, False)
        )
        np.testing.assert_allclose(engine.margins(masks), truth, rtol=1e-4, atol=2e-5 * (1 + np.abs(truth).max()))
        engine.close()
