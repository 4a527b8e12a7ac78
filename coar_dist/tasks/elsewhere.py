"""What other processes build by themselves, as this one would: models and examples that a configuration names.

A model that was built from a configuration is known here by what built it, so that actors build it, too, and nobody
sends its weights. A node that cannot, or builds another one, is sent them.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from coar_dist.errors import NotOnThisNodeError
from coar_dist.tasks.example_set import fingerprint_of_tensors

_T = TypeVar("_T")
_origins: WeakKeyDictionary[nn.Module, ModelOrigin] = WeakKeyDictionary()


@dataclass(frozen=True)
class AsHere(Generic[_T]):
    """A function that another process calls as if it were started in this one's working directory.

    Attributes:
        function: without arguments; it can be pickled.
        folder: the working directory, used where the other process sees it.
    """

    function: Callable[[], _T]
    folder: str

    @classmethod
    def of(cls, function: Callable[[], _T]) -> AsHere[_T]:
        """With this process' working directory."""
        return cls(function, os.getcwd())

    def __call__(self) -> _T:
        """What the function returns."""
        if not os.path.isdir(self.folder) or os.getcwd() == self.folder:
            return self.function()
        if self.folder not in sys.path:  # a user's own module:function
            sys.path.insert(0, self.folder)
        with contextlib.chdir(self.folder):
            return self.function()


@dataclass(frozen=True)
class ModelOrigin:
    """What a model was built by.

    Attributes:
        build: gives it with its weights, in eval mode.
        weights: their fingerprint.
        margins: of the first examples, where the weights were; empty where the model has its weights here.
    """

    build: Callable[[], nn.Module]
    weights: str
    margins: tuple[float, ...] = ()

    def make(self) -> nn.Module:
        """The model, built in this process.

        Raises:
            NotOnThisNodeError: it cannot be, or other weights come of it.
        """
        try:
            model = self.build()
        except Exception as error:  # a user's own code may raise anything
            raise NotOnThisNodeError(f"the model cannot be built there: {type(error).__name__}: {error}") from error
        if weights_of(model) != self.weights:
            raise NotOnThisNodeError("the model that is built there has other weights")
        return model


def origin_of(model: nn.Module) -> ModelOrigin | None:
    """What built this very model; None where it was given, or is a copy."""
    return _origins.get(model)


def with_origin(model: nn.Module, origin: ModelOrigin) -> nn.Module:
    """The same model, known by its origin from now on."""
    _origins[model] = origin
    return model


def weights_of(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers that a checkpoint has."""
    return fingerprint_of_tensors(sorted(model.state_dict().items()))


def without_weights(model: nn.Module) -> nn.Module:
    """A copy on the meta device: all modules, names and shapes, and no values."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): _on_meta(tensor) for tensor in tensors}
    return copy.deepcopy(model, memo)


def _on_meta(tensor: Tensor) -> Tensor:
    values = torch.empty_like(tensor, device="meta")
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def is_without_weights(model: nn.Module) -> bool:
    """Whether the weights are somewhere else."""
    return any(parameter.is_meta for parameter in model.parameters())


def known_margins(model: nn.Module) -> list[float] | None:
    """Margins of the first examples of a model whose weights are somewhere else."""
    origin = origin_of(model)
    return None if origin is None or not is_without_weights(model) else list(origin.margins)
