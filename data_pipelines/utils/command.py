"""How every command line of the project runs: mistakes end in a sentence, not in a stack trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags

from data_pipelines.utils.files import WriteError

# What a user can cause: values, names, files. Anything else is a fault of ours and shows its trace.
_MISTAKES = (
    ValueError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    WriteError,
)


def run(main: Callable[[Sequence[str]], Any], *mistakes: type[Exception]) -> None:
    """Parses the flags and calls `main` with what is left of the command line.

    Args:
      main: what to do. An error of a kind that a user can cause ends the process with status 1 and
        one sentence.
      *mistakes: further such kinds.
    """

    expected: tuple[type[Exception], ...] = (*_MISTAKES, *mistakes)

    def guarded(arguments: Sequence[str]) -> None:
        try:
            main(arguments)
        except expected as error:
            _stop(error)

    def parse(arguments: Sequence[str]) -> Sequence[str]:
        try:
            return flags.FLAGS(arguments)
        except (AttributeError, KeyError) as error:
            name = str(error).strip("'\"").replace("'.", ".", 1)  # of quotes in quotes
            _stop(ValueError(f"the configuration has no value {name}"), status=2)
        except (flags.Error, OSError, ValueError, TypeError) as error:
            _stop(error, status=2)

    app.run(guarded, flags_parser=parse)


def no_arguments(arguments: Sequence[str]) -> None:
    """Refuses what is left of a command line after its flags. Raises ValueError."""
    if arguments[1:]:
        raise ValueError(f"found {arguments[1]!r}, which is no flag; --help lists what there is")


def _stop(error: Exception, status: int = 1) -> NoReturn:
    lines = str(error).strip().splitlines()
    # An error in a config file comes with its trace as text, and ends with what it says.
    text = lines[-1] if "Traceback" in str(error) else " ".join(line.strip() for line in lines)
    # ml_collections wraps one error in another, quotes, escapes and all.
    text = text.strip("'\"").replace("\\n", ". ").replace("\\'", "'")
    print(f"{type(error).__name__}: {text}", file=sys.stderr)
    sys.exit(status)
