"""What a run directory is, how far its run is, and what in it is damaged: read from the files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table
from coar_dist.errors import RunNotFoundError, counted, listed_ranges
from coar_dist.store.circuits import CIRCUIT_FOLDER
from coar_dist.store.class_names import CLASS_NAMES, CLASS_NAMES_FILE
from coar_dist.store.lock import holder_of
from coar_dist.store.parquet import why_wrong
from coar_dist.store.run_directory import COMPONENT_FILES, FOLDERS, PREVIEWS, RESPONSES, RunDirectory
from coar_dist.store.shards import ShardFolder
from coar_dist.store.storage import Storage

_READ_ALL_UP_TO_BYTES = 4 * 10**9
_MAX_LISTED = 10
_TABLES = ("attributions", "evaluation", "evaluation/budget_curve")


def inspect_run(storage: Storage, read_everything: bool, terminal: Terminal) -> bool:
    """Print what the run is, how far it is, and what is damaged; nothing is changed.

    Args:
        storage: the run directory.
        read_everything: whether every byte of a large run is verified; a small run always is.
        terminal: where it is printed.

    Returns:
        Whether nothing is damaged.

    Raises:
        RunNotFoundError: there is no run.
        DamagedFileError: its run.json is damaged.
    """
    holder = holder_of(storage)
    try:
        run = RunDirectory.open(storage)
    except RunNotFoundError as error:
        if holder is None:
            raise
        raise RunNotFoundError(f"{storage} has no run.json yet; {holder} is at work on it.") from error
    folders = {name: storage.files(name) for name in (*_TABLES, PREVIEWS, RESPONSES)}
    baselines = [run.baseline(method) for method in run.baselines]
    shards = {store.folder: storage.files(store.folder) for store in _shard_folders(run)}
    num_bytes = sum(sum(files.values()) for files in (*folders.values(), *shards.values()))
    everything = read_everything or num_bytes <= _READ_ALL_UP_TO_BYTES
    say = terminal.print
    say(f"{storage}: run made at {run.created}, {num_bytes / 1e9:,.3f} GB, {run.fingerprint}")
    for key, value in run.identity.items():
        say(f"  {key}: {value}")
    say(f"In use by {holder}." if holder else "No process writes to it.")

    wrong: list[str] = []
    table = new_table("design", "role", "masks", "done", "shards", "wrong", "missing masks", num_text=2)
    for name, entry in run.designs.items():
        stores = run.shards(name)
        num_wrong = num_shards = num_missing = 0
        missing: list[tuple[int, int]] = []
        for store in stores:
            bad = store.wrong_shards("everything" if everything else "footers")
            wrong += bad.values()
            num_wrong += len(bad)
            gaps = store.missing(without=bad)
            num_missing += sum(stop - start for start, stop in gaps)
            missing += gaps
            num_shards += sum(file.endswith(".parquet") for file in shards[store.folder])
        num_masks = entry.design.num_masks
        done = f"{1 - num_missing / max(num_masks * len(stores), 1):.1%}"
        counts = (f"{num_masks:,}", done, f"{num_shards:,}", f"{num_wrong:,}")
        table.add_row(name, entry.role, *counts, listed_ranges(missing, most=3))
    terminal.print_table(table)
    for baseline in baselines:
        bad = baseline.wrong_shards("everything" if everything else "footers")
        wrong += bad.values()
        num_missing = sum(stop - start for start, stop in baseline.missing(without=bad))
        num_done = run.num_examples - num_missing
        say(f"{baseline.method}: weights of {num_done:,} of {counted(run.num_examples, 'example')}")

    for file, content in {**COMPONENT_FILES, "examples.parquet": "examples"}.items():
        size = storage.size(file)
        if size is None:
            say(f"{file} is missing; the ablate stage makes it.")
        else:
            wrong += filter(None, [why_wrong(storage, file, run.belongs_to(content), everything, size)])
    wrong += filter(None, [why_wrong(storage, CLASS_NAMES_FILE, run.belongs_to(CLASS_NAMES), everything)])
    if storage.size("model.safetensors") is not None:
        from coar_dist.tasks.trained_checkpoint import why_checkpoint_wrong  # torch takes seconds to load

        wrong += filter(None, [why_checkpoint_wrong(storage)])
    for folder, files in folders.items():
        tables = {file: size for file, size in files.items() if file.endswith(".parquet")}
        for file, size in tables.items():
            belongs_to = run.belongs_to(folder.rpartition("/")[2])
            wrong += filter(None, [why_wrong(storage, f"{folder}/{file}", belongs_to, everything, size)])
        methods = sorted({file.split(".")[0] for file in tables})
        if folder in _TABLES:
            num_files = counted(len(tables), "file")
            say(f"{folder}: {num_files} of {', '.join(methods)}" if tables else f"{folder}: none yet")
        elif tables:
            say(f"{folder}: {counted(len(tables), 'file')}")
    _list(say, wrong, "to be removed; the next run of their stage makes them again")
    circuit = f"{CIRCUIT_FOLDER}/circuit.parquet"
    if storage.size(circuit) is not None:
        wrong += filter(None, [why_wrong(storage, circuit, run.belongs_to(CIRCUIT_FOLDER), everything)])
        say(f"{CIRCUIT_FOLDER}: scores; their masks: coar-dist inspect run.dir={storage.location}/{CIRCUIT_FOLDER}")
    aside = _set_aside({"": storage.files(), **folders, **shards})
    _list(say, aside, "set aside earlier; they are not used, and may be deleted")
    if not everything:
        say("Only names, sizes and footers were checked; verify=true reads every byte.")
    return not wrong


def files_set_aside(run: RunDirectory) -> list[str]:
    """Names of the damaged or foreign files that were set aside earlier."""
    folders = (*FOLDERS, *(store.folder for store in _shard_folders(run)))
    return _set_aside({folder: run.storage.files(folder) for folder in folders})


def _shard_folders(run: RunDirectory) -> list[ShardFolder]:
    baselines = (run.baseline(method) for method in run.baselines)
    return [*(store for name in run.designs for store in run.shards(name)), *baselines]


def _set_aside(listed: Mapping[str, Iterable[str]]) -> list[str]:
    """Among the files of some folders."""
    names = (f"{folder}/{file}" for folder, files in listed.items() for file in sorted(files))
    return [name.lstrip("/") for name in names if name.endswith(".damaged")]


def _list(say: Callable[[str], None], lines: list[str], what: str) -> None:
    if lines:
        say(f"{counted(len(lines), 'file')} {what}:")
        for line in lines[:_MAX_LISTED]:
            say(f"  {line}")
        if len(lines) > _MAX_LISTED:
            say(f"  and {len(lines) - _MAX_LISTED} more")
