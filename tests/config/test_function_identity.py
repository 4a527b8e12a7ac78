"""A function is known by what it does, wherever and however it is written down."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coar_dist.config.function_identity import identity_of

COLUMN = 1


def given(*functions: Any, **named: Any) -> tuple[Any, ...]:
    return (*functions, *named.values())


def same(one: Any, other: Any) -> bool:
    return identity_of("m:f", one) == identity_of("m:f", other)


def reads_a_global(outputs: Any, targets: Any) -> Any:
    return outputs[:, COLUMN] + helper(outputs)


def helper(outputs: Any) -> Any:
    return outputs.sum() * FACTOR


FACTOR = 2.0


def test_text_does_not_count_and_what_is_done_does() -> None:
    (plain,) = given(lambda o, t: o[:, 0])
    commented, *_ = given(lambda o, t: (o[:, 0]), 3)  # fmt: skip  # a comment, and one more argument
    two, three = given(lambda o, t: o[:, 0], lambda o, t: o[:, 1])
    assert same(plain, commented)
    assert same(plain, two)
    assert not same(plain, three)
    assert not same(plain, lambda o, t: o[:, 0] + 1)
    assert identity_of("m:outer.<locals>.<lambda>", plain).startswith("<lambda> sha256:")
    assert identity_of("m:f", plain).startswith("m:f sha256:")


def test_docstrings_and_annotations_do_not_count(tmp_path: Path) -> None:
    texts = [
        "def f(outputs, targets):\n    return outputs[:, 0]\n",
        '# later\n\n\ndef f(outputs: object, targets=None) -> object:\n    """Says."""\n\n    return (outputs[:, 0])\n',
        "def f(outputs, targets):\n    return outputs[:, 2]\n",
        "def f(outputs, targets):\n    return [(lambda q: q)(0) for _ in outputs]\n",
    ]
    functions = []
    for number, text in enumerate(texts):
        path = tmp_path / f"m{number}.py"
        path.write_text(text.replace("targets=None", "targets"))
        spec = importlib.util.spec_from_file_location(f"m{number}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        functions.append(module.f)
    assert same(functions[0], functions[1])
    assert not same(functions[0], functions[2])
    assert not same(functions[0], functions[3])


def test_values_around_it_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(weights: Any) -> Callable[..., Any]:
        return lambda o, t: (o * weights).sum(1)

    assert same(of(torch.ones(3)), of(torch.ones(3)))
    assert not same(of(torch.ones(3)), of(torch.tensor([1.0, 1.0, 1.5])))
    assert not same(of(2), of(3))
    assert same(of([1, {"a": 2}]), of([1, {"a": 2}]))
    assert not same(of([1, {"a": 2}]), of([1, {"a": 3}]))
    before = identity_of("f", reads_a_global)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    helped = identity_of("f", reads_a_global)
    monkeypatch.setitem(globals(), "COLUMN", 2)
    assert len({before, helped, identity_of("f", reads_a_global)}) == 3


def test_partials_methods_and_objects_that_are_called() -> None:
    class Column:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, outputs: Any, _targets: Any) -> Any:
            return outputs[:, self.number]

        def method(self, outputs: Any, _targets: Any) -> Any:
            return outputs[:, self.number]

    assert same(Column(1), Column(1))
    assert not same(Column(1), Column(2))
    assert same(Column(1).method, Column(1).method)
    assert not same(Column(1).method, Column(2).method)
    one, other = (functools.partial(reads_a_global, targets=each) for each in (1, 2))
    assert not same(one, other)
    assert identity_of("sqrt", math.sqrt) == "sqrt"


def test_without_a_file_the_code_counts() -> None:
    functions = []
    for text in ("lambda o, t: o[:, 0]", "lambda o, t:  o[:, 0]", "lambda o, t: o[:, 1]"):
        functions.append(eval(text))
    assert same(functions[0], functions[1])
    assert not same(functions[0], functions[2])


def test_functions_that_call_themselves() -> None:
    def down(number: int) -> int:
        return number and down(number - 1)

    assert identity_of("m:down", down) == identity_of("m:down", down)
