"""The commands below `edge-agent release`."""

import asyncio
import datetime as dt
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from edge_agent.models.manifest import MANIFEST, OBJECTS, SignedManifest
from edge_agent.models.signatures import KeyFileError, UntrustedError, read_public_key, verify
from edge_agent.publisher.build import Ingredients, ReleaseError, build
from edge_agent.publisher.keys import make_key, read_manifest, sign_release
from edge_agent.publisher.places import open_place
from edge_agent.publisher.publish import publish
from edge_agent.settings.units import parse_duration


def run(options: Namespace) -> int:
    """Carry a command out; returns the exit status."""
    try:
        return int(_COMMANDS[options.release](options))
    except ReleaseError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_DATAERR
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'edge-agent release'}: {error.strerror or error}\n")
        return os.EX_IOERR


def _new_key(options: Namespace) -> int:
    name, public = make_key(options.file)
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
    )
    built = asyncio.run(build(ingredients, options.output))
    for warning in built.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    _say(f"{options.output / MANIFEST}: {built.manifest.name} {built.manifest.version}, not signed yet")
    return os.EX_OK


def _sign(options: Namespace) -> int:
    expires = None if options.expires is None else int(time.time() + _seconds(options.expires))
    signed = sign_release(options.folder, options.key, expires=expires)
    _say(
        f"{options.folder / MANIFEST}: signed with {', '.join(each.key for each in signed.signatures)}{_until(signed)}"
    )
    return os.EX_OK


def _publish(options: Namespace) -> int:
    place = open_place(options.url)
    done = publish(options.folder, place, _say)
    before = f", instead of {done.previous.version}" if done.previous is not None else ""
    _say(f"{place.url}/{MANIFEST}: {done.manifest.name} {done.manifest.version}{before}")
    return os.EX_OK


def _show(options: Namespace) -> int:
    file = read_manifest(options.folder)
    manifest = file.manifest
    _say(f"{manifest.name} {manifest.version}{_until(file)}")
    for each in manifest.files:
        _say(f"  {OBJECTS}/{each.name}: {each.size} bytes, SHA-256 {each.sha256}")
    _say(f"  signed with {', '.join(each.key for each in file.signatures) or 'no key'}")
    return _judge(file, options.key) if options.key is not None else os.EX_OK


def _judge(file: SignedManifest, key_file: Path) -> int:
    try:
        _say(f"  devices with {key_file} believe it: {verify(file, [read_public_key(key_file)])}")
    except (UntrustedError, KeyFileError) as error:
        raise ReleaseError(f"devices with {key_file} do not believe it: it {error}") from error
    return os.EX_OK


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ReleaseError(f"--expires: {error}") from error


def _until(file: SignedManifest) -> str:
    expires = file.manifest.expires
    return "" if expires is None else f", good until {dt.datetime.fromtimestamp(expires, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


_COMMANDS = {"new-key": _new_key, "build": _build, "sign": _sign, "publish": _publish, "show": _show}
