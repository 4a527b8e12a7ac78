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
from coar_dist.ablation.site_means import site_means
from coar_dist.ablation.value import SiteValues
from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.tasks.task import ExampleSet, Task, call_model
from tests.ablation.test_values import masks_of, noise
from tests.components.families import tasks

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
FEW = ["mixtral", "gpt_oss", "deepseek_v3", "dbrx", "granitemoehybrid", "qwen2_moe"]
WEIGHED = [name for name in MIXTURES if name != "llama4_text"]
ALL = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in WEIGHED]
OUTPUTS = ("down_proj", "down_proj_bias", "mlp.w2")


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
                parameter = component.slices[0][0]
                name = parameter[: parameter.index(".experts") + 8] + ".weighted_output"
                ablated.setdefault(name, []).append(component.id % EXPERTS)
        put_values(model, ablated, values)
        margins.append(one_by_one(task, model))
    return np.asarray(margins)


def check(task: Task, components: ComponentIndex, values: dict[str, Tensor], expected: Any, ungated: int = 0) -> None:
    """Both modes and gradient passes give what the hooks give, and the model is left as it was."""
    masks, tolerance = masks_of(components), 3e-6 * max(1.0, np.abs(expected).max())
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    engine = AblationEngine(
        copy.deepcopy(task), components, "cpu", "float32", value=SiteValues(components, values=values)
    )
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=tolerance, err_msg=mode)
    gradients = engine.gate_gradients(masks, (0, len(task.examples)))
    np.testing.assert_allclose(gradients.margins, expected, rtol=0, atol=tolerance)
    engine.close()
    assert len(engine.ungated) == ungated, engine.ungated
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_values_of_experts(name: str, by_position: bool) -> None:
    task = TASKS[name]()
    components = discover(task.model, "experts")
    one_row = (
        (1, 7, WIDTH) if name == "dbrx" else (7, WIDTH)
    )  # experts are given rows of tokens, or all tokens in a row
    shape = (EXPERTS, *one_row) if by_position else (EXPERTS, WIDTH)
    values = {site: noise(*shape, seed=seed) for seed, site in enumerate(experts_of(task.model))}
    check(task, components, values, brute_force(task, components, values, masks_of(components)))


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("name", ALL)
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
