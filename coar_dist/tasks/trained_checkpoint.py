"""The checkpoint that the train stage leaves in the run directory: weights, what they were trained with, a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from coar_dist.config.schema import ModelConfig
from coar_dist.errors import DamagedFileError
from coar_dist.store.storage import Storage
from coar_dist.tasks.checkpoints import state_to_save
from coar_dist.tasks.example_set import fingerprint_of_tensors

CHECKPOINT = "model.safetensors"


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """What the architecture of a trained model depends on, by key."""
    settings: dict[str, Any] = {"task.model.source": model.source}
    settings |= {f"task.model.arguments.{name}": value for name, value in model.arguments.items()}
    return settings | {"task.model.input_mean": model.input_mean, "task.model.input_std": model.input_std}


def trained_with(storage: Storage) -> dict[str, Any]:
    """The settings in the checkpoint's header, which is not verified; empty where it cannot be read."""
    content = storage.read(CHECKPOINT)
    try:
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        return dict(json.loads(metadata["train"]))
    except (ValueError, KeyError, TypeError):  # who reads the weights says what is damaged
        return {}


def write_checkpoint(storage: Storage, model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Write the model's weights and what they were trained with into the run directory."""
    state = state_to_save(model)
    trained_with = json.dumps(settings)
    metadata = {"train": trained_with, "sha256": _checksum(state, trained_with)}
    storage.write(CHECKPOINT, safetensors.torch.save(state, metadata))


def read_checkpoint(storage: Storage) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The weights and settings that ``write_checkpoint`` wrote; None where there are none.

    Raises:
        DamagedFileError: the file is damaged.
    """
    return None if storage.size(CHECKPOINT) is None else _parse(storage)


def why_checkpoint_wrong(storage: Storage) -> str | None:
    """Why the checkpoint must not be used; None if nothing is wrong with it, or there is none."""
    try:
        if storage.size(CHECKPOINT) is not None:
            _parse(storage)
    except DamagedFileError as error:
        return error.reason
    return None


def _parse(storage: Storage) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = storage.read(CHECKPOINT)
    try:
        state = safetensors.torch.load(content)
        # The header: eight bytes of length, then JSON.
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if metadata["sha256"] != _checksum(state, metadata["train"]):
            raise ValueError("it does not have the checksum that it was written with")
        return state, dict(json.loads(metadata["train"]))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        where = storage.where(CHECKPOINT)
        raise DamagedFileError.of(where, f"{where} is damaged: {type(error).__name__}: {error}.", "train") from error


def _checksum(state: Mapping[str, Tensor], trained_with: str) -> str:
    return hashlib.sha256((fingerprint_of_tensors(sorted(state.items())) + trained_with).encode()).hexdigest()
