"""Forms on masks and examples of the caller's choice, behind every cut, held to the slow truth."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from coar_dist.ablation.cut_probe import hold_cuts
from coar_dist.ablation.form import Form
from coar_dist.ablation.prefix import find_cuts
from coar_dist.ablation.prepared import PreparedModel, even_size
from coar_dist.ablation.rows_form import RowsForm
from coar_dist.ablation.value import ZeroWeights
from coar_dist.ablation.weights_form import WeightsForm
from coar_dist.components.discovery import discover
from tests.models import random_masks, slow_margins, small_task

TASK = small_task(num_examples=11)
FILTERS = discover(TASK.model, "conv_filters")
FORMS = [WeightsForm, RowsForm]


def prepared() -> PreparedModel:
    return PreparedModel(copy.deepcopy(TASK), ZeroWeights(FILTERS), torch.device("cpu"), "float32")


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("rows", [1, 4, 30])
def test_any_masks_and_examples_behind_every_cut(kind: type[Form], rows: int) -> None:
    model = prepared()
    cuts = find_cuts(model)
    assert cuts is not None
    hold_cuts(cuts, model, cuts.all)
    singles = ~np.eye(FILTERS.num_components, dtype=bool)
    alone, behind = cuts.split(singles)
    assert len(alone) == 4  # conv1
    assert len(behind) == 2  # conv2 and grouped
    chosen = model.selected(model.examples, torch.tensor([8, 2, 2, 10, 5]))
    truth_of = replace(TASK, examples=TASK.examples.select([8, 2, 2, 10, 5]))
    form = kind(model, rows)
    for masks in (random_masks(6, FILTERS.num_components), singles[alone]):
        margins = form.whole(masks, chosen).numpy()
        np.testing.assert_allclose(margins, slow_margins(truth_of, FILTERS, masks), rtol=1e-4, atol=2e-5)
    for cut, members in behind:
        margins = form.behind(cut, singles[members], chosen).numpy()
        np.testing.assert_allclose(margins, slow_margins(truth_of, FILTERS, singles[members]), rtol=1e-4, atol=2e-5)
    assert form.margins(singles[:0], chosen, ([], [])).shape == (0, 5)
    form.close()


@pytest.mark.parametrize("kind", FORMS)
def test_a_form_that_failed_halfway_is_right_the_next_time(kind: type[Form]) -> None:
    """A pass that raises leaves weights, or gates, of its mask behind for nobody."""
    model = prepared()
    cuts = find_cuts(model)
    assert cuts is not None
    hold_cuts(cuts, model, cuts.all)
    singles = ~np.eye(FILTERS.num_components, dtype=bool)
    form = kind(model, 4)

    def fails(*_: object) -> None:
        raise RuntimeError("in the middle of a pass")

    handle = model.module.get_submodule("grouped").register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="in the middle of a pass"):
        form.whole(~singles, model.examples)
    handle.remove()
    for cut, members in cuts.split(singles)[1]:
        margins = form.behind(cut, singles[members], model.examples).numpy()
        np.testing.assert_allclose(margins, slow_margins(TASK, FILTERS, singles[members]), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", FORMS)
def test_a_closed_form_leaves_the_model_as_it_was(kind: type[Form]) -> None:
    model = prepared()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    with torch.no_grad():
        expected = model.module(model.examples.inputs)
    form = kind(model, 4)
    form.whole(random_masks(3, FILTERS.num_components), model.examples)
    form.close()
    assert not [name for name, _ in model.module.named_buffers() if "component" in name]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.module(model.examples.inputs), expected)


def test_a_twin_has_modules_of_its_own_on_the_same_tensors() -> None:
    model = prepared()
    twin = model.twin()
    assert twin is not None
    assert twin.module is not model.module
    pairs = list(zip(twin.module.parameters(), model.module.parameters(), strict=True))
    assert all(own is other for own, other in pairs)
    assert len(pairs) == 8

    class Locked(nn.Module):
        def __deepcopy__(self, _memo: object) -> nn.Module:
            raise TypeError("cannot pickle a lock")

    model.module.add_module("lock", Locked())
    assert model.twin() is None


def test_even_sizes() -> None:
    for total in range(1, 40):
        for most in range(1, 45):
            size = even_size(total, most)
            num_parts = -(-total // size)
            assert size <= most
            assert num_parts == -(-total // most)
            assert size == 1 or -(-total // (size - 1)) > num_parts  # a smaller size takes more parts
