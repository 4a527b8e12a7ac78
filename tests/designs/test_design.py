"""Mask designs: bits that never change, their distributions, and what is refused."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from numpy.typing import NDArray

from coar_dist.designs.design import MaskDesign
from coar_dist.designs.given import Imported, LeaveOneOut, Listed, packed
from coar_dist.designs.independent import Bernoulli, Correlated
from coar_dist.designs.own import OwnDesign
from coar_dist.designs.registry import DESIGNS, RANDOM_DESIGNS, check_kind, design_from_json, design_of
from coar_dist.designs.subsets import Balanced, FixedSize
from coar_dist.errors import ConfigError

LARGEST_SEED = 2**64 - 1


def every_fifth(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
    return np.asarray((np.arange(design.num_components) + mask_id + design.seed) % 5 != 0)


def own(num_masks: int = 20) -> MaskDesign:
    return OwnDesign.checked("design.kind", every_fifth, 33, num_masks, 0.2, 7)


def common(kind: str, size: int, num_masks: int, fraction: float, seed: int) -> dict[str, object]:
    names = ("kind", "num_components", "num_masks", "ablation_fraction", "seed")
    return dict(zip(names, (kind, size, num_masks, fraction, seed), strict=True))


@pytest.mark.parametrize(
    ("design", "bits", "written"),
    [
        (Bernoulli(101, 50, 0.1, 12345), "2d21adab454ce97d", common("bernoulli", 101, 50, 0.1, 12345)),
        (Bernoulli(33, 20, 0.5, LARGEST_SEED), "a0cdf8808cda888d", common("bernoulli", 33, 20, 0.5, LARGEST_SEED)),
        (FixedSize(101, 50, 0.1, 12345), "1cafd0a13e42215b", common("fixed_size", 101, 50, 0.1, 12345)),
        (FixedSize(33, 20, 0.5, LARGEST_SEED), "ac5692265cd74b6c", common("fixed_size", 33, 20, 0.5, LARGEST_SEED)),
        (Balanced(101, 50, 0.1, 12345), "05494c4d2e4a9e4b", common("balanced", 101, 50, 0.1, 12345)),
        (Balanced(33, 20, 0.5, LARGEST_SEED), "f9761b56aa86d864", common("balanced", 33, 20, 0.5, LARGEST_SEED)),
        (
            Correlated(101, 50, 0.1, 12345, 0.25),
            "2b70340cdbd12347",
            common("correlated", 101, 50, 0.1, 12345) | {"correlation": 0.25},
        ),
        (
            Correlated(33, 20, 0.5, LARGEST_SEED, 0.9),
            "510b01cf889829d6",
            common("correlated", 33, 20, 0.5, LARGEST_SEED) | {"correlation": 0.9},
        ),
        (LeaveOneOut.of(33), "f6c103d5f487e2cb", common("leave_one_out", 33, 33, 1 / 33, 0)),
        (
            Imported(101, 50, 0.1, 0, "sha256:x"),
            None,
            common("imported", 101, 50, 0.1, 0) | {"fingerprint": "sha256:x"},
        ),
        (
            own(),
            "95b4419b8f660086",
            common(f"{__name__}:every_fifth", 33, 20, 0.2, 7)
            | {"fingerprint": "sha256:2ae9000688be06fec72044df18c3cb0d70dbc148429705a3942429dd4e00053d"},
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, MaskDesign) else "",
)
def test_masks_and_identity_are_the_same_for_ever(
    design: MaskDesign, bits: str | None, written: dict[str, object]
) -> None:
    """These are a promise, recorded from the first version: stored shards rely on them."""
    if bits is not None:
        masks = design.masks(0, design.num_masks)
        assert hashlib.sha256(np.packbits(masks)).hexdigest()[:16] == bits
    assert json.dumps(design.to_json()) == json.dumps(written)
    assert design.identity() == {name: value for name, value in written.items() if name != "num_masks"}
    again = design_from_json(json.loads(json.dumps(written)))
    assert again == design
    assert type(again) is type(design)


def test_some_masks_in_full() -> None:
    expected = {
        "bernoulli": [1, 4, 9, 12, 14, 28],
        "fixed_size": [0, 4, 16, 17, 24, 28, 29],
        "balanced": [12, 15, 16, 17, 21, 28],
    }
    assert expected.keys() == RANDOM_DESIGNS.keys()
    for kind, ablated in expected.items():
        assert np.flatnonzero(~RANDOM_DESIGNS[kind](33, 20, 0.2, 7).masks(5, 6)[0]).tolist() == ablated
    assert np.flatnonzero(~Correlated(33, 20, 0.2, 7, 0.5).masks(5, 6)[0]).tolist() == [0, 1, 7, 12, 14, 31]


@pytest.mark.parametrize(
    "design",
    [
        *(kind(40, 1000, 0.1, 3) for kind in RANDOM_DESIGNS.values()),
        Correlated(40, 1000, 0.1, 3, 0.5),
        LeaveOneOut.of(40),
        own(),
    ],
    ids=lambda design: design.kind,
)
def test_a_mask_is_a_function_of_its_index(design: MaskDesign) -> None:
    whole = design.masks(0, 40)
    for start, stop in [(7, 8), (20, 40), (0, 5), (3, 3)]:
        np.testing.assert_array_equal(design.masks(start, stop), whole[start:stop])
    for mask_id in (0, 39):
        np.testing.assert_array_equal(design.mask(mask_id), whole[mask_id])


def test_the_registry_names_every_kind() -> None:
    assert {name: kind.kind for name, kind in DESIGNS.items()} == {name: name for name in DESIGNS}
    for name, kind in RANDOM_DESIGNS.items():
        assert design_of("design.kind", name, 33, 20, 0.2, 7) == kind(33, 20, 0.2, 7)
    assert design_of("design.kind", every_fifth, 33, 20, 0.2, 7) == own()


@pytest.mark.parametrize("kind", ["half", "halves", ":f", "f:", "listed", "leave_one_out", 5, None])
def test_what_nobody_can_ask_for_is_refused(kind: object) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.kind=.*: must be one of bernoulli, fixed_size, balanced, or"):
        check_kind("evaluation.kind", kind)  # type: ignore[arg-type]


def test_seeds_and_indices_give_different_masks() -> None:
    first = Bernoulli(64, 10, 0.5, seed=0).masks(0, 10)
    second = Bernoulli(64, 10, 0.5, seed=1).masks(0, 10)
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 20


def test_bernoulli_ablates_each_component_independently() -> None:
    ablated = ~Bernoulli(50, 20_000, 0.05, seed=1).masks(0, 20_000)
    np.testing.assert_allclose(ablated.mean(axis=0), 0.05, atol=6 * np.sqrt(0.05 * 0.95 / 20_000))
    sizes = ablated.sum(axis=1)
    assert sizes.var() == pytest.approx(50 * 0.05 * 0.95, rel=0.05)
    correlation = np.corrcoef(ablated.T) - np.eye(50)
    assert np.abs(correlation).max() < 6 / np.sqrt(20_000)


def test_fixed_size_ablates_exactly_so_many() -> None:
    design = FixedSize(50, 5_000, 0.1, seed=1)
    ablated = ~design.masks(0, 5_000)
    assert set(ablated.sum(axis=1)) == {5}
    np.testing.assert_allclose(ablated.mean(axis=0), 0.1, atol=6 * np.sqrt(0.09 / 5_000))


def test_leave_one_out_ablates_one() -> None:
    np.testing.assert_array_equal(LeaveOneOut.of(6).masks(0, 6), ~np.eye(6, dtype=bool))


def test_listed_masks_are_those_of_the_list() -> None:
    masks = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 0, 1, 1]], dtype=bool)
    design = Listed.of(packed(masks), 5)
    np.testing.assert_array_equal(packed(masks), [[0b11111], [0b01110], [0b11011]])
    np.testing.assert_array_equal(design.masks(0, 3), masks)
    np.testing.assert_array_equal(design.masks(1, 2), masks[1:2])
    fingerprint = f"sha256:{hashlib.sha256(bytes([0b11111, 0b01110, 0b11011])).hexdigest()}"
    assert design.to_json() == common("listed", 5, 3, 3 / 15, 0) | {"fingerprint": fingerprint}
    again = design_from_json(json.loads(json.dumps(design.to_json())), load=lambda: packed(masks))
    assert again == design
    np.testing.assert_array_equal(again.masks(0, 3), masks)
    assert Listed.of(packed(masks[::-1]), 5) != design


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_outside_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="strictly between 0 and 1"):
        Bernoulli(10, 5, fraction, 0)


def test_designs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="rounds to 0 ablated"):
        FixedSize(4, 5, 0.05, 0)
    with pytest.raises(ConfigError, match="at least 2 components"):
        LeaveOneOut.of(1)


def test_a_balanced_round_ablates_every_component_once() -> None:
    design = Balanced(47, 1000, 0.1, seed=3)
    ablated = ~design.masks(0, 50)
    assert design.masks_per_round == 10
    for start in range(0, 50, 10):
        np.testing.assert_array_equal(ablated[start : start + 10].sum(axis=0), 1)
    assert set(ablated.sum(axis=1)) == {4, 5}
    assert not np.array_equal(ablated[:10], ablated[10:20])
    together = (~Balanced(20, 1, 0.1, seed=1).masks(0, 20_000)).astype(float)
    joint = together.T @ together / len(together)  # two components share a part of 2 with probability 1 / 19
    np.testing.assert_allclose(joint[~np.eye(20, dtype=bool)], 0.1 / 19, atol=6 * np.sqrt(0.1 / 19 / 20_000))


@pytest.mark.parametrize(
    ("fraction", "components", "message"), [(0.4, 50, "1/2 is too far"), (0.01, 50, "less than one")]
)
def test_balanced_refuses_what_it_cannot_ablate(fraction: float, components: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Balanced(components, 10, fraction, seed=0)


def test_partners_agree_with_bernoulli_s_masks_as_they_should() -> None:
    size, num_masks, alpha, rho = 51, 20_000, 0.1, 0.3
    first = Bernoulli(size, num_masks, alpha, seed=9)
    second = Correlated(size, num_masks, alpha, seed=9, correlation=rho)
    masks, partners = first.masks(0, num_masks).astype(float), second.masks(0, num_masks).astype(float)
    tolerance = 6 / np.sqrt(num_masks)
    np.testing.assert_allclose(partners.mean(axis=0), 1 - alpha, atol=0.3 * tolerance)
    joint = np.corrcoef(masks.T, partners.T)
    np.testing.assert_allclose(joint[size:, size:], np.eye(size), atol=tolerance)  # bernoulli themselves
    np.testing.assert_allclose(np.diag(joint[:size, size:]), rho, atol=2 * tolerance)
    others = joint[:size, size:][~np.eye(size, dtype=bool)]
    assert np.abs(others).max() < tolerance


def test_correlations_that_cannot_be_are_refused() -> None:
    for correlation in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"correlation=.*: must be strictly"):
            Correlated(10, 5, 0.1, 0, correlation)
