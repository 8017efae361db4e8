"""How a page writes numbers. Numbers that are not finite are a dash."""

from __future__ import annotations

import math
from collections.abc import Callable

from rm_plugins.statistics.intervals import Estimate

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def count(value: float) -> str:
    """A whole number.

    >>> count(12345)
    '12,345'
    """
    return _written(value, f"{value:,.0f}")


def number(value: float) -> str:
    """Three significant digits.

    >>> number(0.69314), number(-1234.5), number(1.5e-7)
    ('0.693', '−1,234', '1.50e−07')
    """
    return "0" if value == 0 else _significant(value, 3)


def p_value(value: float) -> str:
    """Two significant digits.

    >>> p_value(1 / 10_001), p_value(0.03421), p_value(1.0)
    ('0.00010', '0.034', '1.0')
    """
    return "0" if value == 0 else _significant(value, 2)


def share(value: float) -> str:
    """A share as a percentage.

    >>> share(0.7241)
    '72.4%'
    """
    return _written(value, f"{100 * value:.1f}%")


def points(value: float) -> str:
    """A difference of shares, in percentage points.

    >>> points(0.031), points(-0.00001)
    ('+3.1', '0.0')
    """
    return _written(value, _plus(f"{100 * value:.1f}"))


def signed(value: float) -> str:
    """A length by which something differs.

    >>> signed(1234.0)
    '+1,234'
    """
    return _written(value, _plus(f"{value:,.0f}"))


def interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    """The interval of an estimate, in the unit of its value; empty where it has none.

    >>> interval(Estimate(0.72, 0.7, 0.75), share)
    '[70.0, 75.0]'
    """
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"[{form(estimate.low)}, {form(estimate.high)}]".replace("%", "")


def _significant(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return NONE
    in_full = f"{value:.{digits - 1}e}"
    power = int(in_full.partition("e")[2])  # after rounding, which makes 1 of 0.9999
    return _written(value, f"{value:,.{max(0, digits - 1 - power)}f}" if -5 <= power < 6 else in_full)


def _plus(text: str) -> str:
    return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


def _written(value: float, text: str) -> str:
    if not math.isfinite(value):
        return NONE
    nothing = not any(digit in text for digit in "123456789")
    return text.replace("-", "" if nothing else MINUS)
