"""The options that ``--help`` names are there."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from coar_dist.config.help_text import OPTIONS, help_body
from coar_dist.config.schema import Config, EvaluationConfig

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_one(option: str) -> None:
    key = option.partition("=")[0]
    if (CONF / key).is_dir():
        assert (CONF / key / f"{option.partition('=')[2]}.yaml").is_file()
        return
    part: object = Config(evaluation=EvaluationConfig())
    for name in key.split("."):
        assert is_dataclass(part)
        assert name in {each.name for each in fields(part)}, key
        part = getattr(part, name)


def test_a_line_fits_on_a_terminal() -> None:
    assert max(map(len, help_body(in_full=False).splitlines())) <= 120
