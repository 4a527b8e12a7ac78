from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coar_dist.ablation.effects import Effects
from coar_dist.ablation.value import ZeroWeights
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.components.masking import WeightMasker
from coar_dist.errors import TaskError
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import call_model


class Net(nn.Module):
    """Three layers behind each other; outputs of any size, around any offset."""

    def __init__(self, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.head = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 1)
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c):
            x = layer(x).tanh()
        return self.head(x)[:, 0] * self.scale + self.offset


GROUPS = ComponentIndex(tuple(ComponentGroup.of(f"{name}.weight", 0, 9) for name in "abc"))
WHOLE_LAYERS = ComponentIndex(tuple(ComponentGroup.of(f"{name}.weight", 0, 1, 9) for name in "abc"))
EXAMPLES = ExampleSet(torch.randn(11, 6, generator=torch.Generator().manual_seed(1)) + 0.3, torch.zeros(11))


def value(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return outputs


def effects_of(model: nn.Module, components: ComponentIndex = GROUPS, examples: ExampleSet = EXAMPLES) -> Effects:
    return Effects(model.eval(), ZeroWeights(components), examples, output_function(value), torch.device("cpu"))


Change = Callable[[NDArray[np.bool_]], NDArray[np.bool_]]


def zeroed_rows(effects: Effects, model: nn.Module, components: ComponentIndex, change: Change) -> NDArray[np.float64]:
    """A form that gives every row the weights of its own mask, after ``change`` of all masks (num_rows, ...)."""

    def margins_of(masks: NDArray[np.bool_], batch: ExampleSet) -> Tensor:
        masker = WeightMasker(model, components)
        margins = []
        for row, mask in enumerate(change(masks)):
            with masker.ablated(mask), torch.no_grad():
                margins.append(call_model(model, batch.inputs)[row])
        return torch.stack(margins)

    return effects.run_rows(margins_of, num_rows=5)


SIZES = [(1.0, 0.0), (1e-3, 0.0), (0.1, 290.0), (1e4, -7.0)]


@pytest.mark.parametrize(("scale", "offset"), SIZES)
@pytest.mark.parametrize("components", [GROUPS, WHOLE_LAYERS], ids=["rows", "layers"])
def test_the_right_form_is_let_in_at_any_size(scale: float, offset: float, components: ComponentIndex) -> None:
    model = Net(scale, offset)
    effects = effects_of(model, components)
    assert effects.failures(zeroed_rows(effects, model, components, lambda masks: masks)) == []


@pytest.mark.parametrize(("scale", "offset"), SIZES)
@pytest.mark.parametrize("components", [GROUPS, WHOLE_LAYERS], ids=["rows", "layers"])
@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_gate_that_does_nothing_is_refused_by_its_group(
    scale: float, offset: float, components: ComponentIndex, dead: int
) -> None:
    def kept(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        masks = masks.copy()
        masks[:, components.offsets[dead] : components.offsets[dead + 1]] = True
        return masks

    model = Net(scale, offset)
    effects = effects_of(model, components)
    failures = effects.failures(zeroed_rows(effects, model, components, kept))
    assert [failure.group for failure in failures] == [dead]
    assert failures[0].error > 0.5 * failures[0].effect


@pytest.mark.parametrize(
    "change",
    [
        lambda masks: np.roll(masks, 1, axis=0),
        lambda masks: np.repeat(masks[:1], len(masks), axis=0),
        lambda masks: np.concatenate([masks[:, 1:], masks[:, :1]], axis=1),
        lambda masks: ~masks,
    ],
    ids=["rows in another order", "one mask for all rows", "components shifted by one", "complement"],
)
def test_gates_on_the_wrong_rows_or_components_are_refused(change: Change) -> None:
    model = Net()
    effects = effects_of(model)
    assert effects.failures(zeroed_rows(effects, model, GROUPS, change))


@pytest.mark.parametrize("component", range(0, 27, 5))
def test_one_component_that_is_never_ablated_is_refused(component: int) -> None:
    def kept(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return masks | (np.arange(27) == component)

    model = Net()
    effects = effects_of(model)
    failures = effects.failures(zeroed_rows(effects, model, GROUPS, kept))
    assert [failure.group for failure in failures] == [component // 9]


@pytest.mark.parametrize(("error", "is_let_in"), [(1e-5, True), (1e-4, True), (1e-2, False), (1.0, False)])
def test_errors_are_judged_by_the_size_of_the_effects(error: float, is_let_in: bool) -> None:
    model = Net(scale=1e-2, offset=3.0)
    effects = effects_of(model)
    margins = zeroed_rows(effects, model, GROUPS, lambda masks: masks)
    unablated = len(effects.examples)
    rows = np.concatenate([chosen for _, chosen in effects.passes()])
    wrong = margins + error * (margins - margins[:unablated][rows])
    assert (effects.failures(wrong) == []) == is_let_in
    margins[-1] = np.nan
    assert [failure.group for failure in effects.failures(margins)] == [2]


def test_an_offset_of_all_margins_is_refused() -> None:
    model = Net()
    effects = effects_of(model)
    margins = zeroed_rows(effects, model, GROUPS, lambda masks: masks)
    assert effects.failures(margins + 0.1)


def test_sixteen_bits_are_held_to_their_own_rounding() -> None:
    model = Net().bfloat16()
    examples = EXAMPLES.map(lambda tensor: tensor.bfloat16())
    effects = effects_of(model, examples=examples)
    single = effects_of(Net())
    assert 2e-4 < effects.rounding < 0.02
    assert effects.failures(zeroed_rows(effects, model, GROUPS, lambda masks: masks)) == []
    exact = single.run(lambda mask, batch: _zeroed(Net(), mask, batch))
    assert effects.failures(exact) == []
    unablated = np.r_[exact[:4], np.resize(exact[:4], len(exact) - 4)]
    assert effects.failures(unablated)


def _zeroed(model: nn.Module, mask: NDArray[np.bool_], batch: ExampleSet) -> Tensor:
    with WeightMasker(model, GROUPS).ablated(mask), torch.no_grad():
        found: Tensor = model(batch.inputs)
        return found


def test_rounding_is_the_models_own() -> None:
    rounding = [effects_of(Net(scale, offset)).rounding for scale, offset in [(1.0, 0.0), (1e-3, 0.0), (0.1, 290.0)]]
    assert 1e-8 < rounding[0] < 1e-6
    assert rounding[1] == pytest.approx(rounding[0] * 1e-3, rel=0.5)
    assert 2**-25 * 290 < rounding[2] < 2**-21 * 290


class Noisy(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * self.scale * torch.randn(len(x))


class Counting(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + 0.001 * self.calls)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("kind", [Noisy, Counting])
def test_randomness_and_state_are_refused_at_any_size(kind: type[Net], scale: float) -> None:
    with pytest.raises(TaskError, match=f"{kind.__name__} gives different margins in two equal forward passes"):
        effects_of(kind(scale))


def test_a_random_model_with_nan_margins_is_told_by_numbers() -> None:
    class NoisyLog(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            return torch.where(x[:, 0] == EXAMPLES.inputs[0, 0], torch.nan, found)  # type: ignore[index]

    with pytest.raises(TaskError, match=r"NoisyLog gives different margins .* \(-?[0-9.e-]+ and -?[0-9.e-]+\)"):
        effects_of(NoisyLog(1.0))


class Mixing(nn.Module):
    """Normalises over the batch."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 9), nn.Linear(9, 1)
        self.norm = nn.BatchNorm1d(9, track_running_stats=False) if inside else nn.Identity()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)) if self.inside else self.a(x) - self.a(x).mean(0)
        return self.b(x.tanh())[:, 0]


def test_rows_that_depend_on_each_other_are_refused_by_layer() -> None:
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, 9),))
    with pytest.raises(TaskError, match=r"depends on the other examples .* the forward method of Mixing mixes rows"):
        effects_of(Mixing(inside=False).eval(), components)
    with pytest.raises(TaskError, match=r"Mixing fails on an example alone.*Expected more than 1 value"):
        effects_of(Mixing(inside=True).eval(), components)
    images = ExampleSet(torch.randn(5, 3, 6, 6) + 0.3, torch.zeros(5))
    norm = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 1)
    )
    with pytest.raises(TaskError, match=r"1 \(BatchNorm2d\) mixes rows of a batch"):
        effects_of(
            nn.Sequential(norm, nn.Flatten(0)).eval(), ComponentIndex((ComponentGroup.of("0.0.weight", 0, 4),)), images
        )


def test_the_callers_tensors_never_change() -> None:
    class InPlace(Net):
        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            return super().forward(x)

    before = EXAMPLES.inputs.clone()  # type: ignore[union-attr]
    model = InPlace()
    effects = effects_of(model)
    assert torch.equal(EXAMPLES.inputs, before)  # type: ignore[arg-type]
    margins = effects.run(lambda mask, batch: effects.margins(_masked(model, mask), batch))
    assert effects.failures(margins) == []


@pytest.mark.parametrize("num_rows", [None, 1, 2, 4])
def test_a_model_that_changes_its_inputs_at_times_is_known_to(num_rows: int | None) -> None:
    """With so many rows: all, one row or two are run at a time, all of them first."""

    class AtTimes(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == num_rows:
                x -= 0.5
                return super().forward(x)
            return super().forward(x - 0.5)

    assert effects_of(AtTimes()).changes_inputs == (num_rows is not None)


def _masked(model: nn.Module, mask: NDArray[np.bool_]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with WeightMasker(model, GROUPS).ablated(mask):
            found: Tensor = model(x)
            return found

    return call
