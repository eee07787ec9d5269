"""Dates, moments and time spans of R, and back; on the client.

R counts days, seconds, or hours in numbers of its own, Python in whole microseconds. What would not come back
to the bit keeps the numbers that R had beside it.
"""

from __future__ import annotations

import datetime
import math
import zoneinfo
from typing import Any

from .stream import CHARACTER, DOUBLE, Node, make

SECONDS = {"secs": 1, "mins": 60, "hours": 3600, "days": 86400, "weeks": 604800}
"""The units of `difftime`."""

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MICROSECOND = datetime.timedelta(microseconds=1)


class RDate(datetime.date):
    """A date that R keeps in another way than others; `vector` is what R has."""

    vector: Any = None

    def plain(self) -> datetime.date:
        """The date alone."""
        return datetime.date(self.year, self.month, self.day)


class RDatetime(datetime.datetime):
    """A moment that R has more exactly, or without a time zone; `vector` is what R has."""

    vector: Any = None

    def plain(self) -> datetime.datetime:
        """The moment alone."""
        return datetime.datetime.combine(self.date(), self.timetz())


class RTimedelta(datetime.timedelta):
    """A span of time that R counts in a unit other than seconds; `vector` is what R has."""

    vector: Any = None

    def plain(self) -> datetime.timedelta:
        """The span alone."""
        return datetime.timedelta(self.days, self.seconds, self.microseconds)


def find_zone(name: Any) -> datetime.tzinfo | None:
    """The time zone of R's name; None: it is not known here, or is that of the session."""
    if not isinstance(name, str) or not name:
        return None
    if name == "UTC":
        return datetime.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return None


def zone_name(zone: Any) -> str | None:
    """R's name of a time zone; None: it has none."""
    if zone is None or zone is datetime.UTC:
        return "UTC"
    name = getattr(zone, "key", None) or getattr(zone, "zone", None)
    if isinstance(name, str):
        return name
    if isinstance(zone, datetime.timezone):
        hours = zone.utcoffset(None) / datetime.timedelta(hours=1)
        if not hours:
            return "UTC"
        if hours == int(hours) and -12 <= hours <= 14:
            return f"Etc/GMT{-int(hours):+d}"  # their sign is the other way round
        return None
    name = "UTC" if type(zone).__name__ == "tzutc" else str(getattr(zone, "_filename", ""))
    return name.rpartition("zoneinfo/")[2] or None


# --- one of them -----------------------------------------------------------------------------


def open_date(days: float) -> RDate | None:
    """The date of a number of days; None: there is no such date."""
    if not math.isfinite(days) or not -719162 <= days < 2932897:
        return None
    return RDate.fromordinal(719163 + math.floor(days))


def open_moment(seconds: float, zone: datetime.tzinfo | None) -> RDatetime | None:
    """The moment of a number of seconds, as near as can be; None: there is no such one."""
    if not math.isfinite(seconds) or not -62135500000 <= seconds < 253402200000:
        return None
    moment = EPOCH + datetime.timedelta(microseconds=round(seconds * 1e6))
    return (
        RDatetime.fromtimestamp(0, datetime.UTC) + (moment - EPOCH)
        if zone is None
        else _in_zone(moment, zone)
    )


def _in_zone(moment: datetime.datetime, zone: datetime.tzinfo) -> RDatetime:
    there = moment.astimezone(zone)
    return RDatetime.combine(there.date(), there.timetz()).replace(fold=there.fold)


def open_span(count: float, unit: str) -> RTimedelta | None:
    """The span of so many units."""
    seconds = count * SECONDS[unit]
    if not math.isfinite(seconds) or abs(seconds) >= 86399999999999:
        return None
    return RTimedelta(microseconds=round(seconds * 1e6))


def plain_date(value: datetime.date) -> datetime.date:
    """Without R's own."""
    return datetime.date(value.year, value.month, value.day)


def plain_moment(value: datetime.datetime) -> datetime.datetime:
    """Without R's own."""
    return datetime.datetime.combine(value.date(), value.timetz()).replace(fold=value.fold)


def days_of(value: datetime.date) -> float:
    """R's number of a date."""
    return float(value.toordinal() - 719163)


def seconds_of(value: datetime.datetime) -> float:
    """R's number of a moment; where there is no time zone, it is UTC."""
    if value.tzinfo is None:
        value = value.replace(tzinfo=datetime.UTC)
    return ((value - EPOCH) // MICROSECOND) / 1_000_000


def span_of(value: datetime.timedelta) -> float:
    """R's number of seconds of a span."""
    return (value // MICROSECOND) / 1_000_000


# --- nodes -----------------------------------------------------------------------------------


def close_dates(numbers: Any) -> Node:
    """A vector of dates."""
    return make(DOUBLE, numbers, {"class": make(CHARACTER, ["Date"])})


def close_moments(numbers: Any, zone: str) -> Node:
    """A vector of moments."""
    classes = make(CHARACTER, ["POSIXct", "POSIXt"])
    return make(DOUBLE, numbers, {"class": classes, "tzone": make(CHARACTER, [zone])})


def close_spans(numbers: Any, unit: str = "secs") -> Node:
    """A vector of spans."""
    return make(DOUBLE, numbers, {"class": make(CHARACTER, ["difftime"]), "units": make(CHARACTER, [unit])})


# --- many of them, by numpy ------------------------------------------------------------------


def count(numbers: Any, seconds: int = 1) -> tuple[Any, str, Any]:
    """Numbers of R's in a unit of so many seconds, as whole numbers in a unit of numpy's: "us", or "ns" where
    that is exact and microseconds are not. And which of them would not come back as they are.
    """
    import numpy

    with numpy.errstate(all="ignore"):
        scaled = numbers * seconds
        micro = _round(scaled, 1_000_000)
        wrong = _differ(uncount(micro, "us", seconds), numbers)
        is_finite = numpy.isfinite(scaled)
        if (wrong & is_finite).any() and bool((numpy.abs(scaled[is_finite]) < 9e9).all()):
            nano = _round(scaled, 1_000_000_000)
            worse = _differ(uncount(nano, "ns", seconds), numbers)
            if not (worse & is_finite).any():
                return nano, "ns", worse
    return micro, "us", wrong


def _round(seconds: Any, per: int) -> Any:
    """Whole numbers, `per` to a second; NaT where there are none."""
    import numpy

    whole = numpy.floor(seconds)
    fits = numpy.abs(whole) < (1 << 62) / per
    made = numpy.full(len(seconds), -(1 << 63), numpy.int64)
    made[fits] = whole[fits].astype(numpy.int64) * per
    made[fits] += numpy.rint((seconds[fits] - whole[fits]) * per).astype(numpy.int64)
    return made


PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


def uncount(counts: Any, unit: str, seconds: int = 1) -> Any:
    """R's numbers of whole numbers in a unit of numpy's."""
    import numpy

    from .arrays import missing_double

    per = PER_SECOND[unit]
    missing = counts == -(1 << 63)
    if unit == "ns" or bool((numpy.abs(counts[~missing]) >= 1 << 53).any()):
        made = (counts // per).astype("<f8") + (counts % per) / per
    else:
        made = counts / per
    if seconds != 1:
        made /= seconds
    made[missing] = missing_double()
    return made


def _differ(some: Any, others: Any) -> Any:
    """Where numbers are not the same to the bit; all that are missing are, as R sees no other bits of those."""
    from .arrays import is_missing

    differ = some.view("<i8") != others.view("<i8")
    return differ & ~is_missing(others) if differ.any() else differ


def count_days(numbers: Any) -> tuple[Any, Any]:
    """Days as whole numbers, and which of them would not come back as they are."""
    import numpy

    with numpy.errstate(all="ignore"):
        days = _round(numpy.floor(numbers), 1)
    return days, _differ(uncount(days, "s"), numbers)
