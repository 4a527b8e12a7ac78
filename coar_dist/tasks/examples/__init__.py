"""Sources of example sets by name. A user's own is ``task.examples.source=my_module:load``, giving an ``ExampleSet``.

To add one, write a function of plain arguments that returns an ``ExampleSet``, or an ``IndexedSource`` where a subset
should be chosen before anything is loaded, and name it in ``SOURCES`` of ``sources.py``.
"""

from __future__ import annotations

from collections.abc import Callable

from coar_dist.tasks.examples.arrays import digits, npz_images
from coar_dist.tasks.examples.planted import with_cue, with_text, with_trigger
from coar_dist.tasks.examples.source import Source
from coar_dist.tasks.examples.sources import SOURCES

EXAMPLES: dict[str, Callable[..., Source]] = {
    **SOURCES,
    "with_trigger": with_trigger,
    "with_cue": with_cue,
    "with_text": with_text,
}

__all__ = ["EXAMPLES", "digits", "npz_images"]
