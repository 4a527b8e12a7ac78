"""Named errors for everything that a user, a disk or a cluster can cause, and words that messages share.

Every message names the value, the place and the way out. The command line prints it in one paragraph and exits with 1,
or with 2 where its arguments are wrong; a traceback is printed when ``HYDRA_FULL_ERROR=1`` is set.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import FrameType

_PACKAGE = os.path.dirname(__file__) + os.sep
words_of_face: ContextVar[Callable[[str], str]] = ContextVar("words_of_face", default=str)
"""What turns a message, which names options as the command line does, into the words of the face that was called."""


class CoarDistError(Exception):
    """Base class of all errors that this package raises on purpose."""


class ConfigError(CoarDistError, ValueError):
    """A configuration value is wrong, unknown, or has no effect in the chosen combination."""


class UsageError(ConfigError):
    """A command was called with an argument that it does not take, or without one that it needs."""


class NoComponentsError(CoarDistError, ValueError):
    """A component selector matches nothing in the model."""


class ComponentMismatchError(CoarDistError, ValueError):
    """A component index, or masks over it, do not fit the model that they are applied to."""


class TaskError(CoarDistError, ValueError):
    """Model, examples and output function do not fit together, or one of them cannot be loaded."""


class NoGradientsError(ConfigError):
    """Passes with gradients are asked for, and model or output function have none."""


class NonFiniteMarginError(CoarDistError, ValueError):
    """The output function gave NaN or infinity."""


class TrainingError(CoarDistError, RuntimeError):
    """The model that a preset trains by itself missed its required accuracy."""


class RunNotFoundError(CoarDistError, FileNotFoundError):
    """There is no run directory at the given place."""


class RunMismatchError(CoarDistError, ValueError):
    """The run directory was made from something else than what is asked for now."""


class RunInUseError(CoarDistError, RuntimeError):
    """Another process writes to the run directory."""


class DamagedFileError(CoarDistError, RuntimeError):
    """A file of the run directory is damaged, truncated, or belongs to another run.

    Attributes:
        where: path or URL of the file; empty where no single file is to blame.
        reason: what is wrong with it, a sentence that names it.
        stage: that makes it again.
    """

    where = reason = stage = ""

    @classmethod
    def of(cls, where: str, reason: str, stage: str, is_found: bool = True) -> DamagedFileError:
        """The error of whoever meets the file and must not change it.

        Args:
            where, reason, stage: as the attributes.
            is_found: whether the stage finds the damage by itself.
        """
        way_out = (
            f"Run the {stage} stage: it sets the file aside and makes it again."
            if is_found
            else f"Remove the file and run the {stage} stage: it makes what is missing."
        )
        error = cls(f"{reason} {way_out}")
        error.where, error.reason, error.stage = where, reason, stage
        return error

    def set_aside(self, new_name: str) -> DamagedFileError:
        """The same once the file has been renamed to ``new_name``."""
        return DamagedFileError(
            f"{self.reason} It was set aside as {new_name}. Run the {self.stage} stage: it makes the file again."
        )


class StorageError(CoarDistError, OSError):
    """The run directory cannot be written: no space, no permission, no such place."""


class ForeignFileError(CoarDistError, ValueError):
    """A file of the research code is damaged, is not what it is taken for, or does not fit the run."""


class MissingWorkError(CoarDistError, RuntimeError):
    """A stage needs work that is not there; the message lists what is missing."""


class ClusterError(CoarDistError, RuntimeError):
    """The Ray cluster cannot be reached, or does not have the resources that the actors need."""


class RangeFailedError(CoarDistError, RuntimeError):
    """One range kept failing, on different actors."""


class NotOnThisNodeError(CoarDistError, RuntimeError):
    """A node cannot come by a model or examples by itself: they are to be sent."""


class ConvergenceError(CoarDistError, RuntimeError):
    """A solver did not reach its tolerance."""


class CoarWarning(UserWarning):
    """Something that the user should know and that does not make the result wrong."""


def warn(text: str, category: type[Warning] = CoarWarning) -> None:
    """A warning about the line that called this package, however deep within the package it is found.

    Args:
        text: in the words of the command line.
        category: of the warning.
    """
    line = sys._getframe()
    frame: FrameType | None = line
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            line = frame.f_back or frame
        frame = frame.f_back
    warnings.warn_explicit(
        words_of_face.get()(text),
        category,
        line.f_code.co_filename,
        line.f_lineno,
        line.f_globals.get("__name__"),
        line.f_globals.setdefault("__warningregistry__", {}),
    )


def in_one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def shortened(text: object) -> str:
    """A text with its fingerprints cut to what tells them apart.

    Example:
        >>> shortened("weights sha256:9d86d15270b41f76be1b0268c3db91e4")
        'weights sha256:9d86d152...'
    """
    return re.sub(r"(sha256:[0-9a-f]{8})[0-9a-f]{8,}", r"\1...", str(text))


def counted(num: float, noun: str, plural: str = "") -> str:
    """A number of things in words.

    Args:
        num: how many.
        noun: what one of them is called.
        plural: what several are called; empty for ``noun`` with an s.

    Example:
        >>> counted(1, "mask"), counted(1200, "mask"), counted(0, "entry", "entries")
        ('1 mask', '1,200 masks', '0 entries')
    """
    return f"{num:,.0f} {noun if num == 1 else plural or noun + 's'}"


def listed(things: Sequence[object], most: int = 10) -> str:
    """The first ``most`` of some names or numbers, and how many more there are.

    Example:
        >>> listed(["conv1.weight", "conv2.weight", "linear.weight"], most=2)
        'conv1.weight, conv2.weight and 1 more'
    """
    more = f" and {len(things) - most:,} more" if len(things) > most else ""
    return ", ".join(str(thing) for thing in things[:most]) + more


def listed_ranges(ranges: Sequence[tuple[int, int]], most: int = 10) -> str:
    """The same of ranges of ids, each its first id and the one after its last.

    Example:
        >>> listed_ranges([(3, 4), (17, 21)])
        '3, 17..20'
    """
    return listed([f"{start}" if stop == start + 1 else f"{start}..{stop - 1}" for start, stop in ranges], most)
