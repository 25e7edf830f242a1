"""Numbers with units, for people: three digits, and a unit that suits the size."""

import math


def count_text(number: int, singular: str) -> str:
    """Writes a number of things: (1, "video") -> "1 video", (2000, "video") -> "2,000 videos"."""
    return f"{number:,} {singular}" if number == 1 else f"{number:,} {singular}s"


def duration_text(seconds: float) -> str:
    """Writes seconds: 75 -> "1m15s", 4000 -> "1h06m"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def size_text(size: float) -> str:
    """Writes bytes with a decimal unit: 15_684_047_040 -> "15.7 GB"."""
    power = 0 if size < 1000 else min(4, int(math.log10(size * (1 + 5e-4)) // 3))
    scaled = size / 1000**power
    digits = 0 if power == 0 else max(0, 2 - int(math.log10(scaled)))
    return f"{scaled:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def time_text(seconds: float) -> str:
    """Writes a time in s, ms, us or ns: 0.0125 -> "12.5 ms"."""
    power = 0 if seconds >= 1 or seconds == 0 else min(3, math.ceil(-math.log10(seconds) / 3))
    return f"{number_text(seconds * 1000**power)} {('s', 'ms', 'us', 'ns')[power]}"


def flops_text(flops: float) -> str:
    """Writes floating point operations: 1_146_486_784 -> "1.15 GFLOP"."""
    power = 0 if flops < 1000 else min(5, int(math.log10(flops * (1 + 5e-4)) // 3))
    return f"{number_text(flops / 1000**power)} {('', 'k', 'M', 'G', 'T', 'P')[power]}FLOP"


def percent_text(share: float) -> str:
    """Writes a share with two digits: 0.0029 -> "0.29%"."""
    return f"{number_text(100 * share, digits=2)}%"


def number_text(value: float, digits: int = 3) -> str:
    """Writes a number with at least so many digits and no exponent: 3936.5 -> "3,937"."""
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the number when rounded
    places = max(0, digits - 1 - exponent) if value else 0
    return f"{value:,.{places}f}"
