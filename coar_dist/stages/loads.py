"""What a run lacks, as loads of an estimate: one for each kind of masks, for each gradient baseline, and for each pass
of the model as it is."""

from __future__ import annotations

from collections.abc import Iterable

from coar_dist.ablation.attention_patterns import heads_of
from coar_dist.ablation.response_sources import NUM_KEPT
from coar_dist.baselines.gradient_baselines import passes_per_example
from coar_dist.cluster.ranges import WorkRange
from coar_dist.config.schema import MEAN, Config
from coar_dist.stages.baselines import MissingBaselines
from coar_dist.stages.collect import Missing
from coar_dist.stages.estimate import Load
from coar_dist.stages.mask_designs import ROLE_WORDS
from coar_dist.stages.session import Session
from coar_dist.stages.values import reference_of
from coar_dist.store.gradients import GradientStore
from coar_dist.store.responses import ResponseTable
from coar_dist.store.run_directory import RunDirectory
from coar_dist.store.values import CONTENT
from coar_dist.tasks.task import Task


def mask_loads(run: RunDirectory, missing: Missing, parts: Iterable[WorkRange], cost: float | None) -> list[Load]:
    """One load for each role of a design; masks with gradients, whose examples are apart, count by the share of the
    examples.

    Args:
        run: the run.
        missing: what it lacks.
        parts: the same in the ranges that actors will get.
        cost: of a pass with gradients, in passes without; None where there are none.
    """
    ranges: dict[str, list[WorkRange]] = {}
    for masks in parts:
        ranges.setdefault(masks.store_name, []).append(masks)
    loads: dict[str, Load] = {}
    for name, (design, store) in missing.stores.items():
        has_gradients = isinstance(store, GradientStore)
        role = "gradients" if has_gradients else run.designs[name].role
        share = (store.block[1] - store.block[0]) / run.num_examples if isinstance(store, GradientStore) else 1.0
        lacking = ranges.get(name, [])
        load = Load(
            ROLE_WORDS[role],
            "masks",
            design.num_masks * share,
            sum(masks.num_units for masks in lacking) * share,
            [masks.num_units * round(share * run.num_examples) for masks in lacking],
            cost or 1.0 if has_gradients else 1.0,
            sum(store.bytes_of(masks.num_units) for masks in lacking),
        )
        loads[role] = load if role not in loads else loads[role].with_more(load)
    return list(loads.values())


def baseline_loads(config: Config, run: RunDirectory, baselines: MissingBaselines) -> list[Load]:
    """One load for each gradient baseline of the run."""
    loads = []
    for method in run.baselines:
        passes = passes_per_example(method, config.baseline_settings.num_steps)
        missing = [examples.num_units for examples in baselines.ranges if examples.store_name == method]
        num_bytes = sum(run.baseline(method).bytes_of(count) for count in missing)
        sizes = [count * passes for count in missing]
        loads.append(Load(method, "examples", run.num_examples, sum(missing), sizes, 1.0, num_bytes))
    return loads


def plain_loads(session: Session, run: RunDirectory, missing: Missing, task: Task) -> list[Load]:
    """The ablate stage's passes of the model as it is, at most: for the examples' own outputs, for the means that take
    the place of components, and for what components look at.

    Args:
        session: of the run.
        run: as it would be, its ablation values left open where they are still to be found.
        missing: what it lacks.
        task: what is explained.
    """
    config, num_examples = session.config, run.num_examples
    loads = [_plain_load("outputs of the model as it is", num_examples, not missing.has_examples)]
    if config.ablation.value == MEAN:
        loads.append(_plain_load("mean activations", len(reference_of(session, task)), run.identity[CONTENT] is None))
    if config.run.previews and config.run.responses_mb > 0:
        # Heads once more, on the examples on which they are strongest.
        num_again = min(NUM_KEPT * len(heads_of(task.model, run.components)), num_examples)
        are_missing = bool(ResponseTable(run).missing())
        loads.append(_plain_load("what components look at", num_examples + num_again, are_missing))
    return loads


def _plain_load(name: str, num_passes: int, is_missing: bool) -> Load:
    num_missing = num_passes if is_missing else 0
    return Load(name, "examples", num_passes, num_missing, [num_missing] * is_missing, 1.0, 0)
