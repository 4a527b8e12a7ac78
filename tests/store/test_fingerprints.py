"""Fingerprints of attributions are read once for many tables, and again where they are others by now."""

from __future__ import annotations

from coar_dist.store.fingerprints import KnownFingerprints


def test_what_is_remembered_is_read_once_and_forgotten_where_nothing_is_found() -> None:
    now, read = "a", []

    def fingerprint() -> str:
        read.append(now)
        return now

    known = KnownFingerprints(remembers=True)
    assert [known.of("coar", fingerprint) for _ in range(3)] == ["a"] * 3
    assert known.of("lasso", lambda: "b") == "b"
    assert read == ["a"]
    now = "c"
    assert known.tried(lambda: "found" if known.of("coar", fingerprint) == "c" else None) == "found"
    assert read == ["a", "c"]
    assert known.tried(lambda: None) is None
    forgetful = KnownFingerprints()
    assert [forgetful.of("coar", fingerprint) for _ in range(2)] == ["c", "c"]
    assert read == ["a", "c", "c", "c"]
