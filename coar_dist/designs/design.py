"""Mask designs: mask i is a function of (kind, seed, ablation fraction, number of components, i) alone.

Random bits come from Philox4x64-10 keyed by (seed, i), read as raw little-endian words. NumPy fixes these
streams for ever, unlike the methods of its ``Generator``. A user's own design is a rule
``(design, mask_id) -> (num_components,) bool`` of the same arguments alone, as ``module:function`` or as a function.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.registry import name_of, resolve
from coar_dist.errors import ConfigError, TaskError

_BALANCED_TOLERANCE = 0.1
_NUM_TRIED = 64
_MOST_OFF = 2.0
"""Factor between the ablation fraction and the share that the first masks of a user's own rule ablate."""
_OF_SINGLE_KINDS = ("fingerprint", "correlation", "ablated", "rule")
IMPORTED = "imported"
"""The kind of a design whose masks were drawn elsewhere: no rule makes them, the shards alone hold them."""


@dataclass(frozen=True)
class MaskDesign:
    """A rule for masks over ``num_components`` components.

    Attributes:
        kind: a key of ``RULES``, ``module:function`` of a user's own rule, or ``IMPORTED``.
        num_components: components per mask.
        num_masks: masks 0 .. num_masks - 1 belong to the design. More masks never change the earlier ones.
        ablation_fraction: alpha, the expected (bernoulli), exact (fixed_size) or nearly exact (balanced) share of
            ablated components.
        seed: 0 .. 2**64 - 1.
        fingerprint: of an imported design's masks and margins, in the place of a rule; of the first masks of a user's
            own rule; empty for all others.
        correlation: rho of a ``correlated`` design, the share of components on which its mask i is bernoulli's mask i;
            None of the others.
        ablated: of a ``listed`` design the ids of the components that each mask ablates; empty of the others.
        rule: a user's own, where it was given as a function; None: it is imported by its name, where masks are made.
            Not stored.
    """

    kind: str
    num_components: int
    num_masks: int
    ablation_fraction: float
    seed: int
    fingerprint: str = ""
    correlation: float | None = None
    ablated: Sequence[Sequence[int]] = ()
    rule: Rule | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        assert bool(self.fingerprint) == (self.kind == IMPORTED) or self.is_own
        assert len(self.ablated) == (self.num_masks if self.kind == "listed" else 0)
        if self.kind not in RULES and self.kind != IMPORTED and not self.is_own:
            raise ConfigError(
                f"design.kind={self.kind!r}: must be one of {', '.join(RULES)}, or module:function of your own."
            )
        if not 0.0 < self.ablation_fraction < 1.0:
            raise ConfigError(f"ablation_fraction={self.ablation_fraction}: must be strictly between 0 and 1.")
        if (self.kind == "correlated") != (self.correlation is not None):
            raise ConfigError(f"correlation={self.correlation} of kind {self.kind!r}: correlated masks have one alone.")
        if self.correlation is not None and not 0.0 < self.correlation < 1.0:
            raise ConfigError(f"correlation={self.correlation}: must be strictly between 0 and 1.")
        if self.kind == "balanced" and abs(self.ablation_fraction * self._parts - 1.0) > _BALANCED_TOLERANCE:
            raise ConfigError(
                f"ablation_fraction={self.ablation_fraction}: a balanced design ablates 1/2, 1/3, 1/4, ... of the "
                f"components, and 1/{self._parts} is too far from it. Use another fraction or design."
            )
        if self.kind == "balanced" and self._parts > self.num_components:
            raise ConfigError(
                f"ablation_fraction={self.ablation_fraction} of {self.num_components} components is less than one: "
                f"balanced needs at least 1 ablated component in every mask."
            )
        if self.kind == "fixed_size" and not 0 < self.num_ablated < self.num_components:
            raise ConfigError(
                f"ablation_fraction={self.ablation_fraction} of {self.num_components} components rounds to "
                f"{self.num_ablated} ablated ones: fixed_size needs at least 1 ablated and 1 kept."
            )

    @property
    def is_own(self) -> bool:
        """Whether the rule is a user's own."""
        return ":" in self.kind

    @property
    def num_ablated(self) -> int:
        """Ablated components of every mask of a fixed-size design."""
        return round(self.ablation_fraction * self.num_components)

    @property
    def masks_per_round(self) -> int:
        """Masks that together ablate every component equally often; 1 where only the expectation is equal."""
        return self._parts if self.kind == "balanced" else 1

    @property
    def _parts(self) -> int:
        return max(2, round(1.0 / self.ablation_fraction))

    def masks(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Masks ``start .. stop - 1``: (stop - start, num_components) bool, True = kept.

        Raises:
            ConfigError: the design was imported, so that no rule makes its masks; or a user's own rule cannot be
                imported here, or makes other masks here than where the run was begun.
            TaskError: a user's own rule raises, or gives something else than a mask.
        """
        if self.kind == IMPORTED:
            raise ConfigError("the masks of an imported design cannot be made anew: its margin shards alone hold them.")
        rule = _own_rule(self) if self.is_own else RULES[self.kind]
        masks = np.empty((stop - start, self.num_components), dtype=np.bool_)
        for row, mask_id in enumerate(range(start, stop)):
            masks[row] = rule(self, mask_id)
        return masks

    def identity(self) -> dict[str, Any]:
        """Everything that a mask depends on; ``num_masks`` is not among it, so a run can be extended."""
        return {name: value for name, value in self.to_json().items() if name != "num_masks"}

    def to_json(self) -> dict[str, Any]:
        """All fields, but those of single kinds only where there is one."""
        values = asdict(replace(self, rule=None))
        return {name: value for name, value in values.items() if name not in _OF_SINGLE_KINDS or value}


def _raw_words(design: MaskDesign, mask_id: int, num_words: int) -> NDArray[np.uint64]:
    generator = np.random.Philox(key=np.array([design.seed, mask_id], dtype=np.uint64))
    return np.asarray(generator.random_raw(num_words), dtype="<u8")


def bernoulli(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
    """Every component is ablated independently with probability alpha (the research code's masks).

    Alpha is rounded to a multiple of 2**-32.
    """
    words = _raw_words(design, mask_id, (design.num_components + 1) // 2).view("<u4")
    threshold = round(design.ablation_fraction * 2**32)
    return np.asarray(words[: design.num_components] >= threshold)


def correlated(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
    """Mask i of the bernoulli design of the same seed, each component drawn anew with probability 1 - rho.

    Over pairs of mask i there and here, every component's correlation is rho (rounded to a multiple of 2**-32); both
    masks are bernoulli's. The words for it follow those of mask i in the same stream.
    """
    assert design.correlation is not None
    size = design.num_components
    words = _raw_words(design, mask_id, 3 * ((size + 1) // 2)).view("<u4").reshape(3, -1)[:, :size]
    threshold = round(design.ablation_fraction * 2**32)
    stays = words[1] < round(design.correlation * 2**32)
    return np.asarray(np.where(stays, words[0], words[2]) >= threshold)


def fixed_size(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
    """A uniformly random subset of ``round(alpha * num_components)`` components is ablated (the paper's text)."""
    order = np.argsort(_raw_words(design, mask_id, design.num_components), kind="stable")
    mask = np.ones(design.num_components, dtype=np.bool_)
    mask[order[: design.num_ablated]] = False
    return mask


def balanced(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
    """Every component is ablated once in a round of round(1 / alpha) masks.

    A round is a random order of the components, cut in parts whose sizes differ by 1 at most; each mask ablates one.
    Averages over the masks that ablate a component then all have the same number of terms.
    """
    number, part = divmod(mask_id, design.masks_per_round)
    order = np.argsort(_raw_words(design, number, design.num_components), kind="stable")
    first, end = (design.num_components * edge // design.masks_per_round for edge in (part, part + 1))
    mask = np.ones(design.num_components, dtype=np.bool_)
    mask[order[first:end]] = False
    return mask


def leave_one_out(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
    """Mask i ablates component i alone; alpha is 1 / num_components."""
    mask = np.ones(design.num_components, dtype=np.bool_)
    mask[mask_id] = False
    return mask


def listed(design: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
    """Mask i ablates the components that entry i of ``ablated`` lists."""
    mask = np.ones(design.num_components, dtype=np.bool_)
    mask[list(design.ablated[mask_id])] = False
    return mask


Rule = Callable[[MaskDesign, int], NDArray[np.bool_]]
RULES: dict[str, Rule] = {
    "bernoulli": bernoulli,
    "correlated": correlated,
    "fixed_size": fixed_size,
    "balanced": balanced,
    "leave_one_out": leave_one_out,
    "listed": listed,
}


def design_of(
    key: str, kind: str | Rule, num_components: int, num_masks: int, ablation_fraction: float, seed: int
) -> MaskDesign:
    """A design of random masks, its rule checked where it is a user's own.

    Args:
        key: of ``kind`` in the configuration, for messages.
        kind: a key of ``RULES``, ``module:function``, or a function.
        num_components, num_masks, ablation_fraction, seed: as of ``MaskDesign``.

    Raises:
        ConfigError: there is no such kind, the masks that it asks for cannot be, or a user's own rule is no function
            of the mask's id or ablates another share.
        TaskError: a user's own rule raises, or gives something else than a mask.
    """
    name = kind if isinstance(kind, str) else name_of(kind)
    rule = None if isinstance(kind, str) else kind
    design = MaskDesign(name, num_components, num_masks, ablation_fraction, seed, rule=rule)
    if not design.is_own:
        return design
    masks = _own_masks(design, key, range(_NUM_TRIED))
    if not np.array_equal(masks, _own_masks(design, key, reversed(range(_NUM_TRIED)))[::-1]):
        raise ConfigError(
            f"{key}={name!r} gives another mask when it is called again: a mask must be a function of the design's "
            f"seed and the mask's id alone. Draw from np.random.default_rng([design.seed, mask_id])."
        )
    share = 1.0 - float(masks.mean())
    if share == 1.0 or not 1 / _MOST_OFF <= share / ablation_fraction <= _MOST_OFF:
        raise ConfigError(
            f"{key}={name!r} ablates {share:.3g} of the components in its first {_NUM_TRIED} masks, where "
            f"ablation_fraction={ablation_fraction:g} is asked for. True means kept. Make it follow "
            f"design.ablation_fraction, or ask for what it ablates."
        )
    return replace(design, fingerprint=_fingerprint(masks))


@cache
def _own_rule(design: MaskDesign) -> Rule:
    """A user's own rule in this process, checked once: nodes may hold another version of the module."""
    key = f"on {platform.node()}, kind"  # of which part of the configuration is not known here

    def rule(_: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
        return np.asarray(_own_masks(design, key, [mask_id])[0])

    if _fingerprint(_own_masks(design, key, range(_NUM_TRIED))) != design.fingerprint:
        raise ConfigError(
            f"{key}={design.kind!r} makes other masks in this process than where the run was begun: it must depend on "
            f"the design and the mask's id alone, and its module must be the same on all nodes."
        )
    return rule


def _own_masks(design: MaskDesign, key: str, mask_ids: Iterable[int]) -> NDArray[np.bool_]:
    rule = design.rule or resolve(key, design.kind, RULES)
    masks = []
    for mask_id in mask_ids:
        try:
            mask = np.asarray(rule(design, mask_id))
        except Exception as error:  # the user's own code may raise anything
            raise TaskError(
                f"{key}={design.kind!r} raises {type(error).__name__} for mask {mask_id}: {error}. A rule has a mask "
                f"for every id from 0 on."
            ) from error
        if mask.shape != (design.num_components,) or mask.dtype != np.bool_:
            raise TaskError(
                f"{key}={design.kind!r} gives {mask.dtype} {mask.shape} for mask {mask_id}: must be bool "
                f"({design.num_components},), True = kept."
            )
        masks.append(mask)
    return np.array(masks)


def _fingerprint(masks: NDArray[np.bool_]) -> str:
    return "sha256:" + hashlib.sha256(np.packbits(masks, axis=1).tobytes()).hexdigest()


def leave_one_out_design(num_components: int) -> MaskDesign:
    """The design whose mask i ablates component i alone.

    Raises:
        ConfigError: there are fewer than two components, so that alpha would be 1.
    """
    if num_components < 2:
        raise ConfigError(f"leave_one_out needs at least 2 components; there are {num_components}.")
    return MaskDesign("leave_one_out", num_components, num_components, 1.0 / num_components, seed=0)


def listed_design(num_components: int, ablated: Sequence[Sequence[int]]) -> MaskDesign:
    """The design whose mask i ablates the components ``ablated[i]``; its alpha is the mean share of them.

    Args:
        num_components: d.
        ablated: component ids in 0 .. d - 1, of every mask none twice; at least one id in all, and one fewer than
            everything.
    """
    assert all(len(set(ids)) == len(ids) and all(0 <= i < num_components for i in ids) for ids in ablated)
    fraction = sum(map(len, ablated)) / (len(ablated) * num_components)
    lists = [[int(i) for i in ids] for ids in ablated]
    return MaskDesign("listed", num_components, len(lists), fraction, seed=0, ablated=lists)
