"""How a number looks in a table: digits, its interval, a dash when it is missing.

Takes numbers, gives text. Knows neither rows nor file formats.
"""

from __future__ import annotations

import math

from prunebench.cells import CellResult

MISSING = "–"

_UNITS = (("M", 1e6), ("k", 1e3), ("", 1.0))


def measure(line: CellResult, name: str) -> tuple[float, float, float]:
    """A column of the line and the ends of its interval; NaN where the line has none."""
    ends = "auroc" if name == "auroc_within" else name
    return tuple(
        float(getattr(line, column, float("nan"))) for column in (name, f"{ends}_lo", f"{ends}_hi")
    )  # pyright: ignore[reportReturnType]


def number(value: float, digits: int) -> str:
    """The value with so many decimals, or a dash."""
    return f"{value:z.{digits}f}" if value == value else MISSING


def plus_minus(values: tuple[float, float, float], scale: float, digits: int) -> str:
    """`value±half` of (value, lo, hi): half is half the width of the interval. Without an
    interval, or with one of no width (the number is the same for every problem), the value
    alone."""
    value, lo, hi = values
    text = number(scale * value, digits)
    same = lo != lo or hi - lo <= 1e-9 * abs(value)
    return text if value != value or same else f"{text}±{half(lo, hi, scale, digits)}"


def half(lo: float, hi: float, scale: float, digits: int) -> str:
    """Half the width of an interval."""
    return f"{abs(scale) * (hi - lo) / 2:.{digits}f}"


def bounds(lo: float, hi: float, scale: float, digits: int) -> str:
    """`[lo, hi]`, or nothing without an interval."""
    return f"[{scale * lo:.{digits}f}, {scale * hi:.{digits}f}]" if lo == lo else ""


def counted(values: tuple[float, float, float]) -> str:
    """A count such as tokens with its interval, in thousands or millions: `5.14±0.21k`."""
    value = values[0]
    if value != value:
        return MISSING
    unit, size = next((u for u in _UNITS if abs(value) >= u[1]), _UNITS[-1])
    if not unit:
        return plus_minus(values, 1, 0)
    digits = 2 if abs(value) < 10 * size else 1 if abs(value) < 100 * size else 0
    return plus_minus(values, 1 / size, digits) + unit


def seconds(values: tuple[float, float, float]) -> str:
    """Seconds with their interval, two significant digits of the value."""
    value = abs(values[0])
    digits = 0 if not 0 < value < 10 else min(6, 1 - math.floor(math.log10(value)))
    return plus_minus(values, 1, digits)
