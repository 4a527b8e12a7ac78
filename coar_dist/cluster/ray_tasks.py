"""Ray tasks: the parts of a computation on all CPUs or GPUs of a cluster, and single questions to one of its nodes."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import torch
from ray import ObjectRef
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError
from typing_extensions import override

from coar_dist.cluster.actors import Loss
from coar_dist.cluster.connection import connect
from coar_dist.cluster.execution import Execute, Kept
from coar_dist.cluster.packing import packed
from coar_dist.cluster.parts import Result, Started, Tasks, run_parts
from coar_dist.cluster.pool import cause
from coar_dist.cluster.resources import Cluster
from coar_dist.cluster.shared_value import SharedValue, unpacked
from coar_dist.cluster.worker import LogCollector, LogLines
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError, CoarDistError, CoarWarning, NotOnThisNodeError, warn

_T = TypeVar("_T")
_Function = Callable[[Any, Any], Any]
_log = logging.getLogger(__name__)
_DIED = (WorkerCrashedError, OutOfMemoryError)


@contextlib.contextmanager
def on_cluster(config: ClusterConfig, way_out: str) -> Iterator[Execute]:
    """Ray tasks as an ``Execute``: ``shared`` goes to every node once, through the object store.

    A part whose worker is lost is run again on another. The ``Execute`` raises as this function does.

    Args:
        config: the cluster; a task has the resources of one actor.
        way_out: what to do where tasks run out of memory; ends the error.

    Raises:
        ClusterError: no task has run for ``config.start_timeout_s``, or workers keep dying.
    """
    with connect(config) as cluster:
        execute = RayExecute(cluster, way_out)
        execute.ask(_nothing, None)  # before anything is read: it shows that tasks can start
        yield execute


def answer_of_an_actor(config: ClusterConfig, function: Callable[[], _T]) -> _T:
    """What ``function`` returns in a process with the resources of one actor, somewhere on the cluster.

    Raises:
        ClusterError: no such process starts within ``config.start_timeout_s``, or it keeps dying.
    """
    with connect(config) as cluster:
        answer: _T = RayExecute(cluster, "Give the workers more memory.").ask(lambda asked: asked(), function)
        return answer


class RayExecute(Execute):
    """Parts as Ray tasks.

    Args:
        cluster: where they run; a task has the resources of one actor.
        way_out: what to do where tasks run out of memory; ends the error.
    """

    def __init__(self, cluster: Cluster, way_out: str) -> None:
        self._cluster, self._way_out = cluster, way_out
        self._kept: weakref.WeakValueDictionary[str, _Stored] = weakref.WeakValueDictionary()

    @property
    @override
    def width(self) -> int:
        return self._cluster.num_wanted(self._cluster.capacity(), sys.maxsize)

    @override
    def __call__(self, function: _Function, shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        return self._run(RayTasks(self._cluster, function, shared, self._make_again), items)

    @override
    def keep(self, function: _Function, shared: Any, items: Sequence[Any]) -> list[Kept[Any]]:
        references = self._references(function, shared, items)
        return [self._stored(function, shared, *made) for made in zip(items, references, strict=True)]

    def _stored(self, function: _Function, shared: Any, item: Any, reference: ObjectRef[Any]) -> _Stored:
        stored = _Stored(reference, lambda: self._references(function, shared, [item])[0])
        self._kept[reference.hex()] = stored
        return stored

    def _references(self, function: _Function, shared: Any, items: Sequence[Any]) -> list[ObjectRef[Any]]:
        """What the parts give, in the order of the items, as references to where it is."""
        tasks = _KeepingTasks(self._cluster, function, shared, self._make_again)
        found = dict(self._run(tasks, list(enumerate(items))))
        return [found[i] for i in range(len(items))]

    def _run(self, tasks: RayTasks, items: Sequence[Any]) -> Iterator[Any]:
        return run_parts(tasks, items, self._cluster.config.start_timeout_s, self._way_out)

    def _make_again(self, lost: str) -> None:
        """Make a kept value again whose last copy was on a node that is gone: its part is a function of its item."""
        stored = self._kept.pop(lost, None)
        if stored is not None:
            stored.reference = stored.make()
            self._kept[stored.reference.hex()] = stored


class _Stored(Kept[Any]):
    """A value in Ray's object store, on the node where it was made and wherever it has been read since.

    Args:
        reference: Ray's.
        make: makes it again; in the process alone that had it made.
    """

    def __init__(self, reference: ObjectRef[Any], make: Callable[[], ObjectRef[Any]]) -> None:
        self.reference, self.make = reference, make

    @override
    def read(self) -> Any:
        return ray.get(self.reference)

    def __reduce__(self) -> tuple[Any, ...]:
        _sent.append(self.reference)
        return _Elsewhere, (self.reference.hex(),)


@dataclass(frozen=True)
class _Elsewhere(Kept[Any]):
    """The same in the process of a task, to which Ray's references are sent beside what is shared."""

    name: str

    @override
    def read(self) -> Any:
        return ray.get(_received[self.name])


_sent: list[ObjectRef[Any]] = []
_received: dict[str, ObjectRef[Any]] = {}


def _send(shared: Any, whole: bool) -> ObjectRef[tuple[SharedValue, list[ObjectRef[Any]]]]:
    """What is shared, with the references to what is kept: Ray must see them, to know how long they are needed."""
    _sent.clear()
    content = packed(shared, whole=whole)
    return ray.put((content, list(_sent)))


def _receive(sent: tuple[SharedValue, list[ObjectRef[Any]]]) -> Any:
    content, references = sent
    _received.clear()
    _received.update({reference.hex(): reference for reference in references})
    return unpacked(content)


@dataclass(frozen=True)
class _Said:
    """What a part had to say in a task's process, where nobody reads it.

    Attributes:
        log: lines of this package's loggers.
        warnings: of this package, in the words of the command line.
    """

    log: LogLines
    warnings: tuple[str, ...]

    def repeat(self) -> None:
        """Log and warn here; each warning once, however many parts have it."""
        for level, text in self.log:
            _log.log(level, "%s", text)
        for text in self.warnings:
            warn(text)


@contextlib.contextmanager
def _listening() -> Iterator[Callable[[], _Said]]:
    """Gives what tells afterwards what was logged and warned of within."""
    collector = LogCollector.attached()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CoarWarning)
            yield lambda: _Said(collector.drain(), tuple(str(found.message) for found in caught if _is_own(found)))
    finally:
        collector.detach()


def _is_own(found: warnings.WarningMessage) -> bool:
    return issubclass(found.category, CoarWarning)


class RayTasks(Tasks):
    """Tasks of ``function(shared, item)``, each with the resources of one actor.

    Args:
        cluster: where they run.
        function, shared: what they run.
        make_again: called with Ray's name of an object that is lost, before a task that may need it is run again.
    """

    def __init__(
        self,
        cluster: Cluster,
        function: _Function,
        shared: Any,
        make_again: Callable[[str], None],
    ) -> None:
        self._cluster, self._function, self._shared = cluster, function, shared
        self._make_again, self._lost = make_again, set[str]()
        self._is_whole = False
        self._sent = _send(shared, whole=False)
        # Ray itself would retry a lost task without saying so, and wait for ever where no node is left for it.
        options = {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus, "max_retries": 0}
        self._task: Any = ray.remote(self._part).options(**options, num_returns="streaming")

    @staticmethod
    def _part(function: _Function, sent: Any, item: Any, num_threads: int) -> Iterator[Any]:
        yield Started()
        torch.set_num_threads(num_threads)
        with _listening() as said:
            value = function(_receive(sent), item)
        yield Result(value), said()

    @override
    def num_wanted(self, num_left: int) -> int:
        return self._cluster.num_wanted(self._cluster.capacity(), num_left)

    @override
    def submit(self, item: Any) -> Any:
        if self._lost:
            while self._lost:
                self._make_again(self._lost.pop())
            self._sent = _send(self._shared, self._is_whole)  # which names the new ones
        return self._task.remote(self._function, self._sent, item, self._cluster.num_cpus)

    @override
    def answers(self, tasks: Sequence[Any], wait_s: float) -> Iterator[tuple[Any, Started | Result | Loss]]:
        ready, _ = ray.wait(list(tasks), timeout=wait_s, fetch_local=False)
        for task in ready:
            try:
                yield task, self._answer_or_loss(task)
            except NotOnThisNodeError as error:
                if not self._is_whole:
                    _log.info("%s. Model and examples are sent.", error)
                    self._is_whole = True
                    self._sent = _send(self._shared, whole=True)
                yield task, Loss(str(error), node_died=True)

    @override
    def cancel(self, task: Any) -> None:
        ray.cancel(task, force=True)

    @override
    def check(self) -> None:
        self._cluster.raise_if_interrupted()

    @override
    def nothing_runs(self, last_loss: str) -> ClusterError:
        return self._cluster.nothing_runs(last_loss)

    def _answer_or_loss(self, task: Any) -> Started | Result | Loss:
        try:
            return self._answer(task)
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                return self._object_lost(error.cause)
            if isinstance(error.cause, CoarDistError):
                raise error.cause from None
            raise
        except _DIED as error:
            return Loss(cause(error), node_died=False)
        except ObjectLostError as error:
            return self._object_lost(error)
        except NodeDiedError as error:
            return Loss(cause(error), node_died=True)

    def _object_lost(self, error: ObjectLostError) -> Loss:
        self._lost.add(error.object_ref_hex)
        return Loss(cause(error), node_died=True)

    def _answer(self, task: Any) -> Started | Result:
        answer: Started | tuple[Result, _Said] = ray.get(next(task))
        if isinstance(answer, Started):
            return answer
        result, said = answer
        said.repeat()
        return result


class _KeepingTasks(RayTasks):
    """Tasks whose values stay where they are; an item is a pair of its number and itself, a result of its number and
    Ray's reference to the value."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._numbers: dict[Any, int] = {}
        self._started: set[Any] = set()

    @staticmethod
    @override
    def _part(function: _Function, sent: Any, item: Any, num_threads: int) -> Iterator[Any]:
        yield Started()
        torch.set_num_threads(num_threads)
        with _listening() as said:
            value = function(_receive(sent), item)
        yield value
        yield said()  # the driver fetches this, which shows that the value is there

    @override
    def submit(self, item: Any) -> Any:
        number, own = item
        task = super().submit(own)
        self._numbers[task] = number
        return task

    @override
    def _answer(self, task: Any) -> Started | Result:
        if task not in self._started:
            self._started.add(task)
            return super()._answer(task)
        reference = next(task)
        said = next(task, None)
        if said is None:
            ray.get(reference)  # raises what the part raised
        else:
            ray.get(said).repeat()
        return Result((self._numbers[task], reference))


def _nothing(_shared: Any) -> None:
    """The first task."""
