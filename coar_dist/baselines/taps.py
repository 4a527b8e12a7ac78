"""Taps: what flows through the places where gates stand, recorded in one forward pass.

An output-axis component is tapped at its layer's output, an input-axis component at the layer's input, a row of an
embedding at the embedding's output wherever its token stands. Biases make no difference to whoever looks at changes or
at derivatives, so what ``nn.MultiheadAttention`` computes inside is tapped where its gates stand, before the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.attention import PLACEMENTS, AttentionGates, gated_attention
from coar_dist.components.gate_places import GatePlace, places_of
from coar_dist.components.index import ComponentIndex
from coar_dist.errors import ConfigError, TaskError


@dataclass(frozen=True)
class _Place:
    """Where the components of a group are tapped.

    Attributes:
        where: for messages.
        ids: (num_channels,) int64, the component of every channel, or of every token; -1 is none.
        channel_axis: of the activations.
        reads_tokens: whether components are tokens, whose embeddings are tapped.
    """

    where: str
    ids: Tensor
    channel_axis: int
    reads_tokens: bool


class Taps(nn.Module):
    """Records activations at the gates' places. Called without arguments it gives them, as a tuple, so that a forward
    hook on this one module sees all of them: Captum attributes to all layers in one pass.

    Args:
        model: gates must be right for all of its components. It is not changed, but within ``attached``.
        components: the component index.
    """

    def __init__(self, model: nn.Module, components: ComponentIndex) -> None:
        super().__init__()
        self._model = (model,)  # no submodule
        self._components = components
        self._places: list[_Place] = []
        self._values: dict[int, Tensor] = {}
        self._tokens: dict[int, Tensor] = {}
        self._used: list[int] | None = None

    def forward(self) -> tuple[Tensor, ...]:
        """The activations of the last forward pass, of all places that ``find_used`` found in use.

        Raises:
            TaskError: one of them was not passed.
        """
        keys = sorted(self._values) if self._used is None else self._used
        missing = [self._places[key].where for key in keys if key not in self._values]
        if missing:
            raise TaskError(f"{missing[0]} is called for some examples and not for others: it has no activations.")
        return tuple(self._values[key] for key in keys)

    def start(self) -> None:
        """Forget the last forward pass; to be called before every one."""
        self._values, self._tokens = {}, {}

    def find_used(self, margins: Tensor) -> int:
        """Leave out places that the margins of the last forward pass do not depend on; how many are left."""
        keys = sorted(self._values)
        if not keys:
            return 0
        found = torch.autograd.grad(margins.sum(), [self._values[key] for key in keys], allow_unused=True)
        self._used = [key for key, gradient in zip(keys, found, strict=True) if gradient is not None]
        return len(self._used)

    def summed(self, attributions: tuple[Tensor, ...]) -> Tensor:
        """Attributions of activations to attributions of components, summed over positions and within blocks.

        Args:
            attributions: as ``forward`` gives activations, each of the first n rows of the last forward pass.

        Returns:
            (n, num_components) float32 on the CPU; 0 where the margins do not depend on a component's activation.
        """
        assert self._used is not None
        num_rows = len(attributions[0])
        weights = torch.zeros(num_rows, self._components.num_components)
        for key, attribution in zip(self._used, attributions, strict=True):
            place = self._places[key]
            if place.reads_tokens:
                # On the CPU: there the order of the sum is always the same.
                per_position = attribution.float().sum(dim=-1).reshape(num_rows, -1).cpu()
                ids = place.ids[self._tokens[key][:num_rows].long().reshape(num_rows, -1).cpu()]
                weights.scatter_add_(1, ids.clamp(min=0), torch.where(ids < 0, 0.0, per_position))
            else:
                channels = attribution.float().movedim(place.channel_axis, -1)
                by_channel = channels.reshape(num_rows, -1, channels.shape[-1]).sum(dim=1).cpu()
                is_one = place.ids >= 0
                weights.index_add_(1, place.ids[is_one], by_channel[:, is_one])
        return weights

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Record for the length of a ``with`` block; the model is as before on every exit."""
        (model,) = self._model
        modules = dict(model.named_modules())
        attention: dict[str, AttentionGates] = {}
        tapped: set[tuple[str, str]] = set()
        groups, starts = self._components.groups, self._components.offsets[:-1]
        places_of_groups = places_of(model, self._components)  # before anything is replaced
        self._places = []
        with ExitStack() as stack:
            stack.callback(self.start)  # frees the last pass
            for group, start, places in zip(groups, starts, places_of_groups, strict=True):
                if len({place.slices for place in places}) < len(places):
                    raise ConfigError(f"{group.parameter} is tied, so that its components have no one activation.")
                for place in places:
                    if place.kind == "routing":
                        raise ConfigError(f"{group.parameter}: experts' outputs are added up in their module: no taps.")
                    module, keys = modules[place.module], self._new_places(place, int(start))
                    if place.kind in PLACEMENTS:
                        if (place.module, place.kind) in tapped:
                            raise ConfigError(f"{group.parameter} is cut twice along one axis, where one tap can be.")
                        tapped.add((place.module, place.kind))
                        if place.module not in attention:
                            attention[place.module] = AttentionGates()
                            stack.enter_context(_replaced_attention(module, attention[place.module]))
                        attention[place.module].put(place.kind, [partial(self._pass, key) for key in keys])
                    elif place.kind == "input":
                        stack.callback(module.register_forward_pre_hook(self._input_hook(keys[0])).remove)
                    else:
                        stack.callback(module.register_forward_hook(self._output_hook(keys[0])).remove)
            yield

    def _new_places(self, place: GatePlace, first: int) -> list[int]:
        """The keys of taps for a gate's place, whose components' ids begin at ``first``."""
        part, num_parts = place.slices, 3 if place.kind == "projections" else 1
        owners = torch.from_numpy(part.owners(place.length, -1))
        ids = torch.where(owners < 0, -1, first + owners)
        where = f"{place.module} ({part.parameter}, axis {part.axis})"
        keys = [len(self._places) + number for number in range(num_parts)]
        self._places += [_Place(where, own, place.channel_axis, place.kind == "rows") for own in ids.chunk(num_parts)]
        return keys

    def _pass(self, key: int, value: Tensor) -> Tensor:
        """Record ``value``, and give what the model goes on with: a copy, because what follows may work in place."""
        if key in self._values:
            raise ConfigError(
                f"{self._places[key].where} is called more than once in a forward pass, so that it has no one output."
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            value = value.detach().requires_grad_()
        self._values[key] = value
        return value.clone()

    def _input_hook(self, key: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self._pass(key, inputs[0]), *inputs[1:])

        return hook

    def _output_hook(self, key: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self._places[key].reads_tokens:
                self._tokens[key] = inputs[0]
            return self._pass(key, output)

        return hook


@contextmanager
def _replaced_attention(module: nn.Module, gates: AttentionGates) -> Iterator[None]:
    assert isinstance(module, nn.MultiheadAttention)
    module.forward = gated_attention(module, gates)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward
