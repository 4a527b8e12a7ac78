"""What comes from another process in few copies. Nothing here needs Ray."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from coar_dist.tasks.elsewhere import ModelOrigin
from coar_dist.tasks.mapped_examples import MappedExamples


@dataclass(frozen=True, eq=False)
class SharedValue:
    """A value on its way to another process; ``packing.packed`` makes it.

    Attributes:
        content: the value pickled, without its arrays.
        arrays: which Ray does not copy.
    """

    content: NDArray[np.uint8]
    arrays: Sequence[NDArray[np.uint8]]

    def value(self) -> Any:
        """The value, whose tensors belong to this process.

        Raises:
            NotOnThisNodeError: something in it is not to be found on this node; pack it as a whole.
        """
        return _Unpickler(io.BytesIO(self.content.data), buffers=self.arrays).load()


def unpacked(value: Any) -> Any:
    """What a ``SharedValue`` has in it; any other value is itself.

    Raises:
        NotOnThisNodeError: as of ``SharedValue.value``.
    """
    return value.value() if isinstance(value, SharedValue) else value


class _Unpickler(pickle.Unpickler):
    @override
    def persistent_load(self, found: MappedExamples | ModelOrigin | Built) -> Any:
        return found.make()


@dataclass(frozen=True)
class Built:
    """A model that was built for a node that could not."""

    model: nn.Module

    def make(self) -> nn.Module:
        """The model."""
        return self.model


def bytes_of(storage: torch.UntypedStorage) -> NDArray[np.uint8]:
    """A storage of the CPU as an array, not copied."""
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()


def own_storage(content: Any) -> torch.UntypedStorage:
    """A copy: models are changed where they are at work, and what Ray holds is everybody's."""
    own = torch.UntypedStorage(memoryview(content).nbytes)  # type: ignore[no-untyped-call]
    bytes_of(own)[:] = np.frombuffer(content, dtype=np.uint8)
    return own


def typed_storage(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.TypedStorage:
    """As torch pickles it."""
    return torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
