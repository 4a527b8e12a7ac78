"""The command ``coar-dist compare``: key=value arguments into a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coar_dist.config.arguments import parsed
from coar_dist.console.saying import Terminal
from coar_dist.console.tables import new_table
from coar_dist.errors import ConfigError, UsageError, counted
from coar_dist.interchange.ids import parse_ids
from coar_dist.report.comparison.compared import Comparison, page_at
from coar_dist.report.comparison.sides import Side, chosen_examples
from coar_dist.store.locations import storage_at
from coar_dist.store.reader import RunReader
from coar_dist.store.run_directory import RunDirectory

_KEYS = ("run.dir", "other", "methods", "examples", "page")
_SHOWN = 10
_USAGE = """\
usage: coar-dist compare run.dir=... other=... [methods=[coar,gradient_ridge]] [examples=0-49,60] [page=comparison.html]
       coar-dist compare run.dir=... methods=[coar,gradient_ridge]         two methods of one run"""


def run_compare(arguments: Sequence[str], terminal: Terminal) -> int:
    """Compare two runs or methods, print the result and write the page.

    Args:
        arguments: ``key=value`` each.
        terminal: where it is printed.

    Returns:
        The exit code.

    Raises:
        UsageError: the arguments are none of those; the message names the wrong one.
        CoarDistError: anything else that a user can put right; the message says how.
    """
    values = parsed(arguments, _KEYS, _USAGE)
    if "run.dir" not in values:
        raise UsageError(f"run.dir=... is missing: one of the runs.\n{_USAGE}")
    if "other" not in values and "methods" not in values:
        raise UsageError(
            f"other=... or methods=[...] is missing: what to compare {values['run.dir']} with, another run or two "
            f"methods of this one.\n{_USAGE}"
        )
    terminal.stage = "compare"
    page = page_at(values.get("page", "comparison.html"))  # refused now, not after a minute of reading
    readers = [RunReader(RunDirectory.open(storage_at(values[key]))) for key in ("run.dir", "other") if key in values]
    one, other = (_side(readers[i % len(readers)], method, values) for i, method in enumerate(_methods(values)))
    with terminal.progress(len(one.example_ids), "examples") as progress:
        comparison = Comparison.of(one, other, progress.update)
    for warning in comparison.warnings:
        terminal.warn(warning)
    terminal.say(comparison.summary)
    for note in comparison.notes:
        terminal.say(note)
    _print(comparison, terminal)
    comparison.write_report(page)
    terminal.say(f"{page}, and {page.with_suffix('')}.examples.csv, .components.csv and .largest.csv")
    return 0


def _methods(values: Mapping[str, str]) -> list[str | None]:
    """The method of each side; None is its best.

    Raises:
        ConfigError: these are not one or two.
    """
    names = [name.strip() for name in values.get("methods", "").strip("[]").split(",") if name.strip()]
    if len(names) > 2:
        raise ConfigError(f"methods={values['methods']}: name one of both sides, or one of each.")
    return [names[0], names[-1]] if names else [None, None]


def _side(reader: RunReader, method: str | None, values: Mapping[str, str]) -> Side:
    every = range(reader.directory.num_examples)
    ids = parse_ids("examples", values["examples"]) if "examples" in values else every
    return Side(reader, chosen_examples(reader, ids), method or reader.best_method)


def _print(comparison: Comparison, terminal: Terminal) -> None:
    largest = comparison.largest
    numbers = [name for name in ("one", "other", "difference", "z") if name in largest]
    heads = dict(zip(("one", "other"), comparison.names, strict=True))
    table = new_table("example", "component", *(heads.get(name, name) for name in numbers), num_text=2)
    for row in largest.head(_SHOWN).to_dict("records"):
        table.add_row(str(row["example_id"]), row["name"], *(f"{row[name]:.4g}" for name in numbers))
    if len(largest):
        terminal.say(f"the largest of {counted(len(largest), 'difference')} on the page:")
        terminal.show_table(table)
