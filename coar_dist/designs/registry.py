"""The registry of mask designs: what a configuration may ask for, and what ``run.json`` may name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coar_dist.config.functions import resolve
from coar_dist.designs.design import MaskDesign
from coar_dist.designs.given import Imported, LeaveOneOut, Listed, PackedMasks
from coar_dist.designs.independent import Bernoulli, Correlated
from coar_dist.designs.own import OwnDesign, Rule
from coar_dist.designs.subsets import Balanced, FixedSize

RANDOM_DESIGNS: dict[str, type[MaskDesign]] = {
    "bernoulli": Bernoulli,
    "fixed_size": FixedSize,
    "balanced": Balanced,
}
"""What a configuration may ask for by name; each takes the arguments of ``MaskDesign``, and no others."""
DESIGNS: dict[str, type[MaskDesign]] = RANDOM_DESIGNS | {
    "correlated": Correlated,
    "leave_one_out": LeaveOneOut,
    "listed": Listed,
    "imported": Imported,
}
"""All kinds but users' own rules."""


def check_kind(key: str, kind: str | Rule) -> None:
    """Check that a configuration may ask for this kind.

    Raises:
        ConfigError: it is neither a key of ``RANDOM_DESIGNS``, nor ``module:function`` that can be imported, nor a
            function.
    """
    if not callable(kind):
        resolve(key, str(kind), RANDOM_DESIGNS)


def design_of(
    key: str, kind: str | Rule, num_components: int, num_masks: int, ablation_fraction: float, seed: int
) -> MaskDesign:
    """A design of random masks, its rule checked where it is a user's own.

    Args:
        key: of ``kind`` in the configuration, for messages.
        kind: a key of ``RANDOM_DESIGNS``, ``module:function``, or a function.
        num_components, num_masks, ablation_fraction, seed: as of ``MaskDesign``.

    Raises:
        ConfigError: there is no such kind, the masks that it asks for cannot be, or a user's own rule is no function
            of the mask's id or ablates another share.
        TaskError: a user's own rule raises, or gives something else than a mask.
    """
    check_kind(key, kind)
    if isinstance(kind, str) and kind in RANDOM_DESIGNS:
        return RANDOM_DESIGNS[kind](num_components, num_masks, ablation_fraction, seed)
    return OwnDesign.checked(key, kind, num_components, num_masks, ablation_fraction, seed)


def design_from_json(
    values: Mapping[str, Any], rule: Rule | None = None, load: Callable[[], PackedMasks] | None = None
) -> MaskDesign:
    """The design that ``MaskDesign.to_json`` wrote.

    Args:
        values: what it wrote.
        rule: the function of a user's own design, where it is known.
        load: reads the masks of a listed design.
    """
    kind, arguments = str(values["kind"]), {name: value for name, value in values.items() if name != "kind"}
    if kind not in DESIGNS:
        return OwnDesign(**arguments, name=kind, rule=rule)
    if kind == Listed.kind:
        arguments["load"] = load
    return DESIGNS[kind](**arguments)
