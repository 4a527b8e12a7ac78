"""Which attribution methods a run has, told by the names of its files alone: nothing is opened, nothing is changed."""

from __future__ import annotations

from coar_dist.config.methods import BASELINES, Origin, by_preference, method_of
from coar_dist.errors import MissingWorkError
from coar_dist.store.run_directory import GRADIENT_DESIGN, TRAIN_DESIGN, RunDirectory

_FOLDER = "attributions"


def attribution_file(method: str, block: tuple[int, int]) -> str:
    """The name of the file with a method's attributions of one example block."""
    return f"{_FOLDER}/{method}.{block[0]:08d}-{block[1]:08d}.parquet"


def fitted_methods(run: RunDirectory) -> list[str]:
    """The methods that have attributions of every example, the preferred first."""
    if TRAIN_DESIGN not in run.designs:
        return []
    there = _files(run)
    blocks = run.margins(TRAIN_DESIGN).blocks
    return [name for name in _begun(there) if all(attribution_file(name, block) in there for block in blocks)]


def begun_methods(run: RunDirectory) -> list[str]:
    """The methods that have attributions of any example, the preferred first."""
    return _begun(_files(run))


def best_method(run: RunDirectory) -> str:
    """The method that is read where none is named: the preferred one of those that are fitted.

    One whose masks the run no longer asks for may be of fewer than the others. It comes after them.

    Raises:
        MissingWorkError: none is fitted.
    """
    there = fitted_methods(run)
    if not there:
        raise _nothing_fitted(run)
    return next((name for name in there if _is_asked_for(run, name)), there[0])


def methods_of(run: RunDirectory) -> list[str]:
    """The methods that evaluation and report are about, the preferred first: what was fitted or imported, and the
    baselines that the run asks for, whether they are there or not.

    Raises:
        MissingWorkError: there are none.
    """
    found = {name for name in (*_begun(_files(run)), *BASELINES) if _is_asked_for(run, name)}
    if not found:
        raise _nothing_fitted(run)
    return by_preference(found)


def _is_asked_for(run: RunDirectory, name: str) -> bool:
    """Whether the run has, now, what the method's weights are made from."""
    method = method_of(name)
    assert method is not None
    match method.origin:
        case Origin.TRAIN:
            return run.design(TRAIN_DESIGN).num_masks > 0
        case Origin.GRADIENTS:
            return GRADIENT_DESIGN in run.designs
        case Origin.ABLATION:
            return name in run.designs
        case Origin.GRADIENT | Origin.PATH:
            return name in run.baselines
        case Origin.IMPORTED:
            return True


def _files(run: RunDirectory) -> set[str]:
    return {f"{_FOLDER}/{name}" for name in run.storage.files(_FOLDER)}


def _begun(files: set[str]) -> list[str]:
    """The methods that have attributions of any example."""
    names = {name.removeprefix(f"{_FOLDER}/").split(".")[0] for name in files if name.endswith(".parquet")}
    return by_preference(name for name in names if method_of(name) is not None)


def _nothing_fitted(run: RunDirectory) -> MissingWorkError:
    return MissingWorkError(
        f"{run.storage} has no attributions yet: run the fit stage, coar-dist 'stages=[fit]' "
        f"run.dir={run.storage.location}."
    )
