"""Numbers as words: formats and comparisons shared by every section.

A missing or non-finite number is a dash everywhere: a report must never turn
"not measured" into a figure.
"""

import math

DASH = "–"


def measured(value: object) -> float | None:
    """The value as a finite float, or None when there is nothing to show."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def figure(value: object, digits: int = 3) -> str:
    """At most `digits` significant digits, thousands grouped: 0.104, 12.3, 1,234."""
    number = measured(value)
    if number is None:
        return DASH
    if number == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    if places > 6:
        return f"{number:.{digits - 1}e}"
    shown = f"{number:,.{places}f}"
    return shown.rstrip("0").rstrip(".") if places else shown


def percent(fraction: object, digits: int = 0) -> str:
    """A fraction as a percentage: 0.913 -> 91 %."""
    number = measured(fraction)
    return DASH if number is None else f"{100 * number:.{digits}f} %"


def duration(seconds: object) -> str:
    """Seconds for a reader: 7.4 s, 3 min 05 s, 1 h 02 min."""
    number = measured(seconds)
    if number is None:
        return DASH
    if number < 59.95:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def below(value: object, reference: object) -> float | None:
    """How far `value` lies below `reference`, as a fraction of it (negative: above)."""
    one, other = measured(value), measured(reference)
    if one is None or other is None or other == 0:
        return None
    return 1 - one / other


def closer(value: object, reference: object) -> str:
    """An error against a reference error: `63 % closer` or `12 % further away`."""
    gain = below(value, reference)
    if gain is None:
        return "not measured against"
    return f"{percent(gain)} closer" if gain >= 0 else f"{percent(-gain)} further away"


def plural(count: int, noun: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
