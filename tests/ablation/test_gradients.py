"""Gradient passes of the engine against a loop that writes forward, backward and secants out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.ablation.calibration import choose_plan
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import ConfigError, NonFiniteMarginError
from coar_dist.store.gradients import GateGradients
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import margin, output_function
from coar_dist.tasks.task import Task
from tests.ablation.test_engine_kinds import Reused, gpt2_task, transformer_task
from tests.models import SmallResNet, random_masks, randomise, slow_margins, small_task

TASK = small_task()
FILTERS = discover(TASK.model, "conv_filters")
MASKS = random_masks(9, FILTERS.num_components, 0.3)
BLOCK = (1, 6)
FIELDS = ("kept", "ablated", "kept_squares", "ablated_squares")


def engine_for(task: Task, components: ComponentIndex, rows: int | None = 20, **changes: Any) -> AblationEngine:
    plan = EnginePlan(changes.pop("mode", "weights"), 7, compiled=False, gradient_rows=rows, **changes)
    return AblationEngine(copy.deepcopy(task), components, "cpu", "float32", plan)


def slow_gradients(model: SmallResNet, image: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Gate gradients (num_components,) of one mask and one example, in float64."""
    layers = [(model.conv1, model.bn1), (model.conv2, model.bn2), (model.grouped, nn.Identity())]
    x, befores, activations = image, [], []
    for (conv, norm), gate in zip(layers, mask.double().split(4), strict=True):
        bias = torch.zeros(4).double() if conv.bias is None else conv.bias
        linear = conv(x) - bias[:, None, None]
        rest = x if conv is model.conv2 else 0

        def before(
            gate: Tensor, linear: Tensor = linear, bias: Tensor = bias, norm: Any = norm, rest: Any = rest
        ) -> Tensor:
            return norm((gate * linear.movedim(1, 3) + bias).movedim(3, 1)) + rest

        befores.append(before)
        x = functional.relu(before(gate))
        activations.append(x)
    value = margin(model.linear(x.mean(dim=(2, 3))), label)
    slopes = torch.autograd.grad(value.sum(), activations)
    gradients = []
    for before, gate, slope in zip(befores, mask.double().split(4), slopes, strict=True):
        for channel in range(4):
            ends = torch.tensor([0.0, 1.0]).double()
            off, on = (functional.relu(before(gate.index_fill(0, torch.tensor(channel), end))) for end in ends)
            gradients.append((slope * (on - off)).sum())
    return torch.stack(gradients).detach()


def slow_sums(task: Task, masks: np.ndarray, block: tuple[int, int]) -> dict[str, np.ndarray]:
    model = copy.deepcopy(task.model).double()
    images, labels = task.examples.inputs.double(), task.examples.targets
    rows = [
        [slow_gradients(model, images[i : i + 1], labels[i : i + 1], torch.from_numpy(mask)) for i in range(*block)]
        for mask in masks
    ]
    gradients = torch.stack([torch.stack(row) for row in rows]).numpy()
    kept, ablated = gradients * masks[:, None], gradients * ~masks[:, None]
    squares = {f"{name}_squares": (x**2).sum((0, 1)) for name, x in (("kept", kept), ("ablated", ablated))}
    return {"kept": kept.sum(0), "ablated": ablated.sum(0), **squares}


TRUTH = slow_sums(TASK, MASKS, BLOCK)
MARGINS = slow_margins(TASK, FILTERS, MASKS)[:, slice(*BLOCK)]


def assert_true(gradients: GateGradients) -> None:
    np.testing.assert_allclose(gradients.margins, MARGINS, rtol=1e-4, atol=2e-5)
    for name in FIELDS:
        scale = np.abs(TRUTH[name]).max()
        assert scale > 1e-3
        np.testing.assert_allclose(getattr(gradients, name), TRUTH[name], rtol=2e-4, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("rows", [None, 1, 3, 5, 14, 200])
def test_sums_are_the_slow_truth_however_they_are_batched(rows: int | None) -> None:
    gradients = engine_for(TASK, FILTERS, rows).gate_gradients(MASKS, BLOCK)
    assert gradients.margins.dtype == gradients.kept.dtype == gradients.ablated.dtype == np.float32
    assert gradients.kept_squares.dtype == gradients.ablated_squares.dtype == np.float64
    assert_true(gradients)


def test_unfolded_batch_norms_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.ablation.prepared.fold_batch_norms", lambda model, components: {})
    engine = engine_for(TASK, FILTERS)
    assert any(isinstance(module, nn.BatchNorm2d) for module in engine.model.module.modules())
    assert_true(engine.gate_gradients(MASKS, BLOCK))


def test_compiled_passes_give_the_same(caplog: Any) -> None:
    engine = engine_for(TASK, FILTERS, rows=11, gradients_compiled=True)
    assert_true(engine.gate_gradients(MASKS, BLOCK))
    assert engine.plan.gradients_compiled
    assert "compiling" not in caplog.text
    assert len(engine._gradients._compiled) == 1
    again = engine.gate_gradients(np.concatenate([MASKS, MASKS]), BLOCK)
    np.testing.assert_allclose(again.kept, 2 * TRUTH["kept"], rtol=2e-4, atol=1e-5)
    assert len(engine._gradients._compiled) == 1


def test_a_language_model_of_hugging_face_is_traced_whatever_its_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: graph)  # the compiler takes half a minute
    task = gpt2_task()
    components = discover(task.model, "transposed_linear_outputs")
    masks = random_masks(3, components.num_components, 0.1)
    eager, traced = (engine_for(task, components, rows=2, gradients_compiled=traced) for traced in (False, True))
    # Of the second pass no example is padded; the first, of which one is, has been traced.
    expected, found = (engine.gate_gradients(masks, (0, 4)) for engine in (eager, traced))
    for field in ("margins", "kept", "ablated"):
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=1e-4, atol=1e-5)
    assert traced.plan.gradients_compiled
    assert len(traced._gradients._compiled) == 1


def test_what_cannot_be_compiled_runs_eagerly(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("coar_dist.ablation.gradients.make_fx", broken)
    engine = engine_for(TASK, FILTERS, gradients_compiled=True)
    assert_true(engine.gate_gradients(MASKS, BLOCK))
    assert not engine.plan.gradients_compiled
    assert "compiling gradient passes failed" in caplog.text


@pytest.mark.parametrize("mode", ["weights", "rows"])
def test_margins_and_gradients_take_turns(mode: str) -> None:
    engine = engine_for(TASK, FILTERS, mode=mode)
    engine.close()
    before = {name: tensor.clone() for name, tensor in engine.model.module.state_dict().items()}
    engine.use(engine.plan)
    for _ in range(2):
        np.testing.assert_allclose(engine.margins(MASKS)[:, slice(*BLOCK)], MARGINS, rtol=1e-4, atol=2e-5)
        assert_true(engine.gate_gradients(MASKS, BLOCK))
    engine.close()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.module.state_dict().items())


def test_bfloat16_is_close() -> None:
    engine = AblationEngine(copy.deepcopy(TASK), FILTERS, "cpu", "bfloat16")
    gradients = engine.gate_gradients(MASKS, BLOCK)
    for name in FIELDS:
        assert np.corrcoef(getattr(gradients, name).ravel(), TRUTH[name].ravel())[0, 1] > 0.99
    assert not np.array_equal(gradients.margins, MARGINS)


def test_out_of_memory_halves_the_rows_and_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    engine = engine_for(TASK, FILTERS, rows=16)
    engine.gate_gradients(MASKS[:1], BLOCK)
    run = engine._gradients._run

    def limited(kept: Tensor, counted: Tensor, batch: ExampleSet, compiled: bool) -> Any:
        if len(batch) > 4:
            raise torch.OutOfMemoryError("too many rows")
        return run(kept, counted, batch, compiled)

    monkeypatch.setattr(engine._gradients, "_run", limited)
    assert_true(engine.gate_gradients(MASKS, BLOCK))
    assert engine.plan.gradient_rows == 4
    assert "out of memory with 16 rows per gradient pass" in caplog.text


KINDS = [
    (transformer_task, "linear_rows"),
    (transformer_task, "heads"),
    (transformer_task, "embedding_rows"),
    (gpt2_task, "transposed_linear_inputs"),
    (gpt2_task, "transposed_linear_outputs"),
    (gpt2_task, "heads"),
]


@pytest.mark.parametrize(("make", "selector"), KINDS)
def test_every_kind_of_component(make: Callable[[], Task], selector: str) -> None:
    task = make()
    components = discover(task.model, selector)
    masks = random_masks(4, components.num_components, 0.3)
    engine = engine_for(task, components, rows=7)
    gradients = engine.gate_gradients(masks, (1, 4))
    margins = engine.margins(masks)[:, 1:4]
    np.testing.assert_allclose(gradients.margins, margins, rtol=1e-4, atol=1e-4 * (1 + np.abs(margins).max()))
    for name in FIELDS:
        values = getattr(gradients, name)
        assert values.shape == ((components.num_components,) if "squares" in name else (3, components.num_components))
        assert np.isfinite(values).all()
    assert gradients.kept.std() > 0


def test_a_linear_model_has_its_differences_as_gradients() -> None:
    """Also a module called twice, and components that the margin does not depend on."""
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    task = Task(randomise(Reused(None)), ExampleSet(inputs, torch.arange(5) % 3), lambda out, _: out[:, 0])
    task = replace(task, output_function=output_function(task.output_function))
    components = ComponentIndex((ComponentGroup.of("head.weight", 0, 3), ComponentGroup.of("shared.weight", 0, 6)))
    kept = np.ones((1, 9), dtype=bool)
    single = slow_margins(task, components, np.concatenate([kept, ~np.eye(9, dtype=bool)[:3]]))
    gradients = engine_for(task, components).gate_gradients(kept, (0, 5))
    np.testing.assert_allclose(gradients.kept[:, :3], (single[0] - single[1:]).T, rtol=1e-4, atol=1e-5)
    assert not gradients.kept[:, 1:3].any()
    assert gradients.kept[:, 3:].all()


def test_a_model_spread_by_accelerate() -> None:
    task = gpt2_task()
    components = discover(task.model, "transposed_linear_inputs")
    masks = random_masks(4, components.num_components, 0.2)
    expected = engine_for(task, components).gate_gradients(masks, (0, 4))
    spread = copy.deepcopy(task.model)
    dispatch_model(spread, {name: "cpu" for name, _ in spread.named_children()}, force_hooks=True)
    engine = AblationEngine(replace(task, model=spread), components, "cpu", "float32")
    np.testing.assert_allclose(engine.gate_gradients(masks, (0, 4)).kept, expected.kept, rtol=1e-4, atol=1e-4)


class _SideEffect(nn.Module):
    """Uses what an in-place nonlinearity leaves behind, not what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        torch.relu_(x)
        return self.linear(x.mean(dim=(2, 3)))


def test_a_model_that_relies_on_a_side_effect_has_plain_derivatives(caplog: Any) -> None:
    task = Task(randomise(_SideEffect()), TASK.examples, TASK.output_function)
    components = discover(task.model, "conv_filters")
    masks = random_masks(3, 4, 0.4)
    gradients = engine_for(task, components).gate_gradients(masks, (0, 7))
    assert "gate gradients are plain derivatives" in caplog.text
    np.testing.assert_allclose(gradients.margins, slow_margins(task, components, masks), rtol=1e-4, atol=2e-5)
    gates = torch.from_numpy(masks).float().requires_grad_()
    conv, images = task.model.conv, task.examples.inputs
    linear = functional.conv2d(images, conv.weight)
    x = functional.relu(gates[:, None, :, None, None] * linear + conv.bias[:, None, None]).mean(dim=(3, 4))
    margins = margin(task.model.linear(x).flatten(0, 1), task.examples.targets.repeat(3)).reshape(3, 7)
    for example in range(7):
        (truth,) = torch.autograd.grad(margins[:, example].sum(), gates, retain_graph=True)
        np.testing.assert_allclose(gradients.kept[example], (truth.numpy() * masks).sum(0), rtol=1e-4, atol=1e-5)


def test_what_has_no_gradient_is_refused() -> None:
    accuracy = output_function(lambda outputs, targets: (outputs.argmax(1) == targets).float())
    stepwise = engine_for(replace(TASK, output_function=accuracy), FILTERS)
    for _ in range(2):  # the second time it is the same
        with pytest.raises(ConfigError, match=r"task\.output_function=.*not differentiable.*Use estimator=coar"):
            stepwise.gate_gradients(MASKS, BLOCK)
    norms = ComponentIndex((ComponentGroup.of("bn1.weight", 0, 4),))
    with pytest.raises(ConfigError, match=r"bn1\.weight.*no gated form.*Use estimator=coar"):
        engine_for(TASK, norms).gate_gradients(MASKS[:, :4], BLOCK)
    locked = engine_for(TASK, FILTERS)
    locked._twin = None
    with pytest.raises(ConfigError, match="the model cannot be copied"):
        locked.gate_gradients(MASKS, BLOCK)


class Roots(nn.Module):
    """A square root of what is zero without the rows of ``fc`` that it reads: of all examples, or of some alone."""

    def __init__(self, of_all: bool) -> None:
        super().__init__()
        self.fc, self.more, self.head = nn.Linear(5, 6, bias=False), nn.Linear(6, 4), nn.Linear(4, 3)
        self.of_all = of_all

    def forward(self, x: Tensor) -> Tensor:
        above = torch.zeros_like(x[:, :1]) if self.of_all else (x[:, :1] < 3).to(x.dtype)
        roots = torch.sqrt(self.fc(x).square().sum(dim=1, keepdim=True) + above)
        logits: Tensor = self.head(torch.tanh(self.more(self.fc(x) + roots)))
        return logits


def roots_engine(of_all: bool) -> AblationEngine:
    points = torch.randn(12, 5, generator=torch.Generator().manual_seed(3)).clamp(max=2.9)
    points[5, 0] = 4.0  # no example of the probe
    task = Task(randomise(Roots(of_all)), ExampleSet(points, torch.arange(12) % 3), output_function("margin"))
    components = ComponentIndex((ComponentGroup.of("fc.weight", 0, 1, 6), ComponentGroup.of("more.weight", 0, 4)))
    return engine_for(task, components)


def test_a_group_whose_gradients_are_not_finite_costs_only_itself() -> None:
    engine = roots_engine(of_all=True)
    masks = random_masks(8, 5, 0.4)
    assert not masks[:, 0].all()
    gradients = engine.gate_gradients(masks, (0, 12))
    assert gradients.known.tolist() == [False] + [True] * 4
    assert engine._gradients.ungated == {0: "its gradients are not finite on the examples of the probe"}
    assert all(np.isfinite(getattr(gradients, name)).all() for name in FIELDS)
    assert np.abs(gradients.kept[:, 1:]).max() > 0.1
    np.testing.assert_allclose(gradients.margins, engine.margins(masks), rtol=1e-4, atol=1e-5)


class PartlyFrozen(nn.Module):
    """Runs its first layer without gradients; ``rounds`` has none either, though it asks for them."""

    def __init__(self, rounds: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.rounds = rounds

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.rounds and torch.is_grad_enabled()):
            x = torch.relu(self.first(x))
            x = torch.round(8 * x) if self.rounds else x
        logits: Tensor = self.head(torch.tanh(self.second(x)))
        return logits


@pytest.mark.parametrize("rounds", [False, True])
def test_a_layer_that_no_gradient_comes_to_has_effects_but_no_gate_gradients(rounds: bool) -> None:
    points = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    task = Task(randomise(PartlyFrozen(rounds)), ExampleSet(points, torch.arange(12) % 3), output_function("margin"))
    components = discover(task.model, "linear_rows", exclude=["head*"])
    engine, masks = engine_for(task, components), random_masks(8, 14, 0.3)
    gradients = engine.gate_gradients(masks, (0, 12))
    assert gradients.known.tolist() == [False] * 8 + [True] * 6
    reasons = {0: "its gradients are zero on the examples of the probe, and its effects are not"}
    assert engine._gradients.ungated == reasons
    np.testing.assert_allclose(gradients.margins, slow_margins(task, components, masks), rtol=1e-4, atol=1e-4)
    assert not gradients.kept[:, :8].any()
    assert np.abs(gradients.kept[:, 8:]).max() > 0.1


def test_gradients_that_are_not_finite_are_traced_to_their_mask_and_layer() -> None:
    engine = roots_engine(of_all=False)
    masks = np.ones((4, 5), np.bool_)
    masks[2, [0, 3]] = False
    gradients = engine.gate_gradients(masks, (0, 12))
    assert gradients.known.all()
    assert np.isfinite(gradients.margins).all()
    with pytest.raises(NonFiniteMarginError) as refused:
        engine.check_finite_gradients(gradients, masks, 60, 0)
    text = str(refused.value)
    assert "the gradients of 1 component for example 5 under mask 62 are not finite, though the margin is" in text
    assert "ablates 2 components (fc[0], more[2]); the cause is behind fc[0]" in text
    engine.check_finite_gradients(engine.gate_gradients(masks[:2], (0, 12)), masks[:2], 60, 0)
    engine.check_finite_gradients(engine.gate_gradients(masks, (6, 12)), masks, 60, 6)


def test_the_plan_has_gradient_passes_where_there_are_any() -> None:
    engine = engine_for(TASK, FILTERS, rows=None)
    assert choose_plan(engine, PlanPins(compiled=False), masks_per_actor=10).plan.gradient_rows is None
    plan = choose_plan(engine, PlanPins(), masks_per_actor=10, gradient_masks_per_actor=20).plan
    assert engine.plan == plan
    assert plan.gradient_rows in (32, 128)
    assert not plan.gradients_compiled
    assert_true(engine.gate_gradients(MASKS, BLOCK))
    pins = PlanPins("weights", 5, compiled=False)
    assert choose_plan(engine, pins, 10, gradient_masks_per_actor=9).plan.gradient_rows == 5
    recorded = {"mode": "rows", "rows_per_forward": 6, "compiled": False}
    assert EnginePlan(**recorded) == EnginePlan("rows", 6, compiled=False)
    assert EnginePlan(**plan.to_json()) == plan
