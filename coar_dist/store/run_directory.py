"""The run directory and its identity: run.json, components.parquet, examples.parquet and where the rest lies."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from coar_dist import __version__
from coar_dist.components.index import ComponentIndex
from coar_dist.designs.design import IMPORTED, MaskDesign, Rule
from coar_dist.errors import DamagedFileError, MissingWorkError, RunMismatchError, RunNotFoundError
from coar_dist.store.baselines import BaselineStore
from coar_dist.store.gradients import GradientStore
from coar_dist.store.margins import MarginStore
from coar_dist.store.parquet import read_table, set_aside, write_table
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import Storage

FORMAT = 2
RUN_FILE = "run.json"
_COMPONENTS_FILE, _EXAMPLES_FILE = "components.parquet", "examples.parquet"
TRAIN_DESIGN, GRADIENT_DESIGN = "train", "gradients"
PREVIEWS = "previews"
FOLDERS = ("", "attributions", "evaluation", "evaluation/budget_curve", PREVIEWS, "report", "logs")
"""Where files lie, besides the folders of shards."""
IMPORTED_FROM = "imported_from"
"""Key of the identity of a run whose margins were collected elsewhere: by whom."""
ROLES = ("train", "gradients", "baseline", "evaluation", "ceiling", "edit")


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
        self._rules: dict[str, Rule | None] = {}  # a user's own that were given as functions, by design

    @classmethod
    def open(cls, storage: Storage) -> RunDirectory:
        """Open an existing run directory.

        Raises:
            RunNotFoundError: there is no run.json.
            DamagedFileError: run.json is damaged.
            RunMismatchError: it is of another version's format.
        """
        if storage.size(RUN_FILE) is None:
            raise RunNotFoundError(
                f"{storage} is not a run directory (it has no {RUN_FILE}). Make one with the ablate stage, or correct "
                f"run.dir."
            )
        where = storage.where(RUN_FILE)
        try:
            record = json.loads(storage.read(RUN_FILE))
            found = record["format"]
            checksum = record.pop("sha256", None)
            if (checksum is not None or found == FORMAT) and checksum != fingerprint_of(record):
                raise ValueError("it does not have the checksum that it was written with")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(
                f"{where} is damaged: {error}. Run the ablate stage: it makes the file anew and keeps every shard that "
                f"is of the same run."
            ) from error
        if found != FORMAT:
            raise RunMismatchError(
                f"{where} has format {found}, this version reads format {FORMAT}. Use another run.dir."
            )
        return cls(storage, record, is_new=False)

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
            run._check_identity(identity)
            run._check_probe(probe_margins)
            run._mend_components(components)
            return run
        record: dict[str, Any] = {
            "format": FORMAT,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {
                "python": platform.python_version(),
                "coar-dist": __version__,
                **{name: _version(name) for name in ("torch", "ray", "numpy", "pyarrow")},
            },
            "identity": identity,
            "probe_margins": list(probe_margins),
            "designs": {},
        }
        run = cls(storage, record, is_new=True)
        run._mend_components(components)
        run._save()  # last: run.json says that the rest is there
        return run

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        stored = self._record["identity"]
        differing = [key for key in {**stored, **identity} if stored.get(key) != identity.get(key)]
        if IMPORTED_FROM in stored and IMPORTED_FROM not in identity:
            raise RunMismatchError(
                f"{self.storage} holds margins that were imported from {stored[IMPORTED_FROM]}. The ablate stage "
                f"cannot add to them: their masks are no function of a seed, and no model is known. Use "
                f"'stages=[fit,evaluate,report]', or another run.dir."
            )
        if differing:
            lines = "; ".join(
                f"{key} is {identity.get(key)!r}, but the run was made with {stored.get(key)!r}" for key in differing
            )
            raise RunMismatchError(
                f"{self.storage} belongs to another run: {lines}. Use another run.dir, or undo the change."
            )

    def _check_probe(self, probe_margins: Sequence[float]) -> None:
        stored = self._record.get("probe_margins", [])
        if not np.allclose(stored, probe_margins, rtol=1e-2, atol=1e-2, equal_nan=True):
            raise RunMismatchError(
                f"{self.storage} belongs to another run: the unablated margins of the first examples are "
                f"{list(probe_margins)}, but the run was made with {stored}, though weights and names are the same. "
                f"The model's code or the output function has changed. Use another run.dir, or undo the change."
            )

    def _mend_components(self, components: ComponentIndex) -> None:
        """Write ``components.parquet`` where it is missing or damaged: the identity says what belongs into it."""
        if self._is_whole(_COMPONENTS_FILE, "components"):
            return
        columns = {name: pa.array(values) for name, values in components.table().items()}
        write_table(self.storage, _COMPONENTS_FILE, columns, self._belongs_to("components"))

    def _is_whole(self, name: str, content: str) -> bool:
        """Whether a file is there and can be used; a damaged one is set aside."""
        if self.storage.size(name) is None:
            return False
        try:
            read_table(self.storage, name, self._belongs_to(content))
        except DamagedFileError:
            set_aside(self.storage, name)
            return False
        return True

    def _save(self) -> None:
        record = {**self._record, "sha256": fingerprint_of(self._record)}
        self.storage.write(RUN_FILE, json.dumps(record, indent=2).encode())

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
        """The component index, from ``components.parquet``."""
        table = read_table(self.storage, _COMPONENTS_FILE, self._belongs_to("components"))
        index = ComponentIndex.from_table(table.to_pydict())
        if index.fingerprint != self.identity["components"]:
            raise DamagedFileError(f"{self.storage.where(_COMPONENTS_FILE)} does not belong to this run.")
        return index

    @property
    def designs(self) -> dict[str, RunDesign]:
        """The mask designs by name that the last ablate stage asked for."""
        return {name: design for name, design in self._all_designs().items() if self._record["designs"][name]["active"]}

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

    def _all_designs(self) -> dict[str, RunDesign]:
        fields = [field.name for field in dataclasses.fields(MaskDesign)]
        stored = {
            name: {key: entry[key] for key in fields if key in entry} for name, entry in self._record["designs"].items()
        }
        return {
            name: RunDesign(self._record["designs"][name]["role"], MaskDesign(**values, rule=self._rules.get(name)))
            for name, values in stored.items()
        }

    def set_designs(self, designs: Mapping[str, RunDesign]) -> None:
        """Make these the designs of the run: new ones are added, others are kept but set to rest, unless imported.

        Raises:
            RunMismatchError: the run has another design of one of these names.
        """
        for name, entry in designs.items():
            self._check_design(name, entry)
        resting = {
            name: {**entry, "active": entry["active"] and entry["kind"] == IMPORTED}
            for name, entry in self._record["designs"].items()
        }
        wanted = {
            name: {"role": entry.role, **entry.design.to_json(), "active": True} for name, entry in designs.items()
        }
        self._rules = {name: entry.design.rule for name, entry in designs.items()}
        if self._record["designs"] != {**resting, **wanted}:
            self._record["designs"] = {**resting, **wanted}
            self._save()

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

    def _check_design(self, name: str, entry: RunDesign) -> None:
        assert entry.role in ROLES
        existing = self._all_designs().get(name)
        if existing is None:
            return
        old, new = existing.design.identity(), entry.design.identity()
        if old != new and IMPORTED in (old["kind"], new["kind"]):
            how = (
                "was imported, so no others" if old["kind"] == IMPORTED else "was collected here, so no imported masks"
            )
            raise RunMismatchError(
                f"design {name!r} of {self.storage} {how} can take its place. Use another design, or another run.dir."
            )
        for key in old:
            if old[key] != new[key]:
                if key == "fingerprint":
                    raise RunMismatchError(
                        f"{old['kind']!r} makes other masks than when design {name!r} of {self.storage} was collected: "
                        f"its code has changed. Use another run.dir, or the former code."
                    )
                option = f"{'design' if entry.role == 'train' or key == 'ablation_fraction' else entry.role}.{key}"
                if entry.role == "ceiling":
                    option = f"evaluation.{'ceiling_correlation' if key == 'correlation' else key}"
                raise RunMismatchError(
                    f"{option} is {new[key]!r}, but design {name!r} of {self.storage} was collected with "
                    f"{old[key]!r}. Use another run.dir, or {option}={old[key]}."
                )

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
        self._save()

    @property
    def gradient_cost(self) -> float | None:
        """What a pass with gradients costs in passes without, as measured when the run began; None if it was not."""
        cost = self._record.get("gradient_cost")
        return None if cost is None else float(cost)

    def set_gradient_cost(self, cost: float) -> None:
        """Record it."""
        self._record["gradient_cost"] = cost
        self._save()

    @property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """The gradient baselines that the last ablate stage asked for: what their weights depend on, by method."""
        return {name: dict(settings) for name, settings in self._record.get("baselines", {}).items()}

    def set_baselines(self, baselines: Mapping[str, Mapping[str, Any]]) -> None:
        """Make these the gradient baselines of the run; weights of others stay where they are."""
        wanted = {name: dict(settings) for name, settings in baselines.items()}
        if self.baselines != wanted:
            self._record["baselines"] = wanted
            self._save()

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

    def _belongs_to(self, content: str) -> dict[str, Any]:
        return {"content": content, "run": self.fingerprint}

    def has_examples(self) -> bool:
        """Whether ``examples.parquet`` is there and whole; a damaged one is set aside."""
        return self._is_whole(_EXAMPLES_FILE, "examples")

    def write_examples(
        self,
        labels: NDArray[np.int64] | None,
        predictions: NDArray[np.int64] | None,
        margins: NDArray[np.float32],
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Write ``examples.parquet``.

        Args:
            labels: (num_examples,) class labels; None where targets are not classes.
            predictions: (num_examples,) classes predicted by the unablated model; None likewise.
            margins: (num_examples,) output function of the unablated model; NaN where it is not known.
            columns: the example set's further values by name, (num_examples,) each.
        """
        nothing = pa.nulls(len(margins), pa.int64())
        table = {
            "example_id": pa.array(np.arange(len(margins))),
            "label": nothing if labels is None else pa.array(labels),
            "prediction": nothing if predictions is None else pa.array(predictions),
            "margin": pa.array(margins, from_pandas=True),
            **{name: pa.array(values) for name, values in (columns or {}).items()},
        }
        write_table(self.storage, _EXAMPLES_FILE, table, self._belongs_to("examples"))

    def update_examples(self, columns: Mapping[str, NDArray[Any]]) -> bool:
        """Add further columns to ``examples.parquet``, or give them new values: margins do not depend on them.

        Args:
            columns: (num_examples,) each; other columns of the file stay.

        Returns:
            Whether there was anything to change.
        """
        old = read_table(self.storage, _EXAMPLES_FILE, self._belongs_to("examples"))
        new = {name: pa.array(values) for name, values in columns.items()}
        kept = {name: old[name].combine_chunks() for name in old.column_names}
        if all(name in kept and kept[name].equals(values) for name, values in new.items()):
            return False
        write_table(self.storage, _EXAMPLES_FILE, {**kept, **new}, self._belongs_to("examples"))
        return True

    def read_examples(self) -> dict[str, NDArray[Any]]:
        """The columns of ``examples.parquet``; labels and predictions are NaN where targets are not classes, like
        margins that are not known.

        Raises:
            MissingWorkError: the file is not there.
            DamagedFileError: it is damaged.
        """
        if self.storage.size(_EXAMPLES_FILE) is None:
            raise MissingWorkError(f"{self.storage.where(_EXAMPLES_FILE)} is missing: run the ablate stage.")
        table = read_table(self.storage, _EXAMPLES_FILE, self._belongs_to("examples"))
        arrays = {name: table[name].to_numpy() for name in table.column_names}
        return {name: array.astype(np.str_) if array.dtype == object else array for name, array in arrays.items()}


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of an identity."""
    return "sha256:" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a fit without Ray
        return "not installed"
