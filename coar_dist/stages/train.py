"""The train stage: a preset's own small model, where no checkpoint is given."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from coar_dist.config.schema import Config, TrainConfig
from coar_dist.console.progress import stage_progress
from coar_dist.console.saying import say
from coar_dist.errors import DamagedFileError, RunMismatchError
from coar_dist.store.storage import Storage
from coar_dist.tasks.build import build_examples, build_model
from coar_dist.tasks.training import CHECKPOINT, loss_for, read_checkpoint, train_model, write_checkpoint


def train_stage(config: Config, train: TrainConfig, storage: Storage, console: Console) -> None:
    """Train the model of ``config.task`` where the run directory has no checkpoint of it yet."""
    where = storage.where(CHECKPOINT)
    model_settings = {f"task.model.arguments.{name}": value for name, value in config.task.model.arguments.items()}
    model = config.task.model
    settings = {"task.model.source": model.source, **model_settings}
    settings |= {"task.model.input_mean": model.input_mean, "task.model.input_std": model.input_std}
    settings |= {f"train.{name}": value for name, value in asdict(train).items()}
    try:
        found = read_checkpoint(storage)
    except DamagedFileError as error:
        say(console, "train", f"[yellow]{error}[/yellow]")
        found = None
    if found is not None:
        stored = found[1]
        for key in settings:
            if stored.get(key) != settings[key]:
                raise RunMismatchError(
                    f"{key} is {settings[key]!r}, but {where} was trained with {stored.get(key)!r}. "
                    f"Use another run.dir, or undo the change."
                )
        say(console, "train", f"{where} is there already.")
        return
    loss = loss_for(train, config.task.output_function)
    train_examples = build_examples(train.examples, "train.examples")
    test_examples = build_examples(config.task.examples, "task.examples")
    with stage_progress(console, "train", train.epochs, "epochs") as progress:
        trained, accuracy = train_model(
            lambda: build_model(model),
            train_examples,
            test_examples,
            train,
            lambda epoch, value: progress.update(epoch, f"loss {value:.3f}"),
            loss,
        )
        seconds = progress.seconds
    write_checkpoint(storage, trained, settings)
    of_what = "accuracy of next tokens" if loss == "next_token" else "accuracy"
    say(
        console,
        "train",
        f"{of_what} {accuracy:.4f} after {train.epochs} epochs in {seconds:.1f} s; {where}",
    )
