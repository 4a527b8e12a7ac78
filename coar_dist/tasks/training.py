"""Training of a preset's own model: what a real user's checkpoint replaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from coar_dist.config.functions import look_up
from coar_dist.config.schema import TrainConfig
from coar_dist.errors import ConfigError, TaskError, TrainingError
from coar_dist.tasks.example_set import ExampleSet, Inputs
from coar_dist.tasks.logits import logits_of
from coar_dist.tasks.outputs import IGNORED_TOKEN, OUTPUT_FUNCTIONS
from coar_dist.tasks.task import Task, call_model


def train_model(
    build_model: Callable[[], nn.Module],
    train: ExampleSet,
    test: ExampleSet,
    config: TrainConfig,
    on_epoch: Callable[[int, float], None],
    loss: str = "cross_entropy",
    measured_by: str | None = None,
) -> tuple[nn.Module, float]:
    """SGD or AdamW with a one-cycle learning rate, seeded throughout.

    Args:
        build_model: constructor; its random weights come from ``config.seed``.
        train: training examples with the targets that ``loss`` reads.
        test: examples on which accuracy is measured; never trained on.
        config: optimizer, epochs, batch size, learning rate, weight decay, augmentation, device, seed, minimum
            accuracy.
        on_epoch: called with the number of finished epochs and the epoch's mean loss.
        loss: a key of ``LOSSES``.
        measured_by: the one that reads the targets of ``test``; None: ``loss``.

    Returns:
        The model in eval mode, on the CPU, and its accuracy on ``test``.

    Raises:
        TaskError: the examples do not fit the model or the loss.
        TrainingError: the accuracy is below ``config.minimum_accuracy``, or the loss is not finite.
    """
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build_model()
        check_training(model, {loss: train}, config)
        check_training(model, {measured_by or loss: test}, config)
        model = model.to(device)
        steps_per_epoch = -(-len(train) // config.batch_size)
        optimizer = OPTIMIZERS[config.optimizer](model, config)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.epochs * steps_per_epoch
        )
        model.train()
        for epoch in range(config.epochs):
            total_loss = 0.0
            for rows in torch.split(torch.randperm(len(train)), config.batch_size):
                inputs, targets = _batch(train, rows, device)
                if config.flip or config.shift:
                    inputs = _augmented(inputs, config)
                value = LOSSES[loss].mean(logits_of(call_model(model, inputs)), targets)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total_loss += float(value.detach()) * len(rows)
            if not math.isfinite(total_loss):
                raise TrainingError(
                    f"the loss is {total_loss} in epoch {epoch + 1}. Lower train.learning_rate "
                    f"(now {config.learning_rate:g})."
                )
            on_epoch(epoch + 1, total_loss / len(train))
    model.eval()
    measured = accuracy(model, test, loss=measured_by or loss)
    if measured < config.minimum_accuracy:
        raise TrainingError(
            f"the trained model has accuracy {measured:.4f}, below train.minimum_accuracy={config.minimum_accuracy}. "
            f"Raise train.epochs (now {config.epochs}) or lower the minimum."
        )
    return model.cpu(), measured


def check_training(model: nn.Module, examples: Mapping[str, ExampleSet], config: TrainConfig) -> None:
    """Check what can be checked before a model is trained.

    Args:
        model: untrained.
        examples: by the key of ``LOSSES`` that reads their targets.
        config: what ``train_model`` is given.

    Raises:
        ConfigError: the optimizer is unknown.
        TaskError: the examples do not fit the model or the loss.
    """
    look_up("train.optimizer", config.optimizer, OPTIMIZERS)
    for loss, some in examples.items():
        Task(model, some, OUTPUT_FUNCTIONS[LOSSES[loss].checked_as]).check()


def loss_for(config: TrainConfig, output_function: str) -> str:
    """The loss that ``config`` names, or the one whose targets the output function reads.

    Raises:
        ConfigError: the loss is unknown, or none is named and the output function is none of those with a loss of
            their own.
    """
    if config.loss is not None:
        look_up("train.loss", config.loss, LOSSES)
        return config.loss
    for name, loss in LOSSES.items():
        if output_function in loss.reads_as:
            return name
    raise ConfigError(
        f"train.loss must be set, to one of {', '.join(LOSSES)}: task.output_function={output_function!r} does not say "
        f"what a model is trained for."
    )


def measuring_loss(loss: str, output_function: str) -> str:
    """The loss that reads what the output function does, whatever the model is trained on; ``loss`` where none does."""
    return next((name for name, other in LOSSES.items() if output_function in other.reads_as), loss)


@torch.no_grad()
def accuracy(model: nn.Module, examples: ExampleSet, batch_size: int = 512, loss: str = "cross_entropy") -> float:
    """Share of the targets that count whose logit is the largest: of examples, or of their next tokens."""
    correct = counted = 0
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for rows in torch.split(torch.arange(len(examples)), batch_size):
        inputs, targets = _batch(examples, rows, device)
        logits, wanted = LOSSES[loss].aligned(logits_of(call_model(model, inputs)), targets)
        correct += int((logits.argmax(dim=1) == wanted).sum())
        counted += int((wanted != IGNORED_TOKEN).sum())
    return correct / counted


def _classes(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return logits, targets


def _next_tokens(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (num_positions, vocabulary) and the token that comes next (num_positions,)."""
    return logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()


def _answers(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (num_rows, vocabulary) where prompts end, and the answers' tokens (num_rows,)."""
    return logits[torch.arange(len(targets), device=logits.device), targets[:, 0]], targets[:, 1]


@dataclass(frozen=True)
class Loss:
    """What a model is trained on.

    Attributes:
        aligned: from logits and targets to logits (num_rows, num_classes) and labels (num_rows,), IGNORED_TOKEN where a
            row does not count.
        checked_as: the output function whose check of the targets applies.
        reads_as: output functions whose targets are the same.
    """

    aligned: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    checked_as: str
    reads_as: tuple[str, ...]

    def mean(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the rows that count: a scalar."""
        return functional.cross_entropy(*self.aligned(logits, targets), ignore_index=IGNORED_TOKEN)


LOSSES = {
    "cross_entropy": Loss(_classes, "margin", ("margin", "logsumexp_margin", "logit", "loss")),
    "next_token": Loss(_next_tokens, "next_token_margin", ("next_token_margin",)),
    "answer_token": Loss(_answers, "answer_token_margin", ("answer_token_margin",)),
}


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), config.learning_rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)


OPTIMIZERS = {"sgd": _sgd, "adamw": _adamw}


def _batch(examples: ExampleSet, rows: Tensor, device: torch.device) -> tuple[Inputs, Tensor]:
    inputs = examples.inputs
    if isinstance(inputs, dict):
        return {name: tensor[rows].to(device) for name, tensor in inputs.items()}, examples.targets[rows].to(device)
    return inputs[rows].to(device), examples.targets[rows].to(device)


def _augmented(inputs: Inputs, config: TrainConfig) -> Tensor:
    """Images (num_rows, channels, height, width), each mirrored and moved at random."""
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        raise TaskError(
            "train.flip and train.shift are for images (num_rows, channels, height, width). Leave them out."
        )
    if config.flip:
        is_flipped = torch.rand(len(inputs)) < 0.5
        inputs = torch.where(is_flipped.to(inputs.device)[:, None, None, None], inputs.flip(3), inputs)
    if config.shift:
        height, width = inputs.shape[2:]
        padded = functional.pad(inputs, [config.shift] * 4)
        down, right = torch.randint(0, 2 * config.shift + 1, (2, len(inputs))).to(inputs.device)
        rows = (down[:, None] + torch.arange(height, device=inputs.device))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width, device=inputs.device))[:, None, None, :]
        batch, channels = (torch.arange(size, device=inputs.device) for size in inputs.shape[:2])
        inputs = padded[batch[:, None, None, None], channels[None, :, None, None], rows, columns]
    return inputs
