"""The edit stage: which components to ablate for what is wanted, how many, and what that changes.

Targets and references are explained examples: their attributions select components.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coar_dist.errors import DamagedFileError, MissingWorkError, RunNotFoundError
from coar_dist.stages.session import Session
from coar_dist.stages.stage import OF_PASSES, Stage
from coar_dist.store.edits import EDITS, EditStore
from coar_dist.store.locations import storage_at
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.storage import Storage

if TYPE_CHECKING:
    from coar_dist.editing.edit import Edit


def _check(session: Session) -> None:
    if session.config.edit is not None:
        from coar_dist.stages.checks import check_edit_stage  # torch takes seconds to load

        check_edit_stage(session)


def _run(session: Session) -> None:
    """Make the edit that ``config.edit`` asks for, where it is not there yet."""
    from coar_dist.editing.edit_record import record_of
    from coar_dist.report.edits import print_edit
    from coar_dist.stages.edit_inputs import EditInputs
    from coar_dist.stages.make_edit import make_edit, make_edit_of_each
    from coar_dist.stages.sweep_run import SweepRun

    edit, terminal = session.config.edit, session.terminal
    if edit is None:
        return
    run = session.open_run()
    session.take()
    inputs = EditInputs.of(session, edit, run)
    storage = storage_at(f"{run.storage.location.rstrip('/')}/{EDITS}/{edit.name}")
    fingerprint = inputs.fingerprint()
    found = _made_already(session, storage, fingerprint)
    if found is not None:
        terminal.say(f"{storage} is there already.")
        print_edit(found, terminal)
        return
    unedited = inputs.unedited(session)
    held_out = inputs.held_out(unedited)
    sweeps = SweepRun(session, run, held_out.task, storage)
    made = (make_edit_of_each if edit.each else make_edit)(inputs, unedited, held_out, sweeps)
    sweeps.edits.write(record_of(made), fingerprint)
    print_edit(made, terminal)
    names = [name for name in storage.files() if name.startswith(("edit", "curve", "each"))]
    terminal.say(f"{storage}: {', '.join(sorted(names))}.")


def _made_already(session: Session, storage: Storage, fingerprint: str) -> Edit | None:
    """The edit that is there, if it is of this fingerprint; its damaged files are set aside."""

    from coar_dist.editing.edit_record import edit_from

    try:
        run = RunDirectory.open(storage)
        reasons = EditStore(run).set_aside_damaged()
        for reason in reasons:
            session.terminal.warn(reason)
        if reasons:
            return None
        record, made_of = EditStore(run).read()
    except (RunNotFoundError, MissingWorkError):
        return None
    except DamagedFileError as error:  # of run.json
        session.terminal.warn(str(error))
        return None
    if made_of == fingerprint:
        return edit_from(record, run.components, str(storage))
    session.terminal.warn(
        f"{storage} holds an edit of other settings or attributions, which this one replaces (edit.name keeps both)."
    )
    return None


EDIT = Stage(
    "edit",
    reads=("edit", *OF_PASSES),
    run=_run,
    check=_check,
)
