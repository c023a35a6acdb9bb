"""Whether devices would refuse a release for its time, as `edge_agent.models.stores.trust` does it on them."""

import datetime as dt
import time

from edge_agent.models.release.manifest import YEAR_10000, Manifest
from edge_agent.models.stores.trust import DAY


def why_untimely(manifest: Manifest) -> str:
    """Say that it has expired, or comes from the future, and what to do; empty if neither is so."""
    now = time.time()
    if has_expired(manifest, now):
        return f"{manifest.version} was good until {_day(manifest.expires or 0)}: sign it again with a later --expires"
    if manifest.sequence / 1000 > now + DAY:
        return (
            f"{manifest.version} was made on {_day(manifest.sequence / 1000)}, which by this clock is still to come: "
            "see that the clocks are right, here and where it was built, and build it again"
        )
    return ""


def has_expired(manifest: Manifest, now: float) -> bool:
    """Say whether its time is over; `now` is in seconds since 1970."""
    return manifest.expires is not None and manifest.expires < now


def _day(seconds: float) -> str:
    return str(dt.datetime.fromtimestamp(min(seconds, YEAR_10000 - 1), dt.UTC).date())
