"""Training of a preset's own small classifier: the stage that a real user's checkpoint replaces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from coar_dist.config import TrainConfig
from coar_dist.errors import TrainingError
from coar_dist.tasks.outputs import logits_of
from coar_dist.tasks.task import ExampleSet, call_model


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
                batch = train.map(lambda tensor, rows=rows: tensor[rows])  # type: ignore[misc]
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
