"""Figures and words as the page shows them: bytes, seconds, counts, escaped text.

Everything is stored in bytes and seconds; this is the one place that turns them into GiB, MB and
minutes. Whatever a user, a file or a model wrote passes through `escape` before it becomes HTML.
"""

from __future__ import annotations

import html
import math
from datetime import UTC, datetime
from typing import Any

NONE = "\u2013"  # en dash: "no value"
GIB = 2**30
MB = 10**6


def escape(value: Any) -> str:
    """Text that is safe between tags and inside a quoted attribute."""
    return html.escape(str(value), quote=True)


def clip(value: Any, limit: int) -> str:
    """At most `limit` characters, with a sign where something was cut."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\u2026"


def gib(n_bytes: float | None, digits: int = 1) -> str:
    """Memory: 12884901888 -> "12.0 GiB"; below a tenth of a GiB in MiB."""
    if n_bytes is None:
        return NONE
    if n_bytes < GIB / 10:
        return f"{n_bytes / 2**20:.0f} MiB"
    return f"{n_bytes / GIB:.{digits}f} GiB"


def megabytes(n_bytes: float | None) -> str:
    """File sizes: 1234567 -> "1.2 MB"; from a thousand on in GB."""
    if n_bytes is None:
        return NONE
    if n_bytes >= 1000 * MB:
        return f"{n_bytes / 10**9:.1f} GB"
    return f"{n_bytes / MB:.1f} MB" if n_bytes >= MB / 10 else f"{n_bytes / 1000:.0f} kB"


def count(value: float | None) -> str:
    """12345 -> "12,345"."""
    return NONE if value is None else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """Parameters: 7241732096 -> "7.24 B", 5540000 -> "5.5 M"."""
    if value is None:
        return NONE
    for size, unit, digits in ((1e9, "B", 2), (1e6, "M", 1), (1e3, "k", 0)):
        if value >= size:
            return f"{value / size:.{digits}f} {unit}"
    return f"{value:.0f}"


def percent(fraction: float | None) -> str:
    """A share: 0.0123 -> "1.2 %"; tiny ones keep two significant digits."""
    if fraction is None:
        return NONE
    value = 100 * fraction
    return f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def loss(value: float | None) -> str:
    """A loss with three digits behind the point."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """75 -> "1 min 15 s", 5400 -> "1 h 30 min"."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def plain(value: float) -> str:
    """A number as one would type it: 0.0002 -> "2e-4", 1.0 -> "1"."""
    if value and abs(value) < 0.001:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:g}"


def when(created: str | None) -> str:
    """An ISO time as local "21 Nov, 14:05"; what cannot be read stays as it is."""
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return str(created or "")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone().strftime("%d %b, %H:%M").lstrip("0")


def plural(number: int, one: str, many: str | None = None) -> str:
    """1 -> "1 row", 2 -> "2 rows"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
