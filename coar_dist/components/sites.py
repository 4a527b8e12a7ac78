"""Sites: where a component's activation is replaced when the ablation value is not zeroed weights.

A filter or a row has its site at its module's output, after the bias. A head, a neuron, or any other slice of what a
matrix reads, has it at the input of that matrix. An expert has it at its weighted output, which no tensor of the model
is: it is replaced by weighing the expert by zero, and adding the value to what the module of experts gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coar_dist.components.attention import PLACEMENTS, AttentionGates, Gate, gated_attention
from coar_dist.components.gate_places import GatePlace, places_of
from coar_dist.components.index import ComponentIndex
from coar_dist.components.mixture_sites import MixtureSites, in_lists_of_experts, why_not_weighed
from coar_dist.components.projections import dotted
from coar_dist.components.read_weights import WeightGate, stand_in
from coar_dist.components.routing import Routing, routing_of
from coar_dist.errors import ComponentMismatchError, ConfigError, listed

Replace = Callable[[Tensor, int, slice], Tensor]
"""From an activation, its axis of channels, and which of the site's channels they are, to what takes its place."""
ValueOf = Callable[[Tensor, int, slice], Tensor | None]
"""The same to the value at a site, which an ablated component has; None leaves the activation there."""
Values = Mapping[str, Tensor]
"""Per site (``site_name``) a value for each of its channels, (num_channels,), or per position: see ``placed``. A site
of experts has such a value for each: (num_experts, width), or (num_experts, k, ..., width). A site that is not among
them has zeros."""
_ALL = slice(None)


def site_name(place: GatePlace) -> str:
    """The name of a place's site, by which values are given and stored: ``layer1.0.conv1.output``."""
    side = "weighted_output" if place.kind == "routing" else "input" if reads(place) else "output"
    if place.kind in PLACEMENTS:
        return dotted(place.module, "in_proj" if place.kind == "projections" else "out_proj", side)
    is_own = place.kind == "read" and place.parameter != "weight"  # a parameter that is no layer's
    return dotted(place.module, place.parameter if is_own else "", side)


def value_at(values: Values, place: GatePlace) -> Tensor:
    """The value of a place's site: (num_channels,), or one per position; of experts one for each."""
    value = values.get(site_name(place))
    return torch.zeros(value_shape(place)) if value is None else value


def value_shape(place: GatePlace) -> tuple[int, ...]:
    """The shape of a value that is the same at all positions."""
    return (place.length, place.width) if place.kind == "routing" else (place.length,)


def reads(place: GatePlace) -> bool:
    """Whether the components are at what a matrix reads; else at what it gives."""
    if place.kind == "read":  # a matrix that a function reads may be transposed: its first axis is called its output
        return place.slices.axis == 1
    return place.kind in ("input", "attention_input")


def sites_of(model: nn.Module, components: ComponentIndex, read: Collection[str] = ()) -> list[list[GatePlace]]:
    """Per group the places of its components' sites; a component of several matrices has several.

    Args:
        model: whose modules own the parameters.
        components: the component index.
        read: parameters that functions read themselves, as from ``weights_read``.

    Raises:
        ComponentMismatchError: a group has no site; the message names a component and says why.
    """
    found, without = tapped_sites_of(model, components, read)
    for number, why in without.items():
        raise _no_site(components, number, why)
    return found


def tapped_sites_of(
    model: nn.Module, components: ComponentIndex, read: Collection[str] = ()
) -> tuple[list[list[GatePlace]], dict[int, str]]:
    """As ``sites_of``, for whoever looks at the activations of those components that have some.

    Returns:
        Per group the places of its components' sites; and by the number of each group that has none, why.
    """
    found = MixtureSites(model).of(components, places_of(model, components, read), read)
    without = {}
    for number, places in enumerate(found):
        why = next((why for place in places if (why := _why_not_a_site(model, place)) is not None), None)
        if not places or why is not None:
            module = components.groups[number].slices[0].module
            without[number] = why or f"{type(model.get_submodule(module)).__name__} has none along that axis"
    return found, without


def valued_sites_of(model: nn.Module, components: ComponentIndex, read: Collection[str] = ()) -> list[list[GatePlace]]:
    """As ``sites_of``, where values other than zero are to take the place of activations.

    Raises:
        ComponentMismatchError: as ``sites_of``; or an expert is a module in a list, at whose output zero is zero
            however it is weighed, and another value is not.
    """
    found = sites_of(model, components, read)
    for number, holder in MixtureSites(model).listed(found).items():
        raise _no_site(components, number, f"its output is weighed outside {holder}", "zero or ")
    return found


def activation_sites_of(
    model: nn.Module, components: ComponentIndex, read: Collection[str] = ()
) -> list[list[GatePlace]]:
    """As ``sites_of``, where another example's activation is to take an activation's place.

    Raises:
        ComponentMismatchError: as ``valued_sites_of``; or an expert's weighted output is no tensor of the model; or it
            is within an expert that sees tokens of which nothing says whose they are.
    """
    found, in_lists = valued_sites_of(model, components, read), in_lists_of_experts(model)
    for number, places in enumerate(found):
        if any(place.kind == "routing" for place in places):
            why = "its weighted output is no tensor that an example could lend"
            raise _no_site(components, number, why, "mean or ")
        if any(place.module.startswith(in_lists) for place in places):
            why = "it is in an expert, which a router may send some of the tokens alone"
            raise _no_site(components, number, why, "mean or ")
    return found


def _why_not_a_site(model: nn.Module, place: GatePlace) -> str | None:
    if place.kind == "rows":
        return "an embedding's rows are chosen by tokens"
    return why_not_weighed(model, place) if place.kind == "routing" else None


def _no_site(components: ComponentIndex, group: int, why: str, instead: str = "") -> ComponentMismatchError:
    name, parameter = components.name_of(int(components.offsets[group])), components.groups[group].parameter
    return ComponentMismatchError(
        f"{name} (a slice of {parameter}) has no site where a value could take its activation's place: {why}. "
        f"Leave it out (components.exclude), or use ablation.value={instead}zero_weights."
    )


def checked_values(given: Values, model: nn.Module, components: ComponentIndex) -> dict[str, Tensor]:
    """A user's own values, held to the sites of the components; float32 on the CPU.

    Raises:
        ConfigError: a site has none, or one of another shape, or it is not finite; or there is no such site.
        ComponentMismatchError: as ``valued_sites_of``.
    """
    shapes = {site_name(place): value_shape(place) for places in valued_sites_of(model, components) for place in places}
    unknown, missing = [name for name in given if name not in shapes], [name for name in shapes if name not in given]
    if unknown or missing:
        what = f"there is no site {listed(unknown, 3)}" if unknown else f"no value is given for {listed(missing, 3)}"
        raise ConfigError(f"ablation.constants: {what}. The components' sites are {listed(list(shapes), 5)}.")
    for name, value in given.items():
        if value.shape != shapes[name] or not value.is_floating_point():
            of_each = f" of each of its {shapes[name][0]} experts" if len(shapes[name]) > 1 else ""
            raise ConfigError(
                f"ablation.constants: {name} is {value.dtype} of shape {tuple(value.shape)}, but must be one float for "
                f"each of its {shapes[name][-1]} channels{of_each}."
            )
        if not bool(value.isfinite().all()):
            raise ConfigError(f"ablation.constants: {name} has values that are not finite.")
    return {name: given[name].detach().cpu().float() for name in shapes}


def placed(value: Tensor, like: Tensor, channel_axis: int) -> Tensor:
    """A site's value, shaped to take the place of ``like``.

    Args:
        value: (num_channels,), or (k, ...) for an activation (num_rows * k, ...): one value per position.
        like: the activation.
        channel_axis: its axis of channels.

    Raises:
        ComponentMismatchError: values per position meet an activation of another shape.
    """
    if value.ndim == 1:
        shape = [1] * like.ndim
        shape[channel_axis] = -1
        return value.to(like.dtype).reshape(shape)
    if value.shape[1:] != like.shape[1:] or like.shape[0] % value.shape[0]:
        raise ComponentMismatchError(
            f"values of positions, of shape {tuple(value.shape)}, meet an activation of shape {tuple(like.shape)}: "
            f"ablation.mean_over=position needs inputs of one length."
        )
    repeats = like.shape[0] // value.shape[0]
    return value.to(like.dtype).repeat(repeats, *[1] * (value.ndim - 1))


class Sites:
    """Stands at sites of a model, and replaces activations there, until it is removed.

    Args:
        model: gets hooks; its parameters stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self._attention: dict[str, AttentionGates] = {}
        self._undo: list[Callable[[], Any]] = []

    def stand(self, place: GatePlace, replace: Replace) -> None:
        """Replace the activation at a place, after what replaces it there already."""
        module, axis = self._modules[place.module], place.channel_axis
        if place.kind == "output":
            hook = module.register_forward_hook(lambda _module, _inputs, output: replace(output, axis, _ALL))
            self._undo.append(hook.remove)
        elif place.kind == "block":
            self._undo.append(module.register_forward_hook(partial(_replaced_first, replace, axis)).remove)
        elif place.kind == "routing":
            raise ComponentMismatchError(
                f"{site_name(place)}: outputs of experts are added up inside {type(module).__name__}; only constants "
                f"can take their place. Use ablation.value=mean, or leave them out (components.exclude)."
            )
        elif place.kind == "input":
            before = module.register_forward_pre_hook(
                lambda _module, inputs: (replace(inputs[0], axis, _ALL), *inputs[1:])
            )
            self._undo.append(before.remove)
        elif place.kind == "read":
            gate = WeightGate(partial(_replaced_output, replace), partial(_replaced, replace), _refuse_tokens)
            self._undo.append(stand_in(module, place.parameter, {place.slices.axis: gate}))
        else:
            assert place.kind in PLACEMENTS, place
            assert isinstance(module, nn.MultiheadAttention)
            self._stand_in_attention(place, module, replace)

    def at_experts(self, place: GatePlace, see: Callable[[nn.Module, Routing, Tensor], None]) -> None:
        """Show how a module of experts is called, and what it gave."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            see(module, _routing(place, module, args, kwargs, output), output)

        self._undo.append(self._modules[place.module].register_forward_hook(hook, with_kwargs=True).remove)

    def replace_experts(self, place: GatePlace, kept: Tensor, value: Tensor) -> None:
        """Put values in the place of the weighted outputs of all experts that are not ``kept``, (num_experts,) bool."""

        def weigh(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _routing(place, module, args, kwargs).weighed(kept)

        def add(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
            of_ablated = (~kept).to(output.device, value.dtype) @ value.to(output.device).flatten(1)
            return output + placed(of_ablated.reshape(value.shape[1:]), output, -1)

        module = self._modules[place.module]
        self._undo.append(module.register_forward_pre_hook(weigh, with_kwargs=True).remove)
        self._undo.append(module.register_forward_hook(add).remove)

    def _stand_in_attention(self, place: GatePlace, module: nn.MultiheadAttention, replace: Replace) -> None:
        """Gates stand before the biases of an attention module, sites behind them."""
        if place.module not in self._attention:
            self._attention[place.module] = AttentionGates()
            module.forward = gated_attention(module, self._attention[place.module])  # type: ignore[method-assign]
            self._undo.append(lambda: delattr(module, "forward"))
        gates = self._attention[place.module]
        if place.kind == "attention_input":
            gates.output_inputs = partial(_after, gates.output_inputs, replace, _ALL, None)
        elif place.kind == "attention_output":
            gates.output = partial(_after, gates.output, replace, _ALL, module.out_proj.bias)
        else:
            width, biases = place.length // 3, module.in_proj_bias
            gates.projections = [
                partial(_after, before, replace, part, None if biases is None else biases[part])
                for number, before in enumerate(gates.projections)
                for part in [slice(number * width, (number + 1) * width)]
            ]

    def remove(self) -> None:
        """Take all hooks off."""
        for undo in reversed(self._undo):
            undo()
        self._undo, self._attention = [], {}


def _replaced_first(replace: Replace, axis: int, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A mixture may give its router's logits beside its own output."""
    if isinstance(output, tuple):
        return replace(output[0], axis, _ALL), *output[1:]
    return replace(output, axis, _ALL)


def _routing(place: GatePlace, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Routing:
    routing = routing_of(args, kwargs)
    if routing is None or not isinstance(output, Tensor | None):
        raise ComponentMismatchError(
            f"{site_name(place)}: {type(module).__name__} is not given its tokens' experts and their weights, so that "
            f"no value can take an expert's place. Leave its experts out (components.exclude), or use "
            f"ablation.value=zero_weights."
        )
    return routing


def _after(before: Gate, replace: Replace, part: slice, bias: Tensor | None, features: Tensor) -> Tensor:
    """``before``, then the replacement of what has its bias already; the bias is added later."""
    features = before(features)
    if bias is None:
        return replace(features, -1, part)
    bias = bias.to(features.dtype)
    return replace(features + bias, -1, part) - bias


def _replaced_output(replace: Replace, output: Tensor, bias: Tensor | None, channel_axis: int) -> Tensor:
    return replace(output if bias is None else output + placed(bias, output, channel_axis), channel_axis, _ALL)


def _replaced(replace: Replace, features: Tensor, channel_axis: int) -> Tensor:
    return replace(features, channel_axis, _ALL)


def _refuse_tokens(_tokens: Tensor, _output: Tensor) -> Tensor:
    raise ComponentMismatchError("rows of an embedding have no site: use ablation.value=zero_weights.")
