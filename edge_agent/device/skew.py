"""How far the clock is from that of a server, by the `Date` of its answers (RFC 9110, 6.6.1).

Good enough to see a clock that is minutes off, whatever the time service says; not to set one.
"""

import email.utils
from collections.abc import Mapping

_HALF_A_SECOND = 0.5
"""A `Date` has whole seconds, rounded down."""


def measure_skew(headers: Mapping[str, str], elapsed: float, now: float) -> float | None:
    """Return by how many seconds the clock is certainly behind, or ahead if negative; None where nothing can be told.

    `headers` came `elapsed` seconds after the request was sent, when the clock said `now` (seconds since the epoch).
    What the way may have taken is left out in the clock's favour. An answer out of a cache (`Age`) tells nothing.
    """
    text = headers.get("Date")
    if text is None or "Age" in headers:
        return None
    try:
        date = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None
    uncertain = elapsed / 2 + _HALF_A_SECOND
    skew = date + _HALF_A_SECOND - (now - elapsed / 2)
    return max(0.0, skew - uncertain) if skew > 0 else min(0.0, skew + uncertain)
