"""The pictures of a result, each a figure of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coar_dist.config.python_arguments import COUNT, EXAMPLE, takes
from coar_dist.store.reader import RunReader

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plots:
    """``run.plot``: figures unknown to pyplot. A notebook shows each once, ``figure.savefig`` writes it."""

    def __init__(self, reader: RunReader, example_ids: NDArray[np.int64], method: str) -> None:
        self._reader, self._example_ids, self._method = reader, example_ids, method

    def __repr__(self) -> str:
        return "Plots: .waterfall(example), .components(), .heads(), .predictions(example), .correlation()"

    @property
    def _output(self) -> str:
        from coar_dist.report.output_names import output_name

        return output_name(self._reader.directory.identity, self._reader.class_names).one

    def _ids_of(self, example: int | Sequence[int] | NDArray[np.int64] | None) -> NDArray[np.int64]:
        return self._example_ids if example is None else np.asarray(example).reshape(-1)

    @takes(example=EXAMPLE, num=COUNT)
    def waterfall(self, example: int, num: int = 10) -> Figure:
        """From the predicted output with everything ablated to that of the whole model, component by component.

        Args:
            example: its id in the run.
            num: components with a bar of their own, those with the largest absolute weights; one more bar is of all
                others.

        Raises:
            IndexError: the id is out of range.
            ConfigError: ``num`` is below 1.

        Example:
            >>> figure = run.plot.waterfall(3)
            >>> figure.savefig("example3.png")  # doctest: +SKIP
        """
        from coar_dist.report.attribution_figures import draw_waterfall, title_of
        from coar_dist.report.notebook import component_frame

        top = component_frame(self._reader, example, num, self._method)
        weights = self._reader.weights([example], self._method)[0]
        base = float(self._reader.intercepts([example], self._method)[0])
        total = float(weights.sum(dtype=float))
        title = title_of(self._reader, np.array([example]))
        return draw_waterfall(top["name"].tolist(), top["weight"].to_numpy(), total, base, self._output, title)

    @takes(num=COUNT)
    def components(self, example: int | Sequence[int] | NDArray[np.int64] | None = None, num: int = 15) -> Figure:
        """The strongest components of one example, or of several in the mean, as bars with their standard errors.

        Args:
            example: an id, or several; None: all of this result.
            num: components.

        Raises:
            IndexError: an example id is out of range.
            ConfigError: there is no example, or ``num`` is below 1.

        Example:
            >>> figure = run[run.examples()["label"] == 0].plot.components()
        """
        from coar_dist.report.attribution_figures import draw_components, title_of
        from coar_dist.report.notebook import component_frame

        ids = self._ids_of(example)
        top = component_frame(self._reader, ids, num, self._method)
        errors = top["standard_error"].to_numpy() if "standard_error" in top else None
        title = title_of(self._reader, ids)
        return draw_components(top["name"].tolist(), top["weight"].to_numpy(), errors, self._output, title)

    def heads(self, example: int | Sequence[int] | NDArray[np.int64] | None = None) -> Figure:
        """The weights of attention heads by layer and head, of one example or of several in the mean.

        Args:
            example: an id, or several; None: all of this result.

        Raises:
            IndexError: an example id is out of range.
            ConfigError: no component of the run is a head.

        Example:
            >>> figure = run.plot.heads()  # doctest: +SKIP
        """
        from coar_dist.report.attribution_figures import draw_heads, title_of
        from coar_dist.report.notebook import component_frame

        every, ids = self._reader.components.num_components, self._ids_of(example)
        weights = component_frame(self._reader, ids, every, self._method)
        return draw_heads(weights, self._reader.components, title_of(self._reader, ids))

    def predictions(self, example: int | Sequence[int] | NDArray[np.int64]) -> Figure:
        """Figure 2 of Shah et al. (2024): predicted against true outputs of an example on held-out masks.

        Args:
            example: an id, or several, with a panel each.

        Raises:
            IndexError: an example id is out of range.
            MissingWorkError: the run has no held-out masks.

        Example:
            >>> figure = run.plot.predictions([3, 5])
        """
        from coar_dist.report.attribution_figures import prediction_figure

        return prediction_figure(self._reader, np.asarray(example).reshape(-1), self._method)

    def correlation(self, methods: Sequence[str] | None = None) -> Figure:
        """Figure 1 of Shah et al. (2024) for the run: mean correlation by ablation fraction, a line per method.

        Args:
            methods: which lines; None for all.

        Raises:
            ConfigError: the run has no such method.
            MissingWorkError: the run has not been evaluated.

        Example:
            >>> figure = run.plot.correlation(["coar"])
        """
        from coar_dist.report.attribution_figures import correlation_figure

        return correlation_figure(self._reader.directory, methods)
