"""What of a run needs its model once more, besides edits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coar_dist.components.masks import Off
from coar_dist.config.python_arguments import NAMES, NUMBERS, listed_of, part_of, takes
from coar_dist.config.python_words import OF_CIRCUIT, in_python_words
from coar_dist.config.schema import CircuitConfig, Config, RunConfig
from coar_dist.config.settings import ClusterSettings, cluster_of
from coar_dist.console.cell import console_of
from coar_dist.errors import ConfigError
from coar_dist.store.circuits import CircuitTable
from coar_dist.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from coar_dist.result.circuit import Circuit
    from coar_dist.result.made import Made
    from coar_dist.tasks.task import Task


MARGIN = "margin"
"""The output function where none is named."""


class OfModel:
    """The part of ``Run`` that runs its model.

    Attributes:
        directory: the run directory.
    """

    directory: RunDirectory
    _made: Made | None = None

    @in_python_words(OF_CIRCUIT)
    @takes(sizes=NUMBERS, methods=NAMES, settings=part_of(CircuitConfig))
    def circuit(
        self,
        sizes: Sequence[float] | None = None,
        known: Off | None = None,
        *,
        methods: Sequence[str] | None = None,
        model: nn.Module | None = None,
        inputs: Any = None,
        targets: Any = None,
        output_function: str | Callable[[Any, Tensor], Tensor] = MARGIN,
        counterfactual: Any = None,
        reference: Any = None,
        settings: CircuitConfig | None = None,
        cluster: ClusterSettings | None = None,
        progress: bool = True,
        console: Console | None = None,
    ) -> Circuit:
        """How much of the mean output the strongest components of every method do alone, with everything else ablated
        as in the run: faithfulness, CPR and CMD of the MIB benchmark (Mueller et al. 2025, section 3.2); and whether
        they are the components that are known to do the work.

        Calling it again with the same arguments continues, or finds all done.

        Args:
            sizes: shares of the components, ascending; None: those of the benchmark, .001 to 1.
            known: components that are known: ids, names or shell patterns of names, or ``"necessary"``: those that the
                mean output breaks without, ablated alone or in pairs.
            methods: some of ``run.methods``; None: all.
            model: what the run explains; None: what ``attribute`` was given in this process.
            inputs, targets, counterfactual, reference: as ``attribute`` was given them; given with ``model``.
            output_function: of ``model``'s outputs; given with ``model``.
            settings: everything else, as a ``CircuitConfig``; what is named here replaces its values.
            cluster: as of ``attribute``.
            progress, console: whether and where progress is printed; None is standard output.

        Returns:
            The circuits: ``circuit.to_pandas()`` has a row of scores per method, ``circuit.curve()`` every size,
            ``circuit.plot()`` draws it.

        Raises:
            RunMismatchError: model, examples or output function are not those of the run.
            ConfigError: there is no such component or method.

        Example:
            >>> circuit = run.circuit(sizes=[0.25, 0.5, 1.0], known=["conv1*"])
            >>> circuit.to_pandas().columns.tolist()[-2:], circuit.curve()["num_components"].tolist()[:3]
            (['cpr', 'cmd'], [3, 6, 12])
        """
        from coar_dist.result.circuit import Circuit
        from coar_dist.stages.pipeline import run_stages
        from coar_dist.tasks.build import given_reference

        if model is None and reference is not None:
            raise ConfigError("circuit: reference has no effect without model and inputs: the run has its own.")
        task = self._task_of("circuit", model, inputs, targets, None, output_function, counterfactual)
        chosen = CircuitConfig() if settings is None else settings
        if sizes is not None:
            chosen = replace(chosen, sizes=listed_of(sizes))
        if known is not None:
            chosen = replace(chosen, known=known.names() if hasattr(known, "names") else known)
        if methods is not None:
            chosen = replace(chosen, methods=listed_of(methods))
        given = given_reference(task.model, reference)
        if given is None and self._made is not None:
            given = self._made.reference
        config = Config(
            ["circuit"], run=RunConfig(self.directory.storage.location), circuit=chosen, cluster=cluster_of(cluster)
        )
        run_stages(config, console_of(console, progress), task, reference=given)
        return Circuit(CircuitTable(self.directory).read(), self.directory.components)

    def _task_of(
        self,
        what_for: str,
        model: nn.Module | None,
        inputs: Any,
        targets: Any,
        columns: Mapping[str, Any] | None,
        output_function: str | Callable[[Any, Tensor], Tensor],
        counterfactual: Any = None,
    ) -> Task:
        """What was given, or else what ``attribute`` was given in this process."""
        from coar_dist.tasks.build import given_task

        if model is not None and inputs is not None:
            return given_task(model, inputs, targets, columns, output_function, counterfactual)
        if self._made is not None and inputs is None and targets is None:
            given = {"columns": columns, "counterfactual": counterfactual}
            given["output_function"] = None if output_function is MARGIN else output_function
            for key, value in given.items():
                if value is not None:
                    raise ConfigError(
                        f"{what_for}: {key} has no effect without model and inputs: the run has its own. Leave it out."
                    )
            return self._made.task if model is None else replace(self._made.task, model=model)
        if self._made is not None:
            raise ConfigError(f"{what_for}: give model and inputs as well, or none of the three: the run has its own.")
        raise ConfigError(
            f"{what_for}: a run that was opened from its files has no model: give model, inputs and targets, the ones "
            f"that it explains. (A run that attribute returned has them.)"
        )
