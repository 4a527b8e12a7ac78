from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from coar_dist.designs.design import RULES, MaskDesign, leave_one_out_design, listed_design
from coar_dist.errors import ConfigError


def digest(kind: str) -> str:
    design = MaskDesign(kind, num_components=101, num_masks=50, ablation_fraction=0.1, seed=12345)
    return hashlib.sha256(np.packbits(design.masks(0, 50))).hexdigest()[:16]


def test_masks_are_the_same_for_ever() -> None:
    """These bits are a promise: stored shards rely on them."""
    assert digest("bernoulli") == "2d21adab454ce97d"
    assert digest("fixed_size") == "1cafd0a13e42215b"


@pytest.mark.parametrize("kind", sorted(RULES.keys() - {"listed"}))
def test_a_mask_is_a_function_of_its_index(kind: str) -> None:
    correlation = 0.5 if kind == "correlated" else None
    whole = MaskDesign(kind, 40, 40, 0.1, seed=3, correlation=correlation).masks(0, 40)
    longer = MaskDesign(kind, 40, 1000, 0.1, seed=3, correlation=correlation)
    for start, stop in [(7, 8), (20, 40), (0, 5)]:
        np.testing.assert_array_equal(longer.masks(start, stop), whole[start:stop])


def test_seeds_and_indices_give_different_masks() -> None:
    first = MaskDesign("bernoulli", 64, 10, 0.5, seed=0).masks(0, 10)
    second = MaskDesign("bernoulli", 64, 10, 0.5, seed=1).masks(0, 10)
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 20


def test_bernoulli_ablates_each_component_independently() -> None:
    ablated = ~MaskDesign("bernoulli", 50, 20_000, 0.05, seed=1).masks(0, 20_000)
    np.testing.assert_allclose(ablated.mean(axis=0), 0.05, atol=6 * np.sqrt(0.05 * 0.95 / 20_000))
    sizes = ablated.sum(axis=1)
    assert sizes.var() == pytest.approx(50 * 0.05 * 0.95, rel=0.05)
    correlation = np.corrcoef(ablated.T) - np.eye(50)
    assert np.abs(correlation).max() < 6 / np.sqrt(20_000)


def test_fixed_size_ablates_exactly_so_many() -> None:
    design = MaskDesign("fixed_size", 50, 5_000, 0.1, seed=1)
    ablated = ~design.masks(0, 5_000)
    assert set(ablated.sum(axis=1)) == {5}
    np.testing.assert_allclose(ablated.mean(axis=0), 0.1, atol=6 * np.sqrt(0.09 / 5_000))


def test_leave_one_out_ablates_one() -> None:
    np.testing.assert_array_equal(leave_one_out_design(6).masks(0, 6), ~np.eye(6, dtype=bool))


def test_listed_ablates_what_is_listed() -> None:
    design = listed_design(5, [[], [4, 0], [2]])
    kept = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 0, 1, 1]], dtype=bool)
    np.testing.assert_array_equal(design.masks(0, 3), kept)
    np.testing.assert_array_equal(design.masks(1, 2), kept[1:2])
    assert design.ablation_fraction == pytest.approx(3 / 15)
    assert MaskDesign(**json.loads(json.dumps(design.to_json()))) == design
    assert "ablated" not in leave_one_out_design(5).to_json()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_outside_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="strictly between 0 and 1"):
        MaskDesign("bernoulli", 10, 5, fraction, 0)


def test_designs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="rounds to 0 ablated"):
        MaskDesign("fixed_size", 4, 5, 0.05, 0)
    with pytest.raises(ConfigError, match=r"design\.kind='half'.*bernoulli"):
        MaskDesign("half", 4, 5, 0.05, 0)
    with pytest.raises(ConfigError, match="at least 2 components"):
        leave_one_out_design(1)


def test_a_balanced_round_ablates_every_component_once() -> None:
    design = MaskDesign("balanced", 47, 1000, 0.1, seed=3)
    ablated = ~design.masks(0, 50)
    assert design.masks_per_round == 10
    for start in range(0, 50, 10):
        np.testing.assert_array_equal(ablated[start : start + 10].sum(axis=0), 1)
    assert set(ablated.sum(axis=1)) == {4, 5}
    assert not np.array_equal(ablated[:10], ablated[10:20])
    together = (~MaskDesign("balanced", 20, 1, 0.1, seed=1).masks(0, 20_000)).astype(float)
    joint = together.T @ together / len(together)  # two components share a part of 2 with probability 1 / 19
    np.testing.assert_allclose(joint[~np.eye(20, dtype=bool)], 0.1 / 19, atol=6 * np.sqrt(0.1 / 19 / 20_000))


@pytest.mark.parametrize(
    ("fraction", "components", "message"), [(0.4, 50, "1/2 is too far"), (0.01, 50, "less than one")]
)
def test_balanced_refuses_what_it_cannot_ablate(fraction: float, components: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskDesign("balanced", components, 10, fraction, seed=0)


def test_partners_agree_with_bernoulli_s_masks_as_they_should() -> None:
    size, num_masks, alpha, rho = 51, 20_000, 0.1, 0.3
    first = MaskDesign("bernoulli", size, num_masks, alpha, seed=9)
    second = MaskDesign("correlated", size, num_masks, alpha, seed=9, correlation=rho)
    masks, partners = first.masks(0, num_masks).astype(float), second.masks(0, num_masks).astype(float)
    tolerance = 6 / np.sqrt(num_masks)
    np.testing.assert_allclose(partners.mean(axis=0), 1 - alpha, atol=0.3 * tolerance)
    joint = np.corrcoef(masks.T, partners.T)
    np.testing.assert_allclose(joint[size:, size:], np.eye(size), atol=tolerance)  # bernoulli themselves
    np.testing.assert_allclose(np.diag(joint[:size, size:]), rho, atol=2 * tolerance)
    others = joint[:size, size:][~np.eye(size, dtype=bool)]
    assert np.abs(others).max() < tolerance


def test_a_correlation_is_of_correlated_designs_alone() -> None:
    design = MaskDesign("correlated", 101, 50, 0.1, 12345, correlation=0.25)
    assert hashlib.sha256(np.packbits(design.masks(0, 50))).hexdigest()[:16] == "2b70340cdbd12347"
    assert design.identity()["correlation"] == 0.25
    assert "correlation" not in MaskDesign("bernoulli", 101, 50, 0.1, 12345).identity()
    with pytest.raises(ConfigError, match="correlation=None of kind 'correlated'"):
        MaskDesign("correlated", 10, 5, 0.1, 0)
    with pytest.raises(ConfigError, match=r"correlation=0\.5 of kind 'bernoulli'"):
        MaskDesign("bernoulli", 10, 5, 0.1, 0, correlation=0.5)
    with pytest.raises(ConfigError, match=r"correlation=1\.0: must be strictly"):
        MaskDesign("correlated", 10, 5, 0.1, 0, correlation=1.0)
