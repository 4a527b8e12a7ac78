"""The run directory: opened or created, its components and designs, and the stores of what lies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from coar_dist.components.index import ComponentIndex
from coar_dist.designs.design import MaskDesign
from coar_dist.designs.given import Imported, Listed
from coar_dist.designs.own import OwnDesign, Rule
from coar_dist.errors import DamagedFileError, MissingWorkError, RunNotFoundError
from coar_dist.store.aside import set_aside, set_aside_wrong
from coar_dist.store.baselines import BaselineStore
from coar_dist.store.gradients import GradientStore
from coar_dist.store.identity import check_design, check_identity, check_probe
from coar_dist.store.margins import MarginStore
from coar_dist.store.mask_file import MASK_FILES, MaskFile
from coar_dist.store.parquet import read_content, write_table
from coar_dist.store.record import (
    ROLES,
    RUN_FILE,
    design_of_record,
    fingerprint_of,
    new_record,
    read_record,
    write_record,
)
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import Storage
from coar_dist.store.values import VALUE_FILES

COMPONENT_FILES = {"components.parquet": "named components", "slices.parquet": "slices"}
"""The files of the component index, with what their metadata call them."""
_TYPES = {
    **dict.fromkeys(("component_id", "layer", "group", "index", "axis", "start", "size"), pa.int64()),
    **dict.fromkeys(("name", "kind", "module", "parameter"), pa.string()),
}
"""Of the components' tables."""
TRAIN_DESIGN, GRADIENT_DESIGN = "train", "gradients"
PREVIEWS, RESPONSES = "previews", "responses"
FOLDERS = (
    *("", "attributions", "evaluation", "evaluation/budget_curve", PREVIEWS, RESPONSES, "report", "logs"),
    *(MASK_FILES, VALUE_FILES),
)
"""Where files lie, besides the folders of shards."""


@dataclass(frozen=True)
class RunDesign:
    """A mask design of a run and what it is for.

    Attributes:
        role: ``train`` (attributions are fitted from it), ``gradients`` (the same, from passes with gradients),
            ``baseline``, ``evaluation`` (held out), ``ceiling`` (partners of held-out masks) or ``edit`` (a sweep over
            numbers of ablated components).
        design: the masks.
    """

    role: str
    design: MaskDesign


class RunDirectory:
    """An open run directory, whose identity has been read (``open``) or checked (``create``).

    Attributes:
        storage: where it lies.
        is_new: whether ``create`` found no run.json that could be read.
    """

    def __init__(self, storage: Storage, record: dict[str, Any], is_new: bool) -> None:
        self.storage = storage
        self.is_new = is_new
        self._record = record
        self._designs = self._read_designs({})

    @classmethod
    def open(cls, storage: Storage) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            RunNotFoundError: there is no run.json.
            DamagedFileError: run.json is damaged.
            RunMismatchError: it is of another version's format.
        """
        return cls(storage, read_record(storage), is_new=False)

    @classmethod
    def create(
        cls,
        storage: Storage,
        identity: Mapping[str, Any],
        components: ComponentIndex,
        num_examples: int,
        probe_margins: Sequence[float] = (),
    ) -> RunDirectory:
        """Create the run directory, or open it if it is of this identity. A damaged run.json is set aside.

        Args:
            storage: where.
            identity: everything that margins depend on, flat: key -> JSON value. The component index is added here.
            components: the component index.
            num_examples: number of examples.
            probe_margins: margins of the first examples, compared to a tolerance that covers other hardware.

        Raises:
            RunMismatchError: it belongs to another identity; the message names the differing keys and values.
        """
        identity = {**identity, "components": components.fingerprint, "num_examples": num_examples}
        try:
            run = cls.open(storage)
        except RunNotFoundError:
            pass
        except DamagedFileError:
            set_aside(storage, RUN_FILE)
        else:
            check_identity(storage, run.identity, identity)
            check_probe(storage, run._record.get("probe_margins", []), probe_margins)
            run._write_components(components)
            return run
        run = cls(storage, new_record(identity, probe_margins), is_new=True)
        run._write_components(components)
        write_record(storage, run._record)  # last: run.json says that the rest is there
        return run

    def _write_components(self, components: ComponentIndex) -> None:
        """Write the components' tables where they are missing or wrong: the identity says what belongs into them."""
        tables = (components.table, components.slice_table)
        for (file, content), table in zip(COMPONENT_FILES.items(), tables, strict=True):
            self.set_aside_wrong(content, file)
            if self.storage.size(file) is None:
                columns = {name: pa.array(values, _TYPES[name]) for name, values in table().items()}
                write_table(self.storage, file, columns, self.belongs_to(content))

    @property
    def created(self) -> str:
        """When it was created: ISO 8601, UTC."""
        return str(self._record["created"])

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of packages that it was created with."""
        return dict(self._record["versions"])

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the run's margins depend on, except the designs."""
        return dict(self._record["identity"])

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return int(self._record["identity"]["num_examples"])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the identity."""
        return fingerprint_of(self.identity)

    @cached_property
    def components(self) -> ComponentIndex:
        """The component index, from ``components.parquet`` and ``slices.parquet``."""
        where, tables = self.storage.where(next(iter(COMPONENT_FILES))), []
        for file, content in COMPONENT_FILES.items():
            found = read_content(self.storage, file, "ablate", self.belongs_to(content), types=_TYPES)
            if found is None:
                raise MissingWorkError(f"{self.storage.where(file)} is missing: run the ablate stage.")
            tables.append(found.columns.to_pydict())
        index = ComponentIndex.from_tables(*tables)
        if index.fingerprint != self.identity["components"]:
            raise DamagedFileError(f"{where} lists other components than run.json. Remove it and run the ablate stage.")
        return index

    @property
    def designs(self) -> dict[str, RunDesign]:
        """The mask designs by name that the last ablate stage asked for."""
        return {name: entry for name, entry in self._designs.items() if self._record["designs"][name]["active"]}

    @property
    def num_masks(self) -> int:
        """Masks of all designs; those with gradients once per block of examples."""
        return sum(store.num_masks for name in self.designs for store in self.shards(name))

    @property
    def held_out(self) -> dict[str, MaskDesign]:
        """The designs that attributions are evaluated on, by name, from the largest ablation fraction down."""
        held_out = {name: entry.design for name, entry in self.designs.items() if entry.role == "evaluation"}
        return dict(sorted(held_out.items(), key=lambda item: -item[1].ablation_fraction))

    def held_out_as_trained(self) -> str | None:
        """The held-out design whose ablation fraction is that of the train design; None where there is none."""
        fraction = self.design(TRAIN_DESIGN).ablation_fraction
        return next((name for name, design in self.held_out.items() if design.ablation_fraction == fraction), None)

    def _read_designs(self, rules: Mapping[str, Rule | None]) -> dict[str, RunDesign]:
        """All designs of the record; ``rules`` are users' own that were given as functions, by design."""
        designs = {}
        for name, entry in self._record["designs"].items():
            load = self._mask_file(name, entry.get("fingerprint", "")) if entry["kind"] == Listed.kind else None
            designs[name] = RunDesign(entry["role"], design_of_record(self.storage, name, entry, rules.get(name), load))
        return designs

    def _mask_file(self, design_name: str, fingerprint: str) -> MaskFile:
        return MaskFile(self.storage, design_name, {**self.belongs_to("masks"), "masks": fingerprint})

    def set_designs(self, designs: Mapping[str, RunDesign]) -> None:
        """Make these the designs of the run: new ones are added, others are kept but inactive, unless imported.

        Raises:
            RunMismatchError: the run has another design of one of these names.
        """
        for name, entry in designs.items():
            assert entry.role in ROLES
            if name in self._designs:
                check_design(self.storage, name, entry.role, self._designs[name].design, entry.design)
        for name, entry in designs.items():
            if isinstance(entry.design, Listed):
                self._mask_file(name, entry.design.fingerprint).write(entry.design.load())
        resting = {
            name: {**entry, "active": entry["active"] and entry["kind"] == Imported.kind}
            for name, entry in self._record["designs"].items()
        }
        wanted = {
            name: {"role": entry.role, **entry.design.to_json(), "active": True} for name, entry in designs.items()
        }
        if self._record["designs"] != {**resting, **wanted}:
            self._record["designs"] = {**resting, **wanted}
            write_record(self.storage, self._record)  # last: run.json says that the masks' files are there
        own = {name: entry.design for name, entry in designs.items() if isinstance(entry.design, OwnDesign)}
        self._designs = self._read_designs({name: design.rule for name, design in own.items()})

    def design(self, name: str) -> MaskDesign:
        """The design of that name.

        Raises:
            MissingWorkError: there is none; the message lists those that are there.
        """
        designs = self.designs
        if name not in designs:
            raise MissingWorkError(
                f"{self.storage} has no design {name!r}, only {sorted(designs)}. Run the ablate stage for it first."
            )
        return designs[name].design

    @property
    def engine_plan(self) -> dict[str, Any] | None:
        """How the forward passes are run: chosen once, used by every later actor; not part of the identity.

        Where run.json was lost, the shards tell.
        """
        plans = (folder.made_by().get("engine") for name in self.designs for folder in self.shards(name))
        plan = self._record.get("engine_plan") or next(filter(None, plans), None)
        return None if plan is None else dict(plan)

    def set_engine_plan(self, plan: Mapping[str, Any]) -> None:
        """Record the engine plan."""
        self._record["engine_plan"] = dict(plan)
        write_record(self.storage, self._record)

    @property
    def gradient_cost(self) -> float | None:
        """What a pass with gradients costs in passes without, as measured when the run began; None if it was not."""
        cost = self._record.get("gradient_cost")
        return None if cost is None else float(cost)

    def set_gradient_cost(self, cost: float) -> None:
        """Record what a pass with gradients costs."""
        self._record["gradient_cost"] = cost
        write_record(self.storage, self._record)

    @property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """The gradient baselines that the last ablate stage asked for: what their weights depend on, by method."""
        return {name: dict(settings) for name, settings in self._record.get("baselines", {}).items()}

    def set_baselines(self, baselines: Mapping[str, Mapping[str, Any]]) -> None:
        """Make these the gradient baselines of the run; weights of others stay where they are."""
        wanted = {name: dict(settings) for name, settings in baselines.items()}
        if self.baselines != wanted:
            self._record["baselines"] = wanted
            write_record(self.storage, self._record)

    def baseline(self, method: str) -> BaselineStore:
        """The shards of a gradient baseline, with its present settings.

        Raises:
            MissingWorkError: the run has no such baseline.
        """
        if method not in self.baselines:
            raise MissingWorkError(
                f"{self.storage} has no gradient baseline {method!r}, only {sorted(self.baselines)}. Run the ablate "
                f"stage with baselines=[{method}]."
            )
        settings = self.baselines[method]
        return BaselineStore(
            storage=self.storage,
            folder="baselines/" + "_".join([method, *(f"{name}_{value}" for name, value in settings.items())]),
            fingerprint=fingerprint_of({**self.identity, "baseline": method, **settings}),
            num_components=self.design(TRAIN_DESIGN).num_components,
            num_masks=self.num_examples,
            method=method,
        )

    def margins(self, design_name: str) -> MarginStore:
        """The margin shards of a design."""
        design = self.design(design_name)
        return MarginStore(
            storage=self.storage,
            folder=f"margins/{design_name}",
            fingerprint=fingerprint_of({**self.identity, "design": design.identity()}),
            num_components=design.num_components,
            num_masks=design.num_masks,
            num_examples=self.num_examples,
            examples_per_block=int(self.identity["ablation.examples_per_block"]),
            dtype=str(self.identity["ablation.margins_dtype"]),
        )

    def gradients(self, design_name: str) -> list[GradientStore]:
        """The gradient shards of a design: one store per example block."""
        design, margins = self.design(design_name), self.margins(design_name)
        return [
            GradientStore(
                storage=self.storage,
                folder=f"gradients/{design_name}/{first:08d}-{end:08d}",
                fingerprint=margins.fingerprint,
                num_components=design.num_components,
                num_masks=design.num_masks,
                block=(first, end),
            )
            for first, end in margins.blocks
        ]

    def shards(self, design_name: str) -> Sequence[ShardFolder]:
        """The folders of a design's shards."""
        if self.designs[design_name].role == "gradients":
            return self.gradients(design_name)
        return [self.margins(design_name)]

    def belongs_to(self, content: str) -> dict[str, Any]:
        """What the metadata of this run's files of such content say."""
        return {"content": content, "run": self.fingerprint}

    def set_aside_wrong(self, content: str, name: str) -> None:
        """For the process that holds the run: set a file aside if it is damaged, of other content or another run."""
        set_aside_wrong(self.storage, name, self.belongs_to(content))
