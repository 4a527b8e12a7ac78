"""How far margins are off by rounding: measured on other last bits, and told from other errors in float64.

A margin is a difference of outputs. Where these are large beside it, as logits with a common offset are, its rounding
is theirs, many times the last bit of the margin itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from coar_dist.tasks.example_set import ExampleSet

MOST_COPIED_BYTES = 4 * 2**30
"""A copy of a model that takes more than this is not made to measure rounding."""
_DRAWS = 4


def epsilon_of(model: nn.Module) -> float:
    """Of the coarsest dtype among the parameters."""
    return max((_epsilon(p.dtype) for p in model.parameters() if p.is_floating_point()), default=2**-23)


def size_of(errors: NDArray[np.float64]) -> float:
    """Root mean square of the finite errors."""
    finite = errors[np.isfinite(errors)]
    return float(np.sqrt((finite**2).mean())) if finite.size else 0.0


def rounding_of_outputs(outputs: Any, margins: Callable[[Any], Tensor]) -> float:
    """What other last bits of a model's outputs change in the margins, root mean square.

    Args:
        outputs: of a few examples; any nesting of tensors, of which others than floats stay.
        margins: (num_examples,) of outputs; it may change what it is given.
    """
    generator = torch.Generator().manual_seed(3)

    def changed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.is_floating_point():
            return leaf.clone()
        steps = (3 * torch.rand(leaf.shape, generator=generator)).floor() - 1
        return leaf * (1 + steps.clamp(-1, 1).to(leaf) * _epsilon(leaf.dtype))

    same = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, outputs)
    exact = margins(same).double()
    errors = torch.stack([margins(tree_map(changed, outputs)).double() - exact for _ in range(_DRAWS)])
    return size_of(errors.cpu().numpy())


def with_other_last_bits(model: nn.Module) -> nn.Module:
    """A copy of a model whose weights are changed by up to a unit in the last place, at random."""
    generator = torch.Generator().manual_seed(5)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.is_floating_point():
                change = (2 * torch.rand(parameter.shape, generator=generator) - 1) * _epsilon(parameter.dtype)
                parameter.copy_(parameter.double() * (1 + change.to(parameter.device)))
    return other


def in_float64(model: nn.Module, examples: ExampleSet) -> tuple[nn.Module, ExampleSet]:
    """Copies of a model and its examples in float64, where rounding is nothing and other errors stay.

    Raises:
        MemoryError: the copy would be larger than ``MOST_COPIED_BYTES``.
    """
    if 8 * sum(parameter.numel() for parameter in model.parameters()) > MOST_COPIED_BYTES:
        raise MemoryError(f"a copy in float64 takes more than {MOST_COPIED_BYTES / 2**30:.0f} GB")
    exact = examples.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    return copy.deepcopy(model).double(), exact


def _epsilon(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)
