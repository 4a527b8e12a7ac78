from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from coar_dist.ablation.calibration import choose_plan
from coar_dist.ablation.direct import ablated_outputs
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.folding import fold_batch_norms
from coar_dist.ablation.plan import EnginePlan, PlanPins
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import NonFiniteMarginError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import margin
from coar_dist.tasks.task import Task
from tests.models import random_masks, slow_margins, small_task

TASK = small_task()
FILTERS = discover(TASK.model, "conv_filters")
MASKS = random_masks(9, FILTERS.num_components)
TRUTH = slow_margins(TASK, FILTERS, MASKS)


def engine(plan: EnginePlan | None = None, components: ComponentIndex = FILTERS, **changes: Any) -> AblationEngine:
    return AblationEngine(copy.deepcopy(TASK), components, "cpu", changes.get("precision", "float32"), plan)


@pytest.mark.parametrize("mode", ["weights", "rows"])
@pytest.mark.parametrize("rows", [1, 3, 7, 50])
def test_margins_are_the_slow_truth_however_they_are_batched(mode: str, rows: int) -> None:
    margins = engine(EnginePlan(mode, rows, compiled=False)).margins(MASKS)
    assert margins.dtype == np.float32
    np.testing.assert_allclose(margins, TRUTH, rtol=1e-4, atol=2e-5)
    assert TRUTH.std() > 0.1


def test_layers_are_counted() -> None:
    assert engine().num_layers == 6  # three convolutions, two of BatchNorm, a linear map; the net around them is none


@pytest.mark.parametrize("mode", [pytest.param("weights", marks=pytest.mark.slow), "rows"])
def test_the_compiled_model_gives_the_same(mode: str) -> None:
    compiled = engine(EnginePlan(mode, 4, compiled=True))
    assert compiled.plan.compiled
    np.testing.assert_allclose(compiled.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(compiled.margins(MASKS[::-1]), TRUTH[::-1], rtol=1e-4, atol=2e-5)


class Recording:
    """Stands in for a CUDA graph: arguments and results lie where they lay first."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, tree_map(torch.clone, arguments)
        self._results = tree_map(torch.clone, function(*self._arguments))

    def __call__(self, *arguments: Any) -> Any:
        for own, given in zip(tree_leaves(self._arguments), tree_leaves(arguments), strict=True):
            assert own.shape == given.shape
            own.copy_(given)
        for own, given in zip(tree_leaves(self._results), tree_leaves(self._function(*self._arguments)), strict=True):
            own.copy_(given)
        return self._results


def record_by(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.ablation.prepared.why_not_recorded", lambda *_: None)
    monkeypatch.setattr("coar_dist.ablation.passes.RecordedFunction", function)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    record_by(Recording, monkeypatch)


@pytest.mark.usefixtures("recordings")
@pytest.mark.parametrize("mode", ["weights", "rows"])
def test_recorded_passes_give_the_same(mode: str) -> None:
    """Their shapes are fixed and their results overwritten: 7 examples in passes of 4 rows."""
    recorded = engine(EnginePlan(mode, 4, compiled=False, recorded=True))
    assert recorded.plan.recorded
    np.testing.assert_allclose(recorded.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(recorded.margins(MASKS[::-1]), TRUTH[::-1], rtol=1e-4, atol=2e-5)
    plan = EnginePlan(mode, 4, compiled=False, gradient_rows=4)
    plain = engine(plan).gate_gradients(MASKS, (0, 7))
    recorded.use(replace(plan, gradients_recorded=True))
    assert not recorded.plan.recorded
    np.testing.assert_allclose(recorded.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)
    gradients = recorded.gate_gradients(MASKS, (0, 7))
    assert recorded.plan.gradients_recorded
    np.testing.assert_array_equal(gradients.kept, plain.kept)
    np.testing.assert_array_equal(gradients.ablated, plain.ablated)
    assert plain.kept.std() > 0


@pytest.mark.usefixtures("recordings")
def test_the_trial_takes_recorded_passes_unless_they_are_excluded() -> None:
    chosen = choose_plan(engine(), PlanPins(compiled=False, recorded=True), 10, gradient_masks_per_actor=10).plan
    assert chosen.recorded
    assert chosen.gradients_recorded
    assert "CUDA graph" in str(chosen)
    chosen = choose_plan(engine(), PlanPins(compiled=False, recorded=False), 10, gradient_masks_per_actor=10).plan
    assert not chosen.recorded
    assert not chosen.gradients_recorded


def test_what_cannot_be_recorded_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_cpu = engine(EnginePlan("rows", 4, compiled=False, recorded=True))
    assert not on_cpu.plan.recorded
    assert "there are no CUDA graphs on cpu" in caplog.text
    np.testing.assert_allclose(on_cpu.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)

    def fails(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    record_by(fails, monkeypatch)
    waits = engine(EnginePlan("weights", 4, compiled=False, recorded=True, gradient_rows=4, gradients_recorded=True))
    assert not waits.plan.recorded
    waits.gate_gradients(MASKS, (0, 7))
    assert not waits.plan.gradients_recorded
    assert caplog.text.count("RuntimeError: operation not permitted when stream is capturing") == 2
    np.testing.assert_allclose(waits.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)


def test_a_plan_that_does_not_fit_is_taken_up_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever chose it may have had more memory."""

    def too_large(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Recording:
        if len(arguments[1]) > 2:
            raise torch.OutOfMemoryError("3 rows")
        return Recording(function, arguments)

    record_by(too_large, monkeypatch)
    fits = engine(EnginePlan("rows", 8, compiled=False, recorded=True))
    assert fits.plan == EnginePlan("rows", 2, compiled=False, recorded=True)
    np.testing.assert_allclose(fits.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("mode", ["weights", "rows"])
def test_bfloat16_correlates(mode: str) -> None:
    margins = engine(EnginePlan(mode, 7, compiled=False), precision="bfloat16").margins(MASKS)
    correlations = [np.corrcoef(margins[:, i], TRUTH[:, i])[0, 1] for i in range(TRUTH.shape[1])]
    assert min(correlations) > 0.99
    assert np.median(correlations) > 0.999
    assert not np.array_equal(margins, TRUTH)


def test_linear_rows_and_input_columns() -> None:
    components = ComponentIndex((ComponentGroup.of("linear.weight", 0, 3), ComponentGroup.of("conv2.weight", 1, 2, 2)))
    masks = random_masks(12, 5, alpha=0.4)
    truth = slow_margins(TASK, components, masks)
    for mode in ("weights", "rows"):
        margins = engine(EnginePlan(mode, 4, compiled=False), components).margins(masks)
        np.testing.assert_allclose(margins, truth, rtol=1e-4, atol=2e-5)


def test_out_of_memory_halves_the_rows_and_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    small = engine(EnginePlan("rows", 8, compiled=False))
    forward = small.model.margins

    def limited(model: Any, batch: ExampleSet) -> Any:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too many rows")
        return forward(model, batch)

    monkeypatch.setattr(small.model, "margins", limited)
    np.testing.assert_allclose(small.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)
    assert small.plan.rows_per_forward == 2
    assert "out of memory" in caplog.text


def test_batch_norms_are_folded_where_they_may_be() -> None:
    model = copy.deepcopy(TASK.model)
    images = TASK.examples.inputs
    expected = model(images)
    assert list(fold_batch_norms(model, FILTERS)) == ["conv1", "conv2"]
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(model(images), expected)
    with_components = ComponentIndex((ComponentGroup.of("bn1.weight", 0, 4), ComponentGroup.of("conv2.bias", 0, 4)))
    assert fold_batch_norms(copy.deepcopy(TASK.model), with_components) == {}
    training = copy.deepcopy(TASK.model).train()
    assert fold_batch_norms(training, FILTERS) == {}


class _Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = copy.deepcopy(TASK.model)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images) if images.sum() > -1e9 else images


def test_models_that_cannot_be_traced_run_unfolded() -> None:
    task = Task(_Untraceable().eval(), TASK.examples, TASK.output_function)
    components = discover(task.model, "conv_filters")
    unfolded = AblationEngine(task, components, "cpu", "float32", EnginePlan("rows", 5, compiled=False))
    assert any(isinstance(module, nn.BatchNorm2d) for module in task.model.modules())
    np.testing.assert_allclose(unfolded.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)


def test_the_unablated_model() -> None:
    unablated = engine().unablated()
    with torch.no_grad():
        logits = TASK.model(TASK.examples.inputs)
    np.testing.assert_allclose(unablated.margins, margin(logits, TASK.examples.targets), rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(unablated.predictions, logits.argmax(dim=1))
    broken = ExampleSet(TASK.examples.inputs.clone(), TASK.examples.targets)
    broken.inputs[3] = float("nan")
    task = Task(copy.deepcopy(TASK.model), broken, TASK.output_function)
    with pytest.raises(NonFiniteMarginError, match="margins of 1 example are not finite: example 3 has nan"):
        AblationEngine(task, FILTERS, "cpu", "float32").unablated()


def test_the_plan_is_chosen_among_what_is_not_pinned() -> None:
    free = engine()
    chosen = choose_plan(free, PlanPins(), masks_per_actor=10).plan
    assert free.plan == chosen
    assert not chosen.compiled  # far too little work for it
    np.testing.assert_allclose(free.margins(MASKS), TRUTH, rtol=1e-4, atol=2e-5)
    pins = PlanPins("rows", 6, compiled=False)
    assert choose_plan(engine(), pins, masks_per_actor=10).plan == EnginePlan("rows", 6, compiled=False)
    assert pins.allow(EnginePlan("rows", 6, compiled=False))
    assert not pins.allow(EnginePlan("rows", 7, compiled=False))


def test_trials_give_the_time_of_one_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is looked at."""
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("coar_dist.ablation.engine.time", clock)
    for rows, num_margins in ((3, 3), (7, 7), (15, 14)):  # whole masks of seven examples
        timed = engine(EnginePlan("weights", 3, compiled=False, gradient_rows=rows))
        assert timed.gradient_trial() == pytest.approx(1 / num_margins)


def test_examples_that_do_not_fit_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.ablation.prepared.fits_on", lambda device, examples: False)
    for mode in ("weights", "rows"):
        margins = engine(EnginePlan(mode, 4, compiled=False)).margins(MASKS)
        np.testing.assert_allclose(margins, TRUTH, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("also", [(), (ComponentGroup.of("conv2.weight", 0, 4),)], ids=["alone", "beside others"])
def test_components_without_gates_are_zeroed_in_the_weights(also: tuple[ComponentGroup, ...]) -> None:
    components = ComponentIndex((ComponentGroup.of("bn1.weight", 0, 4), *also))
    masks = random_masks(6, components.num_components, alpha=0.3)
    masks[-1, :4] = True
    for plan in (None, EnginePlan("rows", 4, compiled=False)):
        plain = engine(plan, components)
        assert plain.ungated == {0: "axis 0 of a BatchNorm2d has no gated form"}
        np.testing.assert_allclose(plain.margins(masks), slow_margins(TASK, components, masks), rtol=1e-4, atol=2e-5)
    if not also:
        assert choose_plan(engine(None, components), PlanPins(), masks_per_actor=5).plan.mode == "weights"


def test_ablated_outputs_leaves_the_model_alone() -> None:
    model = copy.deepcopy(TASK.model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    margins = ablated_outputs(model, TASK.examples.inputs, TASK.examples.targets, masks=MASKS)
    np.testing.assert_allclose(margins, TRUTH, rtol=1e-4, atol=2e-5)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Sum(nn.Module):
    """Of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(TASK.model)

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        return self.net(images + 2 * others)


def test_ablated_outputs_takes_inputs_as_the_model_does() -> None:
    images, model = TASK.examples.inputs, Sum()
    assert isinstance(images, torch.Tensor)
    others = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    parts = (images - 2 * others, others)
    for inputs in (parts, dict(zip(("images", "others"), parts, strict=True))):
        margins = ablated_outputs(model, inputs, TASK.examples.targets, masks=MASKS, components="conv_filters")
        np.testing.assert_allclose(margins, TRUTH, rtol=1e-4, atol=5e-5)


class _Trap(nn.Module):
    """Models whose layers are not what they seem."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = copy.deepcopy(TASK.model)
        self.kind = kind
        if kind == "hook on a norm":
            self.inner.bn1.register_forward_hook(lambda module, inputs, output: output + inputs[0])
        if kind == "hook on a convolution":
            self.inner.conv1.register_forward_hook(lambda module, inputs, output: output.clamp(min=-0.2) ** 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.kind == "weight read directly":
            images = images + nn.functional.conv2d(images, self.inner.conv1.weight, padding=1).mean(1, keepdim=True)
        if self.kind == "forward called directly":
            images = images + self.inner.conv1.forward(images).mean(1, keepdim=True)
        if self.kind == "rows mixed":
            images = images - images.mean(dim=0)
        return self.inner(images)


@pytest.mark.parametrize(
    "kind",
    ["hook on a norm", "hook on a convolution", "weight read directly", "forward called directly"],
)
def test_models_that_are_not_what_they_seem_run_the_slow_way_and_right(kind: str) -> None:
    task = Task(_Trap(kind).eval(), TASK.examples, TASK.output_function)
    components = discover(task.model, "conv_filters")
    masks = np.concatenate([MASKS, ~np.eye(components.num_components, dtype=bool)])
    truth = slow_margins(task, components, masks)
    trapped = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    choose_plan(trapped, PlanPins(compiled=False), masks_per_actor=5)
    np.testing.assert_allclose(trapped.margins(masks), truth, rtol=1e-4, atol=2e-5 * (1 + np.abs(truth).max()))


def test_random_models_are_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(TASK.model)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(images)
            return logits + torch.randn_like(logits)

    task = Task(Noisy().eval(), TASK.examples, TASK.output_function)
    with pytest.raises(TaskError, match="random in eval mode"):
        AblationEngine(task, discover(task.model, "conv_filters"), "cpu", "float32")
