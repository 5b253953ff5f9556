"""Numbers as people read them."""

import math


def number(value: float, digits: int = 4) -> str:
    """`digits` significant digits: 38.1, 0.0121, 1.2e-06; whole numbers with separators."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def fixed(value: float, decimals: int) -> str:
    """`38.10`: for columns, where the points stand below each other."""
    return f"{value:,.{decimals}f}"


def count(value: float) -> str:
    """`134.5 M`: a count in thousands, millions, billions."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g} {unit}"
    return number(value)


def size(count_of_bytes: float) -> str:
    """`269 MB`: bytes in decimal units, as model hubs show them."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count_of_bytes >= limit:
            return f"{count_of_bytes / limit:.3g} {unit}"
    return f"{count_of_bytes:g} B"


def duration(seconds: float) -> str:
    """`3 min 14 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"


def change(before: float, after: float) -> str:
    """The relative change with its sign: `−48.0 %`."""
    if not before or not math.isfinite(after / before):
        return ""
    relative = 100 * (after / before - 1)
    sign = "±" if f"{relative:.1f}" in ("0.0", "-0.0") else "+" if relative > 0 else "−"
    return f"{sign}{abs(relative):.1f} %"
