"""Linear maps inside a model, whatever class they are: what the searches for heads, neurons and experts look at."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Slice = tuple[str, int, int, int]
"""A parameter's dotted name, an axis, and the first index and the number of indices along it."""


@dataclass(frozen=True)
class Projection:
    """A linear map of features: ``nn.Linear``, Hugging Face's ``Conv1D``, or a convolution with kernel 1.

    Attributes:
        name: dotted name of the module.
        weight: dotted name of its weight.
        bias: dotted name of its bias, if it has one.
        input_axis: the weight's axis of inputs: 1, and 0 in ``Conv1D``.
        num_inputs: width of what it reads.
        num_outputs: width of what it gives.
        is_convolution: whether it is a convolution.
    """

    name: str
    weight: str
    bias: str | None
    input_axis: int
    num_inputs: int
    num_outputs: int
    is_convolution: bool = False

    @property
    def output_axis(self) -> int:
        """The weight's axis of outputs."""
        return 1 - self.input_axis


def dotted(*names: str) -> str:
    """``a.b`` from ``a`` and ``b``; empty names vanish."""
    return ".".join(name for name in names if name)


def bare(name: str) -> str:
    """A module's own name without case and underscores: ``W_q``, ``Wq`` and ``wq`` are one."""
    return name.lower().replace("_", "")


def with_those_above(name: str) -> list[str]:
    """``a.b``, ``a`` and the model's own empty name from ``a.b``."""
    parts = name.split(".") if name else []
    return [".".join(parts[:stop]) for stop in range(len(parts), -1, -1)]


def projection_of(name: str, module: nn.Module) -> Projection | None:
    """``module`` as a projection, or None if it is none."""
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    axis, is_convolution = 1, False
    if isinstance(module, nn.Linear):
        if tuple(weight.shape) != (module.out_features, module.in_features):  # packed
            return None
    elif isinstance(module, CONVOLUTIONS):
        if module.groups != 1 or {*module.kernel_size, *module.stride} != {1}:
            return None
        is_convolution = True
    elif weight.ndim == 2 and getattr(module, "nf", None) == weight.shape[1]:
        axis = 0
    else:
        return None
    bias = dotted(name, "bias") if module._parameters.get("bias") is not None else None
    inputs, outputs = weight.shape[axis], weight.shape[1 - axis]
    return Projection(name, dotted(name, "weight"), bias, axis, inputs, outputs, is_convolution)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether the module is Hugging Face's ``Conv1D``: a linear map whose weight is [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def only_projection(name: str, module: nn.Module) -> Projection | None:
    """``module`` as a projection, or the one inside it that holds its only matrix, beside norms and activations."""
    found = projection_of(name, module)
    if found is not None:
        return found
    matrices = list(islice((path for path, value in module.named_parameters() if value.ndim > 1), 2))
    if len(matrices) != 1:
        return None
    path = matrices[0].rpartition(".")[0]
    return projection_of(dotted(name, path), module.get_submodule(path))


def has_adapter(module: nn.Module) -> bool:
    """Whether the module is a layer of PEFT's around a ``base_layer``; ``plain_model`` merges these."""
    return isinstance(getattr(module, "base_layer", None), nn.Module)


def own_parameter(module: nn.Module, name: str) -> Tensor | None:
    """The module's own parameter of this name, not one of its children's."""
    return module._parameters.get(name)


def is_state_space(module: nn.Module) -> bool:
    """Whether the module is a state-space or delta-rule mixer: its parameters are a decay and a skip."""
    return any(module._parameters.get(name) is not None for name in ("A_log", "dt_bias", "D"))
