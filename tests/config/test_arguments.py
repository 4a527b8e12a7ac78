"""Arguments of commands without a configuration: every wrong one is named, with a way out and the usage."""

from __future__ import annotations

import pytest

from coar_dist.config.arguments import parsed
from coar_dist.errors import UsageError

KEYS = ("run.dir", "other", "methods")
USAGE = "usage: coar-dist compare run.dir=... other=..."


def test_values_may_hold_what_parts_a_key_from_its_value() -> None:
    assert parsed(["run.dir=s3://a/b?c=d", "methods=[coar]"], KEYS, USAGE) == {
        "run.dir": "s3://a/b?c=d",
        "methods": "[coar]",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.dir=a", "method=coar"], "method=coar: no argument is called method. Did you mean methods?"),
        (["seed=1"], "seed=1: no argument is called seed. There are run.dir, other, methods."),
        (["runs/a"], "runs/a: arguments are key=value; keys are run.dir, other, methods."),
        (["other"], "other: other has no value. Give one, as other=..., or leave it out."),
        (["run.dir="], "run.dir=: run.dir has no value. Give one, as run.dir=..., or leave it out."),
        (["other=a", "other=b"], "other is given twice, as a and as b. Leave one of them out."),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parsed(arguments, KEYS, USAGE)
    assert str(raised.value) == f"{message}\n{USAGE}"


def test_help_is_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parsed(["run.dir=a", "--help"], KEYS, USAGE)
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"{USAGE}\n"
