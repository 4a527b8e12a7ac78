"""Pictures of the examples, for reports that are made without the data."""

from __future__ import annotations

from coar_dist.stages.session import Session
from coar_dist.store.previews import PreviewTable
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.example_set import ExampleSet
from coar_dist.tasks.previews import Previews


def write_previews(session: Session, run: RunDirectory, examples: ExampleSet) -> None:
    """Write the previews that the run lacks; none where the examples are no images."""
    previews = Previews.of(examples)
    if previews is None:
        return
    table = PreviewTable(run)
    table.set_aside_wrong()
    missing = table.missing()
    if not missing:
        return
    with session.progress(sum(end - first for first, end in missing), "previews") as progress:
        num_done = 0
        for first, end in missing:
            table.write((first, end), previews.encoded(first, end), previews.width, previews.height)
            num_done += end - first
            progress.update(num_done)
