"""The layer and the tower of a module, read from where its name differs from those of its fellows.

``model.layers.3.self_attn`` is layer 3. Where a model has several stacks of layers, each is a tower, named after the
first part of its path that the others do not share: ``vision_tower`` is ``vision``, T5 has ``encoder`` and ``decoder``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

_SUFFIXES = ("_tower", "_model")
Path = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a module is.

    Attributes:
        tower: the stack of layers; empty where the model has one.
        layer: ``3``, or ``1.0`` where stages hold blocks; empty for a module outside all stacks.
        part: what tells it from another module of its kind in the same layer, such as ``encoder_attn``; else empty.

    Example:
        >>> Place("vision", "3").named("H", 5), Place("decoder", "3", "encoder_attn").named("H", 5)
        ('vision.L3H5', 'decoder.L3.encoder_attn.H5')
    """

    tower: str = ""
    layer: str = ""
    part: str = ""

    @property
    def order(self) -> tuple[str, list[int]]:
        """Sorts layers by tower and number."""
        return self.tower, [int(number) for number in self.layer.split(".") if number]

    def __str__(self) -> str:
        return ".".join(part for part in (self.tower, f"L{self.layer}" if self.layer else "", self.part) if part)

    def named(self, letter: str, number: int | str) -> str:
        """The name of one component here, e.g. ``L3H5``."""
        between = "." if str(self) and (self.part or not self.layer) else ""
        return f"{self}{between}{letter}{number}"


def places(kinds: Mapping[str, Sequence[str]]) -> dict[str, list[Place]]:
    """The place of every module of a model, by kind, in the order given.

    Give the modules of all kinds at once, so that head and neuron agree on their layer.

    Args:
        kinds: dotted names of modules by kind, e.g. ``{"heads": [...], "neurons": [...]}``; no name twice in a kind.

    Example:
        >>> found = places({"heads": ["encoder.0.attn", "decoder.0.attn"], "neurons": ["decoder.1.mlp"]})
        >>> [str(place) for place in found["heads"]], str(found["neurons"][0])
        (['encoder.L0', 'decoder.L0'], 'decoder.L1')
    """
    paths = {name: tuple(name.split(".")) if name else () for names in kinds.values() for name in names}
    spans = _layer_spans(paths.values())
    stacks = {path[: spans[path][0]] for path in paths.values() if path in spans}
    towers = _towers(stacks)
    found = {}
    for kind, names in kinds.items():
        of_kind = {name: _place(paths[name], spans, towers) for name in names}
        _tell_apart(of_kind, {name: _within_layer(paths[name], spans) for name in names})
        found[kind] = [of_kind[name] for name in names]
    return found


def _layer_spans(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """From the first to the last number of each path that is the layer's; numbers that never differ are left out.

    A number counts if it differs among paths that are equal up to their numbers. T5's ``block.3.layer.1`` is layer 3:
    its second number says no more than the name that follows it.
    """
    numbers: dict[tuple[Path, int], set[str]] = defaultdict(set)
    firsts: dict[Path, set[str]] = defaultdict(set)
    positions = {path: [i for i, part in enumerate(path) if part.isdecimal()] for path in paths}
    for path, found in positions.items():
        for i in found:
            numbers[_without_numbers(path), i].add(path[i])
        if found:
            firsts[path[: found[0]]].add(path[found[0]])
    differing = {kind[: i + 1] for (kind, i), values in numbers.items() if len(values) > 1}
    spans = {}
    for path, found in positions.items():
        if found:
            counting = [i for i in found if _without_numbers(path)[: i + 1] in differing]
            if not counting or len(firsts[path[: found[0]]]) > 1:
                counting.insert(0, found[0])
            spans[path] = (counting[0], counting[-1])
    return spans


def _without_numbers(path: Path) -> Path:
    return tuple("#" if part.isdecimal() else part for part in path)


def _towers(stacks: set[Path]) -> dict[Path, str]:
    """A name for each stack of layers: the first part that others do not share, and more where that is not enough."""
    if len(stacks) < 2:
        return dict.fromkeys(stacks, "")
    shared = len(_common(stacks))
    branches: dict[str, set[Path]] = defaultdict(set)
    for stack in stacks:
        branches[stack[shared] if len(stack) > shared else ""].add(stack)
    short = {branch: _short(branch) for branch in branches}
    if len(set(short.values())) < len(short):
        short = {branch: branch for branch in branches}
    return {
        stack: ".".join(part for part in (short[branch], inner) if part)
        for branch, inside in branches.items()
        for stack, inner in _towers(inside).items()
    }


def _short(branch: str) -> str:
    for suffix in _SUFFIXES:
        branch = branch.removesuffix(suffix)
    return branch


def _place(path: Path, spans: Mapping[Path, tuple[int, int]], towers: Mapping[Path, str]) -> Place:
    if path in spans:
        first, last = spans[path]
        return Place(towers[path[:first]], ".".join(part for part in path[first : last + 1] if part.isdecimal()))
    nearest = max(towers, key=lambda stack: len(_common([stack, path])), default=())
    shared = len(_common([nearest, path]))
    is_inside = len(towers) > 1 and shared > len(_common(towers))
    return Place(towers[nearest] if is_inside else "", "", ".".join(path[shared:]))


def _within_layer(path: Path, spans: Mapping[Path, tuple[int, int]]) -> Path:
    """What follows the layer's number, without further numbers."""
    if path not in spans:
        return ()
    return tuple(part for part in path[spans[path][1] + 1 :] if not part.isdecimal())


def _tell_apart(found: dict[str, Place], within: Mapping[str, Path]) -> None:
    """Give parts to all modules of a tower of which two would have one name."""
    by_place: dict[Place, list[str]] = defaultdict(list)
    for name, place in found.items():
        by_place[place].append(name)
    crowded = {place.tower for place, names in by_place.items() if place.layer and len(names) > 1}
    for tower in crowded:
        names = [name for name, place in found.items() if place.tower == tower and place.layer]
        shared = len(_common({within[name] for name in names}))
        longest = max(len(within[name]) for name in names)
        for length in range(shared + 1, longest + 1):
            told = {name: replace(found[name], part=".".join(within[name][shared:length])) for name in names}
            if len(set(told.values())) == len(names) or length == longest:
                found.update(told)
                break


def _common(paths: Iterable[Path]) -> Path:
    """The parts that all paths begin with."""
    return tuple(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)))
