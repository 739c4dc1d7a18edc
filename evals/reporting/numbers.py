"""Numbers as text, for terminals and the page: standard errors with two significant digits.

The value is rounded to the last digit of its error, so that no digit is printed that the error
makes meaningless.
"""

from __future__ import annotations

import math

PLUS_MINUS = " ± "  # between a value and its error on a page; a terminal may lack the sign
_MISSING = "-"
_MAX_DECIMALS = 6  # smaller errors are printed with a common power of ten


def number(value: float | None) -> str:
    """A value without an error: integers in full, others with four significant digits."""
    if value is None or not math.isfinite(value):
        return _MISSING
    if isinstance(value, int) or (abs(value) >= 1e4 and value == round(value)):
        return f"{int(value):,}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value + 0.0:,.4g}"  # adding 0 turns -0.0 into 0.0


def rounded(value: float, error: float) -> tuple[str, str, int]:
    """A value and its standard error as (value, error, exponent): both times 10 ** exponent.

    The exponent is 0 except for errors with more than six decimals.

    Args:
      value: finite.
      error: finite and more than 0.
    """
    exponent, mantissa = 0, error
    decimals = _decimals(mantissa)
    if decimals > _MAX_DECIMALS:
        exponent = math.floor(math.log10(max(abs(value), error)))
        mantissa = error / 10.0**exponent
        decimals = _decimals(mantissa)
        value = value / 10.0**exponent
    shown = max(decimals, 0)
    value = round(value, decimals) + 0.0
    return f"{value:,.{shown}f}", f"{round(mantissa, decimals):,.{shown}f}", exponent


def with_error(value: float | None, error: float | None, sign: str = " +- ") -> str:
    """A value with its standard error: "12.35 +- 0.25"; without one, as `number` gives it.

    Args:
      value: None for a figure that is not there: "-".
      error: None or NaN if it is unknown.
      sign: text between the two.
    """
    if value is None or not math.isfinite(value):
        return _MISSING
    if error is None or not math.isfinite(error):
        return number(value)
    if error <= 0:
        return f"{number(value)}{sign}0"
    shown, of_error, exponent = rounded(value, error)
    text = f"{shown}{sign}{of_error}"
    return f"({text})e{exponent}" if exponent else text


def counted(n: int | None, what: str) -> str:
    """How many there are: "1,000 references", or "references: number not known" for None."""
    return f"{what}: number not known" if n is None else f"{n:,} {what}"


def share_error(count: float, total: int) -> float:
    """A standard error of a share: half the width of Wilson's interval at one deviation.

    Unlike that of the normal approximation it is not 0 for 0 and for all.
    """
    share = count / total
    return math.sqrt(share * (1 - share) * total + 0.25) / (total + 1)


def _decimals(error: float) -> int:
    """Decimals that show two significant digits; negative where those are tens and above."""
    return 1 - int(f"{error:.1e}".partition("e")[2])
