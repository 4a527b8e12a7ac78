"""The version of this package, for its metadata and for what a run records; rooms below ``__init__`` read it here."""

from __future__ import annotations

VERSION = "0.1.0"
