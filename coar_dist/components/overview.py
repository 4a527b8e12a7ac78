"""What every selector finds in a model, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from coar_dist.components.discovery import told_apart
from coar_dist.components.index import ComponentIndex
from coar_dist.components.left_out import passed_over
from coar_dist.components.plain_model import plain_model
from coar_dist.components.selectors import SELECTORS
from coar_dist.errors import listed

if TYPE_CHECKING:
    from pandas import DataFrame


def find_components(model: nn.Module) -> DataFrame:
    """What every selector finds in a model, before anything runs; works on the meta device.

    Returns:
        A row per selector that finds something: ``components``, how many; ``layers``, in how many groups, one per layer
        and kind; ``parameters``, how many of the model's numbers they are made of; ``first`` and ``last``, their names;
        ``passed_over``, modules that look as if there should be some.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
        >>> find_components(model).components.to_dict()
        {'auto': 8, 'conv_filters': 8, 'linear_rows': 10}
    """
    from pandas import DataFrame

    model = plain_model(model)
    rows, names = [], []
    for name, select in SELECTORS.items():
        groups = told_apart(select(model))
        if not groups:
            continue
        try:
            index = ComponentIndex(tuple(groups))
        except ValueError as error:
            rows.append((0, 0, 0, "", "", str(error)))
        else:
            without = listed(list(passed_over(model, name)))
            ends = index.name_of(0), index.name_of(len(index) - 1)
            rows.append((len(index), len(index.groups), _num_parameters(model, index), *ends, without))
        names.append(name)
    return DataFrame(rows, index=names, columns=["components", "layers", "parameters", "first", "last", "passed_over"])


def _num_parameters(model: nn.Module, index: ComponentIndex) -> int:
    """Entries of the slices; where rows and columns of one matrix cross, both count."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    return sum(
        len(part.starts) * part.size * shapes[part.parameter].numel() // shapes[part.parameter][part.axis]
        for group in index.groups
        for part in group.slices
    )
