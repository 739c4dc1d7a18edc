"""What FFmpeg's libraries say, for those who listen; nothing of it reaches the terminal.

PyAV's level is one for the process and its capture one for the thread. So the level is set once,
here, and whoever wants the messages captures them in its own thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import av

av.logging.set_level(av.logging.WARNING)
av.logging.set_skip_repeated(False)  # messages are counted
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False


@contextlib.contextmanager
def messages() -> Iterator[list[tuple[int, str, str]]]:
    """Collects (level, name of the part, text) of warnings and errors in this thread."""
    with av.logging.Capture(local=True) as logs:
        yield logs


def errors(logs: list[tuple[int, str, str]]) -> list[str]:
    """The texts of errors among captured messages, without the names of parts and line ends."""
    return [text.strip() for level, _, text in logs if level <= av.logging.ERROR]
