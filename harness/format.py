"""Numbers to text, for every screen and every printed line: 2.55B, 42:17, 3.274, 61 %.

Pure functions. None is drawn as `none` ("–": not there yet; pass "N/A" for what a machine does not
tell) and never as 0; NaN and the infinities come out as nan, inf and -inf.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

NOT_YET = "–"
NOT_AVAILABLE = "N/A"

_COUNT_SUFFIXES = ("", "K", "M", "B", "T")
_BYTE_SUFFIXES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_GIB = 1024**3
_MAX = 1e100  # nothing measured comes near; integers beyond the range of a float exist in JSON


def seconds(value: float | None, *, none: str = NOT_YET) -> str:
    """A duration as a clock: 0:07, 42:17, 1:11:24; a negative one has a leading minus."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    total = round(abs(value))
    minutes, second = divmod(total, 60)
    hours, minute = divmod(minutes, 60)
    sign = "-" if value < 0 and total else ""
    if hours:
        return f"{sign}{hours}:{minute:02}:{second:02}"
    return f"{sign}{minute}:{second:02}"


def time_of_day(moment: float, *, is_utc: bool = False) -> str:
    """A unix time as 19:05:11 here, or as 19:05:11Z; dashes when no calendar has it."""
    try:
        text = f"{datetime.fromtimestamp(moment, UTC if is_utc else None):%H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        text = "--:--:--"
    return f"{text}Z" if is_utc else text


def exact_seconds(value: float | None, *, none: str = NOT_YET) -> str:
    """A duration in seconds to the tenth, for scores: 2537.0 s."""
    return fixed(value, decimals=1, unit="s", none=none)


def age(value: float | None, *, none: str = NOT_YET) -> str:
    """A duration in its largest unit: 12 s, 5 min, 3 h, 2 d."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    size, unit = abs(value), "s"
    for factor, larger in ((60, "min"), (60, "h"), (24, "d")):
        if size < factor:
            break
        size, unit = size / factor, larger
    sign = "-" if value < 0 and int(size) else ""
    return f"{sign}{int(size)} {unit}"


def milliseconds(value: float | None, *, none: str = NOT_YET) -> str:
    """A step time given in milliseconds: 0.42 ms, 123 ms, 2.5 s."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    if abs(value) >= 999.5:
        return f"{_significant(value / 1000)} s"
    return f"{_significant(value)} ms"


def count(value: float | None, *, none: str = NOT_YET) -> str:
    """A whole number with its thousands apart: 4,864."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    return f"{round(value):,}"


def tokens(value: float | None, *, none: str = NOT_YET) -> str:
    """A large number in three digits: 512, 32.8K, 2.55B."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    number, suffix = _scaled(value, _COUNT_SUFFIXES, base=1000)
    return f"{number}{suffix}"


def rate(value: float | None, *, unit: str = "tok/s", none: str = NOT_YET) -> str:
    """A large number a second: 1.01M tok/s."""
    text = tokens(value, none=none)
    return text if value is None else f"{text} {unit}"


def loss(value: float | None, *, none: str = NOT_YET) -> str:
    """Nats a token to three decimals: 3.274."""
    return fixed(value, decimals=3, none=none)


def core(value: float | None, *, none: str = NOT_YET) -> str:
    """A CORE score to four decimals: 0.0644."""
    return fixed(value, decimals=4, none=none)


def interval(value: Sequence[float] | None) -> str:
    """The interval of a CORE score behind it: [0.0581, 0.0707]; nothing when it is unknown."""
    return "" if value is None else f" [{', '.join(map(core, value))}]"


def scientific(value: float | None, *, none: str = NOT_YET) -> str:
    """A number of any size in short scientific form, learning rates before all: 1.8e-3."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{_without_zeros(mantissa)}e{int(exponent)}"


def percent(value: float | None, *, decimals: int = 0, none: str = NOT_YET) -> str:
    """A fraction of 1 as a percentage: 0.61 is 61 %."""
    scaled = None if value is None else value * 100
    return fixed(scaled, decimals=decimals, unit="%", none=none)


def probability(value: float) -> str:
    """A p value to four decimals; one too small for them is < 0.0001 and never 0."""
    return "< 0.0001" if value < 0.0001 else fixed(value, decimals=4)


def bytes_(value: float | None, *, none: str = NOT_YET) -> str:
    """Bytes in three digits of the unit that fits: 512 B, 1.5 MiB, 139 GiB."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    number, suffix = _scaled(value, _BYTE_SUFFIXES, base=1024)
    return f"{number} {suffix}"


def gib(value: float | None, *, decimals: int = 1, none: str = NOT_YET) -> str:
    """Bytes always as GiB, for columns of device memory: 139.8 GiB."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    return fixed(value / _GIB, decimals=decimals, unit="GiB", none=none)


def fixed(value: float | None, *, decimals: int = 0, unit: str = "", none: str = NOT_YET) -> str:
    """A number with fixed decimals and an optional unit: 998 W, 71 °C, 3.274."""
    odd = _odd(value, none)
    if odd is not None or value is None:
        return odd or none
    text = _without_negative_zero(f"{value:.{decimals}f}")
    return f"{text} {unit}" if unit else text


def _odd(value: float | None, none: str) -> str | None:
    """The text of a value that is no usable number, else None."""
    if value is None:
        return none
    if abs(value) > _MAX:
        return "inf" if value > 0 else "-inf"
    return "nan" if math.isnan(value) else None


def _scaled(value: float, suffixes: tuple[str, ...], *, base: int) -> tuple[str, str]:
    size, index = value, 0
    # 999.5 would be drawn as four digits, so it already belongs to the next suffix.
    while abs(size) >= min(base, 999.5) and index < len(suffixes) - 1:
        size, index = size / base, index + 1
    if index == 0:
        return str(round(size)), suffixes[0]
    return _significant(size), suffixes[index]


def _significant(value: float) -> str:
    """Three significant digits without trailing zeros; more before the point are kept."""
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    if abs(value) >= 99.95:
        return str(round(value))
    decimals = 1 if abs(value) >= 9.995 else 2
    return _without_zeros(_without_negative_zero(f"{value:.{decimals}f}"))


def _without_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _without_negative_zero(text: str) -> str:
    return text.lstrip("-") if not text.strip("-0.") else text
