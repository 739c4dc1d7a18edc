"""Numbers as text: two significant digits of an error, and no more digits of its value."""

import math

import numpy as np
import pytest

from evals.reporting.numbers import number, rounded, with_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.2534, "12.35 ± 0.25"),
        (12.3456, 0.0996, "12.35 ± 0.10"),
        (12.3456, 9.96, "12 ± 10"),
        (12345.6, 123.4, "12,350 ± 120"),
        (0.000123456, 0.0000012, "(1.235 ± 0.012)e-4"),
        (0.0, 3e-9, "(0.0 ± 3.0)e-9"),
        (-0.00001, 0.5, "0.00 ± 0.50"),
        (7, 2.0, "7.0 ± 2.0"),
        (3.25, None, "3.25"),
        (3.25, math.nan, "3.25"),
        (3.25, 0.0, "3.25 ± 0"),
        (None, None, "-"),
        (math.nan, 1.0, "-"),
    ],
)
def test_value_and_error(value, error, text):
    assert with_error(value, error, " ± ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234, "1,234"), (1234567.8, "1,234,568"), (-0.0, "0"), (0.98765, "0.9877"), (1e-7, "1e-07")],
)
def test_value_alone(value, text):
    assert number(value) == text


def test_any_error_has_two_significant_digits_and_is_close():
    generator = np.random.default_rng(0)
    for _ in range(2000):
        error = float(10 ** generator.uniform(-9, 5))
        value = float(generator.normal() * 10 ** generator.uniform(-9, 7))
        shown, of_error, exponent = rounded(value, error)
        digits = of_error.replace(",", "").replace(".", "").lstrip("0")
        assert len(digits) == 2 or digits[2:].strip("0") == ""
        assert float(of_error.replace(",", "")) * 10.0**exponent == pytest.approx(error, rel=0.051)
        assert abs(float(shown.replace(",", "")) * 10.0**exponent - value) <= 0.051 * error * 1.01
