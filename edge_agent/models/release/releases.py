"""What a model version is: as a store announces it, and as it lies on disk.

`RemoteObject` is what a store says of the object behind `[model].url` at one moment. `Release` is that object
once its bytes are on disk and checked. Both carry the same `id`: a hash of whatever makes two uploads
different. Paths are made from it alone, since versions and labels are text from the network.

The twin of a model that was compiled for the Edge TPU is the same model for the CPU. It is an object of its own, with
an `id` of its own, and a release has one or none.
"""

import hashlib
import json
import math
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_agent.models.release.manifest import MANIFEST, Acceptance

MODEL_FILE = "model.tflite"
TWIN_FILE = "cpu.tflite"
GOLDEN_FILE = "golden.npz"
PAIR = "+"
"""Stands in the name of a pair, and in no other."""
VERSION_LENGTH = 128


class Claims(msgspec.Struct, frozen=True):
    """What the metadata of an object in the plain form claims, as it stands there; empty where it says nothing.

    `sha256` is that of its bytes, and stands here for an object that a manifest names, too; `name` is that of the
    model. `signature` is one by `key` over the version and all the others.
    """

    sha256: str = ""
    signature: str = ""
    key: str = ""
    sequence: str = ""
    rollout: str = ""
    name: str = ""
    labels: str = ""
    accuracy: str = ""


class RemoteObject(msgspec.Struct, frozen=True, kw_only=True):
    """The object in the store, before any byte of it was read.

    `generation` changes with every upload: the GCS generation, or size and mtime of a file. `size` in bytes.
    `checksum` is `crc32c:BASE64` or `sha256:HEX`. `remarks` says which metadata could not be understood.
    `version_given` is whether the uploader named the version, `uploaded` the time of the upload by the store's clock,
    in seconds since the epoch. `sequence` is that of a manifest whose signature was checked, else 0. `acceptance` is
    what a device finds out before it switches. `withheld` is why this device may not take it, in words, or empty;
    `outlook` what else a person should know of it. `shadow` is to be run beside it. `claims` are not checked yet.
    """

    url: str
    version: str
    generation: str
    size: int
    checksum: str
    accuracy: float | None = None
    labels: list[str] | None = None
    remarks: tuple[str, ...] = ()
    version_given: bool = False
    uploaded: float | None = None
    sequence: int = 0
    acceptance: Acceptance = Acceptance()
    withheld: str = ""
    outlook: str = ""
    shadow: "Shadow | None" = None
    claims: Claims = Claims()

    def may_be(self, sha256: str) -> bool:
        """Whether these bytes can be it: it was promised that they are, or nothing was."""
        return self.claims.sha256 in {"", sha256}

    @property
    def of_release(self) -> bool:
        """Whether a manifest names it."""
        return self.url.endswith((f"/{MANIFEST}", f"/{MANIFEST}#twin"))

    @property
    def another_try(self) -> str:
        """What to do to have it tried once more after it was rejected."""
        how = "publish it as another version" if self.of_release else "upload it again"
        return f"{how} to have it tried again"

    @property
    def id(self) -> str:
        """A safe name for this upload: the same as long as nothing about it changes."""
        identity: tuple[object, ...] = (self.version, self.generation, self.checksum, self.labels)
        if self.acceptance != Acceptance():
            identity = (*identity, self.acceptance)
        return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:16]


class Shadow(msgspec.Struct, frozen=True):
    """A release that runs beside another on a `share` of the samples (0 to 1), without its results being used."""

    remote: RemoteObject
    share: float


_Id = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """The twin of a release, on disk and checked. `size` (bytes) and `sha256` are of that file."""

    id: _Id
    url: str
    generation: str
    size: int
    checksum: str
    sha256: str


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk whose bytes were checked. `size` (bytes) and `sha256` are of that file, `cpu` is its twin.

    What is golden in `acceptance` is on disk beside it.
    """

    id: _Id
    url: str
    version: str
    generation: str
    size: int
    checksum: str
    sha256: str
    accuracy: float | None = None
    labels: list[str] | None = None
    cpu: Twin | None = None
    acceptance: Acceptance = Acceptance()

    @property
    def trial_id(self) -> str:
        """Names what a worker tries: `id` alone, or together with the twin's."""
        return self.id if self.cpu is None else pair_id(self.id, self.cpu.id)

    def without_twin(self) -> "Release":
        """The same model alone."""
        return msgspec.structs.replace(self, cpu=None)

    def with_and_without_twin(self) -> "list[Release]":
        """What to try in turn: where a model is refused together with its twin, the twin may be to blame."""
        return [self] if self.cpu is None else [self, self.without_twin()]


def pair_id(model: str, twin: str) -> str:
    """Names a model and its twin together; is no path."""
    return f"{model}{PAIR}{twin}"


def clean_version(text: str) -> str:
    """A version as people wrote it, made fit for logs, message attributes and state files."""
    return _printable(text.strip())[:VERSION_LENGTH]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def describe(
    url: str,
    facts: dict[str, str],
    *,
    generation: str,
    size: int,
    checksum: str,
    unnamed: str = "",
    uploaded: float | None = None,
) -> RemoteObject:
    """Build a `RemoteObject` from the metadata that its uploader wrote: `version`, `accuracy`, `labels`, `Claims`.

    Without a version it is `unnamed`, or else each upload is a version of its own, named after its generation. What
    cannot be understood is left out and named in `remarks`.
    """
    remarks: list[str] = []
    version = clean_version(facts.get("version", ""))
    return RemoteObject(
        url=url,
        version=version or unnamed or f"generation-{generation}",
        generation=generation,
        size=size,
        checksum=checksum,
        accuracy=_accuracy(facts.get("accuracy", ""), remarks),
        labels=_labels(facts.get("labels", ""), remarks),
        remarks=tuple(remarks),
        version_given=bool(version),
        uploaded=uploaded,
        claims=Claims(**{name: facts.get(name, "").strip() for name in Claims.__struct_fields__}),
    )


def _accuracy(text: str, remarks: list[str]) -> float | None:
    if not text.strip():
        return None
    try:
        accuracy = float(text)
    except ValueError:
        accuracy = math.nan
    if math.isfinite(accuracy):
        return accuracy
    remarks.append(f"accuracy {clean_version(text)!r} is not a number and was left out")
    return None


def _labels(text: str, remarks: list[str]) -> list[str] | None:
    """Labels as a JSON list of strings, or separated by commas."""
    if not text.strip():
        return None
    if not text.lstrip().startswith("["):
        return [_printable(label.strip()) for label in text.split(",")]
    try:
        return [_printable(label) for label in msgspec.json.decode(text, type=list[str])]
    except msgspec.DecodeError as error:
        remarks.append(f"labels are not a JSON list of strings and were left out: {error}")
        return None


def as_facts(document: object) -> dict[str, str]:
    """The keys of a JSON object as text, the way GCS keeps metadata."""
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004  # a file's content, not a caller's mistake
    return {str(key): _text(value) for key, value in document.items() if value is not None}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
