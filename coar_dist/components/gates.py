"""Gates on components: every row of one forward pass carries its own mask, and no parameter is copied.

For an output-axis component of a linear map, a zeroed slice makes the output equal to the bias, so
``output = bias + gate * (output without bias)`` is exact; for an input-axis component the input feature is
multiplied. The compiler fuses the multiplication into the pointwise pass (bias, normalisation, activation) that
follows the layer anyway. A gate need not be 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.attention import PLACEMENTS, AttentionGates, Gate, gated_attention
from coar_dist.components.axis_gates import AxisGates
from coar_dist.components.gate_hooks import (
    GateOutput,
    Note,
    constant_value,
    embedding_hook,
    expert_values_hook,
    feature_gate,
    input_hook,
    output_hook,
    routing_hook,
    site_gate,
    weight_gate,
    whole_output_hook,
)
from coar_dist.components.gate_places import GatePlace, places_of
from coar_dist.components.index import ComponentIndex
from coar_dist.components.projections import CONVOLUTIONS, dotted, is_transposed_linear
from coar_dist.components.read_weights import stand_in
from coar_dist.components.row_values import RowForward, row_hook
from coar_dist.components.sites import Sites, Values, reads, sites_of, value_at

_PLAIN_FORWARDS = (nn.Linear.forward, *(kind.forward for kind in CONVOLUTIONS))


def plain_gate_output(linear: Tensor, gate: Tensor, bias: Tensor | None) -> Tensor:
    """``bias + gate * linear``; gate and bias broadcast to ``linear``, whose shape and dtype the result has."""
    gate = gate.to(linear.dtype)
    return linear * gate if bias is None else torch.addcmul(bias, linear, gate)


class GatedModel:
    """A model whose components are gated per row. It changes ``model``: biases move behind the gates.

    Args:
        model: a private copy.
        components: the component index.
        num_rows: rows of every forward pass: the shape is fixed, for the compiler's sake.
        device: where the gates lie.
        gate_output: how a linear map's output, its gate and its bias are put together.
        without: groups that get no gates, by their place among the groups; their gates have no effect.
        called: takes the groups whose gates are passed; None keeps the forward pass free of it.
        read: parameters that are gated where a function reads them, as from ``weights_read``.
        values: per site what an ablated component's activation is, or the model's ``RowForward`` where that differs
            from row to row; None is zeroed weights.

    Attributes:
        gates: (num_rows, num_components) float32; write it before a forward pass. 1 is kept, 0 is ablated.
    """

    def __init__(
        self,
        model: nn.Module,
        components: ComponentIndex,
        num_rows: int,
        device: torch.device,
        gate_output: GateOutput = plain_gate_output,
        without: Collection[int] = (),
        called: set[int] | None = None,
        read: Collection[str] = (),
        values: Values | RowForward | None = None,
    ) -> None:
        self.model = model
        self._values = values
        self._sites = Sites(model)
        self.gates = torch.ones(num_rows, components.num_components, device=device)
        self._called = called
        self._undo: list[Callable[[], None]] = []
        self._slices: list[tuple[int, int, list[str]]] = []  # of the gates, and the names of their buffers
        self._attention: dict[str, AttentionGates] = {}
        try:
            find_places = places_of if values is None else sites_of
            self._gate(components, gate_output, without, find_places(model, components, read))
        except BaseException:
            self.remove()
            raise

    def _gate(
        self,
        components: ComponentIndex,
        gate_output: GateOutput,
        without: Collection[int],
        all_places: Sequence[Sequence[GatePlace]],
    ) -> None:
        """Put gates in place. Groups that are cut out of one axis of one weight share a hook."""
        modules = dict(self.model.named_modules())
        shared: dict[tuple[Any, ...], list[tuple[int, GatePlace]]] = {}
        for number, places in enumerate(all_places):
            if number in without:
                continue
            assert places, components.groups[number]
            start, stop = int(components.offsets[number]), int(components.offsets[number + 1])
            self._slices.append((start, stop, []))
            for name in dict.fromkeys(place.module for place in places):
                self._register(modules[name], f"component_gate_{number}", self.gates[:, start:stop])
                self._slices[-1][2].append(dotted(name, f"component_gate_{number}"))
            for place in places:
                # A bias that is gated itself comes behind gates that leave it in.
                is_behind = place.with_bias and self._values is None
                key = (is_behind, place.module, place.kind, place.parameter, place.slices.axis)
                shared.setdefault(key, []).append((number, place))
        for members in (shared[key] for key in sorted(shared, key=lambda key: key[0])):
            self._stand(modules[members[0][1].module], members, gate_output)
        if isinstance(self._values, RowForward):
            self._tell_rows(self._values, modules)

    def _tell_rows(self, rows: RowForward, modules: Mapping[str, nn.Module]) -> None:
        held = [(*names[0].rpartition("."), start, stop) for start, stop, names in self._slices]
        gates = [(modules[module], key, start, stop) for module, _, key, start, stop in held]
        rows.set_gates(gates, self.gates.shape[1], self.gates.device)
        self._undo.append(lambda: rows.set_gates([], self.gates.shape[1], self.gates.device))
        rows.enter()
        self._undo.append(rows.leave)

    def _stand(self, module: nn.Module, members: Sequence[tuple[int, GatePlace]], gate_output: GateOutput) -> None:
        """Put the gates of some groups, of one axis of one weight, in one place."""
        numbers, place = [number for number, _ in members], members[0][1]
        gates = self._axis_gates(module, members)
        note: Note = None if self._called is None else partial(self._called.update, numbers)
        if self._values is not None:
            self._stand_at_site(module, place, gates, gate_output, note)
        elif place.kind in PLACEMENTS:
            num_parts = 3 if place.kind == "projections" else 1
            width = place.length // num_parts
            parts = [slice(part * width, (part + 1) * width) for part in range(num_parts)]
            self._gate_attention(place, module, [feature_gate(module, gates, part, note) for part in parts])
        elif place.kind == "read":
            gate = weight_gate(module, gates, gate_output, note)
            self._undo.append(stand_in(module, place.parameter, {place.slices.axis: gate}))
        elif place.kind == "routing":
            self._hook(module.register_forward_pre_hook(routing_hook(gates, note), with_kwargs=True))
        elif place.kind == "rows":
            self._hook(module.register_forward_hook(embedding_hook(gates, note)))
        elif place.kind == "input":
            self._hook(module.register_forward_pre_hook(input_hook(gates, place.channel_axis, note)))
        elif place.with_bias:
            self._hook(module.register_forward_hook(whole_output_hook(gates, place.channel_axis, gate_output, note)))
        else:
            subtracts = not self._move_bias(module)
            self._hook(
                module.register_forward_hook(output_hook(gates, place.channel_axis, gate_output, subtracts, note))
            )

    def _stand_at_site(
        self, module: nn.Module, place: GatePlace, gates: AxisGates, gate_output: GateOutput, note: Note
    ) -> None:
        """Between the activation (gate 1) and the site's value (gate 0)."""
        assert self._values is not None
        if isinstance(self._values, RowForward):
            of_rows = row_hook(self._values, place)
            self._sites.stand(place, site_gate(module, gates, of_rows, self._at_site(place, gate_output), note))
            return
        value = value_at(self._values, place).to(self.gates.device)
        if place.kind == "output":
            subtracts = not self._move_bias(module, value)
            self._hook(
                module.register_forward_hook(output_hook(gates, place.channel_axis, gate_output, subtracts, note))
            )
            return
        key = f"component_value_{len(self._undo)}"
        self._register(module, key, value)
        if place.kind == "routing":
            self._hook(module.register_forward_pre_hook(routing_hook(gates, note), with_kwargs=True))
            self._hook(module.register_forward_hook(expert_values_hook(gates, key)))
            return
        of_rows = constant_value(module, key)
        self._sites.stand(place, site_gate(module, gates, of_rows, self._at_site(place, gate_output), note))

    @staticmethod
    def _at_site(place: GatePlace, gate_output: GateOutput) -> GateOutput | None:
        """What a nonlinearity follows may be put together in a way of its own."""
        return None if reads(place) or gate_output is plain_gate_output else gate_output

    def _axis_gates(self, module: nn.Module, members: Sequence[tuple[int, GatePlace]]) -> AxisGates:
        keys = [f"component_gate_{number}" for number, _ in members]
        places_key = f"component_places_{len(self._undo)}"
        gates = AxisGates(keys, [place.slices for _, place in members], members[0][1].length, places_key)
        if gates.places is not None:
            self._register(module, places_key, gates.places.to(self.gates.device))
        return gates

    def _hook(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def leaves(self, gates: Tensor) -> list[Tensor]:
        """Gates as tensors that a backward pass gives gradients of, one per gated slice.

        Gradients of slices of one tensor would be padded to all components and added up.

        Args:
            gates: (num_rows, num_components).

        Returns:
            (num_rows, width) each; ``buffers`` puts them in place, ``gathered`` puts their gradients together.
        """
        return [part.detach().requires_grad_() for part in self.parts(gates)]

    def parts(self, gates: Tensor) -> list[Tensor]:
        """The gated slices (num_rows, width) of gates (num_rows, num_components)."""
        return [gates[:, start:stop] for start, stop, _ in self._slices]

    def buffers(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """What ``torch.func.functional_call`` takes to run the model with other gates than the attribute.

        Args:
            parts: as from ``leaves``, of any number of rows.
        """
        return {name: part for part, (_, _, names) in zip(parts, self._slices, strict=True) for name in names}

    def gathered(self, parts: Sequence[Tensor]) -> Tensor:
        """What stands at the gated slices (num_rows, width) as (num_rows, num_components), zero elsewhere."""
        if sum(stop - start for start, stop, _ in self._slices) == self.gates.shape[1]:
            return torch.cat(list(parts), dim=1)
        whole = parts[0].new_zeros(len(parts[0]), self.gates.shape[1])
        for part, (start, stop, _) in zip(parts, self._slices, strict=True):
            whole[:, start:stop] = part
        return whole

    def _register(self, module: nn.Module, key: str, tensor: Tensor | None) -> None:
        module.register_buffer(key, tensor, persistent=False)
        self._undo.append(lambda: delattr(module, key))

    def _move_bias(self, module: nn.Module, value: Tensor | None = None) -> bool:
        """Move a module's bias behind its gate, where its forward is known to add it last; whether that is so.

        With a value, what stands behind the gate is the value, and the module's own bias is less by so much.
        """
        bias = module._parameters.get("bias")
        behind = value if value is not None else None if bias is None else bias.detach()
        self._register(module, "component_bias", behind)
        needs_one = is_transposed_linear(module)  # its forward reads a bias
        if bias is None or not (needs_one or type(module).forward in _PLAIN_FORWARDS):
            return behind is None
        if value is not None:
            if value.ndim > 1:
                return False
            less = bias.detach() - value.to(bias.device, bias.dtype)
            unbiased: nn.Parameter | None = nn.Parameter(less, requires_grad=False)
        else:
            unbiased = nn.Parameter(torch.zeros_like(bias), requires_grad=False) if needs_one else None
        module.register_parameter("bias", unbiased)
        self._undo.append(lambda: module.register_parameter("bias", bias))
        return True

    def _gate_attention(self, place: GatePlace, module: nn.Module, gates: list[Gate]) -> None:
        assert isinstance(module, nn.MultiheadAttention)
        if place.module not in self._attention:
            self._attention[place.module] = AttentionGates()
            module.forward = gated_attention(module, self._attention[place.module])  # type: ignore[method-assign]
            self._undo.append(lambda: delattr(module, "forward"))
        self._attention[place.module].put(place.kind, gates)

    def remove(self) -> None:
        """Take hooks, gates and moved biases off the model again."""
        self._sites.remove()
        for undo in reversed(self._undo):
            undo()
        self._undo = []


@contextmanager
def gated(
    model: nn.Module,
    components: ComponentIndex,
    num_rows: int,
    device: torch.device,
    gate_output: GateOutput = plain_gate_output,
    without: Collection[int] = (),
    called: set[int] | None = None,
    read: Collection[str] = (),
) -> Iterator[GatedModel]:
    """A ``GatedModel`` for the length of a ``with`` block; the model is as before on every exit."""
    gated_model = GatedModel(model, components, num_rows, device, gate_output, without, called, read)
    try:
        yield gated_model
    finally:
        gated_model.remove()
