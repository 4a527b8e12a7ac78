"""The report stage: tables in the terminal, figures, and the page; from the run directory alone."""

from __future__ import annotations

from rich.console import Console

from coar_dist.errors import StorageError
from coar_dist.report.page.render import PAGE, write_page
from coar_dist.report.summary import summarise
from coar_dist.report.terminal import print_report
from coar_dist.store.run_directory import RunDirectory


def report_stage(run: RunDirectory, console: Console) -> None:
    """Print the results of a run, and write ``report/index.html`` and its figures.

    Raises:
        MissingWorkError: the run has not been evaluated.
        DamagedFileError: a file of the results is damaged.
    """
    summary = summarise(run)
    print_report(run, summary, console)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    try:
        write_page(run, summary)
        say(f"Report: {run.storage.where(PAGE)}, and its figures beside it as .png and .svg")
    except StorageError as error:  # a run directory that others own can still be read
        say(f"[yellow]No report page: {error}[/yellow]")
    say(f"Next, in Python: run = coar_dist.open_run({run.storage.location!r}); run.weights(example_ids=[0])")
    say(f"Or query {run.storage}/attributions/{summary.methods[0].method}.*.parquet with DuckDB, pandas or Polars.")
