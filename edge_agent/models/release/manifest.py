"""`release.json`: what a release is made of, and who says so.

    {"release": {"format": 1, "name": "vibration", "version": "v1.4", "sequence": 1795691466446,
                 "model": {"name": "3f1c…-model_edgetpu.tflite", "size": 75384, "sha256": "3f1c…"}, …},
     "signatures": [{"key": "9b2e…", "signature": "…"}]}

The objects lie in the folder `objects` beside it, under names that begin with their SHA-256, and never change. The
manifest is written last, so that whoever reads it finds everything it names. Signatures are made over the bytes of the
member `release` just as they stand in the file: no canonical form is needed, and nothing is read that was not signed.
Each version stays in the folder `releases` beside it, as a manifest of its own, for devices that are pinned to it.
"""

from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

MANIFEST = "release.json"
OBJECTS = "objects"
PINS = "releases"
FORMAT = 1
MAX_SIZE = 256 * 1024
"""Bytes; a file that claims to be longer is not read."""
MAX_GOLDEN = 64 << 20
"""Bytes of golden samples."""
MAX_LABELS = 10_000
MAX_SEQUENCE = 1 << 53
MAX_OBJECT = 1 << 32
"""Bytes."""
YEAR_10000 = 253_402_300_800
"""Seconds since 1970: the end of Python's calendar."""
# Patterns end in \Z, as $ would let a newline pass. One name, no path: it is used in folders and object names as it is.
_Name = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,199}\Z")]
# What is shown to people and put into events holds no control characters, and nothing that turns the text around it
# or breaks its line.
_UNSEEN = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
_Text = Annotated[str, Meta(min_length=1, max_length=128, pattern=rf"^[^{_UNSEEN}]+\Z")]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ManifestError(ValueError):
    """The file is no manifest of a release; the message goes on behind its name."""


class ObjectFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the release. `name` is that in the folder `objects`, `size` is in bytes."""

    name: _Name
    size: Annotated[int, Meta(ge=1, le=MAX_OBJECT)]
    sha256: _Sha256


class Audience(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which devices a release is for: the first `percent` of them, and before those all of `cohorts`.

    A device belongs to a cohort if it has all of its labels. `halted`: no device switches to it any more, and `why`.
    `shadow` is the share of samples (0 to 1) on which the other devices run it beside their own model.
    """

    percent: Annotated[float, Meta(ge=0, le=100)] = 100.0
    cohorts: Annotated[list[Annotated[dict[_Text, _Text], Meta(min_length=1, max_length=16)]], Meta(max_length=64)] = []
    halted: bool = False
    why: Annotated[str, Meta(max_length=128, pattern=rf"^[^{_UNSEEN}]*\Z")] = ""
    shadow: Annotated[float, Meta(ge=0, le=1)] = 0.0


class Acceptance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device finds out before it switches. Without `golden`, only that the model runs.

    `golden` are samples with the outputs that are expected of them (`edge_agent.inference.golden`). A sample agrees if
    no output is further from the expected one than `tolerance`, as a share of the span of that output over all golden
    samples; `min_agreement` is the share of samples (0 to 1) that must. `min_accuracy` is the share of samples with
    the right label, `max_latency_ms` the 95th percentile of invoke.
    """

    golden: ObjectFile | None = None
    tolerance: Annotated[float, Meta(gt=0, le=1)] = 0.1
    min_agreement: Annotated[float, Meta(ge=0, le=1)] = 1.0
    min_accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_latency_ms: Annotated[float, Meta(gt=0)] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is signed.

    `sequence` grows with every manifest that is published for a model: ms since 1970, as a rule. A device never takes
    one that is lower than that of the release it has. `expires` is in seconds since 1970. `twin` is the same model for
    the CPU. `inputs` and `outputs` are the tensors in words, in their order. `before` is the release of the devices
    that this one is not for, or not yet; it has none itself.
    """

    format: Literal[1]
    name: _Text
    version: _Text
    sequence: Annotated[int, Meta(ge=1, lt=MAX_SEQUENCE)]
    expires: Annotated[int, Meta(ge=0, lt=YEAR_10000)] | None = None
    model: ObjectFile
    twin: ObjectFile | None = None
    labels: Annotated[list[_Text], Meta(min_length=1, max_length=MAX_LABELS)] | None = None
    accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    inputs: Annotated[list[_Text], Meta(max_length=64)] | None = None
    outputs: Annotated[list[_Text], Meta(max_length=64)] | None = None
    acceptance: Acceptance = Acceptance()
    audience: Audience = Audience()
    before: "Manifest | None" = None

    @property
    def files(self) -> list[ObjectFile]:
        """All objects that it names, without those of `before`."""
        return [each for each in (self.model, self.twin, self.acceptance.golden) if each is not None]


class Signature(msgspec.Struct, frozen=True):
    """`key` is the id of the key (`signatures.key_id`), `signature` 64 bytes as Base64."""

    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    signature: Annotated[str, Meta(max_length=88)]


class _File(msgspec.Struct, frozen=True):
    release: msgspec.Raw
    signatures: Annotated[list[Signature], Meta(max_length=16)] = []


class _AnyFormat(msgspec.Struct, frozen=True):
    format: int


class SignedManifest(msgspec.Struct, frozen=True):
    """A manifest as it was read; `signed` are the bytes that the signatures are over. They are not checked yet."""

    manifest: Manifest
    signed: bytes
    signatures: list[Signature]

    def encode(self) -> bytes:
        """Return the file."""
        signatures = msgspec.json.format(msgspec.json.encode(self.signatures), indent=2)
        return b'{"release": %s,\n "signatures": %s}\n' % (self.signed, signatures)


def pin_name(version: str) -> str:
    """Return the name, beside the manifest, of the one that stays for devices that are pinned to a version."""
    return f"{PINS}/{quote(version, safe='')}.json"


def unsigned(manifest: Manifest) -> SignedManifest:
    """Return a file for the manifest, without signatures."""
    return SignedManifest(manifest, msgspec.json.format(msgspec.json.encode(manifest), indent=2), [])


def parse(data: bytes) -> SignedManifest:
    """Read a file. Raises ManifestError."""
    try:
        file = msgspec.json.decode(data, type=_File)
        signed = bytes(file.release)
        if (found := msgspec.json.decode(signed, type=_AnyFormat).format) != FORMAT:
            raise ManifestError(f"has format {found}, this agent knows {FORMAT}: install a newer agent")
        return SignedManifest(msgspec.json.decode(signed, type=Manifest), signed, file.signatures)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"is no manifest of a release: {error}") from error
