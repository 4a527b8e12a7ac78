from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from coar_dist.config.schema import ExamplesConfig, ModelConfig, TaskConfig, TrainConfig
from coar_dist.errors import ConfigError, TaskError, TrainingError
from coar_dist.tasks.build import build_examples, build_model, build_task
from coar_dist.tasks.checkpoints import load_checkpoint
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.examples import digits, npz_images
from coar_dist.tasks.models import digits_resnet
from coar_dist.tasks.outputs import margin, output_function
from coar_dist.tasks.task import Task, by_keyword, call_model
from coar_dist.tasks.training import train_model
from tests.models import SmallResNet, small_task


def constant_model(scale: float = 1.0) -> nn.Module:
    """A user's own constructor."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(model[1].weight, scale)
    return model


def test_margin_is_the_label_against_the_best_other() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0], [2.0, 2.0, -1.0]])
    assert margin(logits, torch.tensor([1, 2, 0])).tolist() == [2.0, -2.0, 0.0]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 1, 3, 0, 0, 0, 0]), r"targets of 1 example are outside.*0\.\.2: example 2 has target 3"),
        (torch.tensor([0, 1, -1, 0, 0, 0, 0]), "example 2 has target -1"),
        (torch.zeros(7), "integer class labels"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: Tensor, message: str) -> None:
    task = small_task()
    with pytest.raises(TaskError, match=message):
        Task(task.model, ExampleSet(task.examples.inputs, targets), task.output_function).check()


def test_models_and_output_functions_that_do_not_fit_are_refused() -> None:
    task = small_task()
    with pytest.raises(TaskError, match=r"fails on the first 2 examples .*torch\.float32"):
        Task(nn.Linear(3, 2), task.examples, task.output_function).check()
    with pytest.raises(TaskError, match="must give one float per example"):
        Task(task.model, task.examples, output_function(lambda outputs, targets: outputs)).check()
    with pytest.raises(TaskError, match="same, positive number of rows"):
        ExampleSet(torch.zeros(3, 2), torch.zeros(4))


def test_identity_changes_with_everything_that_matters() -> None:
    task = small_task()
    same = small_task().identity()
    assert task.identity() == same
    weights = small_task()
    with torch.no_grad():
        weights.model.linear.bias[0] += 1e-6
    inputs = ExampleSet(task.examples.inputs + 1e-6, task.examples.targets)
    other_examples = Task(task.model, inputs, task.output_function)
    architecture = small_task()
    architecture.model.conv1.padding_mode = "circular"
    other_output = Task(task.model, task.examples, output_function(lambda outputs, targets: outputs[:, 0]))
    changed = [
        {key for key, value in other.identity().items() if value != same[key]}
        for other in (weights, other_examples, architecture, other_output)
    ]
    assert changed == [{"model.weights"}, {"examples"}, {"model.architecture"}, {"output_function"}]


def test_sources_are_checked_by_name_and_type() -> None:
    with pytest.raises(ConfigError, match=r"task\.model\.source='resnet'.*digits_resnet"):
        build_model(ModelConfig("resnet"))
    with pytest.raises(ConfigError, match=r"task\.model\.arguments\.widht: unknown.*width"):
        build_model(ModelConfig("digits_resnet", {"widht": 4}))
    with pytest.raises(ConfigError, match=r"task\.model\.arguments\.width='a': must be int"):
        build_model(ModelConfig("digits_resnet", {"width": "a"}))
    with pytest.raises(ConfigError, match=r"task\.examples\.arguments\.path is missing"):
        build_examples(ExamplesConfig("npz_images"), "task.examples")
    with pytest.raises(ConfigError, match="cannot be imported"):
        build_model(ModelConfig("no_such_module:build"))
    with pytest.raises(TaskError, match="not an ExampleSet"):
        build_examples(ExamplesConfig("builtins:list"), "task.examples")


def test_a_users_model_examples_and_checkpoint(tmp_path: Path) -> None:
    save_file({"1.weight": torch.full((10, 64), 0.5), "1.bias": torch.zeros(10)}, tmp_path / "w.safetensors")
    config = TaskConfig(
        model=ModelConfig("tests.tasks.test_task:constant_model", {"scale": 2.0}, str(tmp_path / "w.safetensors")),
        examples=ExamplesConfig("digits", {"num_examples": 5}),
    )
    examples = build_examples(config.examples, "task.examples")
    task = build_task(config, None, lambda: examples)
    assert torch.equal(task.model[1].weight, torch.full((10, 64), 0.5))
    assert len(task.examples) == 5
    config.model.checkpoint = None
    assert torch.equal(build_task(config, None, lambda: examples).model[1].weight, torch.full((10, 64), 2.0))


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no such file"):
        load_checkpoint(SmallResNet(), tmp_path / "none.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(TaskError, match=r"broken\.safetensors"):
        load_checkpoint(SmallResNet(), tmp_path / "broken.safetensors")
    torch.save(digits_resnet().state_dict(), tmp_path / "other.pt")
    with pytest.raises(TaskError, match="does not fit SmallResNet"):
        load_checkpoint(SmallResNet(), tmp_path / "other.pt")
    torch.save(SmallResNet(), tmp_path / "pickle.pt")  # a pickled module could run anything
    with pytest.raises(TaskError, match=r"pickle\.pt.*not a plain state dict"):
        load_checkpoint(SmallResNet(), tmp_path / "pickle.pt")


def test_digits_splits_do_not_meet() -> None:
    test, train = digits("test"), digits("train")
    assert (len(test), len(train)) == (500, 1297)
    flat = lambda examples: {row.numpy().tobytes() for row in examples.inputs}  # noqa: E731
    assert not flat(test) & flat(train)
    assert len(digits("test", num_examples=7)) == 7
    with pytest.raises(TaskError, match="train and test, not 'valid'"):
        digits("valid")
    with pytest.raises(TaskError, match="num_examples=501"):
        digits("test", num_examples=501)


def test_npz_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", a=images[:4], b=images[4:], la=np.arange(4), lb=np.arange(2))
    path = str(tmp_path / "data.npz")
    examples = npz_images(path, "a+b", "la+lb", 5, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0])
    expected = (images[:5] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(examples.inputs.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5)
    assert examples.targets.tolist() == [0, 1, 2, 3, 0]
    for arguments, message in [
        ({"path": str(tmp_path / "none.npz")}, "no such file"),
        ({"path": path, "images": "c", "labels": "la"}, "does not hold the arrays 'c'"),
        ({"path": path, "images": "la", "labels": "la"}, "must be uint8"),
        ({"path": path, "images": "a", "labels": "la", "mean": [0.1]}, "each of the 3 channels"),
    ]:
        with pytest.raises(TaskError, match=message):
            npz_images(**arguments)


def test_training_is_repeatable_and_misses_are_errors() -> None:
    config = TrainConfig(epochs=2, learning_rate=0.05, seed=3)
    train, test = digits("train", num_examples=200), digits("test", num_examples=50)
    losses: list[float] = []
    build = lambda: digits_resnet(width=4, num_blocks=1)  # noqa: E731
    first, accuracy = train_model(build, train, test, config, lambda epoch, loss: losses.append(loss))
    torch.manual_seed(99)
    second, _ = train_model(build, train, test, config, lambda epoch, loss: None)
    assert losses[1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    config.minimum_accuracy = 1.0
    assert accuracy < 1.0
    with pytest.raises(TrainingError, match=r"below train\.minimum_accuracy=1\.0"):
        train_model(build, train, test, config, lambda epoch, loss: None)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, scale: Tensor, shift: float = 0.0, keep: object = None) -> Tensor:
        assert keep is None
        return self.linear(x) * scale[:, None] + shift


def test_constants_among_the_inputs_are_given_to_every_call_and_are_part_of_the_identity() -> None:
    x, scale, labels = torch.randn(5, 3) + 1, torch.rand(5) + 1, torch.tensor([0, 1, 1, 0, 1])
    examples = ExampleSet.of({"x": x, "scale": scale, "shift": 2.5, "keep": None}, labels)
    model = TwoInputs()
    batch = examples.select([3, 1])
    expected = model(x[[3, 1]], scale[[3, 1]], 2.5)
    assert torch.equal(call_model(model, batch.inputs), expected)
    assert examples.constants() == {"keep": None, "shift": 2.5}
    other = ExampleSet.of({"x": x, "scale": scale, "shift": 2.0, "keep": None}, labels)
    assert examples.fingerprint() != other.fingerprint()
    assert len(Task(model, examples, output_function("margin")).check()) == 2


def test_a_tuple_of_inputs_gets_the_names_of_the_models_arguments() -> None:
    x, scale = torch.randn(5, 3), torch.rand(5)
    assert by_keyword(TwoInputs(), (x, scale)) == {"x": x, "scale": scale}
    assert by_keyword(TwoInputs(), x) is x
    with pytest.raises(TaskError, match=r"5 values .* names 4 arguments: x, scale, shift, keep\. Give a dict"):
        by_keyword(TwoInputs(), (x, scale, 1.0, None, x))


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.ones(2, 3), None, r"targets=None: every example needs a target"),
        (["a", "b"], torch.ones(2), r"inputs holds strings.*tokenizer"),
        ({"text": ["a", "b"]}, torch.ones(2), r"inputs\['text'\] holds strings"),
        (DataLoader(TensorDataset(torch.ones(2, 3))), torch.ones(2), r"inputs is a DataLoader.*torch\.cat"),
        (object(), torch.ones(2), r"inputs is a object that cannot become a tensor"),
        (torch.ones(2, 3), ["a", "b"], r"targets holds strings"),
    ],
)
def test_what_is_no_tensor_is_named(inputs: object, targets: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ExampleSet.of(inputs, targets)


def test_a_check_leaves_examples_that_the_model_changes_as_they_are() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return x

    x = torch.randn(4, 3)
    before = x.clone()
    Task(InPlace(), ExampleSet(x, torch.zeros(4, dtype=torch.int64)), output_function("margin")).check()
    assert torch.equal(x, before)
