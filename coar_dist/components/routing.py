"""How a module of experts is called: with tokens, the experts of each, and the weights that add their outputs up.

An expert's weighted output is what the module gives where the weights of all other experts are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NOT_ADDED_UP = (
    "what its module gives is not the sum of its experts' weighted outputs, so that no value can take an expert's "
    "place. Leave these experts out (components.exclude), or use ablation.value=zero_weights."
)


@dataclass(frozen=True)
class Routing:
    """One call of a module of experts.

    Attributes:
        args: what it is given by position.
        kwargs: what it is given by name.
        chosen: (num_tokens, num_chosen) int64, the experts of each token.
        weights: the key of their weights, of the same shape, among ``args`` or ``kwargs``.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    chosen: Tensor
    weights: int | str

    def weighed(self, gates: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the module is given with its weights times ``gates``.

        Args:
            gates: (num_tokens, num_chosen), or (num_experts,) for all tokens alike.
        """
        of_chosen = gates.to(self.chosen.device)[self.chosen] if gates.ndim == 1 else gates
        given: dict[Any, Any] = {**dict(enumerate(self.args)), **self.kwargs}
        given[self.weights] = given[self.weights] * of_chosen.to(given[self.weights])
        return tuple(given[place] for place in range(len(self.args))), {name: given[name] for name in self.kwargs}

    def of_experts(self, num_experts: int) -> Tensor:
        """(num_tokens, num_experts): the weight of every expert for every token; 0 of those that are not chosen."""
        given: dict[Any, Any] = {**dict(enumerate(self.args)), **self.kwargs}
        weights: Tensor = given[self.weights]
        return weights.new_zeros(len(weights), num_experts).scatter_add(1, self.chosen, weights)

    def output(self, module: nn.Module, gates: Tensor) -> Tensor:
        """What the module gives with its weights times ``gates``; none of its hooks is called."""
        args, kwargs = self.weighed(gates)
        output: Tensor = module.forward(*args, **kwargs)
        return output

    def weighted_output(self, module: nn.Module, expert: int, output: Tensor) -> Tensor:
        """What an expert adds to ``output``, of its shape: what the module gives with all others weighed by zero.

        The module is run on the expert's own tokens, where it is given one row for each token.
        """
        is_own = (self.chosen == expert).any(dim=1)
        added = torch.zeros_like(output)
        if not bool(is_own.any()):
            return added
        given = [each for each in (*self.args, *self.kwargs.values()) if isinstance(each, Tensor)]
        is_alone = torch.arange(int(self.chosen.max()) + 1, device=self.chosen.device) == expert
        if any(each.shape[:1] != is_own.shape for each in (*given, output)):
            return self.output(module, is_alone)
        rows = is_own.nonzero()[:, 0]
        args = tuple(each[rows] if isinstance(each, Tensor) else each for each in self.args)
        kwargs = {name: each[rows] if isinstance(each, Tensor) else each for name, each in self.kwargs.items()}
        own = Routing(args, kwargs, self.chosen[rows], self.weights)
        return added.index_copy(0, rows, own.output(module, is_alone))


def routing_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Routing | None:
    """How a module of experts is called; None where it is not given its tokens' experts and their weights."""
    given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    tables = {name: value for name, value in given.items() if isinstance(value, Tensor) and value.ndim == 2}
    chosen = [value for value in tables.values() if not value.is_floating_point()]
    weights = [
        name
        for name, value in tables.items()
        if chosen and value.is_floating_point() and value.shape == chosen[0].shape
    ]
    if len(chosen) != 1 or len(weights) != 1:
        return None
    return Routing(args, kwargs, chosen[0].long(), weights[0])


def adds_up(parts: Tensor, output: Tensor) -> bool:
    """Whether the sum of weighted outputs is the output, but for rounding."""
    if output.numel() == 0:
        return True
    largest = torch.maximum(parts.abs().max(), output.abs().max()).double()
    allowed = torch.finfo(output.dtype).eps ** 0.5 * largest
    return bool((parts.double() - output.double()).abs().max() <= allowed)
