"""Two sets of settings, and what differs between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """A phrase for each value that differs, in the order of the names; empty if none does."""
    return [
        f"{name} is {ours.get(name)!r} here and {theirs.get(name)!r} there"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
