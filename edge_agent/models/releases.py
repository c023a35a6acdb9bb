"""What a model version is: as a store announces it, and as it lies on disk.

`RemoteObject` is what a store says of the object behind `[model].url` at one moment. `Release` is that object
once its bytes are on disk and checked. Both carry the same `id`: a hash of whatever makes two uploads
different. Paths are made from it alone, since versions and labels are text from the network.
"""

import hashlib
import json
import math
from typing import Annotated

import msgspec
from msgspec import Meta

MODEL_FILE = "model.tflite"
VERSION_LENGTH = 128


class RemoteObject(msgspec.Struct, frozen=True, kw_only=True):
    """The object in the store, before any byte of it was read.

    `generation` changes with every upload: the GCS generation, or size and mtime of a file. `size` in bytes.
    `checksum` is `crc32c:BASE64` or `sha256:HEX`. `remarks` says which metadata could not be understood.
    """

    url: str
    version: str
    generation: str
    size: int
    checksum: str
    accuracy: float | None = None
    labels: list[str] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A safe name for this upload: the same as long as nothing about it changes."""
        identity = (self.version, self.generation, self.checksum, self.labels)
        return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:16]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A model on disk whose bytes were checked. `size` (bytes) and `sha256` are of that file."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    url: str
    version: str
    generation: str
    size: int
    checksum: str
    sha256: str
    accuracy: float | None = None
    labels: list[str] | None = None


def clean_version(text: str) -> str:
    """A version as people wrote it, made fit for logs, message attributes and state files."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text.strip())
    return printable[:VERSION_LENGTH]


def describe(url: str, facts: dict[str, str], *, generation: str, size: int, checksum: str) -> RemoteObject:
    """Build a `RemoteObject` from the metadata that its uploader wrote: `version`, `accuracy`, `labels`.

    Without a version each upload is a version of its own, named after its generation. What cannot be
    understood is left out and named in `remarks`.
    """
    remarks: list[str] = []
    return RemoteObject(
        url=url,
        version=clean_version(facts.get("version", "")) or f"generation-{generation}",
        generation=generation,
        size=size,
        checksum=checksum,
        accuracy=_accuracy(facts.get("accuracy", ""), remarks),
        labels=_labels(facts.get("labels", ""), remarks),
        remarks=tuple(remarks),
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
        return [label.strip() for label in text.split(",")]
    try:
        return msgspec.json.decode(text, type=list[str])
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
