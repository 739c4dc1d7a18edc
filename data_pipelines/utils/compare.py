"""Compares two sets of settings, for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_VALUE_CHARACTERS = 80


def differences(
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    our_side: str = "here",
    their_side: str = "there",
) -> list[str]:
    """Lists the settings that differ, as in 'quality is 25 here and 10 there'.

    Args:
      ours, theirs: settings by name. A missing setting equals None.
      our_side, their_side: how each phrase names the two sides.

    Returns:
      A phrase for each setting that differs, sorted by name; empty if none does.
    """
    return [
        f"{name} is {_short(ours.get(name))} {our_side} and {_short(theirs.get(name))} {their_side}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[: _MAX_VALUE_CHARACTERS - 3] + "..."
