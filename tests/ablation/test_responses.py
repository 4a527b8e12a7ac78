"""What components look at, against all activations held at once by plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.ablation.responses import FoundResponses, responses_of
from coar_dist.ablation.strongest import Strongest
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.store.responses import Response
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.task import call_model
from tests.hub_models import tiny_task
from tests.models import SmallResNet, randomise, small_task

CPU = torch.device("cpu")
NUM_KEPT = 8


def found_by(model: nn.Module, components: ComponentIndex, inputs: Inputs, most_bytes: float = 1e9) -> FoundResponses:
    some = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    return responses_of(model, components, ExampleSet(inputs, torch.zeros(len(some))), CPU, most_bytes)


def hooked(model: nn.Module, module: str, inputs: Inputs, reads: bool = False) -> Tensor:
    """What a module gives, or reads, for all examples in one pass; copied at once."""
    kept: list[Tensor] = []
    layer = model.get_submodule(module)
    handle = (
        layer.register_forward_pre_hook(lambda _module, given: kept.append(given[0].detach().clone()))
        if reads
        else layer.register_forward_hook(lambda _module, _given, given: kept.append(given.detach().clone()))
    )
    with torch.no_grad():
        call_model(model, inputs)
    handle.remove()
    (activation,) = kept
    return activation


def check(examples: tuple[Response, ...], activations: Tensor, strengths: Tensor | None = None) -> None:
    """The strongest of all, by the largest of each example's activations (n, *positions)."""
    strengths = activations.reshape(len(activations), -1).amax(dim=1).float() if strengths is None else strengths
    order = strengths.argsort(descending=True)[:NUM_KEPT].tolist()
    assert [each.example_id for each in examples] == order
    for each in examples:
        assert each.strength == pytest.approx(float(strengths[each.example_id]), rel=1e-5)
        np.testing.assert_allclose(each.activation, activations[each.example_id].float(), rtol=1e-4, atol=1e-5)


def test_filters_are_shown_before_what_follows_overwrites_them() -> None:
    """100 examples in batches of 32; a ReLU in place would leave nothing below zero."""
    model = randomise(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3, stride=2)))
    images = torch.randn(100, 3, 11, 9, generator=torch.Generator().manual_seed(0)) - 0.5
    components = discover(model, "conv_filters")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = found_by(model, components, images)
    for module, first in (("0", 0), ("2", 5)):
        activation = hooked(model, module, images)
        for channel in range(activation.shape[1]):
            check(found.responses[first + channel].examples, activation[:, channel])
    assert min(each.activation.min() for of_one in found.responses.values() for each in of_one.examples) < 0
    kernel = found.responses[3].kernel
    assert kernel is not None
    np.testing.assert_array_equal(kernel, model[0].weight[3].detach().half())
    assert found.responses[6].kernel is None
    assert not found.without
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_large_maps_are_means_over_their_parts() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(1, 3, 1)))
    images = torch.randn(5, 1, 64, 48, generator=torch.Generator().manual_seed(0))
    found = found_by(model, discover(model, "conv_filters"), images)
    activation = hooked(model, "0", images)
    small = activation.reshape(5, 3, 16, 4, 16, 3).mean(dim=(3, 5))
    for channel in range(3):
        strengths = activation[:, channel].flatten(1).amax(dim=1)
        check(found.responses[channel].examples, small[:, channel], strengths)


def test_neurons_and_heads_of_a_language_model_without_padding() -> None:
    task, _ = tiny_task("gpt2")
    inputs = task.examples.inputs
    components = discover(task.model, "auto")
    found = responses_of(task.model, components, task.examples, CPU, 1e9)
    mask = inputs["attention_mask"].bool()
    neurons = hooked(task.model, "transformer.h.1.mlp.c_proj", inputs, reads=True)
    mixed = hooked(task.model, "transformer.h.1.attn.c_proj", inputs, reads=True)
    heads = mixed.reshape(4, 9, 2, 4).norm(dim=-1)
    for name, activation in (("L1N{}", neurons), ("L1H{}", heads)):
        for channel in range(activation.shape[2]):
            own = found.responses[components[name.format(channel)].id].examples
            strengths = activation[:, :, channel].masked_fill(~mask, -torch.inf).amax(dim=1)
            order = strengths.argsort(descending=True)
            assert [each.example_id for each in own] == order.tolist()
            for each in own:
                length = int(mask[each.example_id].sum())
                np.testing.assert_allclose(
                    each.activation, activation[each.example_id, :length, channel], rtol=1e-4, atol=1e-6
                )
    with_attention = task.model(**inputs, output_attentions=True) if _is_eager(task.model) else None
    assert with_attention is not None
    for head in range(2):
        for each in found.responses[components[f"L1H{head}"].id].examples:
            length = int(mask[each.example_id].sum())
            expected = with_attention.attentions[1][each.example_id, head, :length, :length]
            assert each.pattern is not None
            np.testing.assert_allclose(each.pattern, expected.detach(), atol=1e-5)


def _is_eager(model: nn.Module) -> bool:
    model.set_attn_implementation("eager")  # type: ignore[operator]
    return True


def test_the_attention_of_vit_by_its_own_account() -> None:
    task, _ = tiny_task("vit")
    components = discover(task.model, "heads")
    found = responses_of(task.model, components, task.examples, CPU, 1e9)  # fused attention
    inner = next(module for module in task.model.modules() if hasattr(module, "set_attn_implementation"))
    inner.set_attn_implementation("eager")
    inner.config.output_attentions = True
    given: list[Any] = []
    handle = inner.register_forward_hook(lambda _module, _inputs, output: given.append(output.attentions))
    with torch.no_grad():
        task.model(task.examples.inputs)
    handle.remove()
    for component in components:
        layer, head = int(component.name[1]), int(component.name[3])
        assert len(found.responses[component.id].examples) == 5
        for each in found.responses[component.id].examples:
            np.testing.assert_allclose(each.pattern, given[0][layer][each.example_id, head], atol=1e-5)


def test_multihead_attention_and_its_packed_rows() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = randomise(nn.Sequential(layer, nn.Flatten(), nn.Linear(48, 2)))
    inputs = torch.randn(12, 6, 8)
    rows = ComponentGroup.of("0.self_attn.in_proj_weight", 0, 24).only([0, 7, 8, 17])
    components = ComponentIndex((*discover(model, "heads").groups, rows))
    found = found_by(model, components, inputs)
    with torch.no_grad():
        _, weights = layer.self_attn(inputs, inputs, inputs, average_attn_weights=False)
        packed = functional.linear(inputs, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias)
        values = packed[..., 16:].reshape(12, 6, 2, 4).transpose(1, 2)
        norms = (weights @ values).norm(dim=-1)
    for head in range(2):
        check(found.responses[head].examples, norms[:, head])
        for each in found.responses[head].examples:
            np.testing.assert_allclose(each.pattern, weights[each.example_id, head], atol=1e-5)
    for number, row in enumerate((0, 7, 8, 17)):
        check(found.responses[2 + number].examples, packed[..., row])
    assert "forward" not in vars(layer.self_attn)


class Habits(nn.Module):
    """What forward methods do: a layer twice, in sequence-first order, on some rows alone, and never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.sequence_first = nn.Linear(6, 5)
        self.pooled = nn.Linear(5, 4)
        self.some = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(functional.gelu(self.twice(x)))
        x = self.sequence_first(x.transpose(0, 1)).transpose(0, 1)
        x = self.pooled(x.mean(dim=1))
        x = x + functional.pad(self.some(x[:1]), (0, 0, 0, len(x) - 1))
        return self.out(x)


def test_habits_of_forward_methods() -> None:
    torch.manual_seed(1)
    model = randomise(Habits())
    inputs = torch.randn(40, 7, 6)
    components = discover(model, "linear_rows")
    found = found_by(model, components, inputs)

    def of(module: str, channel: int) -> tuple[Response, ...]:
        return found.responses[components[f"{module}[{channel}]"].id].examples

    with torch.no_grad():
        first = model.twice(inputs)
        second = model.twice(functional.gelu(first))
        sequence = model.sequence_first(second)
        pooled = model.pooled(sequence.mean(dim=1))
    stronger = (second.amax(dim=1) > first.amax(dim=1))[:, None]
    for channel in range(4):
        check(of("twice", channel), torch.where(stronger, second, first)[..., channel])
        check(of("sequence_first", channel), sequence[..., channel])
        check(of("pooled", channel), pooled[:, channel])
    reasons = {name.split("[")[0]: found.without[components[name].id] for name in ("some[0]", "never[2]")}
    assert reasons == {"some": "its activation has no row for every example", "never": "it is not reached"}
    assert len(found.without) == 8


class Trimmed(nn.Module):
    """Cuts a batch to its longest text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        length = int(attention_mask.sum(dim=1).max())
        x = self.down(functional.gelu(self.up(self.embed(input_ids[:, :length]))))
        return (x * attention_mask[:, :length, None]).sum(dim=1)


def test_positions_that_differ_from_batch_to_batch() -> None:
    torch.manual_seed(2)
    model = randomise(Trimmed())
    tokens, lengths = torch.randint(0, 11, (70, 12)), torch.randint(1, 6, (70,))
    lengths[40:] += 6
    mask = (torch.arange(12) < lengths[:, None]).long()
    found = found_by(model, discover(model, "linear_rows"), {"input_ids": tokens, "attention_mask": mask})
    with torch.no_grad():
        activation = model.up(model.embed(tokens))
    for channel in range(9):
        strengths = activation[..., channel].masked_fill(mask == 0, -torch.inf).amax(dim=1)
        own = found.responses[channel].examples
        assert [each.strength for each in own] == pytest.approx(strengths.sort(descending=True).values[:8].tolist())
        for each in own:
            # The mask is of another length than the activations, so that all that the batch has is kept.
            num = int(lengths[each.example_id])
            np.testing.assert_allclose(
                each.activation[:num], activation[each.example_id, :num, channel], rtol=1e-4, atol=1e-6
            )


def test_a_layer_as_a_whole_is_the_norm_over_its_parts() -> None:
    task, _ = tiny_task("gpt2")
    inputs = {"input_ids": task.examples.inputs["input_ids"]}
    components = discover(task.model, "layers")
    found = found_by(task.model, components, inputs)
    parts = [hooked(task.model, f"transformer.h.1.{part}.c_proj", inputs) for part in ("attn", "mlp")]
    check(found.responses[1].examples, torch.cat(parts, dim=-1).norm(dim=-1))


def test_an_expert_is_looked_at_by_its_routing_weight_and_shared_attention_by_nobody() -> None:
    from transformers import AlbertConfig, AlbertModel, MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 30}
    heads: dict[str, Any] = {**sizes, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = MixtralForCausalLM(MixtralConfig(**heads, **experts)).eval()
    inputs = {"input_ids": torch.randint(0, 30, (10, 7), generator=torch.Generator().manual_seed(0))}
    kept: list[tuple[Tensor, Tensor]] = []
    layer = model.model.layers[1].mlp.experts
    handle = layer.register_forward_pre_hook(lambda _module, given: kept.append((given[1], given[2])))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    found = found_by(model, discover(model, "experts"), inputs)
    ((chosen, weights),) = kept
    for expert in range(4):
        check(found.responses[4 + expert].examples, torch.where(chosen == expert, weights, 0).sum(dim=1).reshape(10, 7))

    shared = AlbertModel(AlbertConfig(embedding_size=8, **heads)).eval()  # one layer, called twice
    examples = found_by(shared, discover(shared, "heads"), inputs).responses[0].examples
    assert len(examples) == 8
    assert all(each.pattern is None for each in examples)


def test_half_precision_and_channels_of_a_group_alone() -> None:
    model = randomise(SmallResNet()).bfloat16()
    images = small_task(20).examples.inputs.bfloat16()
    filters = ComponentGroup.of("conv2.weight", 0, 4).only([1, 3])
    pair = ComponentGroup((Slices("grouped.weight", 0, 2, (2,)), Slices("grouped.bias", 0, 2, (2,))), (0,), "pair")
    found = found_by(model, ComponentIndex((filters, pair)), images)
    conv2, grouped = hooked(model, "conv2", images), hooked(model, "grouped", images).float()
    for number, channel in enumerate((1, 3)):
        strengths = conv2[:, channel].flatten(1).amax(dim=1).float().sort(descending=True).values[:8]
        assert [each.strength for each in found.responses[number].examples] == pytest.approx(
            strengths.tolist(), rel=0.05
        )
    strengths = grouped[:, 2:4].norm(dim=1).flatten(1).amax(dim=1).sort(descending=True).values[:8]
    assert [each.strength for each in found.responses[2].examples] == pytest.approx(strengths.tolist(), rel=0.05)


def test_what_has_no_activation_is_left_out_with_the_reason() -> None:
    model = randomise(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)))
    with torch.no_grad():
        model[1].bias.fill_(-100)  # dead
    tokens = torch.randint(0, 9, (6, 3))
    rows, units = ComponentGroup.of("0.weight", 0, 9), ComponentGroup.of("4.weight", 1, 12)
    found = found_by(model, ComponentIndex((rows, units)), tokens)
    assert set(found.without.values()) == {"an embedding's rows are chosen by tokens"}
    assert sorted(found.without) == list(range(9))
    assert all(not found.responses[i].examples for i in range(9, 21))


def test_nothing_is_looked_for_above_the_limit() -> None:
    task = small_task()
    components = discover(task.model, "conv_filters")
    allowed = responses_of(task.model, components, task.examples, CPU, 1e9)
    assert responses_of(task.model, components, task.examples, CPU, allowed.num_bytes).responses
    assert responses_of(task.model, components, task.examples, CPU, allowed.num_bytes - 1).responses == {}


@pytest.mark.parametrize("fails_once", [False, True])
def test_batches_of_any_size_find_the_same(fails_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    task = small_task(50)
    components = discover(task.model, "conv_filters")
    expected = responses_of(task.model, components, task.examples, CPU, 1e9).responses
    if fails_once:
        monkeypatch.setattr(type(task.model.linear), "forward", _out_of_memory_above(10, nn.Linear.forward))
    else:
        monkeypatch.setattr("coar_dist.ablation.responses._NUM_ROWS", 7)
    found = responses_of(task.model, components, task.examples, CPU, 1e9).responses
    for i, of_one in expected.items():
        assert [each.example_id for each in found[i].examples] == [each.example_id for each in of_one.examples]
        for each, other in zip(found[i].examples, of_one.examples, strict=True):
            np.testing.assert_allclose(each.activation, other.activation, rtol=1e-4, atol=1e-5)


def _out_of_memory_above(most: int, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def limited(self: nn.Linear, x: Tensor) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("so many rows")
        return forward(self, x)

    return limited


def test_long_rows_keep_what_is_around_the_strongest() -> None:
    activations = torch.zeros(3, 1, 1, 1000)
    for example, at in enumerate((5, 500, 998)):
        activations[example, 0, 0, at] = 3.0 - example
    kept = Strongest(2)
    kept.add(torch.tensor([7, 8, 9]), activations, None)
    strengths, example_ids, maps, firsts = kept.arrays()
    assert (strengths[:, 0].tolist(), example_ids[:, 0].tolist()) == ([3.0, 2.0], [7, 8])
    assert firsts[:, 0].tolist() == [0, 500 - 128]
    assert [int(row.argmax()) for row in maps[:, 0]] == [5, 128]


def test_an_activation_that_is_not_finite_is_not_the_strongest() -> None:
    activations = torch.tensor([[[1.0, torch.nan]], [[2.0, 0.0]], [[torch.inf, 0.0]]])[:, :, None]
    kept = Strongest(2)
    kept.add(torch.arange(3), activations, None)
    strengths, example_ids, _, _ = kept.arrays()
    assert strengths[:, 0].tolist() == [2.0, -np.inf]
    assert example_ids[0, 0] == 1
