"""Reuse of activations: layers before a mask's first ablated component give what they always give.

The model is traced, and cut where a single tensor carries all that later layers need (between the blocks of a
residual net, between the layers of a chain). A mask whose first ablated component comes after a cut runs only the rest,
on activations that are computed once for all such masks. It pays for leave-one-out masks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from coar_dist.components.index import ComponentIndex
from coar_dist.tasks.task import Inputs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cut:
    """A place where the model falls into two parts.

    Attributes:
        node_index: the last node of the first part, in the traced graph.
        saved: share of the layers with parameters that lie before it: about what a mask behind it saves.
        before: from the model's input to the cut.
        after: from the cut to the model's outputs.
    """

    node_index: int
    saved: float
    before: Callable[..., Any]
    after: Callable[..., Any]


class _Tracer(fx.Tracer):
    """Does not look inside modules that have components."""

    def __init__(self, leaves: set[str]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)


def find_cuts(model: nn.Module, components: ComponentIndex, inputs: Inputs) -> PrefixCuts | None:
    """The cuts of a model; None where it cannot be cut, and the log says why.

    Args:
        model: the prepared model; its submodules are shared, so that masks and gates act in the parts too.
        components: the component index.
        inputs: of a few examples: a cut carries a tensor whose first axis is the batch.
    """
    if isinstance(inputs, dict):
        _log.info("activations are not reused: the model takes several inputs")
        return None
    try:
        graph = _Tracer({group.module for group in components.groups}).trace(model)
        batched = _batched_nodes(model, graph, inputs)
    except Exception as error:  # tracing runs the user's own forward, which may raise anything on a proxy
        _log.info("activations are not reused: the model cannot be traced (%s: %s)", type(error).__name__, error)
        return None
    return PrefixCuts(model, components, graph, batched)


class PrefixCuts:
    """The cuts of a model, and which of them a mask may use; from ``find_cuts``.

    Args:
        model: the prepared model.
        components: the component index.
        graph: of the model.
        batched: nodes of the graph that give a tensor whose first axis is the batch.
    """

    def __init__(self, model: nn.Module, components: ComponentIndex, graph: fx.Graph, batched: set[fx.Node]) -> None:
        self._model = model
        self._graph = graph
        self._offsets = components.offsets
        nodes = list(graph.nodes)
        positions = [position for position in _cut_positions(nodes) if nodes[position] in batched]
        first_use = _first_uses(nodes)
        self._layers_before = np.cumsum([_has_parameters(model, node) for node in nodes])
        self._cut_of_group: list[int | None] = []
        for group in components.groups:
            use = min((first_use[name] for name in _readers(group.module) if name in first_use), default=0)
            self._cut_of_group.append(max((position for position in positions if position < use), default=None))
        self.part = cache(self._part)

    def of_group(self, number: int) -> Cut | None:
        """The last cut before a group's parameter, by the group's place among the groups; None where there is none."""
        position = self._cut_of_group[number]
        return None if position is None else self.part(position)

    def forget(self, number: int) -> None:
        """Reuse nothing before a group's parameter."""
        self._cut_of_group[number] = None

    def split(self, masks: NDArray[np.bool_]) -> tuple[list[int], list[tuple[Cut, list[int]]]]:
        """Rows of ``masks`` (num_masks, num_components) with no cut before what they ablate; the others per cut."""
        whole = np.zeros(len(masks), dtype=np.bool_)  # ablates what no cut comes before, as random masks mostly do
        for number, cut in enumerate(self._cut_of_group):
            if cut is None:
                whole |= ~masks[:, self._offsets[number] : self._offsets[number + 1]].all(axis=1)
        alone: list[int] = []
        by_cut: dict[int, list[int]] = {}
        for row, mask in enumerate(masks):
            position = None if whole[row] else self.of_mask(mask)
            if position is None:
                alone.append(row)
            else:
                by_cut.setdefault(position, []).append(row)
        return alone, [(self.part(position), rows) for position, rows in by_cut.items()]

    def of_mask(self, mask: NDArray[np.bool_]) -> int | None:
        """The last cut before every component that ``mask`` ablates: a node index; None where there is none.

        A mask that ablates nothing uses the last cut of all.
        """
        groups = np.unique(np.searchsorted(self._offsets, np.flatnonzero(~mask), side="right") - 1)
        cuts = [self._cut_of_group[g] for g in groups] if groups.size else self._cut_of_group
        usable = [cut for cut in cuts if cut is not None]
        if groups.size:
            return min(usable) if len(usable) == len(cuts) else None
        return max(usable, default=None)

    def _part(self, node_index: int) -> Cut:
        nodes = list(self._graph.nodes)
        last_use = _last_uses(nodes)
        cut = nodes[node_index]
        before, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in nodes[: node_index + 1]:
            copies[node] = before.node_copy(node, copies.__getitem__)
        before.output(copies[cut])
        after, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        copies[cut] = after.placeholder("activations")
        for position, node in enumerate(nodes):
            if position > node_index or (node.op == "get_attr" and last_use[node] > node_index):
                copies[node] = after.node_copy(node, copies.__getitem__)
        return Cut(
            node_index,
            float(self._layers_before[node_index] / self._layers_before[-1]),
            fx.GraphModule(self._model, before),
            fx.GraphModule(self._model, after),
        )


class _BatchedNames(fx.Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph, num_rows: int) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self._num_rows = num_rows
        self.batched: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) == self._num_rows:
            self.batched.add(n.name)
        return value


def _batched_nodes(model: nn.Module, graph: fx.Graph, inputs: Tensor) -> set[fx.Node]:
    interpreter = _BatchedNames(model, graph, len(inputs))
    with torch.no_grad():
        interpreter.run(inputs)
    return {node for node in graph.nodes if node.name in interpreter.batched}


def _cut_positions(nodes: list[fx.Node]) -> list[int]:
    """Indices of the nodes after which nothing but their own value is needed."""
    last_use = _last_uses(nodes)
    positions = []
    live: set[fx.Node] = set()
    for position, node in enumerate(nodes):
        live = {other for other in live if last_use[other] > position}
        if node.op != "get_attr" and last_use[node] > position:
            live.add(node)
        if live == {node} and node.op != "placeholder":
            positions.append(position)
    return positions


def _first_uses(nodes: list[fx.Node]) -> Mapping[str, int]:
    """Per module or parameter name the first node that calls or reads it."""
    first: dict[str, int] = {}
    for position, node in enumerate(nodes):
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            first.setdefault(target, position)
            if node.op == "get_attr":
                first.setdefault(target.rpartition(".")[0], position)
    return first


def _readers(module: str) -> list[str]:
    """The module and every module around it, any of which may be a single call in the graph."""
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """Per node the index of the last node that reads it; -1 where none does."""
    index = {node: position for position, node in enumerate(nodes)}
    return {node: max((index[user] for user in node.users), default=-1) for node in nodes}


def _has_parameters(model: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and any(True for _ in model.get_submodule(str(node.target)).parameters())
