r"""Which devices a release is for: the first so many per cent of all, and cohorts by label.

For each release a device has a place from 0 up to 100, and it takes part if its place is below the percentage. So who
is in at 5 % is in at 25 %, and at 100 % everybody is. The place is the same for ever, on every machine:

1. the text DEVICE ID, line feed, VERSION, line feed, SHA-256 OF THE MODEL (64 lower-case hexadecimal digits; nothing
   where an object in the plain form does not say), in UTF-8;
2. the SHA-256 of that; of this the first 32 bits, big-endian, as a whole number;
3. that number times 100, divided by 2 to the power of 32.

    int(hashlib.sha256(f"{device_id}\n{version}\n{sha256}".encode()).hexdigest()[:8], 16) * 100 / 2**32

In metadata an audience is one line of ASCII, for instance

    10%                                     the first 10 % of the devices
    10% site=lyon,line=3; site=paris        and before those all with both labels, and all with the third
    site=lyon                               only those
    0% shadow 5%                            nobody; the others run it beside their own model, on 5 % of the samples
    halted                                  no device switches to it any more

Whatever else a label holds than letters, digits and `_.-~` is written as in a URL (`%20` for a space).
"""

import hashlib
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from urllib.parse import quote, unquote

import msgspec

from edge_agent.models.release.manifest import Audience
from edge_agent.settings.showing import show

_HOW = "write it as in '10% site=lyon,line=3; site=paris', or 'halted'"
_NUMBER = r"\d{1,3}(?:\.\d+)?"
# Whatever is not understood is left for `cohorts`.
_FORM = re.compile(
    r"(?P<halted>halted(?![^\s;]))?[\s;]*"
    rf"(?:(?P<percent>{_NUMBER})\s*%(?![^\s;]))?[\s;]*"
    rf"(?:shadow\s+(?P<shadow>{_NUMBER})\s*%(?![^\s;]))?[\s;]*"
    r"(?P<cohorts>.*)",
    re.DOTALL,
)


class AudienceError(ValueError):
    """A text is no audience, or no cohort. The message says what about it; of an audience also how to write one."""


class Device(msgspec.Struct, frozen=True):
    """What decides whether a device takes part: its id, and the labels of `[device].labels`."""

    id: str
    labels: Mapping[str, str] = {}


def share_of(device_id: str, version: str, sha256: str) -> float:
    """Return the place of a device for a release: 0 up to, and without, 100."""
    digest = hashlib.sha256(f"{device_id}\n{version}\n{sha256}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:4], "big") * 100 / 2**32


def takes_part(audience: Audience, device: Device, *, version: str, sha256: str) -> bool:
    """Say whether a release is for this device. Whether it was halted is another question."""
    in_cohort = any(cohort.items() <= device.labels.items() for cohort in audience.cohorts)
    return in_cohort or share_of(device.id, version, sha256) < audience.percent


def why_not(audience: Audience, device: Device, *, version: str, sha256: str) -> str:
    """Say in words why this device may not switch to a release, the same at every call; empty if it may."""
    if audience.halted:
        return f"{version} was halted{audience.why and f': {audience.why}'}"
    if takes_part(audience, device, version=version, sha256=sha256):
        return ""
    for_whom = [f"for {_digits(audience.percent)} % of the devices"] if audience.percent else []
    for_whom += [f"for {write_cohort(cohort)}" for cohort in audience.cohorts[:3]]
    if not for_whom:
        return f"{version} is not out for any device yet"
    more = " and others" if len(audience.cohorts) > 3 else ""  # noqa: PLR2004  as many as above
    turn = math.ceil(share_of(device.id, version, sha256) * 10) / 10
    listed = " and ".join(for_whom) + more
    return f"{version} is out {listed}, and this one is not among them: its turn comes at {turn:g} %"


def parse_audience(text: str) -> Audience:
    """Read the text form. Raises AudienceError."""
    match = _FORM.fullmatch(text.strip())
    halted, percent, shadow, cohorts = match.group("halted", "percent", "shadow", "cohorts") if match else [None] * 4
    # Whoever names some devices means those, and not all.
    everybody = "0" if shadow or cohorts else "100"
    try:
        found = {
            "percent": float(percent or everybody),
            "halted": halted is not None,
            "shadow": float(Decimal(shadow or 0).scaleb(-2)),
            "cohorts": [parse_cohort(each) for each in cohorts.split(";")] if cohorts else [],
        }
        return msgspec.convert(found, Audience)
    except AudienceError as error:
        raise AudienceError(f"{error}; {_HOW}") from error
    except msgspec.ValidationError as error:
        raise AudienceError(f"{show(text)} is no audience: {error}; {_HOW}") from error


def write_audience(audience: Audience) -> str:
    """Return the text form, on one line, in ASCII."""
    halted = ["halted"] if audience.halted else []
    if audience == Audience(halted=True, why=audience.why):
        return "halted"
    shadow = [f"shadow {_digits(audience.shadow, 2)}%"] if audience.shadow else []
    cohorts = ["; ".join(map(write_cohort, audience.cohorts))] if audience.cohorts else []
    return " ".join([*halted, f"{_digits(audience.percent)}%", *shadow, *cohorts])


def parse_cohort(text: str) -> dict[str, str]:
    """Read the labels that make a cohort, as in "site=lyon,line=3". Raises AudienceError."""
    labels: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or "=" in value or ";" in part:
            raise AudienceError(f"{show(part.strip())} is no label, NAME=VALUE")
        name = _unquoted(name)
        if name in labels:
            raise AudienceError(f"{show(text.strip())} has the label {show(name)} twice, which no device has")
        labels[name] = _unquoted(value)
    return labels


def write_cohort(cohort: Mapping[str, str]) -> str:
    """Return the labels of a cohort as `parse_cohort` reads them."""
    return ",".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in cohort.items())


def _unquoted(text: str) -> str:
    try:
        return unquote(text.strip(), errors="strict")
    except UnicodeDecodeError as error:
        raise AudienceError(f"{show(text.strip())} is not UTF-8, written as in a URL") from error


def _digits(number: float, point: int = 0) -> str:
    """Without exponent, and with all digits that it takes to read the same number again."""
    return f"{Decimal(repr(abs(number))).scaleb(point).normalize():f}"
