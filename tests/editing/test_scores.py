from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.independent import Bernoulli
from coar_dist.editing import scores as scores_module
from coar_dist.editing.scores import (
    Moments,
    at_random,
    by_magnitude,
    by_score,
    greedily,
    moments,
    moments_of,
    t_scores,
)
from coar_dist.errors import MissingWorkError
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDesign, RunDirectory
from coar_dist.store.tables import Attributions, AttributionTable
from tests.models import local_storage


def weights_of(num_examples: int, num_components: int = 9, seed: int = 0) -> Any:
    """Random weights whose components have different scales and large, different offsets."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(num_examples, num_components)) * np.linspace(0.1, 3, num_components)
    return (weights + np.linspace(-200, 300, num_components)).astype(np.float32)


def literal_t_scores(targets: Any, references: Any) -> list[float]:
    found = []
    for t, r in zip(targets.T.astype(float), references.T.astype(float), strict=True):
        mean_t, mean_r = sum(t) / len(t), sum(r) / len(r)
        var_t, var_r = (sum((x - m) ** 2 for x in v) / len(v) for v, m in ((t, mean_t), (r, mean_r)))
        found.append((mean_t - mean_r) / (var_t / len(t) + var_r / len(r)) ** 0.5)
    return found


@pytest.mark.parametrize("cuts", [[], [1], [2, 3, 11], [0, 70], [65, 130]])
def test_moments_are_numpys_for_any_blocks(cuts: list[int]) -> None:
    weights = weights_of(150)
    found = moments(np.split(weights, cuts))
    assert found.num_examples == 150
    np.testing.assert_allclose(found.mean, weights.mean(axis=0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(found.variance, weights.astype(np.float64).var(axis=0), rtol=1e-10)


def test_a_common_offset_costs_no_digits_and_equal_weights_have_no_variance() -> None:
    random = np.random.default_rng(0)
    weights = random.normal(size=(100, 5))
    moved = moments([weights + 1e9])
    np.testing.assert_allclose(moved.variance, weights.var(axis=0), rtol=1e-5)
    equal = moments([np.full((7, 3), 0.1, np.float32), np.full((93, 3), 0.1, np.float32)])
    np.testing.assert_array_equal(equal.variance, 0)
    np.testing.assert_array_equal(equal.mean, np.float64(np.float32(0.1)))


def test_blocks_are_not_changed() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 4))
    before = weights.copy()
    moments([weights])
    np.testing.assert_array_equal(weights, before)


def test_t_scores_are_those_of_the_paper() -> None:
    targets, references = weights_of(6, seed=1), weights_of(13, seed=2)
    scores = t_scores(moments([targets]), moments([references[:4], references[4:]]))
    np.testing.assert_allclose(scores, literal_t_scores(targets, references), rtol=1e-10)
    single = t_scores(moments([targets[:1]]), moments([references]))
    np.testing.assert_allclose(single, literal_t_scores(targets[:1], references), rtol=1e-10)


def test_one_target_and_one_reference_are_scored_by_their_difference() -> None:
    targets, references = weights_of(1, seed=1), weights_of(1, seed=2)
    scores = t_scores(moments([targets]), moments([references]))
    np.testing.assert_allclose(scores, (targets.astype(float) - references)[0], rtol=1e-12)


def test_a_component_without_spread_is_as_certain_as_a_usual_one() -> None:
    targets = Moments(1, np.array([1.0, 1e-9, 0.0, 2.0, 2.0, 2.0]), np.zeros(6))
    references = Moments(4, np.zeros(6), np.array([0.0, 0.0, 0.0, 4.0, 16.0, 100.0]))
    # Denominators 0, 0, 0, 1, 2 and 5: the zeros become 2.
    np.testing.assert_allclose(t_scores(targets, references), [0.5, 5e-10, 0.0, 2.0, 1.0, 0.4])


def test_scores_and_magnitudes_give_orders_with_ties_by_id() -> None:
    scores = np.array([0.0, -1.0, 2.0, -1.0, 0.0, 2.0])
    assert by_score(scores, "raise").tolist() == [1, 3, 0, 4, 2, 5]
    assert by_score(scores, "lower").tolist() == [2, 5, 0, 4, 1, 3]
    assert by_magnitude(np.array([3.0, 0.5, 3.0, 0.0, 0.5])).tolist() == [3, 1, 4, 0, 2]


def test_lowest_scores_raise_the_targets_predictions_most() -> None:
    """The sign: with a reference of zeros, the order is that of the effects of single ablations."""
    weights = np.array([[0.5, -2.0, 1.0, -0.1]])
    scores = t_scores(moments([weights]), Moments(1, np.zeros(4), np.zeros(4)))
    margin_without = [float(np.delete(weights[0], c).sum()) for c in range(4)]
    assert by_score(scores, "raise").tolist() == np.argsort(margin_without)[::-1].tolist()
    assert by_score(scores, "lower").tolist() == np.argsort(margin_without).tolist()


OFFSETS = np.array([0, 5, 6, 18, 40])


def test_a_random_order_takes_as_many_components_of_every_parameter() -> None:
    order = np.random.default_rng(0).permutation(40)
    drawn = at_random(order, OFFSETS, seed=3)
    assert sorted(drawn.tolist()) == list(range(40))
    for k in range(41):
        taken, expected = (np.histogram(ids[:k], bins=OFFSETS - 0.5)[0] for ids in (drawn, order))
        np.testing.assert_array_equal(taken, expected)
    np.testing.assert_array_equal(at_random(order[:11], OFFSETS, seed=3), drawn[:11])
    assert (drawn != order).sum() > 20
    assert (drawn != at_random(order, OFFSETS, seed=4)).sum() > 20


def test_random_orders_are_uniform_within_a_parameter() -> None:
    order = np.array([7, 20, 6])
    first = np.array([at_random(order, OFFSETS, seed) for seed in range(2400)])
    counts = np.bincount(first[:, 0], minlength=40)
    assert set(np.flatnonzero(counts)) == set(range(6, 18))
    assert ((counts[6:18] > 140) & (counts[6:18] < 260)).all()  # 200 +- 13.5 each
    assert (first[:, 0] != first[:, 2]).all()


def literal_greedy(t: Any, t_intercepts: Any, r: Any, r_intercepts: Any, direction: str, size: int) -> list[int]:
    def loss(margin: float) -> float:
        return float(np.logaddexp(0, -margin))

    def margin(weights: Any, intercept: float, ablated: list[int]) -> float:
        return float(intercept + sum(w for c, w in enumerate(weights) if c not in ablated))

    def objective(ablated: list[int]) -> float:
        sign = 1 if direction == "raise" else -1
        of_targets = [loss(sign * margin(w, b, ablated)) for w, b in zip(t, t_intercepts, strict=True)]
        of_references = [
            max(0.0, loss(margin(w, b, ablated)) - loss(margin(w, b, []))) for w, b in zip(r, r_intercepts, strict=True)
        ]
        return float(np.mean(of_targets) + np.mean(of_references))

    chosen: list[int] = []
    for _ in range(size):
        left = [c for c in range(t.shape[1]) if c not in chosen]
        chosen.append(min(left, key=lambda c: objective([*chosen, c])))
    return chosen


@pytest.mark.parametrize("direction", ["raise", "lower"])
@pytest.mark.parametrize("values_at_once", [1, 40, 2**17])
def test_the_greedy_order_is_that_of_the_objective(
    direction: str, values_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "_VALUES_AT_ONCE", values_at_once)
    random = np.random.default_rng(0)
    t, r = random.normal(size=(3, 12)), random.normal(size=(5, 12))
    margins_t, margins_r = random.normal(size=3) * 2, random.normal(size=5) * 2 + 2
    intercepts = margins_t - t.sum(axis=1), margins_r - r.sum(axis=1)
    order = greedily(t, intercepts[0], r, intercepts[1], direction, 12)
    assert order.tolist() == literal_greedy(t, intercepts[0], r, intercepts[1], direction, 12)
    np.testing.assert_array_equal(greedily(t, intercepts[0], r, intercepts[1], direction, 5), order[:5])
    offset = 1e6  # of weights and intercepts, gone from every margin: of one component per example alone
    t[:, 11] += offset
    r[:, 11] += offset
    moved = greedily(t, intercepts[0] - offset, r, intercepts[1] - offset, direction, 5)
    assert moved.tolist() == literal_greedy(t, intercepts[0] - offset, r, intercepts[1] - offset, direction, 5)


def test_greedy_stops_pulling_where_the_targets_are_across_and_spares_the_references() -> None:
    # Component 0 raises the target most and costs the reference its class; 1 raises enough, and 2 does after it.
    t, r = np.array([[-6.0, -4.0, -0.5, 0.0]]), np.array([[5.0, 0.1, 0.0, 0.0]])
    order = greedily(t, -1.0 - t.sum(axis=1), r, 3.0 - r.sum(axis=1), "raise", 4)
    assert order.tolist() == [1, 2, 3, 0]
    # A reference that gains, component 0's, pays for none that loses.
    t, r = np.array([[-2.0, -1.9]]), np.array([[3.0, 0.0], [-9.0, 0.0]])
    order = greedily(t, np.array([2.9]), r, np.array([-2.0, 6.0]), "raise", 1)
    assert order.tolist() == [1]


def test_greedy_lowers_targets_and_keeps_references_from_falling() -> None:
    t, r = np.array([[3.0, 2.5, 0.0]]), np.array([[4.0, -4.0, 0.0]])
    order = greedily(t, 2.0 - t.sum(axis=1), r, 1.0 - r.sum(axis=1), "lower", 3)
    assert order.tolist() == [1, 0, 2]


def test_equal_candidates_go_by_id_and_huge_margins_do_not_overflow() -> None:
    t, r = np.full((2, 5), -1000.0), np.zeros((1, 5))
    with np.errstate(all="raise", under="ignore"):
        assert greedily(t, np.zeros(2), r, np.zeros(1), "raise", 5).tolist() == [0, 1, 2, 3, 4]
        assert greedily(t, np.full(2, 9000.0), r, np.zeros(1), "lower", 3).tolist() == [0, 1, 2]


def test_moments_of_a_run_are_those_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = ComponentIndex((ComponentGroup.of("a.weight", 0, 9),))
    identity = {"ablation.examples_per_block": 3, "ablation.margins_dtype": "float32"}
    directory = RunDirectory.create(local_storage(tmp_path), identity, components, 11)
    directory.set_designs({"train": RunDesign("train", Bernoulli(9, 20, 0.2, 0))})
    run, weights = RunReader(directory), weights_of(11)
    with pytest.raises(MissingWorkError, match="run the fit stage"):
        moments_of(run, [1], None)
    intercepts = np.arange(11.0)
    for first, end in directory.margins("train").blocks:
        block = Attributions.of_weights(weights[first:end], intercepts[first:end])
        AttributionTable(directory, "coar").write((first, end), {}, block)
    ids = np.array([10, 0, 2, 9, 1])
    np.testing.assert_array_equal(run.weights(ids), weights[ids])
    np.testing.assert_array_equal(run.intercepts(ids), intercepts[ids])
    read = []
    original = AttributionTable.read
    monkeypatch.setattr(AttributionTable, "read", lambda table, block: (read.append(block), original(table, block))[1])
    found = moments_of(run, ids, "coar")
    assert read == [(0, 3), (9, 11)]
    np.testing.assert_allclose(found.mean, weights[ids].mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.variance, weights[ids].astype(np.float64).var(axis=0), rtol=1e-9)
