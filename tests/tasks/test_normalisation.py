"""A model that normalises its own inputs, against one that is given normalised inputs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.components.discovery import discover
from coar_dist.config.schema import ModelConfig
from coar_dist.errors import TaskError
from coar_dist.tasks.build import build_model
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.normalisation import normalise_inputs
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.models import SmallResNet, random_masks, randomise, slow_margins

MEAN, STD = [0.4], [0.3]
PIXELS = torch.randint(0, 256, (7, 1, 6, 6), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
NORMALISED = (PIXELS.float() / 255 - MEAN[0]) / STD[0]
LABELS = torch.arange(7) % 3


def small_vit_model() -> nn.Module:
    return build_model(ModelConfig("small_vit", {"image_size": 6, "width": 8, "depth": 2, "num_heads": 2}))


def tasks(build: Callable[[], nn.Module] = SmallResNet) -> tuple[Task, Task]:
    """One task of a model that normalises uint8 pixels, and the same of a plain model and normalised floats."""
    own, plain = (randomise(build()) for _ in range(2))
    margin = output_function("margin")
    return (
        Task(normalise_inputs(own, MEAN, STD), ExampleSet(PIXELS, LABELS), margin),
        Task(plain, ExampleSet(NORMALISED, LABELS), margin),
    )


def test_parameters_keep_their_names_and_floats_are_taken_as_they_are() -> None:
    own, plain = tasks()
    assert isinstance(own.model, SmallResNet)
    assert [name for name, _ in own.model.named_parameters()] == [name for name, _ in plain.model.named_parameters()]
    assert list(own.model.state_dict()) == list(plain.model.state_dict())
    with torch.no_grad():
        expected = plain.model(NORMALISED)
        assert torch.equal(own.model(PIXELS), expected)
        torch.testing.assert_close(own.model(PIXELS.float() / 255), expected)
        assert torch.equal(own.model(images=PIXELS), expected)
    assert "input_mean=[0.4" in repr(own.model)
    other = Task(normalise_inputs(randomise(SmallResNet()), [0.41], STD), own.examples, own.output_function)
    assert tasks()[0].identity() == tasks()[0].identity()
    assert other.identity()["model.weights"] == tasks()[0].identity()["model.weights"]
    assert other.identity()["model.architecture"] != tasks()[0].identity()["model.architecture"]
    with torch.no_grad():
        assert own.model.half()(PIXELS).dtype == torch.float16


@pytest.mark.parametrize("build", [SmallResNet, small_vit_model])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), None])
def test_copies_normalise_too(build: Callable[[], nn.Module], copied: Callable[[nn.Module], nn.Module] | None) -> None:
    own, plain = tasks(build)
    model = cloudpickle.loads(cloudpickle.dumps(own.model)) if copied is None else copied(own.model)
    assert type(model) is type(own.model)
    with torch.no_grad():
        assert torch.equal(model(PIXELS), plain.model(NORMALISED))
    assert model.input_mean is not own.model.input_mean


def test_a_tracer_sees_the_normalisation() -> None:
    own, plain = tasks()
    graph = fx.Tracer().trace(own.model)
    assert any("normalised" in str(node.target) for node in graph.nodes)
    with torch.no_grad():
        assert torch.equal(fx.GraphModule(own.model, graph)(PIXELS), plain.model(NORMALISED))


@pytest.mark.parametrize(("build", "selector"), [(SmallResNet, "conv_filters"), (small_vit_model, "linear_rows")])
def test_the_engine_in_every_way_against_zeroed_weights(build: Callable[[], nn.Module], selector: str) -> None:
    """Folding, both modes, reused activations and gradient passes, on uint8 inputs."""
    own, plain = tasks(build)
    components = discover(own.model, selector)
    last = ~np.eye(components.num_components, dtype=bool)[-2:]
    masks = np.concatenate([random_masks(5, components.num_components, 0.2), np.repeat(last, 12, axis=0)])
    truth = slow_margins(plain, components, masks)
    tolerance = {"rtol": 1e-4, "atol": 2e-5 * (1 + np.abs(truth).max())}
    for mode in ("weights", "rows"):
        engine = AblationEngine(
            copy.deepcopy(own), components, "cpu", "float32", EnginePlan(mode, 9, compiled=False, gradient_rows=21)
        )
        assert engine.ungated == {}
        assert engine.reuse_activations
        if build is SmallResNet:
            assert sum(isinstance(m, nn.BatchNorm2d) for m in engine.model.module.modules()) == 0  # folded
        np.testing.assert_allclose(engine.margins(masks), truth, **tolerance)
        assert sum(len(rows) for _, rows in engine._form.split(masks, 7, engine._cuts)[1]) >= 24
    gradients = engine.gate_gradients(masks[:6], (0, 7))
    np.testing.assert_allclose(gradients.margins, truth[:6], **tolerance)
    expected = AblationEngine(plain, components, "cpu", "float32").gate_gradients(masks[:6], (0, 7))
    np.testing.assert_allclose(gradients.kept, expected.kept, rtol=1e-3, atol=1e-3)


def test_it_compiles_as_one_graph() -> None:
    own, plain = tasks()
    compiled = torch.compile(own.model, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(PIXELS), plain.model(NORMALISED))


class OwnCopies(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_what_does_not_fit_is_refused() -> None:
    own, _ = tasks()
    with pytest.raises(TaskError, match="NormalisedSmallResNet normalises its inputs already"):
        normalise_inputs(own.model, MEAN, STD)
    with pytest.raises(TaskError, match="OwnCopies is copied or pickled in a way of its own"):
        normalise_inputs(OwnCopies(), MEAN, STD)
    with pytest.raises(TaskError, match=r"the model's inputs are torch\.int64"):
        own.model(PIXELS.long())
    three = normalise_inputs(SmallResNet(), MEAN * 3, STD * 3)
    with pytest.raises(TaskError, match=r"has 3 values, but the model's inputs have shape \(7, 1, 6, 6\)"):
        three(PIXELS)
    with pytest.raises(TaskError, match="the examples have no 'images'"):
        own.model(pixels=PIXELS)
    plain = Task(SmallResNet(), own.examples, own.output_function)
    with pytest.raises(TaskError, match=r"fails on .*torch\.uint8.*task\.model\.input_mean and input_std let a model"):
        plain.check()
