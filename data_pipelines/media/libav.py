"""Captures FFmpeg's log messages per thread; none of them reach the terminal.

PyAV has one log level per process and one capture per thread. This module sets the level once, on
import; `messages` captures in the calling thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import av

av.logging.set_level(av.logging.WARNING)
av.logging.set_skip_repeated(False)  # every message is kept
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False


@contextlib.contextmanager
def messages() -> Iterator[list[tuple[int, str, str]]]:
    """Collects warnings and errors of this thread as (level, component, text)."""
    with av.logging.Capture(local=True) as logs:
        yield logs


def errors(logs: list[tuple[int, str, str]]) -> list[str]:
    """The texts of the errors among captured messages."""
    return [text.strip() for level, _, text in logs if level <= av.logging.ERROR]
