"""Runs the project's command lines: a user error ends in one sentence, not in a stack trace."""

from __future__ import annotations

import ast
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

from data_pipelines.utils.files import (
    StorageUnavailable,
    WriteError,
    missing_driver,
    unknown_scheme,
)

# Errors that a user can cause: values, names, files. Any other is a bug and keeps its traceback.
_USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    WriteError,
    StorageUnavailable,
)


def quiet_drivers() -> None:
    """Silences the drivers of object stores: a line per file, and traces of errors they raise."""
    for name in ("fsspec", "gcsfs", "s3fs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def run(main: Callable[[Sequence[str]], Any], *user_errors: type[Exception]) -> None:
    """Parses the flags and calls `main` with the remaining arguments.

    Args:
      main: called with the command line without its flags. An error that a user can cause ends the
        process with status 1 and one sentence on stderr; a wrong flag ends it with status 2.
      *user_errors: further types of errors that a user can cause.
    """

    expected: tuple[type[Exception], ...] = (*_USER_ERRORS, *user_errors)

    def guarded(arguments: Sequence[str]) -> None:
        quiet_drivers()
        try:
            main(arguments)
        except expected as error:
            _stop(_path_error(error) or error)
        except (KeyError, ImportError) as error:
            if (translated := _path_error(error)) is None:
                raise
            _stop(translated)

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


def given(values: flags.FlagValues, *names: str) -> list[str]:
    """The flags among `names` that the command line has, as --NAME."""
    return [f"--{name}" for name in names if values[name].present]


def refuse_without_effect(found: Sequence[str], reason: str) -> None:
    """Raises ValueError if flags were given that have no effect, see `given`.

    Args:
      found: the flags.
      reason: why they have no effect and what to do, after "has no effect".
    """
    if found:
        verb = "has" if len(found) == 1 else "have"
        raise ValueError(f"{' and '.join(found)} {verb} no effect {reason}")


def _path_error(error: Exception) -> ValueError | None:
    """The error in words if `etils.epath` could not open a path for its scheme; else None."""
    if isinstance(error, ImportError):
        text = missing_driver(error)
    else:  # epath raises KeyError("'https://'")
        scheme = str(error).strip("'\"")
        is_scheme = isinstance(error, KeyError) and scheme.endswith("://")
        text = unknown_scheme(f"{scheme}...") if is_scheme else None
    return ValueError(text) if text else None


def _unquoted(text: str) -> str:
    """The text without quotes around the whole of it, as the `repr` of a string has them."""
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return _unquoted(found) if isinstance(found, str) else text


def _stop(error: Exception, status: int = 1) -> NoReturn:
    lines = str(error).strip().splitlines()
    # An error in a config file carries its traceback as text; the last line is the message.
    text = lines[-1] if "Traceback" in str(error) else " ".join(line.strip() for line in lines)
    if status == 2:  # ml_collections wraps one error in another, with its quotes and escapes
        text = _unquoted(text).replace("\n", ". ").replace("\\n", ". ").replace("\\'", "'")
    print(f"{type(error).__name__}: {text}", file=sys.stderr)
    sys.exit(status)
