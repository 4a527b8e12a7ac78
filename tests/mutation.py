"""Breaks the code of a room on purpose, one change at a time, and counts what the room's tests notice.

    pip install -e '.[test,mutation]'
    python -m tests.mutation store                              every change: hours
    python -m tests.mutation store parquet lock --sample 40     forty changes, spread evenly over two modules

mutmut makes the changes. The tests run here, since `mutmut run` leaves out decorated functions, draws no samples, and
calls every function through a detour. Each change has a process, forked from one that has imported the libraries. It
runs the tests that reach the changed statement, the quickest first. Tests that are slow or start a Ray cluster are left
out.

Left alone are annotations, decorators, docstrings, asserts, and texts: errors, warnings, log lines, strings with a
space.

What came out is appended to coar_dist_mutants/ROOM.jsonl in the system's temporary folder: the same command goes on
where it was stopped, and tries survivors once more when the room's tests have changed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import coverage
import libcst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

TESTS = {
    **{room: [f"tests/{room}"] for room in ("ablation", "cluster", "regression", "store", "evaluation", "editing")},
    "components": ["tests/components", "tests/ablation"],  # the engine's show what gates do
}
"""The tests of each room."""
RESULTS = Path(tempfile.gettempdir()) / "coar_dist_mutants"
COPIED = ("coar_dist", "conf", "deploy", "docker", "tests", "pyproject.toml", "README.md")
CAUGHT = ("caught", "timed out")
OPTIONS = ["-x", "-n0", "-m", "not slow and not cluster", "-p", "no:cacheprovider"]


@dataclass(frozen=True)
class Change:
    """One change of one module."""

    path: str
    line: int
    code: str
    diff: str


class Changes(MutationVisitor):
    """Collects mutmut's changes of a module with the lines where they are, also in decorated functions."""

    def __init__(self) -> None:
        super().__init__(mutation_operators, IgnoredCode(set(), set(), set()))
        self.found: list[tuple[int, libcst.CSTNode, libcst.CSTNode]] = []

    def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
        match node:
            case libcst.FunctionDef():
                return False
            case libcst.Raise() | libcst.Assert():
                return True
            case libcst.Call(func=libcst.Name("warn") | libcst.Attribute(libcst.Name("_log" | "warnings"))):
                return True
            case libcst.SimpleString(text) if " " in text:
                return True
        return super()._skip_node_and_children(node)

    def _create_mutations(self, node: libcst.CSTNode) -> None:
        before = len(self.mutations)
        super()._create_mutations(node)
        line = self.get_metadata(PositionProvider, node).start.line if len(self.mutations) > before else 0
        self.found += [(line, made.original_node, made.mutated_node) for made in self.mutations[before:]]


def changes(path: Path, drawn: random.Random) -> Iterator[Change]:
    """All changes of the module in ``path`` that compile, in the order in which they are drawn."""
    code = path.read_text()
    wrapper = MetadataWrapper(libcst.parse_module(code))
    visitor = Changes()
    wrapper.visit(visitor)
    for line, old, new in drawn.sample(visitor.found, len(visitor.found)):
        changed = wrapper.module.deep_replace(old, new).code
        try:
            compile(changed, path, "exec")
        except SyntaxError:
            continue
        lines = difflib.unified_diff(code.splitlines(), changed.splitlines(), str(path), str(path), n=1, lineterm="")
        yield Change(str(path), line, changed, "\n".join(list(lines)[2:]))


def statement_lines(code: str, line: int) -> range:
    """The lines of the innermost statement around ``line``; of one with a body, those of its head."""
    around = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno]
    innermost = max(around, key=lambda node: (node.lineno, -node.end_lineno))
    body = getattr(innermost, "body", None)
    return range(innermost.lineno, max(innermost.lineno + 1, body[0].lineno) if body else innermost.end_lineno + 1)


class Reached:
    """A plugin of pytest that notes how long each test takes and which lines it reaches, itself or in its fixtures."""

    def __init__(self, room: str) -> None:
        self.coverage = coverage.Coverage(data_file=None, include=[f"coar_dist/{room}/*"], config_file=False)
        self.seconds: dict[str, float] = defaultdict(float)
        self.users: dict[str, list[str]] = defaultdict(list)
        """The tests that use each fixture which several tests share."""
        self.test = ""

    def pytest_sessionstart(self) -> None:
        self.coverage.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self.test = item.nodeid
        self.coverage.switch_context(self.test)
        for name in item.fixturenames:
            self.users[name].append(self.test)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        self.coverage.switch_context(fixturedef.argname)
        try:
            return (yield)
        finally:
            self.coverage.switch_context(self.test)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {
            os.path.relpath(path): {
                line: sorted({test for context in contexts for test in self.users.get(context, [context])})
                for line, contexts in data.contexts_by_lineno(path).items()
            }
            for path in data.measured_files()
        }
        libraries = [name for name in sys.modules if name.partition(".")[0] not in ("__main__", "coar_dist", "tests")]
        found = {"seconds": self.seconds, "lines": lines, "libraries": libraries}
        Path("reached.json").write_text(json.dumps(found))


def outcome(tests: list[str], limit: float, plugins: list[object] = ()) -> str:
    """Runs ``tests`` in a fork of this process: caught, survived or timed out after ``limit`` seconds."""
    child = os.fork()
    if child == 0:
        os.setsid()
        output = os.open("output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            code = pytest.main([*OPTIONS, *tests], plugins=plugins)
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + limit
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with whatever the tests have started
    if ended[0] == 0:
        os.waitpid(child, 0)
        return "timed out"
    return "survived" if ended[1] == 0 else "caught"


def tried(change: Change, room: str, reached: dict[str, dict]) -> str:
    """What becomes of a change that stands in its file."""
    contexts, seconds = reached["lines"].get(change.path, {}), reached["seconds"]
    lines = statement_lines(change.code, change.line)
    tests = {test for line in lines for test in contexts.get(str(line), ())}
    if not tests:
        return "no test"
    if "" in tests:  # it runs while modules are imported
        return outcome(TESTS[room], 60 + 3 * sum(seconds.values()))
    files = Counter()
    for test in tests:
        files[test.partition("::")[0]] += seconds[test]
    ordered = sorted(tests, key=lambda test: (files[test.partition("::")[0]], test.partition("::")[0], seconds[test]))
    return outcome(ordered, 60 + 3 * files.total())


def copied(room: str) -> None:
    """Goes to a copy of the repository, whose modules are imported from now on."""
    repository, copy = Path(__file__).resolve().parent.parent, RESULTS / room
    shutil.rmtree(copy, ignore_errors=True)
    for name in COPIED:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(repository / name, copy / name)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path[0] = str(copy)
    del sys.modules["tests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", choices=TESTS)
    parser.add_argument("modules", nargs="*", help="of the room, all where none is named")
    parser.add_argument("--sample", type=int, metavar="N", help="how many changes, evenly by module")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    copied(given.room)
    paths = sorted(Path("coar_dist", given.room).glob("*.py"))
    paths = [path for path in paths if path.stem in (given.modules or [path.stem])]
    drawn = zip_longest(*(changes(path, random.Random(f"{given.seed} {path}")) for path in paths))
    sample = (change for change in chain.from_iterable(drawn) if change)
    files = sorted(path for folder in TESTS[given.room] for path in Path(folder).glob("*.py"))
    tests = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    results = RESULTS / f"{given.room}.jsonl"
    earlier = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    known = {(r["path"], r["diff"]): r["outcome"] for r in earlier if r["outcome"] in CAUGHT or r["tests"] == tests}

    if outcome(TESTS[given.room], 3600, [Reached(given.room)]) != "survived":
        sys.exit(f"The tests fail before any change: see {Path('output.txt').resolve()}.")
    sys.dont_write_bytecode = True  # a changed file of the same second and length would be read from it
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    reached = json.loads(Path("reached.json").read_text())
    for name in reached["libraries"]:
        with contextlib.suppress(Exception):  # what cannot be imported on its own
            importlib.import_module(name)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for change, _ in zip(sample, range(given.sample or sys.maxsize), strict=False):
        path = Path(change.path)
        found = known.get((change.path, change.diff))
        if found is None:
            unchanged = path.read_text()
            Path(importlib.util.cache_from_source(change.path)).unlink(missing_ok=True)
            path.write_text(change.code)
            began = time.monotonic()
            found = tried(change, given.room, reached)
            taken = round(time.monotonic() - began, 1)
            path.write_text(unchanged)
            with results.open("a") as file:
                entry = {"path": change.path, "diff": change.diff, "outcome": found, "seconds": taken, "tests": tests}
                file.write(json.dumps(entry) + "\n")
        counts[path.stem][found] += 1
        if found not in CAUGHT:
            print(f"\n{found}: {change.path}\n{change.diff}", flush=True)
    kinds = (*CAUGHT, "survived", "no test")
    print(f"\n{'module':24s} {' '.join(f'{kind:>9s}' for kind in kinds)}")
    for module, found in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        print(f"{module:24s} {' '.join(f'{found[kind]:9d}' for kind in kinds)}")


if __name__ == "__main__":
    main()
