"""The calling process as the one actor: the same calls, of the same class, without Ray."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import random
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from coar_dist.cluster.actors import Actors, CallError, Member
from coar_dist.cluster.calls import Call, SetupCall
from coar_dist.cluster.worker import Worker


class OwnActor(Actors):
    """One actor in this process. A call is run when its answer is asked for.

    What it computes on is a copy, for it changes models. Where it raises, another one takes its place, on a new copy.

    Args:
        actor: its class.
    """

    def __init__(self, actor: type[Worker]) -> None:
        self.members: dict[str, Member] = {}
        self.num_wanted = 1
        self._class = actor
        self._num_started = 0
        self._waiting: deque[tuple[str, Call]] = deque()
        self._log = _OwnLog()

    @override
    def share(self, value: Any, whole: bool = False) -> Any:
        return value

    @override
    def resize(self, num_left: int) -> list[Member]:
        if self.members:
            return []
        self._free_memory()
        actor = self._class()
        actor.overlaps = False  # Ctrl-C need not wait for a thread
        member = Member(f"actor-{self._num_started}", actor)
        self._num_started += 1
        self.members[member.name] = member
        return [member]

    @override
    def check(self) -> None:
        """Nothing to do: Ctrl-C raises where it comes."""

    @override
    def check_alive(self) -> None:
        """Nothing to do: this process is alive."""

    @override
    def call(self, member: Member, call: Call) -> None:
        self._waiting.append((member.name, call))

    @override
    def answers(self, wait_s: float) -> Iterator[tuple[Member, Call, Any]]:
        name, call = self._waiting.popleft()
        member = self.members[name]
        yield member, call, self._answer(member, call)

    def _answer(self, member: Member, call: Call) -> Any:
        arguments = call.arguments
        try:
            if isinstance(call, SetupCall):
                arguments = copy.deepcopy(call.task), *arguments[1:]
            with self._log.attached():
                return getattr(member.handle, call.method)(*arguments)
        except Exception as error:  # the user's code may raise anything
            return CallError("".join(traceback.format_exception(error)), error)

    @override
    def remove(self, name: str) -> None:
        self.members.pop(name).handle = None
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != name)
        self._log = _OwnLog()
        self._free_memory()

    def _free_memory(self) -> None:
        """Leave nothing to an actor that is gone."""
        if self._num_started:
            gc.collect()  # an engine and its model hold each other
            torch.cuda.empty_cache()  # nothing where no GPU is at work


class _OwnLog:
    """What the actor logs goes to its own handlers, as in a process of its own: the driver logs it again."""

    def __init__(self) -> None:
        self._handlers: list[logging.Handler] = []

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        logger = logging.getLogger("coar_dist")
        handlers, level, propagate = logger.handlers, logger.level, logger.propagate
        logger.handlers, logger.propagate = self._handlers, False
        try:
            yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


@contextlib.contextmanager
def as_an_actor(num_threads: int) -> Iterator[None]:
    """Compute as a new process would, for the same bits, and leave this process as it was.

    Args:
        num_threads: of torch.
    """
    has_gpu = torch.cuda.is_available()
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        for kind in ("cpu", "cuda") if has_gpu else ("cpu",):
            enter(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # setting one makes every call slower
            enter(torch.device("cpu"))
        enter(torch.backends.cudnn.flags(enabled=True))  # and all else as in a new process
        enter(torch.random.fork_rng(range(torch.cuda.device_count()) if has_gpu else ()))
        enter(_others_random())
        enter(_settings(num_threads))
        yield


@contextlib.contextmanager
def _others_random() -> Iterator[None]:
    """The random states that torch does not keep."""
    own, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(of_numpy)


@contextlib.contextmanager
def _settings(num_threads: int) -> Iterator[None]:
    """What torch has functions for, but no context."""
    before, precision, dtype = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.set_num_threads(num_threads)
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
        if is_deterministic:  # the call loads the compiler, which takes seconds
            torch.use_deterministic_algorithms(False)
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        if is_deterministic:
            torch.use_deterministic_algorithms(True, warn_only=only_warns)
