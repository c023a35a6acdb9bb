"""Whether what a store says is to be believed: by whom it was signed, and whether its time is over.

A clock that cannot be right, as on a board without a battery before the network has set it, decides nothing: what
expires is not taken until the clock is right, and what does not expire is. Where the clock can be right, a sequence
from the future is refused. So nobody can, by a mistake or with a stolen key, keep all later releases out for longer
than a day.
"""

import datetime as dt
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.device.timekeeper import EARLIEST_MS
from edge_agent.models.release.manifest import MAX_SEQUENCE, YEAR_10000, Manifest, SignedManifest
from edge_agent.models.release.releases import Claims
from edge_agent.models.stores.base import StoreNeedsPerson, StoreUnavailable, Untrusted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DAY = 86_400.0
NOTICE = 14 * DAY
"""How long before a release expires this is told."""
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")


class Trust:
    """Those who may release models, by the PEM files of their keys, which are read anew at each question.

    Where there are no files nobody is asked for a signature. `clock` is in seconds since 1970.
    """

    def __init__(self, files: Sequence[Path], clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._clock = clock

    def __bool__(self) -> bool:
        """Whether signatures are wanted at all."""
        return bool(self._files)

    def check(self, url: str, file: SignedManifest) -> None:
        """Refuse a manifest that nobody trusted has signed. Raises `Untrusted`, `StoreNeedsPerson` for bad keys."""
        from edge_agent.models.release.signatures import verify  # noqa: PLC0415  loads its library only where there are keys

        self._ask(lambda keys: verify(file, keys), url, "edge-agent release sign")

    def check_model(self, url: str, version: str, claims: Claims) -> None:
        """Refuse a model in the plain form that nobody trusted has signed. Raises likewise."""
        from edge_agent.models.release.signatures import verify_model  # noqa: PLC0415  likewise

        self._ask(lambda keys: verify_model(version, claims, keys), url, "edge-agent release upload")

    def check_time(self, url: str, manifest: Manifest) -> None:
        """Refuse what has expired, or comes from the future. Raises `StoreError`."""
        now = self._now()
        if now is None and manifest.expires is not None:
            raise StoreUnavailable(
                f"{url}: whether {manifest.version} has expired cannot be told, as the clock of this device is wrong;"
                " it is not taken before the clock is set"
            )
        if self:
            self._check_sequence(url, manifest.sequence)
        if now is not None and manifest.expires is not None and manifest.expires < now:
            raise StoreNeedsPerson(
                f"{url} has expired: {manifest.version} was good until {_day(manifest.expires)}",
                "sign it again (edge-agent release promote --expires), and see that the device's clock is right",
            )

    def sequence(self, url: str, claims: Claims) -> int:
        """Return the sequence that was signed; 0 is none. Raises `StoreNeedsPerson`."""
        if not claims.sequence:
            return 0
        if not _NUMBER.fullmatch(claims.sequence) or (sequence := int(claims.sequence)) >= MAX_SEQUENCE:
            raise StoreNeedsPerson(
                f"{url} has a sequence that is none", "let it be ms since 1970 (edge-agent release upload)"
            )
        self._check_sequence(url, sequence)
        return sequence

    def outlook(self, manifest: Manifest) -> str:
        """Say when a release expires if that is soon; otherwise nothing."""
        now, expires = self._now(), manifest.expires
        if now is None or expires is None or expires > now + NOTICE:
            return ""
        return f"{manifest.version} is good until {_day(expires)}: sign it again (edge-agent release promote --expires)"

    def _check_sequence(self, url: str, sequence: int) -> None:
        now = self._now()
        if now is not None and sequence / 1000 > now + DAY:
            raise StoreNeedsPerson(
                f"{url} was made on {_day(sequence / 1000)}, which by this device's clock is still to come",
                "see that the clocks are right, here and where it was built, and build it again",
            )

    def _ask(self, verify: "Callable[[list[Ed25519PublicKey]], str]", url: str, command: str) -> None:
        from edge_agent.models.release import signatures  # noqa: PLC0415  likewise

        try:
            verify([key for path in self._files for key in signatures.read_public_keys(path)])
        except signatures.UntrustedError as error:
            raise Untrusted(
                f"{url} {error}",
                f"it is not used: sign it with a key of [model].keys ({command}), or find out who made it",
            ) from error
        except (signatures.KeyFileError, OSError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise StoreNeedsPerson(reason, "correct [model].keys; no release is used until then") from error

    def _now(self) -> float | None:
        now = self._clock()
        return None if now < EARLIEST_MS / 1000 else now


def _day(seconds: float) -> str:
    return str(dt.datetime.fromtimestamp(min(seconds, YEAR_10000 - 1), dt.UTC).date())
