"""What the pages hold: their text, the code in it, the commands in that, and the anchors of their headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FRONT = "README.md"
ROOMS = ("coar_dist", "conf", "deploy", "docker", "tests")
FILES = [*REPOSITORY.glob("*.md"), *(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.md"))]
PAGES = {path.relative_to(REPOSITORY).as_posix(): path.read_text() for path in sorted(FILES)}
TEXT = "\n".join(PAGES.values())
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of a language; "" is output and the like."""
    return [fence[2] for fence in FENCE.finditer(text) if fence[1] == language]


def without_blocks(text: str) -> str:
    return FENCE.sub("", text)


def inline_code() -> list[str]:
    """Code within prose, its line breaks as spaces."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks(TEXT))]


def commands() -> list[list[str]]:
    """Every simple command of the bash blocks, and of the prose where it is ``coar-dist ...``, in words."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    found: list[list[str]] = []
    for line in [*lines, *(code for code in inline_code() if re.match(r"coar-dist\s.*[=-]", code))]:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if set(word) <= set(";&|"):
                found.append([])
            else:
                found[-1].append(word)
    return [words for words in found if words]


def arguments_of(words: list[str]) -> list[str] | None:
    """What a command gives to ``coar-dist``; None if it runs something else."""
    if words[:2] == ["docker", "build"]:
        return None
    for i, word in enumerate(words):
        name = "coar-dist" if words[i - 2 : i + 1] == ["python", "-m", "coar_dist"] else word
        if name in ("coar-dist", "deploy/slurm.sh") or re.fullmatch("coar-dist:(cpu|cuda)", name):
            return [argument for argument in words[i + 1 :] if argument != "..."]
    return None


OURS = {" ".join(words): arguments for words in commands() if (arguments := arguments_of(words)) is not None}


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
