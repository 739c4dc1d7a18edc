"""A worker process of `launchers.run_pool`; not a command for users."""

from __future__ import annotations

import os
import signal
import sys

from data_pipelines.preparation import launchers
from data_pipelines.utils.command import quiet_drivers


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller handles Ctrl-C and ends the worker
    # Output of libraries must not be mixed with messages.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    quiet_drivers()
    try:
        launchers.run_worker(sys.stdin, messages)
    except BrokenPipeError:
        os._exit(1)  # the caller has ended


if __name__ == "__main__":
    main()
