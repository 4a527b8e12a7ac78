"""Mean activations at sites: against activations that hooks collect, one example at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from coar_dist.ablation.site_means import site_means
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import TaskError
from coar_dist.tasks.example_set import ExampleSet
from tests.models import randomise, small_task

CPU = torch.device("cpu")


def collected(model: nn.Module, module: str, side: str, inputs: list[Any]) -> list[Tensor]:
    """What a module gives, or reads, for one example after the other, float64."""
    found: list[Tensor] = []
    layer = model.get_submodule(module)
    if side == "output":
        layer.register_forward_hook(lambda _module, _inputs, output: found.append(output.double()))
    else:
        layer.register_forward_pre_hook(lambda _module, given: found.append(given[0].double()))
    with torch.no_grad():
        for each in inputs:
            model(**each) if isinstance(each, dict) else model(each)
    return found


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return randomise(LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)))


def ids(num: int, length: int) -> Tensor:
    return torch.randint(1, 20, (num, length), generator=torch.Generator().manual_seed(2))


def test_over_all_examples_and_places_of_an_image() -> None:
    task = small_task(70)  # three passes, of which the last is not full
    found = site_means(task.model, discover(task.model, "conv_filters"), task.examples, CPU, False)
    assert list(found) == ["conv1.output", "conv2.output", "grouped.output"]
    images = task.examples.inputs.split(1)
    for name, mean in found.items():
        expected = torch.cat(collected(task.model, name.removesuffix(".output"), "output", images)).mean((0, 2, 3))
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean, expected.float(), rtol=1e-6, atol=1e-7)
    assert not any(module._forward_hooks for module in task.model.modules() if not isinstance(module, nn.Conv2d))


def test_padding_does_not_count() -> None:
    """Not the sum over real tokens by the padded length, nor the last token by the number of tokens."""
    model, lengths = llama(), [7, 3, 1, 5]
    tokens, mask = ids(4, 7), torch.zeros(4, 7, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    tokens[mask == 0] = 0
    examples = ExampleSet({"input_ids": tokens, "attention_mask": mask}, torch.zeros(4))
    components = discover(model, ["heads", "neurons"])
    found = site_means(model, components, examples, CPU, False)
    alone = [{"input_ids": tokens[row : row + 1, :length]} for row, length in enumerate(lengths)]
    for name, mean in found.items():
        read = [each[0] for each in collected(model, name.removesuffix(".input"), "input", alone)]
        torch.testing.assert_close(mean, torch.cat(read).mean(0).float(), rtol=2e-5, atol=2e-6)


def test_one_for_every_position() -> None:
    model = llama()
    examples = ExampleSet({"input_ids": ids(5, 6)}, torch.zeros(5))
    found = site_means(model, discover(model, "heads"), examples, CPU, True)
    alone = [{"input_ids": row[None]} for row in ids(5, 6)]
    for name, mean in found.items():
        expected = torch.cat(collected(model, name.removesuffix(".input"), "input", alone)).mean(0)
        assert mean.shape == (1, 6, 16)
        torch.testing.assert_close(mean[0], expected.float(), rtol=2e-5, atol=2e-6)


def test_a_module_that_folds_positions_into_rows() -> None:
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x.flatten(0, 1)).relu()).unflatten(0, x.shape[:2]).mean(1)

    model = randomise(Folding())
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)) + 0.2
    components = ComponentIndex((ComponentGroup.of("first.weight", 0, 6),))
    (by_position,) = site_means(model, components, ExampleSet(x, torch.zeros(5)), CPU, True).values()
    (over_all,) = site_means(model, components, ExampleSet(x, torch.zeros(5)), CPU, False).values()
    with torch.no_grad():
        outputs = model.first(x.double().float()).double()
    torch.testing.assert_close(by_position, outputs.mean(0).float())
    torch.testing.assert_close(over_all, outputs.mean((0, 1)).float())


def test_packed_attention_has_three_parts() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x + 1, 2 * x, need_weights=False)[0]

    model = randomise(Packed())
    x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)) + 0.2
    components = ComponentIndex((ComponentGroup.of("attention.in_proj_weight", 0, 24),))
    (mean,) = site_means(model, components, ExampleSet(x, torch.zeros(3)), CPU, False).values()
    weights, biases = model.attention.in_proj_weight.chunk(3), model.attention.in_proj_bias.chunk(3)
    parts = [(given @ w.T + b).mean((0, 1)) for given, w, b in zip((x, x + 1, 2 * x), weights, biases, strict=True)]
    torch.testing.assert_close(mean, torch.cat(parts).detach(), rtol=1e-5, atol=1e-6)


def test_a_site_that_nothing_reaches_is_zero_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.unused = nn.Linear(2, 5)
    model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
    components = ComponentIndex((ComponentGroup.of("unused.weight", 0, 5), ComponentGroup.of("0.weight", 0, 2)))
    found = site_means(model, components, ExampleSet(torch.ones(2, 3), torch.zeros(2)), CPU, False)
    assert found["unused.output"].tolist() == [0] * 5
    assert "not reached by any example of the reference, and zero there: unused.output" in caplog.text


def test_positions_of_padded_inputs_are_refused() -> None:
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[2, 5:] = 0
    examples = ExampleSet({"input_ids": ids(4, 7), "attention_mask": mask}, torch.zeros(4))
    model = llama()
    with pytest.raises(TaskError, match="position needs inputs of one length, and the reference has padding"):
        site_means(model, discover(model, "heads"), examples, CPU, True)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_mean_that_is_not_finite_is_refused() -> None:
    task = small_task(4)
    images = task.examples.inputs.clone()
    images[2, 0, 1, 1] = np.nan
    components = discover(task.model, "conv_filters")
    with pytest.raises(TaskError, match=r"mean activation at conv1.output is not finite"):
        site_means(task.model, components, ExampleSet(images, task.examples.targets), CPU, False)


def test_padding_that_cannot_be_told_is_refused() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer((x * attention_mask[..., None]).repeat(1, 2, 1)).mean(1)

    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    examples = ExampleSet({"x": torch.ones(2, 3, 4), "attention_mask": mask}, torch.zeros(2))
    components = ComponentIndex((ComponentGroup.of("layer.weight", 0, 4),))
    with pytest.raises(TaskError, match=r"layer.output: padding cannot be told in an activation of shape \(2, 6, 4\)"):
        site_means(Reversed(), components, examples, CPU, False)
