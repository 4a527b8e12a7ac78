"""Folding BatchNorm into the convolution before it: exact in eval mode, and it saves a pass over memory.

The folded filter's bias is what a zeroed filter gives through the BatchNorm: beta - gamma * mu / sigma, plus the
convolution's bias times gamma / sigma. Zeroing a slice of the folded weight thus does what zeroing it before does.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from coar_dist.ablation.tracing import traced
from coar_dist.components.index import ComponentIndex

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folded:
    """What folding does to a convolution's output: ``scale * output + shift`` per channel, float64."""

    scale: Tensor
    shift: Tensor

    def __call__(self, output: Tensor) -> Tensor:
        """Of the convolution's output (num_channels,), or (k, num_channels, ...), to that of the folded one."""
        shape = [-1] if output.ndim == 1 else [1, -1, *[1] * (output.ndim - 2)]
        scale, shift = (part.to(output.device).reshape(shape) for part in (self.scale, self.shift))
        return (output.double() * scale + shift).to(output.dtype)


def folded_values(values: Mapping[str, Tensor], folded: Mapping[str, Folded]) -> dict[str, Tensor]:
    """Values by site, for a model in which BatchNorms are folded into the layers of these names."""
    changes = {f"{module}.output": change for module, change in folded.items()}
    return {site: changes[site](value) if site in changes else value for site, value in values.items()}


def fold_batch_norms(model: nn.Module, components: ComponentIndex) -> dict[str, Folded]:
    """Fold, in place, every BatchNorm that directly follows a convolution used nowhere else.

    Parameter names stay; folded BatchNorms become ``nn.Identity``. A model that cannot be traced, or a BatchNorm that
    does not qualify, stays as it is, and the log says so.

    Args:
        model: in eval mode; changed.
        components: parameters with components; a BatchNorm or a convolution bias among them is not folded.

    Returns:
        What was done to the outputs of convolutions, by their names.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, _BATCH_NORMS)]
    if not norms:
        return {}
    try:
        graph = traced(fx.Tracer(), model)
    except Exception as error:  # tracing runs the user's own forward, which may raise anything on a proxy
        _log.info("BatchNorm is not folded: the model cannot be traced (%s: %s)", type(error).__name__, error)
        return {}
    modules = dict(model.named_modules())
    uses = Counter(id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False))
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    with_components = set(components.parameters)
    folded: dict[str, Folded] = {}
    for node in graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, _BATCH_NORMS):
            continue
        before = node.args[0] if node.args else None
        conv = modules.get(str(before.target)) if isinstance(before, fx.Node) and before.op == "call_module" else None
        if (
            isinstance(before, fx.Node)
            and isinstance(conv, _CONVOLUTIONS)
            and len(before.users) == 1
            and calls[node.target] == calls[before.target] == 1
            and not {str(node.target), str(before.target)} & read
            and not {f"{node.target}.weight", f"{node.target}.bias", f"{before.target}.bias"} & with_components
            and uses[id(conv.weight)] == 1
            and norm.running_mean is not None
            and not norm.training
            and not conv._forward_hooks
            and not (norm._forward_pre_hooks or norm._forward_hooks or conv._forward_pre_hooks)
        ):
            folded[str(before.target)] = _fold(conv, norm)
            parent, _, name = str(node.target).rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
    if len(folded) < len(norms):
        _log.info(
            "%d of %d BatchNorms are not folded: they do not follow a convolution that only they read",
            len(norms) - len(folded),
            len(norms),
        )
    return folded


@torch.no_grad()
def _fold(conv: Convolution, norm: nn.modules.batchnorm._BatchNorm) -> Folded:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    change = Folded(scale, shift)
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    per_filter = scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
    conv.weight.copy_((conv.weight.double() * per_filter).to(conv.weight.dtype))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    return change
