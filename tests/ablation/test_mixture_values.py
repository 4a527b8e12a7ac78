"""Values of experts and of blocks around them, in families of mixtures, against hooks and zeroed weights.

The weighted output of an expert is what its module gives with the output projections of all others set to zero.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.row_value import Paired, RowValues
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import SiteValues
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup, Slices
from coar_dist.components.index import ComponentIndex
from coar_dist.components.site_masking import why_not_in_biases
from coar_dist.components.sites import activation_sites_of, checked_values, sites_of
from coar_dist.errors import ComponentMismatchError, ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task, call_model
from tests.ablation.test_row_values import paired
from tests.ablation.test_values import noise
from tests.components.families import tasks
from tests.models import random_masks, randomise

pytestmark = pytest.mark.filterwarnings("ignore")
CPU, TASKS, EXPERTS, WIDTH = torch.device("cpu"), tasks(), 4, 16
MIXTURES = {
    **dict.fromkeys(
        ["mixtral", "qwen3_moe", "olmoe", "phimoe", "qwen2_moe", "gpt_oss", "minimax", "qwen3_next"], "mlp"
    ),
    **dict.fromkeys(["glm4_moe", "deepseek_v2", "deepseek_v3"], "mlp"),
    "jamba": "feed_forward",
    "granitemoehybrid": "block_sparse_moe",
    "dbrx": "ffn",
    "llama4_text": "feed_forward",
}
"""The module of a layer that holds its experts, by family."""
FEW = ["mixtral", "dbrx", "gpt_oss", "deepseek_v3", "granitemoehybrid", "qwen2_moe"]
WEIGHED = [name for name in MIXTURES if name != "llama4_text"]
ALL = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in WEIGHED]
BY_POSITION = [
    pytest.param(name, by_position, marks=[] if name in FEW[: 2 if by_position else 5] else pytest.mark.slow)
    for name in WEIGHED
    for by_position in (False, True)
]
OUTPUTS = ("down_proj", "down_proj_bias", "mlp.w2")


def masks_of(components: ComponentIndex) -> NDArray[np.bool_]:
    """At random, all, none, and the last component alone, which leaves the first layers as they are."""
    num = len(components)
    ends = [np.ones(num, np.bool_), np.zeros(num, np.bool_), np.arange(num) != num - 1]
    return np.concatenate([random_masks(6, num, 0.3), np.stack(ends)])


def weighted_outputs(module: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    """By expert, what its module gives with the output projections of all others set to zero."""
    found = []
    for expert in range(EXPERTS):
        alone = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                if name in OUTPUTS:
                    of_experts = parameter.view(EXPERTS, -1)
                    of_experts[torch.arange(EXPERTS) != expert] = 0
        alone._forward_hooks.clear()
        found.append(alone(*args, **kwargs))
    return found


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are called with the routing, by the name of their site."""
    named = {name: module for name, module in model.named_modules() if name.endswith(".experts")}
    return {f"{name}.weighted_output": module for name, module in named.items()}


def put_values(model: nn.Module, ablated: dict[str, list[int]], values: dict[str, Tensor]) -> None:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor, name: str) -> Tensor:
        total = torch.zeros_like(output)
        for expert, part in enumerate(weighted_outputs(module, args, kwargs)):
            value = values[name][expert]
            total += value.reshape(output.shape if value.ndim > 1 else -1) if expert in ablated[name] else part
        return total

    for name, module in experts_of(model).items():
        if name in ablated:
            module.register_forward_hook(lambda *given, name=name: hook(*given, name=name), with_kwargs=True)


def one_by_one(task: Task, model: nn.Module) -> list[float]:
    found = []
    for example in range(len(task.examples)):
        one = task.examples.rows(example, example + 1)
        with torch.no_grad():
            found.append(float(task.output_function(call_model(model, one.inputs), one.targets)))
    return found


def brute_force(
    task: Task, components: ComponentIndex, values: dict[str, Tensor], masks: NDArray[np.bool_]
) -> NDArray[np.float64]:
    margins = []
    for mask in masks:
        model, ablated = copy.deepcopy(task.model).eval(), dict[str, list[int]]()
        for component in components:
            if not mask[component.id]:
                parameter, _, start, num_rows = component.slices[0]
                size = len(model.get_parameter(parameter)) // EXPERTS
                name = parameter[: parameter.index(".experts") + 8] + ".weighted_output"
                ablated.setdefault(name, []).extend(range(start // size, (start + num_rows) // size))
        put_values(model, ablated, values)
        margins.append(one_by_one(task, model))
    return np.asarray(margins)


def check(task: Task, components: ComponentIndex, values: dict[str, Tensor], expected: Any, ungated: int = 0) -> None:
    """Both modes and gradient passes give what the hooks give, and the model is left as it was."""
    masks, tolerance = masks_of(components), 3e-6 * max(1.0, np.abs(expected).max())
    assert np.abs(expected - expected[-3]).max() > 0.01
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    engine = AblationEngine(
        copy.deepcopy(task), components, "cpu", "float32", value=SiteValues(components, values=values)
    )
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=tolerance, err_msg=mode)
        np.testing.assert_allclose(engine.margins(masks[[-1]]), expected[[-1]], rtol=0, atol=tolerance)
    gradients = engine.gate_gradients(masks, (0, len(task.examples)))
    np.testing.assert_allclose(gradients.margins, expected, rtol=0, atol=tolerance)
    engine.close()
    assert len(engine.ungated) == ungated, engine.ungated
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize(("name", "by_position"), BY_POSITION)
def test_values_of_experts(name: str, by_position: bool) -> None:
    task = TASKS[name]()
    components = discover(task.model, "experts")
    one_row = (
        (1, 7, WIDTH) if name == "dbrx" else (7, WIDTH)
    )  # experts are given rows of tokens, or all tokens in a row
    shape = (EXPERTS, *one_row) if by_position else (EXPERTS, WIDTH)
    values = {site: noise(*shape, seed=seed) for seed, site in enumerate(experts_of(task.model))}
    check(task, components, values, brute_force(task, components, values, masks_of(components)))


@pytest.mark.parametrize("name", ["gpt_oss", "dbrx"])
def test_some_experts_and_two_together(name: str) -> None:
    task = TASKS[name]()
    first, second = discover(task.model, "experts").groups
    pair = tuple(Slices(part.parameter, 0, 2 * part.size, part.starts[1:2]) for part in first.slices)
    components = ComponentIndex((first.only([3]), ComponentGroup(pair, (0,), "pair"), second.only([2, 0])))
    values = {site: noise(EXPERTS, WIDTH, seed=seed) for seed, site in enumerate(experts_of(task.model))}
    check(task, components, values, brute_force(task, components, values, masks_of(components)))


@pytest.mark.parametrize(("name", "by_position"), BY_POSITION)
def test_means_of_weighted_outputs(name: str, by_position: bool) -> None:
    """Zeros of tokens that an expert does not see count, padding does not."""
    task = TASKS[name]()
    inputs, lengths = dict(task.examples.inputs), [7] * 5 if by_position else [7, 4, 2, 7, 5]
    inputs["attention_mask"] = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
    examples = ExampleSet(inputs, task.examples.targets)
    found = site_means(task.model.eval(), discover(task.model, "experts"), examples, CPU, by_position)
    collected: dict[str, list[Tensor]] = {site: [] for site in experts_of(task.model)}
    model = copy.deepcopy(task.model)
    for site, module in experts_of(model).items():

        def hook(module: nn.Module, args: Any, kwargs: Any, _output: Tensor, site: str = site) -> None:
            parts = torch.stack(weighted_outputs(module, args, kwargs)).double()
            collected[site].append(parts.reshape(EXPERTS, -1, WIDTH))

        module.register_forward_hook(hook, with_kwargs=True)
    for row, length in enumerate(lengths):
        one = {key: value[row : row + 1] if torch.is_tensor(value) else value for key, value in inputs.items()}
        one |= {key: one[key][:, :length] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            model(**one)
    assert list(found) == list(collected)
    for site, mean in found.items():
        of_examples = collected[site]
        expected = torch.stack(of_examples).mean(0) if by_position else torch.cat(of_examples, dim=1).mean(1)
        torch.testing.assert_close(mean.reshape(expected.shape), expected.float(), rtol=2e-5, atol=2e-6)


def block_names(model: nn.Module, name: str) -> list[str]:
    """The sites of MLP blocks, by hand: mixtures, dense layers, and Granite's MLP beside its mixture."""
    holder = MIXTURES[name]
    found = []
    for path, module in model.named_modules():
        own = path.rpartition(".")[2]
        if own == holder and hasattr(module, "experts"):
            found.append(f"{path}.experts" if name == "dbrx" else path)
        elif own in (holder, "feed_forward") and hasattr(module, "down_proj"):
            found.append(f"{path}.down_proj")
        elif own == "shared_mlp":
            found.append(f"{path}.output_linear")
    return found


def layer_of(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdecimal())


@pytest.mark.parametrize("selector", ["mlp_blocks", "layers"])
@pytest.mark.parametrize("name", [*ALL, pytest.param("llama4_text", marks=pytest.mark.slow)])
def test_blocks_around_mixtures(name: str, selector: str) -> None:
    task = TASKS[name]()
    components = discover(task.model, selector)
    names = block_names(task.model, name)
    if selector == "layers":
        of_layers = discover(task.model, "attention_blocks")
        names += [group.slices[0].module for group in of_layers.groups]
    values = {f"{name}.output": noise(WIDTH, seed=seed) for seed, name in enumerate(names)}
    margins = []
    for mask in masks_of(components):
        model = copy.deepcopy(task.model).eval()
        for component in components:
            if mask[component.id]:
                continue
            for name in names:
                if layer_of(name) == component.layer:
                    value = values[f"{name}.output"]

                    def put(_module: nn.Module, _inputs: Any, output: Any, value: Tensor = value) -> Any:
                        if isinstance(output, tuple):
                            return value.expand_as(output[0]), *output[1:]
                        return value.expand_as(output)

                    model.get_submodule(name).register_forward_hook(put)
        margins.append(one_by_one(task, model))
    check(task, components, values, np.asarray(margins))


class Listed(nn.Module):
    """Experts in a list, each of which sees its own tokens alone; gives its router's logits too."""

    def __init__(self, extra: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(3))
        self.extra = extra

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.flatten(0, 1)
        logits = self.gate(tokens)
        weights, chosen = logits.softmax(-1).topk(2, dim=-1)
        output = tokens if self.extra else torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                output = output.index_add(0, rows, weights[rows, place, None] * expert(tokens[rows]))
        return output.reshape(x.shape), logits


class OfLists(nn.Module):
    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.ModuleDict({"moe": Listed(extra)}) for _ in range(2)), nn.Linear(6, 3)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = x + layer["moe"](x)[0]
        return self.head(x[:, -1] + x[:, 0])


def of_lists(extra: bool = False) -> Task:
    examples = ExampleSet(noise(5, 4, 6), torch.tensor([0, 1, 2, 0, 1]))
    return Task(randomise(OfLists(extra)), examples, output_function("margin"))


def test_a_block_around_a_list_of_experts() -> None:
    task = of_lists()
    components = discover(task.model, "mlp_blocks")
    values = {f"layers.{layer}.moe.output": noise(6, seed=layer) for layer in range(2)}
    margins = []
    for mask in masks_of(components):
        model = copy.deepcopy(task.model)
        for layer in np.flatnonzero(~mask):
            value = values[f"layers.{layer}.moe.output"]
            model.layers[layer]["moe"].register_forward_hook(lambda _m, _i, y, value=value: (value.expand_as(y[0]), 0))
        margins.append(one_by_one(task, model))
    check(task, components, values, np.asarray(margins))
    (first, second) = site_means(task.model, components, task.examples, CPU, False).values()
    with torch.no_grad():
        x = task.examples.inputs
        given = task.model.layers[0]["moe"](x)[0]
        torch.testing.assert_close(first, given.mean((0, 1)))
        torch.testing.assert_close(second, task.model.layers[1]["moe"](x + given)[0].mean((0, 1)))


def test_a_block_whose_module_gives_more_than_its_experts_is_refused() -> None:
    task = of_lists(extra=True)
    components = discover(task.model, "mlp_blocks")
    with pytest.raises(ComponentMismatchError, match=r"L0.mlp has no site: layers.0.moe gives more than its experts"):
        AblationEngine(task, components, "cpu", "float32", value=SiteValues(components, values={}))


def test_experts_in_a_list_can_be_zero_and_nothing_else() -> None:
    task = of_lists()
    components = discover(task.model, "experts")
    masks = masks_of(components)
    zero = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", value=SiteValues(components, values={}))
    zeroed = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    np.testing.assert_allclose(zero.margins(masks), zeroed.margins(masks), rtol=0, atol=1e-5)
    constants = {f"layers.{layer}.moe.experts.{e}.2.output": noise(6) for layer in range(2) for e in range(3)}
    message = r"L0E0 .* no site .*: its output is weighed outside layers.0.moe.experts. .*=zero or zero_weights"
    with pytest.raises(ComponentMismatchError, match=message):
        checked_values(constants, task.model, components)
    with pytest.raises(ComponentMismatchError, match=message):
        site_means(task.model, components, task.examples, CPU, False)


def test_neurons_of_an_expert_have_the_mean_of_its_own_tokens() -> None:
    task = of_lists()
    components = discover(task.model, "neurons")
    found = site_means(task.model, components, task.examples, CPU, False)
    with torch.no_grad():
        tokens = task.examples.inputs.flatten(0, 1)
        first: Any = task.model.layers[0]["moe"]
        chosen = first.gate(tokens).topk(2, dim=-1).indices
        for number, expert in enumerate(first.experts):
            hidden = expert[1](expert[0](tokens[(chosen == number).any(-1)]))
            torch.testing.assert_close(found[f"layers.0.moe.experts.{number}.2.input"], hidden.mean(0))
    with pytest.raises(TaskError, match="a router sends this module some of the tokens, whose position cannot be told"):
        site_means(task.model, components, task.examples, CPU, True)
    padded = ExampleSet({"x": task.examples.inputs, "attention_mask": torch.ones(5, 4).tril(2)}, torch.zeros(5))
    with pytest.raises(TaskError, match="a router sends this module some of the tokens, whose padding cannot be told"):
        site_means(task.model, components, padded, CPU, False)


@pytest.mark.parametrize("change", ["router", "norm"])
def test_experts_that_do_not_add_up_are_refused(change: str) -> None:
    task = TASKS["mixtral"]()
    components = discover(task.model, "experts")
    experts: Any = task.model.model.layers[1].mlp.experts
    plain = experts.forward

    def forward(tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        if change == "router":
            return plain(tokens, chosen, weights / (weights.sum(-1, keepdim=True) + 1e-3))
        return nn.functional.layer_norm(plain(tokens, chosen, weights), (WIDTH,))

    experts.forward = forward
    message = r"model.layers.1.mlp.experts.weighted_output: what its module gives is not the sum"
    with pytest.raises(ComponentMismatchError, match=message):
        site_means(task.model, components, task.examples, CPU, False)
    with pytest.raises(ComponentMismatchError, match=message):
        AblationEngine(task, components, "cpu", "float32", value=SiteValues(components, values={}))


def test_experts_that_are_not_given_their_weights_are_refused_by_name() -> None:
    model = TASKS["llama4_text"]().model
    message = r"L1E0 .* no site .*: Llama4TextExperts is not given the weights of its tokens' experts"
    with pytest.raises(ComponentMismatchError, match=message):
        sites_of(model, discover(model, "experts"))


def test_constants_of_experts_have_a_row_for_each() -> None:
    model = TASKS["mixtral"]().model
    components = discover(model, "experts")
    values = {site: noise(EXPERTS, WIDTH) for site in experts_of(model)}
    assert set(checked_values(values, model, components)) == set(values)
    values["model.layers.1.mlp.experts.weighted_output"] = noise(WIDTH, EXPERTS)
    with pytest.raises(ConfigError, match=r"shape \(16, 4\), .* each of its 16 channels of each of its 4 experts"):
        checked_values(values, model, components)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "dbrx"])
def test_zero_is_in_the_weights_where_nothing_is_left_of_an_expert(name: str) -> None:
    task = TASKS[name]()
    components = discover(task.model, ["experts"])
    masks = masks_of(components)
    value = SiteValues(components, values={})
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", value=value)
    engine.use(EnginePlan("weights", 5, compiled=False))
    assert engine.model.value.in_biases
    of_weights = AblationEngine(copy.deepcopy(task), components, "cpu", "float32")
    np.testing.assert_allclose(engine.margins(masks), of_weights.margins(masks), rtol=0, atol=1e-5)


def test_why_weights_cannot_hold_values_of_experts() -> None:
    model = TASKS["gpt_oss"]().model
    components = discover(model, "experts")
    places = sites_of(model, components)
    values = {site: noise(EXPERTS, WIDTH) for site in experts_of(model)}
    assert why_not_in_biases(model, places, {}) is None
    assert "weighted_output is a sum, where no one layer has a bias" in str(why_not_in_biases(model, places, values))
    without_biases = ComponentIndex((ComponentGroup.of("model.layers.0.mlp.experts.down_proj", 0, EXPERTS),))
    places = sites_of(model, without_biases)
    assert "zeroed weights leave something of" in str(why_not_in_biases(model, places, {}))
    blocks = sites_of(model, discover(model, "mlp_blocks"))
    assert why_not_in_biases(model, blocks, {}) is None
    values = {f"model.layers.{layer}.mlp.output": noise(WIDTH) for layer in range(2)}
    assert "model.layers.0.mlp.output is a sum" in str(why_not_in_biases(model, blocks, values))


def test_blocks_around_mixtures_take_a_pairs_activation() -> None:
    task = paired(TASKS["deepseek_v3"]())
    components, names = discover(task.model, "mlp_blocks"), block_names(task.model, "deepseek_v3")
    pairs = ExampleSet(task.examples.counterfactual, torch.zeros(5))
    masks, margins = masks_of(components), []
    for mask in masks:
        model, seen = copy.deepcopy(task.model).eval(), dict[str, Tensor]()
        ablated = [names[number] for number in np.flatnonzero(~mask)]
        for name in ablated:

            def put(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name, seen: Any = seen) -> Tensor:
                return seen.setdefault(name, output)

            model.get_submodule(name).register_forward_hook(put)
        of_mask = []
        for example in range(len(task.examples)):
            seen.clear()  # the pair comes first, then the example with what the pair left behind
            with torch.no_grad():
                call_model(model, pairs.rows(example, example + 1).inputs)
                one = task.examples.rows(example, example + 1)
                of_mask.append(float(task.output_function(call_model(model, one.inputs), one.targets)))
        margins.append(of_mask)
    value = RowValues(components, source=Paired())
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", value=value)
    assert engine.ungated == {}
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), margins, rtol=0, atol=1e-5, err_msg=mode)
    np.testing.assert_allclose(engine.gate_gradients(masks, (0, 5)).margins, margins, rtol=0, atol=1e-5)


def test_nothing_of_experts_can_be_lent() -> None:
    model = TASKS["mixtral"]().model
    with pytest.raises(ComponentMismatchError, match=r"L0E0 .* no tensor that an example could lend. .*mean or zero_w"):
        activation_sites_of(model, discover(model, "experts"))
    model = of_lists().model
    with pytest.raises(ComponentMismatchError, match="in an expert, which a router may send some of the tokens alone"):
        activation_sites_of(model, discover(model, "neurons"))
    activation_sites_of(model, discover(model, "mlp_blocks"))


class Weighed(nn.Module):
    """Experts without a gate of their own, whose projections have both axes in common: their router tells the width."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Parameter(torch.empty(3, 8, 6)), nn.Parameter(torch.empty(3, 6, 8))

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        hidden = torch.einsum("ti,tkhi->tkh", tokens, self.up_proj[chosen]).relu()
        return (torch.einsum("tkh,tkoh->tko", hidden, self.down_proj[chosen]) * weights[..., None]).sum(1)


class OfOneMixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(6, 3), Weighed()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens).softmax(-1).topk(2, dim=-1)
        return self.experts(tokens, chosen, weights).reshape(x.shape).mean(1)


def test_gate_gradients_are_between_the_weighted_output_and_the_value() -> None:
    """The output is linear in the gates, so that its gradients are the exact effects."""
    model = randomise(OfOneMixture())
    first = output_function(lambda outputs, _targets: outputs[:, 0])
    task = Task(model, ExampleSet(noise(5, 4, 6), torch.zeros(5)), first)
    components = discover(model, "experts")
    value = SiteValues(components, values={"experts.weighted_output": noise(3, 6)})
    engine = AblationEngine(task, components, "cpu", "float32", value=value)
    kept, alone = np.ones((1, 3), np.bool_), np.eye(3) == 0
    found = engine.gate_gradients(kept, (0, 5)).kept
    exact = engine.margins(kept) - engine.margins(alone)
    assert np.abs(exact).min(axis=1).max() > 0.01
    np.testing.assert_allclose(found, exact.T, rtol=0, atol=3e-6)


def test_two_mixtures_in_one_module_are_one_site() -> None:
    block = OfOneMixture()
    block.others = Weighed()
    model = nn.ModuleDict({"moe": block})
    parts = tuple(Slices(f"moe.{name}.down_proj", 0, 3, (0,)) for name in ("experts", "others"))
    for chosen, module in ((parts, "moe"), (parts[:1], "moe.experts")):
        (places,) = sites_of(model, ComponentIndex((ComponentGroup(chosen, (0,), "block"),)))
        assert [(place.module, place.kind, place.length) for place in places] == [(module, "block", 6)]


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_zeroed_weights_that_leave_a_bias_are_not_gated(name: str) -> None:
    """Beside larger effects, and where few examples come to an expert, a probe would not tell."""
    task = TASKS["gpt_oss"]()
    of_experts = Slices(f"model.layers.1.mlp.experts.{name}", 0, 1, (3, 0))
    large = Slices("model.embed_tokens.weight", 1, 4, (4, 8))
    components = ComponentIndex((ComponentGroup((large, of_experts), (0, 1), "set{}"),))
    engine = AblationEngine(task, components, "cpu", "float32")
    assert engine.ungated == {0: "zeroed weights leave a bias of its experts"}
