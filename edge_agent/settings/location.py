"""Where a model comes from and where events go: what the URLs of the TOML file say."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from edge_agent.settings.showing import show

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{0,221}")
_PROJECT = re.compile(r"[a-z][a-z0-9.:-]{0,100}")
_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9._~%+-]{2,254}")
# A slash too few, and the name that Google's own tools give a topic: neither is meant for a path.
_NO_PATH = re.compile(r"(?:gs|pubsub|file):|projects/[^/]+/topics/[^/]+$")
_GENERIC = frozenset({"model", "models", "latest", "release.json"})
_LAST_SLASH = re.compile(r"(?<=[^/:])/+$")
_SUFFIX = re.compile(r"(?:_edgetpu|_quant)+$")


@dataclass(frozen=True, slots=True)
class Location:
    """An object in a bucket, or a file, for which `bucket` is empty; or a folder of either kind."""

    scheme: Literal["gs", "file"]
    bucket: str
    path: str

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.path}" if self.scheme == "gs" else _file_url(self.path)

    @property
    def default_name(self) -> str:
        """Name of the model: of the file, or of the nearest folder (or the bucket) whose name says more."""
        *folders, file = [part for part in self.path.split("/") if part]
        stem = _SUFFIX.sub("", file.removesuffix(".tflite"))
        candidates = [stem, *reversed(folders), self.bucket]
        telling = (name for name in candidates if name and name.lower() not in _GENERIC)
        return next(telling, stem or file)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where events go: a Pub/Sub topic, or a file of JSON lines."""

    scheme: Literal["pubsub", "file"]
    project: str = ""
    topic: str = ""
    path: str = ""

    def __str__(self) -> str:
        return f"pubsub://{self.project}/{self.topic}" if self.scheme == "pubsub" else _file_url(self.path)


def parse_location(text: object) -> Location:
    """Read "gs://BUCKET/OBJECT", "file:///PATH" or a plain path. Raises ValueError."""
    scheme, rest = _split(text, others="gs://BUCKET/OBJECT")
    if scheme == "file":
        return Location("file", "", rest)
    bucket, _, path = rest.partition("/")
    if scheme != "gs":
        raise ValueError(f"{show(text)} must begin with gs:// or file:///, or be a path")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{show(text)} names no bucket; write gs://BUCKET/OBJECT")
    if not path or path.endswith("/"):
        raise ValueError(f"{show(text)} names no object in the bucket; write gs://BUCKET/OBJECT")
    return Location("gs", bucket, path)


def parse_folder(text: object) -> Location:
    """Read "gs://BUCKET/PREFIX", "gs://BUCKET", "file:///FOLDER" or a plain path. Raises ValueError."""
    scheme, rest = _split(without_slash(text) if isinstance(text, str) else text, others="gs://BUCKET/PREFIX")
    if scheme == "file":
        return Location("file", "", rest)
    bucket, _, prefix = rest.partition("/")
    if scheme != "gs":
        raise ValueError(f"{show(text)} must begin with gs:// or file:///, or be a path")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{show(text)} names no bucket; write gs://BUCKET/PREFIX")
    return Location("gs", bucket, prefix)


def parse_destination(text: object) -> Destination:
    """Read "pubsub://PROJECT/TOPIC", "file:///PATH" or a plain path. Raises ValueError."""
    scheme, rest = _split(text, others="pubsub://PROJECT/TOPIC")
    if scheme == "file":
        return Destination("file", path=rest)
    project, _, topic = rest.partition("/")
    if scheme != "pubsub":
        raise ValueError(f"{show(text)} must begin with pubsub:// or file:///, or be a path")
    if not _PROJECT.fullmatch(project) or not _TOPIC.fullmatch(topic):
        raise ValueError(f"{show(text)} names no topic; write pubsub://PROJECT/TOPIC")
    return Destination("pubsub", project=project, topic=topic)


def without_slash(text: str) -> str:
    """Return the name of a folder without the slash at its end."""
    return _LAST_SLASH.sub("", text)


def absolute(text: str, folder: Path) -> str:
    """Return a plain path relative to `folder` as an absolute one; URLs, and what is no file, stay as they are."""
    is_path = "://" not in text and not _NO_PATH.match(text) and text and not text.endswith("/")
    return os.path.normpath(folder / text) if is_path else text


def _split(text: object, *, others: str) -> tuple[str, str]:
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"expected {others} or a path in quotes, not {show(text)}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        if _NO_PATH.match(text):
            raise ValueError(f"{show(text)} is neither a URL nor meant as a path; write {others}")
        return "file", _no_folder(text, text)
    if scheme != "file":
        return scheme, rest
    if not rest.startswith("/"):
        raise ValueError(f"{show(text)} needs three slashes: file:///PATH")
    return "file", _no_folder(unquote(rest), text)


def _no_folder(path: str, text: str) -> str:
    if path.endswith("/"):
        raise ValueError(f"{show(text)} names a folder; name the file in it")
    return path


def _file_url(path: str) -> str:
    return f"file://{quote(path)}" if path.startswith("/") else path
