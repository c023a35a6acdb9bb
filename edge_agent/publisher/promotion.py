"""Changes for whom the release is that is out: more devices, other cohorts, or nobody else any more.

Only the manifest changes. It is signed anew, so it has to be signed with one of the same keys already: else whoever may
write to the bucket could have anything signed.
"""

import time
from collections.abc import Callable, Iterator

import msgspec

from edge_agent.models.release.manifest import MANIFEST, Audience, Manifest, SignedManifest
from edge_agent.models.release.signatures import UntrustedError
from edge_agent.publisher.audiences import UNCHANGED, Change, is_for_all
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.keys import check_signed, key_ids, lost_signatures, signed_with
from edge_agent.publisher.places import Place
from edge_agent.publisher.publish import Keys, next_sequence, read_document
from edge_agent.publisher.times import has_expired, why_untimely


class Promoted(msgspec.Struct, frozen=True):
    """The manifest that was there, and the one that is there now."""

    previous: Manifest
    manifest: Manifest
    warnings: list[str]


def promote(place: Place, change: Change, keys: Keys, *, expires: int | None = None) -> Promoted:
    """Change the audience; one that was halted goes on. `expires` is in seconds since 1970; alone it leaves both.

    Raises ReleaseError, OSError.
    """

    def edit(manifest: Manifest) -> Manifest:
        manifest = msgspec.structs.replace(manifest, expires=manifest.expires if expires is None else expires)
        if untimely := why_untimely(manifest):
            raise ReleaseError(f"no device would take it: {untimely}")
        if change == UNCHANGED:
            return manifest
        audience = change.applied(msgspec.structs.replace(manifest.audience, halted=False, why=""))
        if is_for_all(audience):
            if change.percent is None:
                raise ReleaseError(
                    f"{manifest.version} is for all devices already; give --percent, too, to change that"
                )
            # Nobody is left for whom the rest would mean anything.
            manifest = msgspec.structs.replace(manifest, before=None)
            audience = Audience()
        return msgspec.structs.replace(manifest, audience=audience)

    return _edit(place, keys, edit)


def halt(place: Place, keys: Keys, *, why: str = "") -> Promoted:
    """Let no device switch to the release any more; `why` is shown on devices. Raises ReleaseError, OSError."""

    def edit(manifest: Manifest) -> Manifest:
        audience = msgspec.structs.replace(manifest.audience, halted=True, why=why)
        return msgspec.structs.replace(manifest, audience=audience)

    return _edit(place, keys, edit)


def _edit(place: Place, keys: Keys, edit: Callable[[Manifest], Manifest]) -> Promoted:
    data, state = place.read(MANIFEST)
    if data is None:
        raise ReleaseError(f"{place.url} has no {MANIFEST}: publish a release first, or correct the URL")
    file = read_document(data, f"{place.url}/{MANIFEST}")
    _check_keys(file, keys, place)
    manifest = msgspec.structs.replace(edit(file.manifest), sequence=next_sequence(file.manifest.sequence))
    signed = signed_with(manifest, keys)
    place.replace(MANIFEST, signed.encode(), state)
    return Promoted(file.manifest, manifest, list(_warnings(file, signed)))


def _warnings(before: SignedManifest, after: SignedManifest) -> Iterator[str]:
    for each in lost_signatures(before, after):
        yield f"the signature with {each} is gone: give that --key, too, if devices have only this one"
    if has_expired(after.manifest, time.time()):
        yield "its time was over before: no device switches to it any more, and none hears of this"


def _check_keys(file: SignedManifest, keys: Keys, place: Place) -> None:
    if not keys:
        if file.signatures:
            raise ReleaseError(f"{place.url}/{MANIFEST} is signed: give the key to sign it with again (--key)")
        return
    try:
        check_signed(file, keys)
    except UntrustedError as error:
        if file.signatures and key_ids(keys).isdisjoint(each.key for each in file.signatures):
            raise ReleaseError(
                f"{place.url}/{MANIFEST} {error}: give the key that it was signed with. Where devices are not to trust "
                "that one any more, publish the release again from its folder"
            ) from error
        raise ReleaseError(
            f"{place.url}/{MANIFEST} {error}, and only what was signed is signed again: find out who made it, or "
            "publish the release from the folder that it was built in"
        ) from error
