"""The commands ``coar-dist import-research`` and ``coar-dist export-research``: key=value arguments into calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from coar_dist.config.arguments import parsed
from coar_dist.config.methods import RESEARCH
from coar_dist.console.saying import Terminal
from coar_dist.errors import ConfigError, UsageError, counted
from coar_dist.interchange.attribution_files import open_attributions, read_attributions
from coar_dist.interchange.exporting import export_attributions, export_margins
from coar_dist.interchange.ids import parse_ids
from coar_dist.interchange.importing import import_attributions, import_margins, read_components
from coar_dist.interchange.margin_stores import open_masks, open_store
from coar_dist.interchange.units import MaskUnits
from coar_dist.store.locations import storage_at
from coar_dist.store.methods import best_method
from coar_dist.store.run_directory import TRAIN_DESIGN, RunDirectory
from coar_dist.store.storage import Storage

_T = TypeVar("_T", int, float)
_KEYS = {
    ("import-research", "margins"): ("design", "name", "components", "ablation_fraction", "rows", "leave_out"),
    ("import-research", "attributions"): ("method", "standardised_by", "num_masks", "leave_out", "nan"),
    ("export-research", "margins"): ("design", "name", "dtype"),
    ("export-research", "attributions"): ("method", "standardised_by", "num_masks", "dtype"),
}
_USAGE = {
    ("import-research", "margins"): """\
usage: coar-dist import-research margins=FOLDER run.dir=... [design=train] [name=test_margins] [components=FILE.json]
                 [ablation_fraction=0.05] [rows=complete] [leave_out=3,17-20]""",
    ("import-research", "attributions"): """\
usage: coar-dist import-research attributions=FILE.pt run.dir=... standardised_by=FOLDER|train|0.05|nothing
                 [num_masks=50000] [method=research] [leave_out=3,17-20] [nan=zero]""",
    ("export-research", "margins"): """\
usage: coar-dist export-research margins=FOLDER run.dir=... [design=train] [name=test_margins] [dtype=float16]""",
    ("export-research", "attributions"): """\
usage: coar-dist export-research attributions=FILE.pt run.dir=... [method=...] [dtype=float16]
                 [standardised_by=train] [num_masks=50000]""",
}


def run_command(command: str, arguments: list[str], terminal: Terminal) -> int:
    """Run one of the two commands.

    Args:
        command: ``import-research`` or ``export-research``.
        arguments: ``key=value`` each.
        terminal: where results are printed.

    Returns:
        The exit code.

    Raises:
        UsageError: the arguments are none of those; the message names the wrong one.
        CoarDistError: anything else that a user can put right; the message says how.
    """
    kind, values = _parsed(command, arguments)
    storage, path = storage_at(values["run.dir"]), Path(values[kind])
    action = {
        ("import-research", "margins"): _import_margins,
        ("import-research", "attributions"): _import_attributions,
        ("export-research", "margins"): _export_margins,
        ("export-research", "attributions"): _export_attributions,
    }[command, kind]
    terminal.stage = command.partition("-")[0]
    action(path, storage, values, terminal)
    return 0


def _parsed(command: str, arguments: list[str]) -> tuple[str, dict[str, str]]:
    """What is imported or exported, and the arguments by key.

    Raises:
        UsageError: they are wrong.
    """
    kinds = ("margins", "attributions")
    named = [kind for kind in kinds if any(argument.partition("=")[0] == kind for argument in arguments)]
    usage = "\n".join(_USAGE[command, kind] for kind in named or kinds)
    taken = [key for kind in named or kinds for key in (kind, *_KEYS[command, kind])]
    values = parsed(arguments, list(dict.fromkeys(["run.dir", *taken])), usage)
    if len(named) != 1:
        what = "margins=... and attributions=... are given" if named else "margins=... or attributions=... is missing"
        raise UsageError(f"{what}: one of them says what to {command.partition('-')[0]}.\n{usage}")
    if "run.dir" not in values:
        raise UsageError(f"run.dir=... is missing: the run directory.\n{usage}")
    return named[0], values


def _import_margins(path: Path, storage: Storage, values: Mapping[str, str], terminal: Terminal) -> None:
    store = open_store(path, values.get("name"))
    only_complete = _choice(values, "rows", ("all", "complete")) == "complete"
    components = read_components(values["components"]) if "components" in values else None
    design_name = values.get("design", TRAIN_DESIGN)
    fraction = _number(values, "ablation_fraction", float)
    content = store.examine(only_complete, _leave_out(values))
    with terminal.progress(len(content.rows), "masks") as progress:
        done = import_margins(store, content, storage, design_name, components, fraction, progress.update)
    left_out = f"; without {counted(done.num_left_out, 'incomplete row')}" if done.num_left_out else ""
    there = ", all there already" if not done.num_written else ""
    terminal.say(
        f"{counted(done.design.num_masks, 'mask')} of {counted(done.design.num_components, 'component')} x "
        f"{counted(len(content.examples), 'example')} as design {design_name}{there}; they ablate "
        f"{content.ablated_share:.3g} of the components{left_out}.",
    )
    if design_name == TRAIN_DESIGN and components is None:
        terminal.say("The components have no names; components=FILE.json in another run.dir would give them.")
    terminal.say(f"Next: coar-dist 'stages=[fit]' run.dir={storage}")


def _import_attributions(path: Path, storage: Storage, values: Mapping[str, str], terminal: Terminal) -> None:
    units = _units(values, storage, open_attributions(path).num_components, None)
    nan_is_zero = _choice(values, "nan", ("refuse", "zero")) == "zero"
    attributions = read_attributions(path, units, _leave_out(values), nan_is_zero)
    method = values.get("method", RESEARCH)
    with terminal.progress(attributions.num_examples, "examples") as progress:
        is_new = import_attributions(attributions, storage, method, progress.update)
    there = "" if is_new else ": there already"
    terminal.say(f"{method} of {counted(attributions.num_examples, 'example')}{there}.")


def _export_margins(path: Path, storage: Storage, values: Mapping[str, str], terminal: Terminal) -> None:
    run = RunDirectory.open(storage)
    design_name, name = values.get("design", TRAIN_DESIGN), values.get("name", "test_margins")
    with terminal.progress(run.num_examples, "examples") as progress:
        export_margins(run, path, design_name, name, values.get("dtype"), progress.update)
    terminal.say(f"{counted(run.design(design_name).num_masks, 'mask')} of {design_name} in {path}.")


def _export_attributions(path: Path, storage: Storage, values: Mapping[str, str], terminal: Terminal) -> None:
    run = RunDirectory.open(storage)
    method = values.get("method") or best_method(run)
    units = _units(values, storage, run.components.num_components, TRAIN_DESIGN)
    assert units is not None
    with terminal.progress(run.num_examples, "examples") as progress:
        export_attributions(run, path, method, units, values.get("dtype", "float32"), progress.update)
    terminal.say(f"{method} of {counted(run.num_examples, 'example')} in {path}.")


def _units(values: Mapping[str, str], storage: Storage, num_components: int, default: str | None) -> MaskUnits | None:
    """What weights are standardised by, as ``standardised_by`` and ``num_masks`` say."""
    text, num_masks = values.get("standardised_by", default), _number(values, "num_masks", int)
    if text == TRAIN_DESIGN:
        store = RunDirectory.open(storage).margins(TRAIN_DESIGN)
        if num_masks is not None and not 0 < num_masks <= store.num_masks:
            raise ConfigError(f"num_masks={num_masks}: {storage} has {store.num_masks} train masks.")
        return MaskUnits.of_masks(masks for masks, _ in store.read(None, 1024, (0, num_masks or store.num_masks)))
    if text is not None and Path(text).is_dir():
        return MaskUnits.of_masks(open_masks(text).completed_masks(num_masks))
    if num_masks is not None:
        raise ConfigError(f"num_masks={num_masks} has no effect without the masks themselves. Leave it out.")
    if text is None:
        return None
    if text == "nothing":
        return MaskUnits.bits(num_components)
    try:
        fraction = float(text)
    except ValueError as error:
        raise ConfigError(
            f"standardised_by={text!r}: must be a folder with masks.npy, train, an ablation fraction, or nothing."
        ) from error
    return MaskUnits.of_fraction(fraction, num_components)


def _leave_out(values: Mapping[str, str]) -> tuple[int, ...]:
    return tuple(parse_ids("leave_out", values["leave_out"])) if "leave_out" in values else ()


def _choice(values: Mapping[str, str], key: str, choices: tuple[str, ...]) -> str:
    value = values.get(key, choices[0])
    if value not in choices:
        raise ConfigError(f"{key}={value!r}: must be one of {', '.join(choices)}.")
    return value


def _number(values: Mapping[str, str], key: str, kind: type[_T]) -> _T | None:
    if key not in values:
        return None
    try:
        return kind(values[key])
    except ValueError as error:
        raise ConfigError(f"{key}={values[key]!r}: must be a number.") from error
