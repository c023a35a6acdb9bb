"""The commands below `edge-agent release`."""

import asyncio
import datetime as dt
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_agent.models.release.audience import AudienceError, parse_cohort, write_audience
from edge_agent.models.release.manifest import MANIFEST, OBJECTS, Acceptance, Audience, Manifest, SignedManifest
from edge_agent.models.release.releases import clean_version
from edge_agent.models.release.signatures import KeyFileError, UntrustedError, read_public_key, verify
from edge_agent.publisher.audiences import ALL, UNCHANGED, Change
from edge_agent.publisher.build import Ingredients, build, given_labels, inspected
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.keys import make_key, read_keys, read_manifest, sign_release
from edge_agent.publisher.listing import list_releases, table
from edge_agent.publisher.places import open_place
from edge_agent.publisher.promotion import Promoted, halt, promote
from edge_agent.publisher.publish import publish
from edge_agent.publisher.remarks import about_model
from edge_agent.publisher.times import why_untimely
from edge_agent.publisher.upload import Plain, upload
from edge_agent.settings.units import parse_duration


def run(options: Namespace) -> int:
    """Carry a command out; returns the exit status."""
    try:
        return int(_COMMANDS[options.release](options))
    except KeyboardInterrupt:
        sys.stderr.write("stopped; no device sees the half of a release: give the same command again\n")
        return 128 + signal.SIGINT
    except ReleaseError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_DATAERR
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'edge-agent release'}: {error.strerror or error}\n")
        return os.EX_IOERR


def _new_key(options: Namespace) -> int:
    name, public = make_key(options.file, protected=options.passphrase)
    _say(f"{options.file}: key {name}; keep it away from devices and from the bucket")
    _say(f'{public}: give this to the devices, [model] keys = ["/etc/edge-agent/{public.name}"]')
    return os.EX_OK


def _build(options: Namespace) -> int:
    ingredients = Ingredients(
        name=options.name,
        version=options.version,
        model=options.model,
        twin=options.twin,
        labels=options.labels,
        accuracy=options.accuracy,
        golden=options.golden,
        golden_labels=options.golden_labels,
        acceptance=_acceptance(options),
        task=options.task or "",
    )
    built = asyncio.run(build(ingredients, options.output))
    for note in built.notes:
        _say(note)
    _warn(built.warnings)
    _say(f"{options.output / MANIFEST}: {built.manifest.name} {built.manifest.version}, not signed yet")
    return os.EX_OK


def _acceptance(options: Namespace) -> Acceptance:
    given = {
        "tolerance": options.tolerance,
        "min_agreement": options.min_agreement,
        "min_accuracy": options.min_accuracy,
        "max_latency_ms": None
        if options.max_latency is None
        else _seconds("--max-latency", options.max_latency) * 1000,
    }
    try:
        return msgspec.convert({name: value for name, value in given.items() if value is not None}, Acceptance)
    except msgspec.ValidationError as error:
        raise ReleaseError(f"the limits for golden samples: {error}") from error


def _sign(options: Namespace) -> int:
    signed, lost = sign_release(options.folder, options.key, expires=_expiry(options))
    _warn([f"the signature with {each} is gone, as the time has changed: sign with that --key, too" for each in lost])
    _say(f"{options.folder / MANIFEST}: signed with {_keys(signed)}{_until(signed.manifest)}")
    return os.EX_OK


def _publish(options: Namespace) -> int:
    place = open_place(options.url)
    done = publish(
        options.folder,
        place,
        change=_change(options),
        keys=read_keys(options.key or ()),
        new_interface=options.new_interface,
    )
    _warn(done.warnings)
    instead = f", instead of {done.previous.version}" if done.previous is not None else ""
    _say(f"{place.url}/{MANIFEST}: {done.manifest.name} {done.manifest.version}{_whom(done.manifest)}{instead}")
    return os.EX_OK


def _promote(options: Namespace) -> int:
    change = _change(options)
    if change == UNCHANGED and options.expires is None:
        raise ReleaseError("say for whom: --percent, --cohort or --shadow; or how long: --expires")
    place = open_place(options.url)
    done = promote(place, change, read_keys(options.key or ()), expires=_expiry(options))
    return _promoted(f"{place.url}/{MANIFEST}", done)


def _halt(options: Namespace) -> int:
    place = open_place(options.url)
    done = halt(place, read_keys(options.key or ()), why=_why(options.why or ""))
    before = done.manifest.before
    _promoted(f"{place.url}/{MANIFEST}", done)
    back = "" if before is None else f"; to take it back from them publish {before.version} again"
    _say(f"devices that have switched to {done.manifest.version} go on with it{back}")
    return os.EX_OK


def _promoted(url: str, done: Promoted) -> int:
    _warn(done.warnings)
    now, was = done.manifest, write_audience(done.previous.audience)
    _say(f"{url}: {now.name} {now.version}{_whom(now) or ' for all'}{_until(now)}; it was for {was}")
    return os.EX_OK


def _list(options: Namespace) -> int:
    listing = list_releases(open_place(options.url))
    if options.json:
        _say(msgspec.json.format(msgspec.json.encode(listing), indent=2).decode())
    else:
        _say(table(listing, time.time()))
    return os.EX_OK


def _upload(options: Namespace) -> int:
    labels = given_labels(options.labels)
    _warn(list(about_model(asyncio.run(inspected(options.model)), labels)))
    [key] = read_keys([options.key]) if options.key is not None else [None]
    plain = Plain(
        model=options.model,
        version=options.version,
        name=options.name,
        labels=labels,
        accuracy=options.accuracy,
    )
    done = upload(plain, options.url, change=_change(options), key=key)
    signed = "" if key is not None else ", not signed"
    instead = "" if done.previous is None else f", instead of {done.previous}"
    _say(f"{done.url}: {plain.version}, for {done.audience}{signed}{instead}")
    return os.EX_OK


def _show(options: Namespace) -> int:
    file = read_manifest(options.folder)
    manifest = file.manifest
    _say(f"{manifest.name} {manifest.version}{_until(manifest)}")
    for each in manifest.files:
        _say(f"  {OBJECTS}/{each.name}: {each.size} bytes, SHA-256 {each.sha256}")
    _say(f"  signed with {_keys(file) or 'no key'}")
    return _judge(file, options.key) if options.key is not None else os.EX_OK


def _judge(file: SignedManifest, key_file: Path) -> int:
    try:
        key = verify(file, [read_public_key(key_file)])
    except KeyFileError as error:
        raise ReleaseError(str(error)) from error
    except UntrustedError as error:
        raise ReleaseError(f"devices with {key_file} do not believe it: it {error}") from error
    if untimely := why_untimely(file.manifest):
        raise ReleaseError(f"devices with {key_file} do not take it: {untimely}")
    _say(f"  devices with {key_file} believe it: {key}")
    return os.EX_OK


def _change(options: Namespace) -> Change:
    cohorts = None if options.cohort is None else list(map(_cohort, options.cohort))
    shadow = None if options.shadow is None else _percent("--shadow", options.shadow) / 100
    percent = None if options.percent is None else _percent("--percent", options.percent)
    if percent is None and (cohorts, shadow) != (None, None) and options.release != "promote":
        # Whoever names some devices, or wants a trial beside what they have, does not mean all: as in metadata.
        percent = 0.0
    change = Change(percent=percent, cohorts=cohorts, shadow=shadow)
    try:
        msgspec.convert(msgspec.to_builtins(change.applied(Audience())), Audience)
    except msgspec.ValidationError as error:
        raise ReleaseError(f"--cohort: {error}") from error
    return change


def _cohort(text: str) -> dict[str, str]:
    how = "write a cohort as in site=lyon,line=3, and give --cohort once more for another one"
    try:
        cohort = parse_cohort(text)
    except AudienceError as error:
        raise ReleaseError(f"--cohort: {error}; {how}") from error
    if not all(map(all, cohort.items())):
        raise ReleaseError(f"--cohort: {text!r} has a label without name or value; {how}")
    return cohort


def _percent(option: str, text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError as error:
        raise ReleaseError(f"{option}: {text!r} is no percentage: write 10, or 10%") from error
    if not 0 <= percent <= ALL:
        raise ReleaseError(f"{option}: {text!r} is no percentage from 0 to 100")
    return percent


def _why(text: str) -> str:
    if text and clean_version(text) != text:
        raise ReleaseError("--why: give one line of up to 128 letters")
    return text


def _whom(manifest: Manifest) -> str:
    if manifest.audience == Audience():
        return ""
    rest = "" if manifest.before is None else f" (the others: {manifest.before.version})"
    return f"{' is' if manifest.audience.halted else ' for'} {write_audience(manifest.audience)}{rest}"


def _expiry(options: Namespace) -> int | None:
    return None if options.expires is None else int(time.time() + _seconds("--expires", options.expires))


def _seconds(option: str, text: str) -> float:
    if text.isdecimal():
        # As of "90", which one person takes for days and another for milliseconds.
        raise ReleaseError(f'{option}: {text!r} has no unit; write for instance "20ms", "12h" or "90d"')
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise ReleaseError(f"{option}: {error}") from error
    if not seconds:
        raise ReleaseError(f"{option}: must be longer than {text}")
    return seconds


def _keys(file: SignedManifest) -> str:
    return ", ".join(each.key for each in file.signatures)


def _until(manifest: Manifest) -> str:
    expires = manifest.expires
    return "" if expires is None else f", good until {dt.datetime.fromtimestamp(expires, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


_COMMANDS = {
    "new-key": _new_key,
    "build": _build,
    "sign": _sign,
    "publish": _publish,
    "promote": _promote,
    "halt": _halt,
    "list": _list,
    "show": _show,
    "upload": _upload,
}
