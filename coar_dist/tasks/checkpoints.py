"""Loading of checkpoints, in the forms that people keep them in, without running pickled code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from coar_dist.errors import TaskError, listed

_NESTED = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_COUNTER = "num_batches_tracked"
"""BatchNorm's buffer for training alone: older checkpoints, and those of other frameworks, have none."""
_NAMES_SHOWN = 5


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load weights into ``model``.

    Args:
        model: changed.
        path: a .safetensors file; a file of ``torch.save`` (read without pickle) with a state dict, or a dict that has
            one as ``state_dict``, ``model_state_dict`` or ``model``, the names perhaps with the prefixes of
            DataParallel or torch.compile; or a folder of a transformers model's ``save_pretrained``, in one file or
            several.

    Raises:
        TaskError: no such file, not a checkpoint, or names and shapes do not fit the model.
    """
    where = f"task.model.checkpoint={str(path)!r}"
    try:
        state = _unwrapped(_read_folder(path) if path.is_dir() else _read_file(path), where)
        own = model.state_dict(keep_vars=True)
        state = {name: tensor for name, tensor in own.items() if name.rpartition(".")[2] == _COUNTER} | state
        # A tied parameter has several names, of which a file may hold only one.
        held = {id(tensor): state[name] for name, tensor in own.items() if name in state}
        chosen = {name: held[id(tensor)] for name, tensor in own.items() if id(tensor) in held}
        missing = [name for name in own if name not in chosen]
        unexpected = [name for name in state if name not in own]
        wrong = [f"it lacks {listed(missing, _NAMES_SHOWN)}"] if missing else []
        wrong += [f"the model has no {listed(unexpected, _NAMES_SHOWN)}"] if unexpected else []
        if wrong:
            raise TaskError(f"{where} does not fit {type(model).__name__}: {'; '.join(wrong)}.")
        model.load_state_dict(chosen)
    except TaskError:
        raise
    except pickle.UnpicklingError as error:
        raise TaskError(
            f"{where} is not a plain state dict, and a pickled object could run any code. "
            f"Save it again with torch.save(model.state_dict(), path) or as .safetensors."
        ) from error
    except (SafetensorError, RuntimeError, OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise TaskError(f"{where} does not fit {type(model).__name__}: {error}") from error


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as safetensors takes it, on the CPU: it refuses tensors that share memory, so a tied parameter is
    there under each of its names."""
    state: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        own = tensor.detach().cpu()
        state[name] = own.clone() if id(tensor) in written else own.contiguous()
        written.add(id(tensor))
    return state


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise TaskError(f"task.model.checkpoint={str(path)!r}: there is no such file.")
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_folder(path: Path) -> dict[str, Tensor]:
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return dict(_read_file(path / name))
        index = path / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if any(Path(shard).name != shard for shard in shards):  # the index may come from anywhere
                raise TaskError(f"{index} names files outside its folder: {shards[:_NAMES_SHOWN]}.")
            return {key: tensor for shard in shards for key, tensor in _read_file(path / shard).items()}
    raise TaskError(
        f"task.model.checkpoint={str(path)!r} is a folder without {' or '.join(_IN_FOLDER)} (or an index of their "
        f"parts). Name a file, or a folder that save_pretrained wrote."
    )


def _unwrapped(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict itself: out of the dict that a training script saved, without a wrapper's prefix."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise TaskError(f"{where} holds a {type(content).__name__}, not a state dict.")
    others = [str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others:
        raise TaskError(
            f"{where} is not a state dict: there is no tensor under {listed(others, _NAMES_SHOWN)}. A state dict may "
            f"stand under {', '.join(_NESTED)}."
        )
    state = dict(content)
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state
