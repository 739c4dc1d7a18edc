"""A worker process of `launchers.run_pool`; not for the command line."""

from __future__ import annotations

import os
import signal
import sys

from data_pipelines.preparation import launchers


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the caller, which ends us
    # What a library prints must not be taken for a message.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        launchers.work(sys.stdin, messages)
    except BrokenPipeError:
        os._exit(1)  # the caller is gone


if __name__ == "__main__":
    main()
