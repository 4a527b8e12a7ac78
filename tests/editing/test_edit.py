"""A finished edit: the components that it zeroes, its record, and the orders that its selections give."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import EditConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.editing.edit import Edit, Measured, Selected
from coar_dist.editing.edit_record import load_edit, record_of
from coar_dist.editing.model_work import root_mean_squares
from coar_dist.editing.selections import Selector
from coar_dist.errors import ComponentMismatchError, ConfigError
from coar_dist.store.edits import EditStore
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from coar_dist.tasks.elsewhere import weights_of
from tests.editing.test_scores import literal_t_scores
from tests.models import local_storage, randomise

IDENTITY = {"ablation.examples_per_block": 4, "ablation.margins_dtype": "float32"}
COMPONENTS = ComponentIndex((ComponentGroup.of("0.weight", 0, 6), ComponentGroup.of("2.weight", 1, 3, 2)))
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def model() -> nn.Sequential:
    return randomise(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))  # type: ignore[return-value]


def edit_of(storage: str = "nowhere", **changes: Any) -> Edit:
    edit = Edit(
        name="mine",
        run="sha256:run",
        model_weights=weights_of(model()),
        selection="coar",
        direction="raise",
        targets=(1, 4),
        references=(0, 2, 3),
        component_ids=(7, 2),
        scores=(-3.5, -1.25),
        max_components=4,
        metric="accuracy",
        criterion="in words",
        unablated={"all": 0.5},
        selected={"coar": Selected(2, {"all": 0.75})},
        measured={"all": Measured(8, {"output": -1.0}, {"output": 2.0})},
        paired_correlation=(0.5, float("nan")),
        each=None,
        components=COMPONENTS,
        storage=storage,
    )
    return replace(edit, **changes)


def zeroed(component_ids: list[int]) -> nn.Sequential:
    edited = model()
    with torch.no_grad():
        for component in component_ids:
            if component < 6:
                edited[0].weight[component] = 0.0
            else:
                edited[2].weight[:, 2 * (component - 6) : 2 * (component - 5)] = 0.0
    return edited


def test_what_was_measured_is_a_table() -> None:
    before, after = {"accuracy": 0.75, "output": 1.5}, {"accuracy": 0.25, "output": -3.0}
    groups = {"targets": Measured(4, before, after), "others": Measured(9, after, before)}
    table = edit_of(measured=groups).to_pandas()
    assert table.index.name == "group"
    assert table["num_examples"].to_dict() == {"targets": 4, "others": 9}
    assert table["accuracy"].to_dict("index") == {
        "targets": {"before": 0.75, "after": 0.25},
        "others": {"before": 0.25, "after": 0.75},
    }
    assert table["output"].to_dict("list") == {"before": [1.5, -3.0], "after": [-3.0, 1.5]}


def test_an_edit_fits_on_a_screen() -> None:
    text = repr(edit_of("runs/mine"))
    assert text == (
        "Edit('mine' in 'runs/mine': raises 2 targets, ablates 2 of 9 components (2[:, 1], 0[2]); all output -1 -> 2)"
    )


def test_an_edit_zeroes_its_components_for_a_while_or_in_a_copy() -> None:
    net, edit = model(), edit_of()
    before, outputs = copy.deepcopy(net.state_dict()), zeroed([7, 2])(X)
    assert np.flatnonzero(~edit.mask).tolist() == [2, 7]
    with edit.applied(net) as same:
        assert same is net
        assert torch.equal(net(X), outputs)
    with pytest.raises(RuntimeError, match="boom"), edit.applied(net):
        raise RuntimeError("boom")
    copied = edit.edited(nn.DataParallel(net))
    assert isinstance(copied, nn.Sequential)
    assert torch.equal(copied(X), outputs)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(not torch.equal(copied[i].weight, net[i].weight) for i in (0, 2))


def test_models_that_the_edit_is_not_of_are_refused() -> None:
    other = model()
    other[0].bias.data += 1e-3
    for use in (edit_of().edited, lambda net: edit_of().applied(net).__enter__()):
        with pytest.raises(ComponentMismatchError, match=r"'mine' in nowhere was made for a model with weights"):
            use(other)
        with pytest.raises(ComponentMismatchError, match=r"no parameter '2\.weight'"):
            use(nn.Sequential(nn.Linear(5, 6)))
    computed = model()
    parametrizations.weight_norm(computed[0])
    with pytest.raises(ConfigError, match=r"computes weights from others.*Use edit\.edited\(model\)"):
        edit_of().applied(computed).__enter__()


def test_an_edit_of_each_target_is_applied_by_its_target(tmp_path: Path) -> None:
    run = RunDirectory.create(local_storage(tmp_path), IDENTITY, COMPONENTS, 9)
    EditStore(run).write_each({"example_id": np.array([1, 4])}, [[0], [5, 8]])
    edit = edit_of(str(tmp_path), component_ids=(), scores=(), each={"fixed": 0.5, "median_cost": float("nan")})
    for example_id, components in ((1, [0]), (4, [5, 8])):
        assert torch.equal(edit.edited(model(), example_id)(X), zeroed(components)(X))
    with pytest.raises(ConfigError, match=r"example_id=2: the targets of 'mine' are \[1, 4\]"):
        edit.edited(model(), 2)
    with pytest.raises(ConfigError, match=r"example_id=None: the edit 'mine' has one edit per target"):
        edit.edited(model())
    with pytest.raises(ConfigError, match=r"example_id=1: the edit 'mine' is one for all its targets\. Leave it out"):
        edit_of().edited(model(), 1)


@pytest.mark.parametrize(
    "changes",
    [{}, {"scores": None}, {"paired_correlation": None}, {"each": {"fixed": 0.5, "worst_cost": float("nan")}}],
    ids=["whole", "no scores", "no pairs", "each"],
)
def test_the_record_of_an_edit_is_json_and_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    run = RunDirectory.create(local_storage(tmp_path), IDENTITY, COMPONENTS, 9)
    edit = edit_of(str(tmp_path), **changes)
    EditStore(run).write(json.loads(json.dumps(record_of(edit), allow_nan=False)), "settings")
    found = load_edit(tmp_path)
    np.testing.assert_equal(vars(found), vars(edit))
    spelt = record_of(edit)["components"]
    assert spelt[0] == {
        "component_id": 7,
        "name": "2[:, 1]",
        "score": None if "scores" in changes else -3.5,
        "slices": [{"parameter": "2.weight", "axis": 1, "start": 2, "size": 2}],
    }
    assert [entry["component_id"] for entry in spelt] == [7, 2]


def test_the_size_of_a_component_is_the_root_mean_square_of_its_parameters() -> None:
    net = model()
    first, second = net[0].weight.detach().double().numpy(), net[2].weight.detach().double().numpy()
    expected = [np.sqrt((first[i] ** 2).mean()) for i in range(6)]
    expected += [np.sqrt((second[:, 2 * i : 2 * i + 2] ** 2).mean()) for i in range(3)]
    np.testing.assert_allclose(root_mean_squares(net, COMPONENTS), expected, rtol=1e-12)


@pytest.fixture
def reader(tmp_path: Path) -> RunReader:
    """Attributions of two methods."""
    run = RunDirectory.create(local_storage(tmp_path), IDENTITY, COMPONENTS, 9)
    run.set_designs({"train": RunDesign("train", Bernoulli(9, 20, 0.2, 0))})
    run.set_baselines({"neuron_conductance": {}})
    fit(run, "coar", 0)
    fit(run, "neuron_conductance", 1)
    return RunReader(run)


def fit(run: RunDirectory, method: str, seed: int) -> None:
    weights = np.random.default_rng(seed).normal(1.0, 2.0, (9, 9)).astype(np.float32)
    for first, end in run.margins("train").blocks:
        block = Attributions.of_weights(weights[first:end], np.arange(float(first), end))
        AttributionTable(run, method).write((first, end), {"seed": seed}, block)


TARGETS, REFERENCES = np.array([1, 4, 8]), np.array([0, 2, 3, 7])


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_every_selection_has_its_order(reader: RunReader, direction: str) -> None:
    compare = ["neuron_conductance", "greedy", "magnitude", "random"]
    selector = Selector.of(reader, EditConfig(compare=[*compare, "coar"], direction=direction, seed=3))
    assert (selector.main, selector.names) == ("coar", ["coar", *compare])
    magnitudes = root_mean_squares(model(), COMPONENTS)
    for references in (REFERENCES, REFERENCES[:3], REFERENCES):  # what is kept of one is not of another
        orders = selector.orders(magnitudes, TARGETS, references, 9)
        assert list(orders) == selector.names
        for method in ("coar", "neuron_conductance"):
            weights = reader.weights(None, method)
            scores = literal_t_scores(weights[TARGETS], weights[references])
            found = orders[method].scores
            assert found is not None
            np.testing.assert_allclose(found, scores, rtol=1e-9)
            sign = 1 if direction == "raise" else -1
            assert orders[method].order.tolist() == np.argsort(sign * np.array(scores)).tolist()
        assert orders["magnitude"].order.tolist() == np.argsort(magnitudes).tolist()
        by_parameter = (orders[name].order < 6 for name in ("random", "coar"))
        np.testing.assert_array_equal(*by_parameter)
        assert sorted(orders["random"].order.tolist()) == list(range(9))
        greedy = orders["greedy"].order.tolist()
        assert greedy[0] == best_first(reader, references, direction)
        assert all(orders[name].scores is None for name in ("greedy", "magnitude", "random"))


def best_first(reader: RunReader, references: Any, direction: str) -> int:
    """The component whose ablation alone makes the least mean loss of targets and of what references lose."""
    weights, intercepts = reader.weights().astype(float), reader.intercepts()
    margins = intercepts + weights.sum(axis=1)
    sign = 1 if direction == "raise" else -1

    def loss(component: int) -> float:
        moved = margins - weights[:, component]
        kept = np.logaddexp(0, -moved[references]) - np.logaddexp(0, -margins[references])
        return float(np.logaddexp(0, -sign * moved[TARGETS]).mean() + np.maximum(kept, 0).mean())

    return min(range(9), key=loss)


def test_a_selection_depends_on_the_attributions_that_it_reads(reader: RunReader) -> None:
    def fingerprint(**options: Any) -> dict[str, str]:
        return Selector.of(reader, EditConfig(**options)).fingerprint

    before = fingerprint(method="magnitude", compare=["random", "neuron_conductance"])
    assert list(before) == ["coar", "neuron_conductance"]
    assert fingerprint(method="magnitude") == {}
    assert list(fingerprint(method="greedy")) == ["coar"]
    fit(reader.directory, "neuron_conductance", 5)
    after = fingerprint(method="magnitude", compare=["random", "neuron_conductance"])
    assert after["coar"] == before["coar"]
    assert after["neuron_conductance"] != before["neuron_conductance"]


@pytest.mark.parametrize(("options", "key"), [({"method": "lasso"}, "method"), ({"compare": ["lasso"]}, "compare")])
def test_a_selection_without_attributions_is_refused(reader: RunReader, options: dict[str, Any], key: str) -> None:
    message = rf"edit\.{key}='lasso': the run has attributions of coar, neuron_conductance\. Use one of these, greedy"
    with pytest.raises(ConfigError, match=message):
        Selector.of(reader, EditConfig(**options))


def test_values_are_in_the_place_of_activations_and_in_the_biases_of_a_copy() -> None:
    """By hand: row 2 of the first layer is 0.7, and the inputs 2 and 3 of the second are -0.4 and 1.1."""
    values = {"0.output": torch.full((6,), 0.7), "2.input": torch.tensor([0.0, 0.0, -0.4, 1.1, 0.0, 0.0])}
    edit = edit_of(component_ids=(2, 7), values=values)
    plain = model()
    hidden = plain[0](X)
    hidden[:, 2] = 0.7
    hidden = hidden.tanh()
    hidden[:, 2], hidden[:, 3] = -0.4, 1.1
    expected = plain[2](hidden)
    with edit.applied(plain):
        torch.testing.assert_close(plain(X), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(plain(X), model()(X), rtol=0, atol=0)
    torch.testing.assert_close(edit.edited(plain)(X), expected, rtol=0, atol=1e-6)
    assert edit.why_not_in_weights(plain) is None
    assert [name for name, _ in edit.edited(plain).named_parameters()] == [name for name, _ in plain.named_parameters()]


def test_values_that_weights_cannot_hold_are_applied_alone() -> None:
    without_bias = randomise(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)))
    values = {"0.output": torch.full((6,), 0.7), "2.input": torch.full((6,), 0.3)}
    edit = edit_of(model_weights=weights_of(without_bias), values=values)
    with pytest.raises(ConfigError, match=r"'mine' cannot be written into weights: the layer of 2.input has no bias"):
        edit.edited(without_bias)
    hidden = without_bias[0](X)
    hidden[:, 2] = 0.7
    hidden = hidden.tanh()
    hidden[:, 2:4] = 0.3
    with edit.applied(without_bias):
        torch.testing.assert_close(without_bias(X), without_bias[2](hidden), rtol=0, atol=1e-6)


def test_zeros_are_in_the_weights_of_layers_without_a_bias() -> None:
    without_bias = randomise(nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)))
    edit = edit_of(component_ids=(2, 7), model_weights=weights_of(without_bias), values={})
    hidden = without_bias[0](X)
    hidden[:, 2] = 0.0
    hidden = hidden.tanh()
    hidden[:, 2:4] = 0.0
    expected = without_bias[2](hidden)
    assert edit.why_not_in_weights(without_bias) is None
    torch.testing.assert_close(edit.edited(without_bias)(X), expected, rtol=0, atol=1e-6)
    with edit.applied(without_bias):
        torch.testing.assert_close(without_bias(X), expected, rtol=0, atol=1e-6)
