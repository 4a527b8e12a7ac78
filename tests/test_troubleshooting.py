"""Every message that the troubleshooting page quotes is one that the sources can print, of the class that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from coar_dist import errors
from tests.pages import PAGES, REPOSITORY, blocks

PAGE = "coar_dist/troubleshooting.md"
ANY = "..."
QUOTED = [block.strip() for block in blocks("", PAGES[PAGE])]
FILLED_IN = re.compile(r"%[\d.]*[sdfg]|\{\w+\}")
"""What ``%`` and ``str.format`` replace."""


def text_of(node: ast.AST, named: dict[str, str]) -> str:
    """A literal text, with ``...`` for what is filled in; a text that has a name stands in full."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, named) for part in node.values)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return named.get(node.value.id, ANY)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, named) + text_of(node.right, named)
    return ANY


@pytest.fixture(scope="module")
def texts() -> dict[Path, list[str]]:
    """All literal texts by module."""
    trees = {path: ast.parse(path.read_text()) for path in sorted((REPOSITORY / "coar_dist").rglob("*.py"))}
    own: dict[Path, dict[str, str]] = {
        path: {
            statement.targets[0].id: statement.value.value
            for statement in tree.body
            if isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        }
        for path, tree in trees.items()
    }
    everywhere = {name: text for of_module in own.values() for name, text in of_module.items()}
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return {
        path: [
            " ".join(FILLED_IN.sub(ANY, text_of(node, {**everywhere, **own[path]})).split())
            for node in ast.walk(tree)
            if isinstance(node, kinds)
        ]
        for path, tree in trees.items()
    }


def is_said(line: str, texts: dict[Path, list[str]]) -> bool:
    """Whether a module that names the error's class has a text with the line's invariable parts in their order."""
    kind, colon, rest = line.partition(": ")
    has_kind = bool(colon) and hasattr(errors, kind)
    pieces = [piece.strip() for piece in (rest if has_kind else line).split(ANY)]
    assert sum(map(len, pieces)) >= 15, "too short to be told from others"
    pattern = re.compile(".*?".join(re.escape(piece) for piece in pieces if piece))
    return any(
        any(pattern.search(text) for text in of_module)
        for path, of_module in texts.items()
        if not has_kind or kind in path.read_text()
    )


@pytest.mark.parametrize("message", QUOTED, ids=lambda message: message[:60])
def test_a_quoted_message_is_in_the_sources(message: str, texts: dict[Path, list[str]]) -> None:
    assert [line for line in message.splitlines() if not is_said(line, texts)] == []


def test_a_message_that_is_not_in_the_sources_is_noticed(texts: dict[Path, list[str]]) -> None:
    unknown = "ConfigError: ...: unknown key. Did you mean ...?"
    assert is_said(unknown, texts)
    assert not is_said(unknown.replace("mean", "think of"), texts)
    assert not is_said(unknown.replace("ConfigError", "RangeFailedError"), texts)
    assert not is_said("ConfigError: ...: Did you mean ... unknown key.", texts)


def test_the_page_explains_each_message_once() -> None:
    assert len(QUOTED) >= 40
    assert len(set(QUOTED)) == len(QUOTED)
    followed = re.findall(r"^```\n[^`]*(?:`[^`]+)*?^```\n\n(?!```|#)\S", PAGES[PAGE], re.MULTILINE)
    assert len(followed) == len(QUOTED)
