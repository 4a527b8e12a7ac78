"""The report stage: tables in the terminal, figures, and the page; from the run directory alone."""

from __future__ import annotations

from coar_dist.errors import StorageError
from coar_dist.report.page import PAGE
from coar_dist.stages.session import Session
from coar_dist.stages.stage import Stage


def _check(session: Session) -> None:
    """Check the names of classes that are given for a run that is there already; the ablate stage checks its own.

    Raises:
        ConfigError: a class has no name, or there are no classes.
    """
    if session.config.task.class_names is not None and "ablate" not in session.config.stages:
        from coar_dist.stages.class_names import class_names_for_report

        class_names_for_report(session, session.open_run())


def _run(session: Session) -> None:
    """Print the results of a run, and write ``report/index.html`` and its figures.

    Raises:
        MissingWorkError: the run has not been evaluated.
        DamagedFileError: a file of the results is damaged.
    """
    from coar_dist.report.page.render import write_page  # matplotlib takes seconds to load
    from coar_dist.report.summary import summarise
    from coar_dist.report.terminal import print_report

    if session.config.task.class_names is not None and "ablate" not in session.config.stages:
        from coar_dist.stages.class_names import class_names_for_report, keep_class_names

        run = session.open_run()
        keep_class_names(session, run, class_names_for_report(session, run))
    session.release()  # the page shows the log of this command, which must be whole
    run, terminal = session.open_run(), session.terminal
    summary = summarise(run)
    print_report(run, summary, terminal)
    try:
        write_page(run, summary)
        terminal.print(f"Report: {run.storage.where(PAGE)}, and its figures beside it as .png and .svg")
    except StorageError as error:  # a run directory that others own can still be read
        terminal.print(f"No report page: {error}", "yellow")
    terminal.print(
        f"Next, in Python: run = coar_dist.open_run({run.storage.location!r}); run.weights(example_ids=[0])\n"
        f"Or query {run.storage}/attributions/{summary.methods[0].method}.*.parquet with DuckDB, pandas or Polars."
    )


REPORT = Stage("report", reads=("task.class_names",), run=_run, check=_check)
