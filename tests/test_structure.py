"""The tree keeps its shape: imports run downwards, each big dependency has one owner, no module grows without end."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import coar_dist

PACKAGE = Path(coar_dist.__file__).parent

FLOORS = [
    "errors | version",
    "config",
    "components | designs",
    "store",
    "tasks",
    "cluster",
    "editing",
    "ablation | regression",
    "console",
    "evaluation | baselines | interchange",
    "report",
    "stages",
    "result",
    "api | process",
    "__init__",
    "app",
    "__main__",
]
"""The rooms from the ground up. A module imports from its own room and from those below, nowhere and never from above:
not inside a function, and not for annotations alone. Rooms of one floor do not import each other."""

OWNERS = {
    "ray": ["cluster/"],
    "hydra": ["app.py", "config/"],
    "omegaconf": ["app.py", "config/"],
    "pydantic": ["config/"],
    "pyarrow": ["store/", "tasks/examples/parquet_table.py"],  # there a user's own Parquet files
    "fsspec": ["store/object_storage.py"],
    "cuml": ["regression/cuml_backend.py"],
    "cupy": ["regression/cuml_backend.py"],
    "captum": ["baselines/"],
    "matplotlib": ["report/", "result/"],  # in result/ for annotations alone, as pandas
    "jinja2": ["report/page/render.py", "report/comparison/render.py"],
    "pandas": ["report/", "result/", "components/index.py", "components/overview.py", "editing/edit.py"],
    "sklearn": ["regression/backends.py", "evaluation/circuit_scores.py", "tasks/examples/arrays.py"],
    "scipy": ["regression/factor.py", "report/page/components.py"],
    "shap": ["result/result.py"],
    "PIL": ["tasks/"],
    "datasets": ["tasks/examples/huggingface.py"],
    "transformers": ["tasks/"],
    "timm": ["tasks/"],
    "torchvision": ["tasks/"],
    "accelerate": ["ablation/"],
    "wandb": ["console/tracking.py"],
    "mlflow": ["console/tracking.py"],
    "tensorboard": ["console/tracking.py"],
}
"""The files or folders that may import each big dependency."""

WITHOUT = {
    "config designs console store": ["torch", "ray", "sklearn", "scipy", "pandas", "matplotlib"],
    "regression evaluation editing report interchange": ["ray", "sklearn", "scipy", "pandas"],
    "stages": ["ray"],
}
"""What importing every module of these rooms must not load: whoever reads a run does not wait for it, nor
for Ray where the work is small."""

MAX_LINES = 350


def module_name(path: Path) -> str:
    """``coar_dist.store.reader`` of ``store/reader.py``, ``coar_dist.store`` of ``store/__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(["coar_dist", *parts])


# An installed package holds the configuration too, which is no code.
FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "conf"}
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split(" | ")}
IMPORTERS = {"import_module", "__import__", "find_spec"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of whatever is imported anywhere in ``source``, by a statement or by a string."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield from ((node.lineno, f"{'.' * level}{module or ''}.{alias.name}") for alias in names)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(text)), *_]):
                if name in IMPORTERS:
                    yield node.lineno, text
            case ast.Constant(value=str(text)) if re.fullmatch(r"coar_dist(\.\w+)+(:\w+)?", text):
                yield node.lineno, text.replace(":", ".")


def module_of(name: str) -> str | None:
    """The module of this package that has what ``name`` names; None where that is another package's."""
    parts = name.split(".")
    if parts[0] != "coar_dist":
        return None
    if len(parts) == 2 and parts[1] in coar_dist._HOME:
        return coar_dist._HOME[parts[1]]
    while len(parts) > 1:
        if ".".join(parts) in FILES:
            return ".".join(parts)
        parts.pop()
    return "coar_dist.__init__"


IMPORTS = {module: list(imported(path.read_text())) for module, path in FILES.items()}
OWN_IMPORTS = {
    module: [(line, target) for line, name in names if (target := module_of(name)) and target != module]
    for module, names in IMPORTS.items()
}


def check(violations: Iterable[tuple[str, int, str]]) -> None:
    """Fails on any: module, line and what is wrong there."""
    found = {f"coar_dist/{FILES[module].relative_to(PACKAGE)}:{line} {what}" for module, line, what in violations}
    assert not found, "\n" + "\n".join(sorted(found))


def above() -> Iterator[tuple[str, int, str]]:
    for module, imports in OWN_IMPORTS.items():
        for line, target in imports:
            own, other = room_of(module), room_of(target)
            if own != other and FLOOR_OF[other] >= FLOOR_OF[own]:
                yield module, line, f"imports {target}, and {other} is not below {own}"


def back() -> Iterator[tuple[str, int, str]]:
    """Inside a room: what runs in a circle. From room to room the floors leave none."""
    below = {
        module: {target for _, target in imports if room_of(target) == room_of(module)}
        for module, imports in OWN_IMPORTS.items()
    }

    def reaches(start: str, goal: str) -> bool:
        seen, waiting = set(), [start]
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting.extend(below[module])
        return goal in seen

    for module, imports in OWN_IMPORTS.items():
        for line, target in imports:
            if target in below[module] and reaches(target, module):
                yield module, line, f"imports {target}, which imports it in turn"


def borrowed() -> Iterator[tuple[str, int, str]]:
    for module, names in IMPORTS.items():
        path = str(FILES[module].relative_to(PACKAGE))
        for line, name in names:
            if name.startswith("."):
                yield module, line, f"imports {name} relatively: give the whole name"
            package = name.split(".")[0]
            owners = OWNERS.get(package)
            if owners is not None and not any(path.startswith(owner) for owner in owners):
                yield module, line, f"imports {package}, which belongs to {' and '.join(owners) or 'nobody'}"


def overgrown() -> Iterator[tuple[str, int, str]]:
    for module, path in FILES.items():
        if len(path.read_text().splitlines()) > MAX_LINES:
            yield module, MAX_LINES, f"is longer than {MAX_LINES} lines"


def test_every_room_has_its_floor_and_says_what_it_owns() -> None:
    rooms = {room_of(module) for module in FILES}
    assert rooms == set(FLOOR_OF), "each folder and module at the top of coar_dist has one place in FLOORS"
    silent = [module for module, path in FILES.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert [module for module in silent if module != "coar_dist.__main__"] == []


def test_tests_lie_in_the_folders_of_their_rooms() -> None:
    rooms = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()}
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/test_*.py")}
    assert folders - rooms == {"benchmarks", "deploy", "notebooks", "runs", "zoo"}


def test_imports_run_downwards_from_room_to_room() -> None:
    check(above())


def test_the_cluster_knows_no_engine_no_model_and_no_regression() -> None:
    """Of tasks it knows how they travel."""
    used = {(module, target) for module in FILES if room_of(module) == "cluster" for _, target in OWN_IMPORTS[module]}
    assert {room_of(target) for _, target in used} == {"cluster", "config", "errors", "store", "tasks"}
    travels = {"coar_dist.cluster.packing", "coar_dist.cluster.shared_value"}
    assert {module for module, target in used if room_of(target) == "tasks"} == travels


def test_imports_inside_a_room_run_in_no_circle() -> None:
    check(back())


def test_big_dependencies_have_one_owner() -> None:
    check(borrowed())


def test_no_module_is_too_long() -> None:
    check(overgrown())


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import coar_dist.store.reader", {"coar_dist.store.reader"}),
        ("import coar_dist.store.reader as read", {"coar_dist.store.reader"}),
        ("import coar_dist", {"coar_dist.__init__"}),
        ("from coar_dist import __version__", {"coar_dist.__init__"}),
        ("from coar_dist import api as doors", {"coar_dist.api"}),
        ("from coar_dist import errors, open_run", {"coar_dist.errors", "coar_dist.api"}),
        ("from coar_dist.store import reader", {"coar_dist.store.reader"}),
        ("from coar_dist.store.reader import RunReader", {"coar_dist.store.reader"}),
        ("def late():\n    from coar_dist.store.reader import RunReader", {"coar_dist.store.reader"}),
        ("if TYPE_CHECKING:\n    from coar_dist.store.reader import RunReader", {"coar_dist.store.reader"}),
        ("importlib.import_module('coar_dist.store.reader')", {"coar_dist.store.reader"}),
        ("HOME = {'load': 'coar_dist.store.reader:load'}", {"coar_dist.store.reader"}),
        ("import numpy", {None}),
        ("importlib.util.find_spec('numpy')", {None}),
    ],
)
def test_no_form_of_import_goes_unseen(source: str, modules: set[str | None]) -> None:
    assert {module_of(name) for _, name in imported(source)} == modules


def test_reading_a_run_loads_no_more_than_it_needs() -> None:
    program = """
import importlib, json, pkgutil, sys
loaded = []
for rooms, heavy in json.loads(sys.argv[1]).items():
    for room in rooms.split():
        package = importlib.import_module(f"coar_dist.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    loaded += [f"{name} by one of: {rooms}" for name in heavy if name in sys.modules]
print(json.dumps(loaded))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(WITHOUT)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
