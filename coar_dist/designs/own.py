"""Masks by a user's own rule: a function ``(design, mask_id)`` of what the design says and of the mask's id alone."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from coar_dist.config.functions import name_of, resolve
from coar_dist.designs.design import MaskDesign
from coar_dist.errors import ConfigError, TaskError

_NUM_TRIED = 64
_MOST_OFF = 2.0
"""Factor between the ablation fraction and the share that the first masks ablate."""
Rule = Callable[[MaskDesign, int], NDArray[np.bool_]]
"""``(design, mask_id) -> (num_components,)`` bool, True = kept."""


@dataclass(frozen=True)
class OwnDesign(MaskDesign):
    """A design whose masks a user's own function makes.

    Attributes:
        name: ``module:function``.
        fingerprint: of the first masks, so that other code of the same name is noticed.
        rule: the function, where it was given as one; None: it is imported by its name, where masks are made. Not
            stored.
    """

    are_independent: ClassVar[bool | None] = None
    name: str
    fingerprint: str = ""
    rule: Rule | None = field(default=None, compare=False, repr=False)

    @classmethod
    def checked(
        cls,
        key: str,
        rule: str | Rule,
        num_components: int,
        num_masks: int,
        ablation_fraction: float,
        seed: int,
    ) -> OwnDesign:
        """The design of a rule whose first masks have been looked at.

        Args:
            key: of the rule in the configuration, for messages.
            rule: ``module:function``, or a function.
            num_components, num_masks, ablation_fraction, seed: as of ``MaskDesign``.

        Raises:
            ConfigError: there is no such function, it is no function of the mask's id, or it ablates another share.
            TaskError: it raises, or gives something else than a mask.
        """
        name, function = (rule, None) if isinstance(rule, str) else (name_of(rule), rule)
        design = cls(num_components, num_masks, ablation_fraction, seed, name, rule=function)
        masks = _masks_of(design, key, range(_NUM_TRIED))
        if not np.array_equal(masks, _masks_of(design, key, reversed(range(_NUM_TRIED)))[::-1]):
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

    @property
    @override
    def kind(self) -> str:
        return self.name

    @override
    def mask(self, mask_id: int) -> NDArray[np.bool_]:
        return _checked_rule(self)(self, mask_id)

    @override
    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_json().items() if name != "name"}


@cache
def _checked_rule(design: OwnDesign) -> Rule:
    """The rule in this process, checked once: nodes may hold another version of the module."""
    key = f"on {platform.node()}, kind"  # which part of the configuration it stands in is not known here

    def rule(_: MaskDesign, mask_id: int) -> NDArray[np.bool_]:
        return np.asarray(_masks_of(design, key, [mask_id])[0])

    if _fingerprint(_masks_of(design, key, range(_NUM_TRIED))) != design.fingerprint:
        raise ConfigError(
            f"{key}={design.name!r} makes other masks in this process than where the run was begun: it must depend on "
            f"the design and the mask's id alone, and its module must be the same on all nodes."
        )
    return rule


def _masks_of(design: OwnDesign, key: str, mask_ids: Iterable[int]) -> NDArray[np.bool_]:
    rule = design.rule or resolve(key, design.name, {})
    masks = []
    for mask_id in mask_ids:
        try:
            mask = np.asarray(rule(design, mask_id))
        except Exception as error:  # the user's own code may raise anything
            raise TaskError(
                f"{key}={design.name!r} raises {type(error).__name__} for mask {mask_id}: {error}. A rule has a mask "
                f"for every id from 0 on."
            ) from error
        if mask.shape != (design.num_components,) or mask.dtype != np.bool_:
            raise TaskError(
                f"{key}={design.name!r} gives {mask.dtype} {mask.shape} for mask {mask_id}: must be bool "
                f"({design.num_components},), True = kept."
            )
        masks.append(mask)
    return np.array(masks)


def _fingerprint(masks: NDArray[np.bool_]) -> str:
    return "sha256:" + hashlib.sha256(np.packbits(masks, axis=1).tobytes()).hexdigest()
