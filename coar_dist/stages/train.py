"""The train stage: a preset's own small model, where no checkpoint is given."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from coar_dist.config.schema import ModelConfig, TrainConfig
from coar_dist.errors import DamagedFileError, RunMismatchError, counted, shortened
from coar_dist.stages.session import Session
from coar_dist.stages.stage import Stage
from coar_dist.store.aside import set_aside
from coar_dist.store.record import RUN_FILE


def _check(session: Session) -> None:
    from coar_dist.stages.checks import check_train_stage  # torch takes seconds to load

    check_train_stage(session)


def _run(session: Session) -> None:
    """Train the model of ``config.task`` where the run directory has no checkpoint of it yet."""
    from coar_dist.stages.inputs import examples_of
    from coar_dist.tasks.build import build_model
    from coar_dist.tasks.trained_checkpoint import CHECKPOINT, write_checkpoint
    from coar_dist.tasks.training import loss_for, measuring_loss, train_model

    train, task = session.config.train, session.config.task
    if train is None:
        return
    session.take()
    session.untrained = None  # the trained one takes its place
    say, where = session.terminal.say, session.storage.where(CHECKPOINT)
    settings = _settings(train, task.model)
    names = session.storage.files()
    if RUN_FILE in names and not any(name.startswith(CHECKPOINT) for name in names):
        raise RunMismatchError(
            f"{session.storage} holds a run of a model that was not trained there (it has no {CHECKPOINT}). Use "
            f"another run.dir, or leave the train stage out."
        )
    if _is_trained(session, settings):
        say(f"{where} is there already.")
        return
    loss = loss_for(train, task.output_function)
    measured = measuring_loss(loss, task.output_function)
    with session.progress(train.epochs, "epochs") as progress:
        trained, accuracy = train_model(
            lambda: build_model(task.model),
            examples_of(session, "train.examples"),
            examples_of(session, "task.examples"),
            train,
            lambda epoch, value: progress.update(epoch, f"loss {value:.3f}"),
            loss,
            measured,
        )
        seconds = progress.seconds
    del session.examples["train.examples"]  # nobody needs them any more
    write_checkpoint(session.storage, trained, settings)
    of_what = "accuracy of next tokens" if measured == "next_token" else "accuracy"
    say(f"{of_what} {accuracy:.4f} after {counted(train.epochs, 'epoch')} in {seconds:.1f} s; {where}")


def _settings(train: TrainConfig, model: ModelConfig) -> dict[str, Any]:
    """What a trained model depends on, by key; it is stored in the checkpoint."""
    from coar_dist.tasks.trained_checkpoint import model_settings

    return model_settings(model) | {f"train.{name}": value for name, value in asdict(train).items()}


def _is_trained(session: Session, settings: dict[str, Any]) -> bool:
    """Whether the run directory has a checkpoint that can be read; a damaged one is set aside.

    Raises:
        RunMismatchError: it is of other settings.
    """
    from coar_dist.tasks.trained_checkpoint import CHECKPOINT, read_checkpoint

    try:
        found = read_checkpoint(session.storage)
    except DamagedFileError as error:
        new_name = set_aside(session.storage, CHECKPOINT)
        session.terminal.warn(f"{error.reason} Set aside as {new_name}; the model is trained again.")
        return False
    if found is None:
        return False
    stored = found[1]
    for key, value in settings.items():
        if stored.get(key) != value:
            raise RunMismatchError(
                shortened(
                    f"{key} is {value!r}, but {session.storage.where(CHECKPOINT)} was trained with {stored.get(key)!r}."
                )
                + " Use another run.dir, or undo the change."
            )
    return True


TRAIN = Stage("train", reads=("train", "task"), run=_run, check=_check)
