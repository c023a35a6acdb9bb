"""Whether files on disk are what was announced, and what they were when they came."""

from pathlib import Path

import structlog

from edge_agent.models.release.manifest import ObjectFile
from edge_agent.models.release.releases import Release, RemoteObject, Twin
from edge_agent.models.stores.base import FetchFailed, file_sha256

_log = structlog.get_logger()


def is_upload(file: Release | Twin, remote: RemoteObject) -> bool:
    """Whether it is this upload. What was promised of its bytes may be news since they have come."""
    return file.id == remote.id and remote.may_be(file.sha256)


def is_damaged(path: Path, file: Release | Twin | ObjectFile, version: str) -> bool:
    """Whether the file of a version is not as it was, which is logged."""
    damage = damage_of(path, file)
    if damage is not None:
        _log.error("model file is damaged", version=version, file=str(path), damage=damage)
    return damage is not None


def damage_of(path: Path, file: Release | Twin | ObjectFile) -> str | None:
    """Say why it is not as it was, or None."""
    try:
        if path.stat().st_size != file.size:
            return "the size is wrong"
        return None if file_sha256(path) == file.sha256 else "the SHA-256 is wrong"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def promised_sha256(path: Path, remote: RemoteObject) -> str:
    """Return the SHA-256 that the file is known by from now on: what was compared as it came may be other bytes.

    Raises `FetchFailed`, `OSError`.
    """
    sha256 = file_sha256(path)
    if not remote.may_be(sha256):
        raise FetchFailed(f"{remote.url} was not taken: on the disk it is not what was promised")
    return sha256


def check_golden(path: Path, remote: RemoteObject) -> None:
    """Raise `FetchFailed` if the golden samples of an upload are not those that it names."""
    expected = remote.acceptance.golden
    if expected is not None and (damage := damage_of(path, expected)) is not None:
        raise FetchFailed(f"the golden samples of {remote.url} were not taken: {damage}")
