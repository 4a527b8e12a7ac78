"""What goes to other processes in few copies: examples and models as what finds them there, tensors without a detour.

Ray pickles a tensor into the middle of a byte string, which costs a copy here and another one for every actor. Here
tensors travel as arrays, which Ray writes straight into the memory that a node's processes share.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

import numpy as np
import torch
from ray import cloudpickle
from torch import nn
from typing_extensions import override

from coar_dist.cluster.shared_value import Built, SharedValue, bytes_of, own_storage, typed_storage
from coar_dist.tasks.elsewhere import is_without_weights, origin_of
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.mapped_examples import MappedExamples, is_mapped, mapped


def packed(value: Any, whole: bool = False) -> SharedValue:
    """Pack a value for other processes.

    Args:
        value: anything that can be pickled, with tasks, models and example sets anywhere in it.
        whole: whether everything in it is sent, even what another process could find by itself.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickler: Any = _Whole if whole else _Packing
    pickler(file, protocol=5, buffer_callback=buffers.append).dump(value)
    arrays = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    return SharedValue(np.frombuffer(file.getbuffer(), dtype=np.uint8), arrays)


_Pickler: Any = cloudpickle.Pickler  # which has no types


class _Packing(_Pickler):  # type: ignore[misc]
    whole: ClassVar[bool] = False

    @override
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, ExampleSet):
            examples = mapped(value)
            if not is_mapped(examples):
                return None
            found = MappedExamples.of(examples)
            return found.with_values() if self.whole else found
        if isinstance(value, nn.Module):
            origin = origin_of(value)
            if origin is None or (self.whole and not is_without_weights(value)):
                return None
            return Built(origin.make()) if self.whole else origin
        return None

    @override
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.TypedStorage) and value._untyped_storage.device.type == "cpu":
            return typed_storage, (value._untyped_storage, value.dtype)
        if type(value) is torch.UntypedStorage and value.device.type == "cpu":
            return own_storage, (pickle.PickleBuffer(bytes_of(value).data),)
        return super().reducer_override(value)


class _Whole(_Packing):
    whole = True
