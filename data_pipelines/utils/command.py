"""Runs the project's command lines: a user error ends in one sentence, not in a stack trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

from data_pipelines.utils.files import WriteError

# Errors that a user can cause: values, names, files. Any other is a bug and keeps its traceback.
_USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    WriteError,
)


def run(main: Callable[[Sequence[str]], Any], *user_errors: type[Exception]) -> None:
    """Parses the flags and calls `main` with the remaining arguments.

    Args:
      main: called with the command line without its flags. An error that a user can cause ends the
        process with status 1 and one sentence on stderr; a wrong flag ends it with status 2.
      *user_errors: further types of errors that a user can cause.
    """

    expected: tuple[type[Exception], ...] = (*_USER_ERRORS, *user_errors)

    def guarded(arguments: Sequence[str]) -> None:
        try:
            main(arguments)
        except expected as error:
            _stop(error)

    def parse(arguments: Sequence[str]) -> Sequence[str]:
        try:
            return flags.FLAGS(arguments)
        except (AttributeError, KeyError) as error:
            name = str(error).strip("'\"").replace("'.", ".", 1)  # strips nested quotes
            _stop(ValueError(f"the configuration has no value {name}"), status=2)
        except (flags.Error, OSError, ValueError, TypeError) as error:
            _stop(error, status=2)

    app.run(guarded, flags_parser=parse)


def no_arguments(arguments: Sequence[str]) -> None:
    """Raises ValueError if the command line has arguments that are no flags."""
    if arguments[1:]:
        raise ValueError(f"found {arguments[1]!r}, expected only flags; --help lists them")


def _stop(error: Exception, status: int = 1) -> NoReturn:
    lines = str(error).strip().splitlines()
    # An error in a config file carries its traceback as text; the last line is the message.
    text = lines[-1] if "Traceback" in str(error) else " ".join(line.strip() for line in lines)
    # ml_collections wraps one error in another, with its quotes and escapes.
    text = text.strip("'\"").replace("\\n", ". ").replace("\\'", "'")
    print(f"{type(error).__name__}: {text}", file=sys.stderr)
    sys.exit(status)
