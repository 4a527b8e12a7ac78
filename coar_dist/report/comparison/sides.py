"""The two sides of a comparison: which components and examples they have in common, and in what else they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.methods import label_of
from coar_dist.errors import ConfigError, RunMismatchError, counted, shortened
from coar_dist.store.methods import fitted_methods
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory
from coar_dist.store.values import OF_VALUES, value_in_words

_NOTHING = "-"


@dataclass(frozen=True)
class Side:
    """Attributions of some examples of a run by one method.

    Attributes:
        reader: of the run.
        example_ids: (n,) int64, which examples.
        method: one that the run has.
    """

    reader: RunReader
    example_ids: NDArray[np.int64]
    method: str

    @property
    def where(self) -> str:
        """The run directory."""
        return str(self.reader.directory.storage)


@dataclass(frozen=True)
class Matching:
    """What two sides have in common.

    Attributes:
        names: what the sides are called.
        example_ids: (n,) int64, rising.
        components: (2, num_common) int64: the ids of each common component in either run, in the order of the first.
        only: names of the components of one side alone, of either.
        share_masks: whether both were fitted to the same masks.
        differences: what differs besides, (what, of one, of the other).
        warnings: what makes the weights those of other questions: outputs, examples or ablations that differ.
    """

    names: tuple[str, str]
    example_ids: NDArray[np.int64]
    components: NDArray[np.int64]
    only: tuple[list[str], list[str]]
    share_masks: bool
    differences: list[tuple[str, str, str]]
    warnings: list[str]


def match(one: Side, other: Side) -> Matching:
    """Match components by name and examples by id.

    Raises:
        ConfigError: both sides are the same, a run does not have the method, or components have no names of their own,
            or no name in common.
        RunMismatchError: the sides have other examples.
    """
    for side in (one, other):
        fitted = fitted_methods(side.reader.directory)
        if side.method not in fitted:
            raise ConfigError(f"methods={side.method}: {side.where} has {', '.join(fitted) or 'no attributions yet'}.")
    is_one_run = one.where == other.where
    if is_one_run and one.method == other.method:
        there = f"methods=[{one.method},...]"
        raise ConfigError(f"both sides are {one.method} of {one.where}. Name two methods, as {there}, or another run.")
    components, only = _common(one, other)  # first, as other models often have other examples, too
    of_examples, names = _check_examples(one, other), _names(one, other)
    return Matching(
        names,
        np.sort(one.example_ids),
        components,
        only,
        _share_masks(one, other),
        _differences(one, other),
        [*_of_outputs(one, other, names), *of_examples, *_of_ablation(one, other, names)],
    )


def _names(one: Side, other: Side) -> tuple[str, str]:
    """By what differs: the method, the last folder, or both."""
    if one.where == other.where:
        return label_of(one.method), label_of(other.method)
    folders = [side.where.rstrip("/").rpartition("/")[2] for side in (one, other)]
    if folders[0] == folders[1]:
        folders = [one.where, other.where]
    if one.method == other.method:
        return folders[0], folders[1]
    return f"{folders[0]}, {label_of(one.method)}", f"{folders[1]}, {label_of(other.method)}"


def _check_examples(one: Side, other: Side) -> list[str]:
    """Check that ids name the same examples; a warning where their data are not the same.

    Raises:
        RunMismatchError: they do not.
    """
    ids = [np.sort(side.example_ids) for side in (one, other)]
    if not np.array_equal(ids[0], ids[1]):
        in_both = np.intersect1d(ids[0], ids[1])
        where = f"{one.where} has {counted(len(ids[0]), 'example')}, and {other.where} has {len(ids[1]):,}"
        if not len(in_both):
            raise RunMismatchError(f"{where}, none of them with the same id: nothing can be compared.")
        some = f"{in_both[0]}-{in_both[-1]}" if len(in_both) == in_both[-1] - in_both[0] + 1 else f"{in_both[0]},..."
        raise RunMismatchError(
            f"{where}, {len(in_both):,} of them with the same ids. Where ids name the same examples, compare those: "
            f"examples={some}."
        )
    if not len(ids[0]):
        raise ConfigError("there is no example to compare.")
    if one.where == other.where:
        return []
    fingerprints = [side.reader.directory.identity.get("examples") for side in (one, other)]
    if fingerprints[0] == fingerprints[1]:
        return []
    labels = [side.reader.examples(ids[0].tolist())["label"] for side in (one, other)]
    if all(np.issubdtype(each.dtype, np.number) for each in labels):
        known = np.isfinite(labels[0]) & np.isfinite(labels[1])
        wrong = np.flatnonzero(known & (labels[0] != labels[1]))
        if wrong.size:
            raise RunMismatchError(
                f"{one.where} and {other.where} are of other examples: the labels of {wrong.size:,} of "
                f"{counted(len(ids[0]), 'example')} differ, the first of them {ids[0][wrong[0]]}. Compare runs of the "
                f"same examples in the same order."
            )
    return ["The examples are not the same data (their fingerprints differ): they are matched by their ids."]


def _of_outputs(one: Side, other: Side, names: tuple[str, str]) -> list[str]:
    """A warning where the sides explain other outputs."""
    outputs = [side.reader.directory.identity.get("output_function") for side in (one, other)]
    if None in outputs or outputs[0] == outputs[1]:
        return []
    those = f"{shortened(outputs[0])} of {names[0]}, {shortened(outputs[1])} of {names[1]}"
    return [f"The output functions differ: {those}. What the weights are of, and their unit, are not the same."]


def _of_ablation(one: Side, other: Side, names: tuple[str, str]) -> list[str]:
    """Warnings where the sides ablate something else: other values in place of components, other shares of them."""
    runs, warnings = [side.reader.directory for side in (one, other)], []
    values = [{key: run.identity[key] for key in OF_VALUES if key in run.identity} for run in runs]
    if values[0] != values[1]:
        words = [value_in_words(run.identity) for run in runs]
        those = f"{words[0]} in {names[0]}, {words[1]} in {names[1]}"
        same = "" if words[0] != words[1] else f", but not the same ones: {', '.join(_unlike(*values))}"
        warnings.append(f"What ablated components are replaced by differs: {those}{same}.")
    fractions = [_fraction(run) for run in runs]
    if None not in fractions and fractions[0] != fractions[1]:
        warnings.append(
            f"Masks ablate {fractions[0]:.3g} of the components in {names[0]} and {fractions[1]:.3g} in {names[1]}: "
            f"weights are means over other contexts."
        )
    return warnings


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in OF_VALUES if one.get(key) != other.get(key)]


def _fraction(run: RunDirectory) -> float | None:
    return run.designs[TRAIN_DESIGN].design.ablation_fraction if TRAIN_DESIGN in run.designs else None


def _common(one: Side, other: Side) -> tuple[NDArray[np.int64], tuple[list[str], list[str]]]:
    names = [side.reader.components.names() for side in (one, other)]
    for side, own in zip((one, other), names, strict=True):
        if len(set(own)) < len(own):
            raise ConfigError(f"components of {side.where} share a name, by which they would be matched.")
    places = [{name: i for i, name in enumerate(own)} for own in names]
    pairs = [(i, places[1][name]) for name, i in places[0].items() if name in places[1]]
    if not pairs:
        raise ConfigError(
            f"no component of {one.where} (such as {names[0][0]}) has the name of one of {other.where} (such as "
            f"{names[1][0]}): they are matched by name."
        )
    only = [name for name in names[0] if name not in places[1]], [name for name in names[1] if name not in places[0]]
    return np.array(pairs, dtype=np.int64).T, only


def _share_masks(one: Side, other: Side) -> bool:
    designs = [side.reader.directory.designs.get(TRAIN_DESIGN) for side in (one, other)]
    return None not in designs and len({repr(each and each.design.to_json()) for each in designs}) == 1


def _differences(one: Side, other: Side) -> list[tuple[str, str, str]]:
    facts = [_facts(side) for side in (one, other)]
    return [
        (key, shortened(facts[0].get(key, _NOTHING)), shortened(facts[1].get(key, _NOTHING)))
        for key in dict.fromkeys([*facts[0], *facts[1]])
        if facts[0].get(key, _NOTHING) != facts[1].get(key, _NOTHING)
    ]


def _facts(side: Side) -> dict[str, str]:
    """What tells a side's attributions from others, in words."""
    run = side.reader.directory
    facts = {"run": side.where, "method": label_of(side.method)}
    facts |= {key: str(value) for key, value in run.identity.items()}
    for name in (TRAIN_DESIGN, GRADIENT_DESIGN):
        if name in run.designs:
            facts |= {f"{name}.{key}": str(value) for key, value in run.designs[name].design.to_json().items()}
    return facts


def chosen_examples(reader: RunReader, examples: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Some of a run's examples, each once.

    Raises:
        ConfigError: one of them is not there.
    """
    ids = np.unique(np.asarray(examples, dtype=np.int64))
    outside = ids[(ids < 0) | (ids >= reader.directory.num_examples)]
    if outside.size:
        raise ConfigError(
            f"examples names example {outside[0]}, but {reader.directory.storage} has examples 0.."
            f"{reader.directory.num_examples - 1}."
        )
    return ids
