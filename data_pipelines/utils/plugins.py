"""Loads what a user names as MODULE:NAME: representations, extractors of features."""

from __future__ import annotations

import importlib
from typing import Any


def load_object(name: str, what: str) -> Any:
    """Imports an object.

    Args:
      name: "MODULE:NAME".
      what: what names it, for messages.

    Raises:
      ValueError: the module cannot be imported, or has no such name. Any other error that the
        module raises is the module's own.
    """
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} {name!r} cannot be imported: {error}") from error
    if not hasattr(found, attribute):
        raise ValueError(f"{what} {name!r} cannot be imported: {module} has no {attribute!r}")
    return getattr(found, attribute)
