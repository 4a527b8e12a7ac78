"""Training of a preset's own small classifier, and its checkpoint: what a real user's checkpoint replaces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.config import TrainConfig
from coar_dist.errors import DamagedFileError, TrainingError
from coar_dist.store.parquet import set_aside
from coar_dist.store.storage import Storage
from coar_dist.tasks.outputs import logits_of
from coar_dist.tasks.task import ExampleSet, call_model, fingerprint_of_tensors

CHECKPOINT = "model.safetensors"


def train_classifier(
    build_model: Callable[[], nn.Module],
    train: ExampleSet,
    test: ExampleSet,
    config: TrainConfig,
    on_epoch: Callable[[int, float], None],
) -> tuple[nn.Module, float]:
    """SGD with Nesterov momentum .9 and a one-cycle learning rate, on cross-entropy; seeded throughout.

    Args:
        build_model: constructor; its random weights come from ``config.seed``.
        train: training examples with class labels.
        test: examples on which accuracy is measured; never trained on.
        config: epochs, batch size, learning rate, weight decay, seed, minimum accuracy.
        on_epoch: called with the number of finished epochs and the epoch's mean loss.

    Returns:
        The model in eval mode, and its accuracy on ``test``.

    Raises:
        TrainingError: the accuracy is below ``config.minimum_accuracy``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build_model()
        steps_per_epoch = -(-len(train) // config.batch_size)
        optimizer = torch.optim.SGD(
            model.parameters(),
            config.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.epochs * steps_per_epoch
        )
        model.train()
        for epoch in range(config.epochs):
            total_loss = 0.0
            for rows in torch.split(torch.randperm(len(train)), config.batch_size):
                batch = train.select(rows)
                loss = functional.cross_entropy(logits_of(call_model(model, batch.inputs)), batch.targets)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total_loss += float(loss.detach()) * len(rows)
            on_epoch(epoch + 1, total_loss / len(train))
    model.eval()
    measured = accuracy(model, test)
    if measured < config.minimum_accuracy:
        raise TrainingError(
            f"the trained model has accuracy {measured:.4f}, below train.minimum_accuracy={config.minimum_accuracy}. "
            f"Raise train.epochs (now {config.epochs}) or lower the minimum."
        )
    return model, measured


@torch.no_grad()
def accuracy(model: nn.Module, examples: ExampleSet, batch_size: int = 512) -> float:
    """Share of examples whose largest logit is the target's."""
    correct = 0
    for start in range(0, len(examples), batch_size):
        batch = examples.rows(start, start + batch_size)
        correct += int((logits_of(call_model(model, batch.inputs)).argmax(dim=1) == batch.targets).sum())
    return correct / len(examples)


def write_checkpoint(storage: Storage, model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Write the model's weights and what they were trained with into the run directory."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    trained_with = json.dumps(settings)
    metadata = {"train": trained_with, "sha256": _checksum(state, trained_with)}
    storage.write(CHECKPOINT, safetensors.torch.save(state, metadata))


def read_checkpoint(storage: Storage) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The weights and settings that ``write_checkpoint`` wrote; None where there are none.

    Raises:
        DamagedFileError: the file is damaged; it has been set aside.
    """
    if storage.size(CHECKPOINT) is None:
        return None
    try:
        return _parse(storage)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{error} It was set aside as {set_aside(storage, CHECKPOINT)}; the train stage makes it anew."
        ) from error


def why_checkpoint_wrong(storage: Storage) -> str | None:
    """Why the checkpoint must not be used; None if nothing is wrong with it, or there is none."""
    try:
        if storage.size(CHECKPOINT) is not None:
            _parse(storage)
    except DamagedFileError as error:
        return str(error)
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
        raise DamagedFileError(f"{storage.where(CHECKPOINT)} is damaged: {type(error).__name__}: {error}.") from error


def _checksum(state: Mapping[str, Tensor], trained_with: str) -> str:
    return hashlib.sha256((fingerprint_of_tensors(sorted(state.items())) + trained_with).encode()).hexdigest()
