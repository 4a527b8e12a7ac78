"""Values that differ by example: every form against hooks that replay a donor's activations, one example at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import coar_dist
from coar_dist.ablation import row_value
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.row_value import ClassMeans, Paired, Resampled, RowValues
from coar_dist.components.discovery import discover
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.components.projections import is_transposed_linear
from coar_dist.components.row_values import RowSource
from coar_dist.errors import ComponentMismatchError, ConfigError, TaskError
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task, call_model
from tests.ablation.test_values import all_sites, gpt2, noise
from tests.models import random_masks, small_task

pytestmark = pytest.mark.filterwarnings("ignore")
DonorOf = Callable[[NDArray[np.bool_], int], Inputs]


def sites_of_components(model: nn.Module, components: ComponentIndex) -> dict[tuple[str, str], list[Any]]:
    """(module, side) to the components there: (id, first channel, channels, axis of channels)."""
    found: dict[tuple[str, str], list[Any]] = {}
    for component in components:
        for parameter, axis, start, size in component.slices:
            name, _, own = parameter.rpartition(".")
            if own != "bias":
                module = model.get_submodule(name)
                side = "output" if axis == int(is_transposed_linear(module)) else "input"
                channel_axis = 1 if module.weight.ndim > 2 else -1
                found.setdefault((name, side), []).append((component.id, start, size, channel_axis))
    return found


def hooked(model: nn.Module, sites: Any, act: Callable[[Tensor, tuple[str, str]], Tensor]) -> list[Any]:
    handles = []
    for name, side in sites:
        module, site = model.get_submodule(name), (name, side)
        if side == "output":
            handles.append(module.register_forward_hook(lambda _m, _i, output, site=site: act(output, site)))
        else:
            handles.append(
                module.register_forward_pre_hook(lambda _m, inputs, site=site: (act(inputs[0], site), *inputs[1:]))
            )
    return handles


def brute_force(
    task: Task, components: ComponentIndex, masks: NDArray[np.bool_], donor_of: DonorOf
) -> NDArray[np.float64]:
    model, margins = copy.deepcopy(task.model).eval(), np.empty((len(masks), len(task.examples)))
    sites = sites_of_components(model, components)
    for row, mask in enumerate(masks):
        for example in range(len(task.examples)):
            seen: dict[Any, list[Tensor]] = {}

            def record(x: Tensor, site: Any, seen: Any = seen) -> Tensor:
                seen.setdefault(site, []).append(x.clone())
                return x

            def put(x: Tensor, site: Any, seen: Any = seen, mask: Any = mask) -> Tensor:
                x, donor = x.clone(), seen[site].pop(0)
                for number, start, size, axis in sites[site]:
                    if not mask[number]:
                        x.narrow(axis, start, size).copy_(donor.narrow(axis, start, size))
                return x

            one = task.examples.rows(example, example + 1)
            for act, inputs in ((record, donor_of(mask, example)), (put, one.inputs)):
                handles = hooked(model, sites, act)
                with torch.no_grad():
                    outputs = call_model(model, inputs)
                for handle in handles:
                    handle.remove()
            margins[row, example] = float(task.output_function(outputs, one.targets))
    return margins


def drawn(seed: int, num_donors: int, mask: NDArray[np.bool_], example: int, are_examples: bool = True) -> int:
    """The donor of a mask and an example, in Python's own integers."""
    whole = 2**64
    generator = np.random.Generator(np.random.Philox(key=seed))
    terms = generator.integers(-(2**63), 2**63 - 1, len(mask), dtype=np.int64, endpoint=True)

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % whole
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % whole
        return z ^ (z >> 31)

    of_mask = (sum(int(term) for term, kept in zip(terms, mask, strict=True) if not kept) + 2 * seed) % whole
    number = mixed((mixed(of_mask) + (example + 1) * 0x9E3779B97F4A7C15) % whole) % 2**63
    if not are_examples:
        return number % num_donors
    return (number % (num_donors - 1)) + (number % (num_donors - 1) >= example)


def one_of(examples: ExampleSet, row: int) -> Inputs:
    return examples.rows(row, row + 1).inputs


def paired(task: Task) -> Task:
    """With the next example as each one's counterfactual."""
    others = task.examples.select(np.roll(np.arange(len(task.examples)), -1)).inputs
    return replace(task, examples=replace(task.examples, counterfactual=others))


def masks_of(components: ComponentIndex) -> NDArray[np.bool_]:
    """At random, all, none, and some components alone, which leave the first layers as they are."""
    num = len(components)
    alone = (np.eye(num) == 0)[np.linspace(0, num - 1, 3).astype(int)]
    return np.concatenate([random_masks(5, num, 0.3), np.ones((1, num), np.bool_), np.zeros((1, num), np.bool_), alone])


def check(task: Task, components: ComponentIndex, source: RowSource, donor_of: DonorOf, **reference: Any) -> None:
    masks = masks_of(components)
    expected = brute_force(task, components, masks, donor_of)
    assert np.abs(expected - expected[5]).max() > 0.03
    tolerance = 3e-6 * max(1.0, np.abs(expected).max())
    value = RowValues(components, source=source, **reference)
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", value=value)
    assert engine.ungated == {}
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 5, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=tolerance, err_msg=mode)
        for mask, margins in zip(masks[-3:], expected[-3:], strict=True):
            np.testing.assert_allclose(engine.margins(mask[None])[0], margins, rtol=0, atol=tolerance, err_msg=mode)
    gradients = engine.gate_gradients(masks, (0, len(task.examples)))
    np.testing.assert_allclose(gradients.margins, expected, rtol=0, atol=tolerance)
    part = engine.gate_gradients(masks[:2], (2, 4))
    np.testing.assert_allclose(part.margins, expected[:2, 2:4], rtol=0, atol=tolerance)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", ["convolutions", "gpt2"])
def test_every_form_replays_the_donor(name: str, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not held:
        monkeypatch.setattr(row_value, "_HELD_SHARE", 0.0)
    task = small_task(5) if name == "convolutions" else gpt2()
    components = discover(task.model, "conv_filters" if name == "convolutions" else "auto")
    num = len(task.examples)
    with_pairs = paired(task)
    assert with_pairs.examples.counterfactual is not None
    pairs = ExampleSet(with_pairs.examples.counterfactual, torch.zeros(num))
    check(with_pairs, components, Paired(), lambda _mask, example: one_of(pairs, example))
    seed = 11
    own = task.examples
    check(task, components, Resampled(seed, num, True), lambda m, i: one_of(own, drawn(seed, num, m, i)))


def test_donors_of_another_reference() -> None:
    task, reference = small_task(4), small_task(6, seed=3).examples
    components = discover(task.model, "conv_filters")
    source = Resampled(2, 6, False)
    check(
        task,
        components,
        source,
        lambda m, i: one_of(reference, drawn(2, 6, m, i, are_examples=False)),
        reference=reference,
    )


def test_donors_are_drawn_evenly_and_never_the_example_itself() -> None:
    source, num, num_components = Resampled(4, 7, True), 7, 60
    terms = torch.from_numpy(source.mask_terms(num_components))
    masks = torch.from_numpy(random_masks(3000, num_components, 0.2))
    hashes = ((~masks).long() * terms).sum(dim=1)
    examples = torch.arange(num).repeat(3000)
    found = source.entries(examples, hashes.repeat_interleave(num))
    assert bool((found != examples).all())
    counts = torch.zeros(num, num).index_put_((examples, found), torch.ones(len(found)), accumulate=True)
    others = counts[~torch.eye(num, dtype=torch.bool)]
    assert float((others - 500).abs().max()) < 6 * np.sqrt(500)  # 3,000 / 6 each
    pairs = found.reshape(3000, num)
    assert float((pairs[:, 0] == pairs[:, 1]).double().mean()) == pytest.approx(5 / 36, abs=0.04)
    other_seed = Resampled(5, 7, True).entries(examples, hashes.repeat_interleave(num))
    assert float((other_seed == found).double().mean()) == pytest.approx(1 / 6, abs=0.03)


def class_task() -> tuple[Task, ComponentIndex, ClassMeans]:
    task = small_task(6)
    components = discover(task.model, "conv_filters")
    means = {name: noise(3, length, seed=n) for n, (name, length) in enumerate(all_sites(task, components).items())}
    return task, components, ClassMeans(means, torch.tensor([0, 2, 1, 1, 0, 2]))


def test_means_of_classes() -> None:
    task, components, source = class_task()
    masks = masks_of(components)
    expected = np.empty((len(masks), 6))
    for row in range(6):
        of_class = {name: means[source.classes[row]] for name, means in source.means.items()}
        one = task.examples.rows(row, row + 1)
        expected[:, row] = coar_dist.ablated_outputs(
            task.model,
            one.inputs,
            one.targets,
            masks=masks,
            components=components,
            output_function=task.output_function.name,
            ablation_value=of_class,
        )[:, 0]
    assert np.abs(expected - expected[5]).max() > 0.1
    engine = AblationEngine(task, components, "cpu", "float32", value=RowValues(components, source=source))
    for mode in ("weights", "rows"):
        engine.use(EnginePlan(mode, 4, compiled=False))
        np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=3e-6)
    np.testing.assert_allclose(engine.gate_gradients(masks, (0, 6)).margins, expected, rtol=0, atol=3e-6)


class PositionsFirst(nn.Module):
    """Its activations are (positions, rows, channels): rows are not their first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x.transpose(0, 1)).relu()
        weights = torch.arange(1.0, len(hidden) + 1)[:, None, None]
        return self.last((hidden * weights).sum(dim=0))


def test_rows_that_are_not_the_first_axis() -> None:
    """Donors are replayed as they are; the mean of a class cannot be told its rows, and is refused."""
    torch.manual_seed(3)
    model = PositionsFirst()
    components = ComponentIndex((ComponentGroup.of("first.weight", 0, 4),))
    task = Task(model, ExampleSet(noise(6, 4, 3), torch.arange(6) % 2), output_function("margin"))
    num = len(task.examples)
    masks = masks_of(components)
    expected = brute_force(task, components, masks, lambda m, i: one_of(task.examples, drawn(1, num, m, i)))
    value = RowValues(components, source=Resampled(1, num, True))
    engine = AblationEngine(copy.deepcopy(task), components, "cpu", "float32", value=value)
    np.testing.assert_allclose(engine.margins(masks), expected, rtol=0, atol=3e-6)
    means = RowValues(components, source=ClassMeans({"first.output": noise(2, 4)}, torch.arange(6) % 2))
    with pytest.raises(ComponentMismatchError, match=r"several examples share a pass|has not a row for each"):
        AblationEngine(copy.deepcopy(task), components, "cpu", "float32", value=means)


class Gated(nn.Module):
    """Calls its layer once more for some examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x).relu()
        for row in range(len(x)):
            if x[row, 0] > 0.3:
                hidden = self.first(hidden)
        return self.last(hidden)


def test_a_donor_that_takes_another_way_is_refused() -> None:
    torch.manual_seed(1)
    components = ComponentIndex((ComponentGroup.of("first.weight", 0, 3),))
    inputs = torch.rand(4, 3)
    inputs[:, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    task = Task(Gated(), ExampleSet(inputs, torch.arange(4) % 2), output_function("margin"))
    with pytest.raises((ComponentMismatchError, TaskError)):
        AblationEngine(task, components, "cpu", "float32", value=RowValues(components, source=Resampled(0, 4, True)))


def test_python() -> None:
    task = small_task(5)
    components = discover(task.model, "conv_filters")
    masks, inputs, targets = masks_of(components), task.examples.inputs, task.examples.targets
    assert isinstance(inputs, Tensor)
    asked: dict[str, Any] = {"masks": masks, "components": components, "output_function": task.output_function.name}

    def outputs(**options: Any) -> Any:
        return coar_dist.ablated_outputs(task.model, inputs, targets, **asked, **options)

    rolled = inputs.roll(-1, 0)
    expected = brute_force(task, components, masks, lambda _m, i: rolled[i : i + 1])
    found = outputs(ablation_value="counterfactual", counterfactual=rolled)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)
    expected = brute_force(task, components, masks, lambda m, i: one_of(task.examples, drawn(0, 5, m, i)))
    np.testing.assert_allclose(outputs(ablation_value="resample"), expected, rtol=0, atol=3e-6)
    examples = ExampleSet(inputs, targets, {}, rolled)
    of_set = coar_dist.ablated_outputs(task.model, examples, **asked, ablation_value="counterfactual")
    np.testing.assert_array_equal(of_set, found)
    with pytest.raises(ConfigError, match="targets is given beside an ExampleSet"):
        coar_dist.ablated_outputs(task.model, examples, targets, **asked)
    with pytest.raises(ConfigError, match="counterfactual has no effect with ablation_value='mean'"):
        outputs(ablation_value="mean", counterfactual=rolled)
    with pytest.raises(ConfigError, match=r"ablation_value='counterfactual': needs counterfactual=\.\.\."):
        outputs(ablation_value="counterfactual")
    with pytest.raises(TaskError, match=r"of the same shapes.*\(5, 1, 6, 6\).*\(4, 1, 6, 6\)"):
        outputs(ablation_value="counterfactual", counterfactual=rolled[:4])


def test_pairs_of_other_lengths_are_named() -> None:
    ids = torch.arange(24).reshape(4, 6)
    masks = torch.ones(4, 6, dtype=torch.int64), torch.ones(4, 6, dtype=torch.int64)
    masks[0][2, 4:], masks[1][2, 5:] = 0, 0
    inputs, others = ({"input_ids": ids, "attention_mask": mask} for mask in masks)
    message = (
        r"pair 2: the example has 4 tokens and its counterfactual 5 \(attention_mask\), but both must have as many"
    )
    with pytest.raises(TaskError, match=message):
        ExampleSet(inputs, torch.zeros(4), {}, others)
    pairs = ExampleSet(inputs, torch.zeros(4), {}, inputs).select([3, 1])
    assert isinstance(pairs.counterfactual, dict)
    assert pairs.counterfactual["input_ids"].tolist() == ids[[3, 1]].tolist()
