"""What every selector finds in a model, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from coar_dist.components.discovery import discover
from coar_dist.components.selectors import SELECTORS, passed_over
from coar_dist.errors import ComponentMismatchError, NoComponentsError, listed

if TYPE_CHECKING:
    from pandas import DataFrame


def find_components(model: nn.Module) -> DataFrame:
    """What every selector finds in a model, before anything runs; works on the meta device.

    Returns:
        A row per selector that finds something: ``components``, how many; ``layers``, in how many groups, one per layer
        and kind; ``first`` and ``last``, their names; ``passed_over``, modules that look as if there should be some.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
        >>> find_components(model).components.to_dict()
        {'auto': 8, 'conv_filters': 8, 'linear_rows': 10}
    """
    from pandas import DataFrame

    rows, names = [], []
    for name in SELECTORS:
        try:
            index = discover(model, name)
        except NoComponentsError:
            continue
        except ComponentMismatchError as error:
            rows.append((0, 0, "", "", str(error)))
        else:
            without = listed(list(passed_over(model, name)))
            rows.append((len(index), len(index.groups), index.name_of(0), index.name_of(len(index) - 1), without))
        names.append(name)
    return DataFrame(rows, index=names, columns=["components", "layers", "first", "last", "passed_over"])
