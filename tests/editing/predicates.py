"""Predicates that the tests name in a group."""

from __future__ import annotations

from typing import Any

import numpy as np


def unsure(columns: dict[str, Any]) -> Any:
    return np.abs(columns["margin"]) < 1


def numbers(columns: dict[str, Any]) -> Any:
    return np.ones(len(columns["margin"]))


def too_few(columns: dict[str, Any]) -> Any:
    return columns["margin"][1:] > 0


def broken(columns: dict[str, Any]) -> Any:
    return columns["margins"] > 0


nothing = None
