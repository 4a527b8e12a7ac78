"""What a user's own function does, as a fingerprint: its syntax tree, and the values that it reads from around it.

Comments, layout and the place of a function in its file do not count; a constant, a closure's tensor or a helper of the
same module does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import linecache
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def identity_of(name: str, function: Callable[..., Any]) -> str:
    """The name of a function, and the SHA-256 of what it does.

    Args:
        name: for people; of a function within another one, or without a name, the last part of it counts alone.
        function: written in Python; of others, the name is all there is.

    Example:
        >>> identity_of("m:f", lambda x: x + 1) == identity_of("m:f", lambda x: (x + 1))  # a comment
        True
        >>> identity_of("m:f", lambda x: x + 1) == identity_of("m:f", lambda x: x + 2)
        False
    """
    short = name.rpartition(".<locals>.")[2] if "<locals>" in name else name
    parts = list(_parts_of(function, set()))
    if not parts:
        return short
    return f"{short} sha256:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}"


def _parts_of(function: Any, seen: set[int]) -> Iterator[str]:
    """What tells a function from others, as texts."""
    if isinstance(function, functools.partial):
        yield from _parts_of(function.func, seen)
        yield from _value_parts([*function.args, *sorted(function.keywords.items())], function.func, seen)
        return
    if isinstance(function, types.MethodType):
        yield from _parts_of(function.__func__, seen)
        yield from _value_parts(vars(function.__self__) if hasattr(function.__self__, "__dict__") else None, None, seen)
        return
    if not isinstance(function, types.FunctionType):
        called = inspect.getattr_static(type(function), "__call__", None)
        if isinstance(called, types.FunctionType):  # an object that is called
            yield from _parts_of(called, seen)
            yield from _value_parts(getattr(function, "__dict__", None), called, seen)
        return
    if id(function) in seen:
        return
    seen.add(id(function))
    yield _code_of(function)
    yield from _value_parts([function.__defaults__, function.__kwdefaults__], function, seen)
    read = inspect.getclosurevars(function)
    for kind, values in (("closure", read.nonlocals), ("global", read.globals)):
        for key, value in sorted(values.items()):
            yield f"{kind} {key}"
            yield from _value_parts(value, function, seen)


def _value_parts(value: Any, reader: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, types.ModuleType):
        yield value.__name__
    elif isinstance(value, type) or _is_of_others(value, reader):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _value_parts(item, reader, seen)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield repr(key)
            yield from _value_parts(item, reader, seen)
    elif callable(value) and any(True for _ in _parts_of(value, set(seen))):
        yield from _parts_of(value, seen)
    else:
        yield _content_of(value)


def _is_of_others(value: Any, reader: Any) -> bool:
    """Whether a function is of a package that is installed, whose version is not the user's own code."""
    module = getattr(value, "__module__", None)
    own = getattr(reader, "__module__", None)
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType) and module != own


def _content_of(value: Any) -> str:
    """Of an array, a tensor or another object; its type where it cannot be written down."""
    array = getattr(value, "detach", lambda: value)()
    array = array.cpu().numpy() if hasattr(array, "cpu") else array
    if hasattr(array, "tobytes") and hasattr(array, "shape"):
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    try:
        return hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
    except Exception:  # a user's own object may refuse in any way
        return type(value).__qualname__


def _code_of(function: types.FunctionType) -> str:
    """The syntax tree of a function, or what Python made of it where its file cannot be read."""
    node = _node_of(function.__code__)
    if node is not None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            return ast.dump(ast.Module([*body], []), annotate_fields=False) + ast.dump(_untyped(node.args))
        return ast.dump(node, annotate_fields=False)
    return repr(list(_code_parts(function.__code__)))


def _untyped(arguments: ast.arguments) -> ast.arguments:
    for each in ast.walk(arguments):
        if isinstance(each, ast.arg):
            each.annotation = None
    return arguments


def _node_of(code: types.CodeType) -> _Node | None:
    """Where a function stands in its file: found by its line, and by its columns where a line has several."""
    lines = linecache.getlines(code.co_filename)
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError):
        return None
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, _Node) and code.co_firstlineno == _first_line(node) and _is_named(node, code.co_name)
    ]
    if len(found) > 1:
        columns = [
            (line, column)
            for line, _, column, _ in code.co_positions()
            if line is not None and column is not None and (line, column) != (code.co_firstlineno, 0)
        ]
        found = [node for node in found if columns and _holds(node, min(columns), max(columns))]
        found.sort(key=lambda node: (node.lineno, node.col_offset))  # the innermost is last
    return found[-1] if found else None


def _first_line(node: _Node) -> int:
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(each.lineno for each in decorators)])


def _is_named(node: _Node, name: str) -> bool:
    return name == "<lambda>" if isinstance(node, ast.Lambda) else node.name == name


def _holds(node: _Node, first: tuple[int, int], last: tuple[int, int]) -> bool:
    body = node.body if isinstance(node, ast.Lambda) else node
    assert body.end_lineno is not None
    assert body.end_col_offset is not None
    return (body.lineno, body.col_offset) <= first and last <= (body.end_lineno, body.end_col_offset)


def _code_parts(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_parts(constant)
        else:
            yield repr(constant)
