"""What a selector leaves out of a model although it looks as if it were meant, with the reason."""

from __future__ import annotations

from torch import nn

from coar_dist.components.attention_sites import attention_sites, passed_over_attention
from coar_dist.components.mlp_sites import passed_over_mlps
from coar_dist.components.projections import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, is_state_space

_OF_ATTENTION = ("heads", "query_heads", "key_value_groups", "attention_blocks", "layers", "auto")
_OF_MLPS = ("neurons", "mlp_blocks", "layers", "auto")


def passed_over(model: nn.Module, selector: str) -> dict[str, str]:
    """Modules that look as if a selector should find components in them, and have none, with the reason."""
    without: dict[str, str] = {}
    if selector in _OF_ATTENTION:
        without |= passed_over_attention(model)
    if selector == "query_heads":
        missing = [site.module for site in attention_sites(model) if site.query is None]
        without |= dict.fromkeys(missing, "how its query's rows belong to heads is not known")
    if selector in _OF_MLPS:
        without |= passed_over_mlps(model)
    output = output_convolution(model) if selector == "auto" and not _is_of_tokens(model) else None
    return without if output is None else {**without, output: "the output layer"}


def has_state_space_mixers(model: nn.Module) -> bool:
    """Whether a module of the model is a state-space or delta-rule mixer."""
    return any(is_state_space(module) for module in model.modules())


def output_convolution(model: nn.Module) -> str | None:
    """The convolution that gives the model's outputs: no other weight with several axes stands behind it."""
    last = None
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim > 1:
            last = name if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)) else None
    return last


def _is_of_tokens(model: nn.Module) -> bool:
    return bool(attention_sites(model)) or has_state_space_mixers(model)
