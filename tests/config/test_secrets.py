from __future__ import annotations

import pytest

from coar_dist.config.secrets import check_no_secrets, without_secrets
from coar_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"model": {"arguments": {"token": "x1y2"}}}, "model.arguments.token"),
        ({"arguments": {"aws_secret_access_key": "abc"}}, "arguments.aws_secret_access_key"),
        ({"path": "hf_" + "a" * 30}, "path"),
        ({"urls": ["http://ok/", "https://me:pass@host/x"]}, r"urls\[1\]"),
        ({"password": 12345678}, "password"),
        ({"deep": [[{"x": "hf_" + "a" * 30}]]}, r"deep\[0\]\[0\]\.x"),
        ({"rules": [{"api_key": "k"}]}, r"rules\[0\]\.api_key"),
    ],
)
def test_credentials_in_a_configuration_are_refused_and_never_shown(values: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} looks like a credential") as caught:
        check_no_secrets(values)
    assert "me:pass" not in str(caught.value)
    assert "12345678" not in str(caught.value)
    assert "a" * 30 not in str(caught.value)


def test_what_is_no_credential_is_let_through() -> None:
    check_no_secrets(
        {
            "num_tokens": 5,
            "pad_token": "<pad>",
            "token": None,
            "output_function": "next_token_margin",
            "dir": "s3://b/p",
        }
    )


def test_texts_lose_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("GITHUB_TOKEN", "another-secret")
    monkeypatch.setenv("HF_TOKEN", "short")
    text = f"wJalrXUtnFEMI at https://me:p@ss@host/a?X-Amz-Signature=12ab&x=1, short another-secret hf_{'b' * 30}"
    assert without_secrets(text) == "*** at https://***@host/a?X-Amz-Signature=***&x=1, short *** ***"
