"""Which releases there are at a place, and which of them is out for whom."""

import datetime as dt
import functools
from concurrent.futures import ThreadPoolExecutor

import msgspec

from edge_agent.models.release.audience import write_audience
from edge_agent.models.release.manifest import MANIFEST, PINS, YEAR_10000, Manifest, SignedManifest
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.places import Place
from edge_agent.publisher.progress import size_in_words
from edge_agent.publisher.publish import read_document

OTHERS = "the others"
_AT_ONCE = 8


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A release. `built` is in ms since 1970, `expires` in seconds, `size` in bytes, with twin and golden samples.

    `audience` is whom it is out for, as in `edge_agent.models.release.audience`, or "the others", or empty: for
    nobody. `keys` are the ids of those that have signed. `problem` is why nothing else is known of it, or empty.
    """

    version: str
    built: int = 0
    size: int = 0
    audience: str = ""
    keys: list[str] = []
    expires: int | None = None
    accuracy: float | None = None
    problem: str = ""


class Listing(msgspec.Struct, frozen=True):
    """All releases, the latest first. `name` is that of the model, or empty where nothing is out."""

    url: str
    name: str
    releases: list[Listed]


def list_releases(place: Place) -> Listing:
    """Look what is there. Raises ReleaseError, OSError."""
    data, _ = place.read(MANIFEST)
    current = None if data is None else read_document(data, f"{place.url}/{MANIFEST}")
    found = {} if current is None else {each.version: each for each in _out(current)}
    names = [f"{PINS}/{name}" for name in place.names(PINS) if name.endswith(".json")]
    # Each of them is a connection of its own to a bucket.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for name, record in zip(names, pool.map(functools.partial(_read, place), names), strict=True):
            _add(name, record, found)
    releases = sorted(found.values(), key=lambda each: each.built, reverse=True)
    return Listing(place.url, "" if current is None else current.manifest.name, releases)


def _out(file: SignedManifest) -> list[Listed]:
    """Return what the manifest has for devices: its own release, and that of the others."""
    manifest = file.manifest
    own = _listed(manifest, file, write_audience(manifest.audience))
    return [own] if manifest.before is None else [own, _listed(manifest.before, file, OTHERS)]


def _listed(manifest: Manifest, file: SignedManifest, audience: str = "") -> Listed:
    """Return the entry of a manifest that is `file`, or stands in it."""
    return Listed(
        version=manifest.version,
        built=manifest.sequence,
        size=sum(each.size for each in manifest.files),
        audience=audience,
        keys=[each.key for each in file.signatures],
        expires=file.manifest.expires,
        accuracy=manifest.accuracy,
    )


def _read(place: Place, name: str) -> SignedManifest | str | None:
    """Return a record, or why it cannot be read; None where it was removed since the folder was looked at."""
    try:
        data, _ = place.read(name)
        return None if data is None else read_document(data, f"{place.url}/{name}")
    except ReleaseError as error:
        return str(error)


def _add(name: str, record: SignedManifest | str | None, found: dict[str, Listed]) -> None:
    if isinstance(record, str):
        found[name] = Listed(version=name, problem=record)
    elif record is not None:
        out = found.get(record.manifest.version)
        # The manifest of what is out has another sequence after each promotion.
        found[record.manifest.version] = (
            _listed(record.manifest, record)
            if out is None
            else msgspec.structs.replace(out, built=record.manifest.sequence)
        )


def table(listing: Listing, now: float) -> str:
    """Return the list as lines of text; `now` is in seconds since 1970."""
    head = ("version", "built", "size", "out for", "good until", "signed with")
    rows = [head, *(_row(each, now) for each in listing.releases if not each.problem)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    title = f"{listing.url}: {listing.name or 'nothing is out'}"
    return "\n".join([title, *lines, *(each.problem for each in listing.releases if each.problem)])


def _row(release: Listed, now: float) -> tuple[str, ...]:
    until = "-" if release.expires is None else f"{dt.datetime.fromtimestamp(release.expires, dt.UTC):%Y-%m-%d}"
    if release.expires is not None and release.expires < now:
        until += " (over)"
    return (
        release.version,
        f"{dt.datetime.fromtimestamp(release.built / 1000, dt.UTC):%Y-%m-%d %H:%M}" if _is_time(release.built) else "-",
        size_in_words(release.size),
        release.audience or "-",
        until,
        ", ".join(release.keys) or "-",
    )


def _is_time(milliseconds: int) -> bool:
    """Say whether the number can be a date: a sequence may be any number."""
    return milliseconds < YEAR_10000 * 1000
