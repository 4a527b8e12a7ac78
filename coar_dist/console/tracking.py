"""The figures of a run in TensorBoard, Weights & Biases or MLflow, through their own libraries.

Each command is a run of its own there, named by the run directory's label. The step is the number of masks that the
run directory has, so a continued run continues its curves. A tracker that fails while the run is under way is left out
from then on, with a warning: the work does not depend on it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from coar_dist.config.functions import look_up
from coar_dist.config.keys import leaves
from coar_dist.config.secrets import without_secrets
from coar_dist.errors import ConfigError
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.storage import Storage

_EVERY_S = 10.0
_PROJECT = "coar_dist"
_FOLDER = "tensorboard"
_MOST_PARAMETERS = 100
"""In one request to MLflow."""
_LONGEST_PARAMETER = 500
_log = logging.getLogger(__name__)

Configuration = Mapping[str, Any]
"""Nested, of JSON values."""


class Tracker(Protocol):
    """Where the figures of one command go."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record figures by name."""

    def close(self, has_failed: bool) -> None:
        """Send what is not sent yet; the command ends, ``has_failed`` by an error."""


class TensorBoard(Tracker):
    """Event files in the run directory's folder ``tensorboard``."""

    def __init__(self, storage: Storage, configuration: Configuration) -> None:
        from torch.utils.tensorboard import SummaryWriter

        assert isinstance(storage, LocalStorage)
        writer: Any = SummaryWriter  # it has types in some installations alone
        self._writer = writer(str(storage.path(_FOLDER)))
        self._writer.add_text("configuration", f"```json\n{json.dumps(configuration, indent=2, default=repr)}\n```")

    @override
    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    @override
    def close(self, has_failed: bool) -> None:
        del has_failed  # event files do not say how a run ended
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of the project ``coar_dist``, or of WANDB_PROJECT; its files lie in the run directory, or in WANDB_DIR."""

    def __init__(self, storage: Storage, configuration: Configuration) -> None:
        import wandb

        is_local = isinstance(storage, LocalStorage) and "WANDB_DIR" not in os.environ
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=storage.label,
            group=storage.label,
            dir=storage.location if is_local else None,
            config=json.loads(json.dumps(configuration, default=repr)),
            settings=wandb.Settings(console="off", silent=True),
            reinit="create_new",
        )

    @override
    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    @override
    def close(self, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


class MLflow(Tracker):
    """A run of the experiment ``coar_dist``, or of MLFLOW_EXPERIMENT_NAME, at MLFLOW_TRACKING_URI."""

    def __init__(self, storage: Storage, configuration: Configuration) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        self._run_id = self._client.create_run(number, run_name=storage.label).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in leaves(configuration)]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=parameters[first : first + _MOST_PARAMETERS])

    @override
    def log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in figures.items()])

    @override
    def close(self, has_failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if has_failed else "FINISHED")


class TrackerKind(NamedTuple):
    """How a tracker is started, and the library's module that it needs."""

    start: Callable[[Storage, Configuration], Tracker]
    module: str


TRACKERS = {
    "tensorboard": TrackerKind(TensorBoard, "torch.utils.tensorboard"),
    "wandb": TrackerKind(WeightsAndBiases, "wandb"),
    "mlflow": TrackerKind(MLflow, "mlflow"),
}


def check_tracking(names: Sequence[str], storage: Storage) -> None:
    """Check that the trackers can be had, before any work.

    Raises:
        ConfigError: a name is unknown, a library is missing, with the extra that brings it, or TensorBoard's files
            would have no folder.
    """
    for name in names:
        module = look_up("tracking", name, TRACKERS).module
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"tracking=[{name}] needs a library that cannot be imported ({error}): "
                f"pip install 'coar-dist[{name}]', or leave it out."
            ) from error
    if "tensorboard" in names and not isinstance(storage, LocalStorage):
        raise ConfigError(
            f"tracking=[tensorboard] writes event files into the run directory, and {storage} is in an object store. "
            f"Use a folder, wandb or mlflow, or the Prometheus metrics, which need no tracker."
        )


class Tracking:
    """All trackers of a command; without names, and outside ``opened``, nothing is tracked.

    Args:
        names: of ``TRACKERS``.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._trackers: dict[str, Tracker] = {}
        self._waiting: tuple[dict[str, float], int] | None = None
        self._logged_at = float("-inf")

    @contextlib.contextmanager
    def opened(self, storage: Storage, configuration: Configuration) -> Iterator[None]:
        """Track for the length of a ``with`` block.

        Args:
            storage: the run directory.
            configuration: kept beside the figures.

        Raises:
            ConfigError: a tracker cannot start, e.g. because nobody has logged in.
        """
        has_failed = True
        try:
            for name in self._names:
                try:
                    self._trackers[name] = TRACKERS[name].start(storage, configuration)
                except Exception as error:  # each library has its own families of errors
                    text = without_secrets(f"{type(error).__name__}: {error}")
                    raise ConfigError(
                        f"tracking=[{name}] cannot start: {text}. Correct that, or leave it out."
                    ) from error
            yield
            has_failed = False
        finally:
            self.flush()
            self._with_each(lambda tracker: tracker.close(has_failed))
            self._trackers = {}

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record figures by name at a step, the number of masks that the run has."""
        self._with_each(lambda tracker: tracker.log(figures, step))

    def offer(self, figures: Mapping[str, float], step: int) -> None:
        """Record the latest of often changing figures: every 10 s, and at ``flush``."""
        self._waiting = dict(figures), step
        if time.monotonic() - self._logged_at >= _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Record the figures that were offered last, if they are not recorded yet."""
        if self._waiting is not None:
            self.log(*self._waiting)
            self._waiting = None
            self._logged_at = time.monotonic()

    def _with_each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # a server may be away for a while; the run is not
                del self._trackers[name]
                text = without_secrets(f"{type(error).__name__}: {error}")
                _log.warning("tracking by %s fails, and is left out from now on: %s", name, text)
