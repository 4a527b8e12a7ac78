"""What the classes of a run are called: ``class_names.parquet``. It is for people alone; no result depends on it."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.run_directory import RunDirectory

CLASS_NAMES_FILE = "class_names.parquet"
CLASS_NAMES = "class names"
"""What the file's metadata call its content."""
_TYPES = {"label": pa.int64(), "name": pa.string()}


def write_class_names(run: RunDirectory, names: Mapping[int, str]) -> None:
    """Write names by class, in the place of earlier ones; unchanged ones are left alone."""
    if read_class_names(run) == names:
        return
    columns = {
        "label": pa.array(list(names), _TYPES["label"]),
        "name": pa.array(list(names.values()), _TYPES["name"]),
    }
    write_table(run.storage, CLASS_NAMES_FILE, columns, run.belongs_to(CLASS_NAMES))


def read_class_names(run: RunDirectory) -> dict[int, str]:
    """Names by class; none where nobody gave any.

    Raises:
        DamagedFileError: the file is damaged.
    """
    found = read_content(run.storage, CLASS_NAMES_FILE, "ablate", run.belongs_to(CLASS_NAMES), types=_TYPES)
    if found is None:
        return {}
    columns = found.columns.to_pydict()
    return dict(zip(columns["label"], columns["name"], strict=True))


def class_in_words(names: Mapping[int, str], label: int) -> str:
    """The name of a class, or else its number.

    Example:
        >>> class_in_words({0: "cat"}, 0), class_in_words({0: "cat"}, 1)
        ('cat', '1')
    """
    return names.get(label, str(label))
