"""The tree keeps its shape: imports run one way, and each big dependency has one owner."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import coar_dist

PACKAGE = Path(coar_dist.__file__).parent
TIERS = [
    {"errors", "config", "config_checks", "edit_checks", "registry", "secrets"},
    {"components", "designs", "store"},
    {"tasks", "regression"},
    {"ablation", "baselines"},
    {"evaluation", "editing"},
    {"report"},
    {"stages", "interchange"},
    {"pipeline", "api", "app", "__init__", "__main__"},
]
OWNERS = {
    "ray": {
        "ablation/actor.py",
        "ablation/driver.py",
        "ablation/pool.py",
        "ablation/cluster.py",
        "ablation/metrics.py",
    },
    "hydra": {"app.py", "config.py"},
    "omegaconf": {"app.py", "config.py"},
    "pyarrow": {"store/*"},
    "fsspec": {"store/storage.py"},
    "cuml": {"regression/backends.py"},
    "cupy": {"regression/backends.py"},
    "captum": {"baselines/*"},
    "matplotlib": {"report/*", "api.py"},  # there in annotations alone
    "pandas": {"report/notebook.py", "api.py"},
    "sklearn": {"regression/backends.py", "tasks/examples/arrays.py"},
    "PIL": {"tasks/examples/pixels.py", "tasks/previews.py"},
    "datasets": {"tasks/examples/huggingface.py"},
    "transformers": {"tasks/*"},
    "torchvision": {"tasks/*"},
    "wandb": {"report/tracking.py"},
    "mlflow": {"report/tracking.py"},
}
# An installed package holds the configuration too, which is no code.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "conf")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def tier_of(part: str) -> int:
    return next(tier for tier, parts in enumerate(TIERS) if part in parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own_tier = tier_of(relative.parts[0].removesuffix(".py"))
    for name in imported(path):
        if name.startswith("coar_dist."):
            part = name.split(".")[1]
            assert tier_of(part) <= own_tier, f"{relative} imports {name}, which is above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_big_dependencies_have_one_owner(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    for name in imported(path):
        owners = OWNERS.get(name.split(".")[0])
        if owners is not None:
            allowed = {str(relative), f"{relative.parts[0]}/*"}
            assert allowed & owners, f"{relative} imports {name}, which belongs to {sorted(owners)}"
