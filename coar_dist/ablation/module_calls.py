"""Calls of a model's modules: watched, and answered by others, hooks and all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Answer = Callable[..., Any]
"""Called with what a module's own answer comes from and then with what that is called with; gives its output."""
_CALL = "_call_impl"
"""What ``nn.Module.__call__`` runs: the forward method with the hooks around it."""


@contextmanager
def answered_by(model: nn.Module, answers: Mapping[str, Answer]) -> Iterator[None]:
    """Let ``answers``, by module names, stand in for the modules; every exit restores them."""
    modules = {name: model.get_submodule(name) for name in answers}
    try:
        for name, module in modules.items():
            vars(module)[_CALL] = partial(answers[name], module._call_impl)
        yield
    finally:
        for module in modules.values():
            vars(module).pop(_CALL, None)


@dataclass(frozen=True)
class Call:
    """A call in a pass.

    Attributes:
        module: its name.
        start: when it began, in calls that had begun or ended by then.
        end: when it ended.
        leaves: the leaves of its output: shape and dtype of a tensor, else the object.
    """

    module: str
    start: int
    end: int
    leaves: list[Any]


def watched(model: nn.Module, run: Callable[[], object]) -> list[Call]:
    """All calls of the model's modules, but for the model itself, while ``run`` runs it, in the order of their ends."""
    calls: list[Call] = []
    clock = 0

    def answer(name: str, forward: Answer, *args: Any, **kwargs: Any) -> Any:
        nonlocal clock
        start, clock = clock, clock + 1
        output = forward(*args, **kwargs)
        calls.append(Call(name, start, clock, [_described(leaf) for leaf in tree_leaves(output)]))
        clock += 1
        return output

    names = [name for name, _ in model.named_modules() if name]
    with answered_by(model, {name: partial(answer, name) for name in names}):
        run()
    return calls


def _described(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


def kinds_of_leaves(few: Call, more: Call, num_few: int, num_more: int) -> list[str] | None:
    """What the leaves of a module's output are, from two passes of different numbers of rows.

    Returns:
        Per leaf ``rows`` (a tensor with a row per example), ``fixed`` (another tensor) or ``constant``; None where one
        is none of these.
    """
    if len(few.leaves) != len(more.leaves):
        return None
    kinds = []
    for one, other in zip(few.leaves, more.leaves, strict=True):
        if isinstance(one, tuple) and isinstance(other, tuple) and one[1] == other[1]:
            of_rows = one[0][:1] == (num_few,) and other[0][:1] == (num_more,) and one[0][1:] == other[0][1:]
            if not of_rows and one[0] != other[0]:
                return None
            kinds.append("rows" if of_rows else "fixed")
        elif isinstance(one, (type(None), bool, int, float, str)) and type(one) is type(other) and one == other:
            kinds.append("constant")
        else:
            return None
    return kinds


def placeholder(tensor: Tensor) -> tuple[Tensor, torch.Size]:
    """NaN of a tensor's dtype on its device, and the shape of a row: it takes no memory, and whoever reads it shows."""
    return tensor.new_full((), torch.nan), tensor.shape[1:]
