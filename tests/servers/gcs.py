"""A Google Cloud Storage server on 127.0.0.1: the part of the JSON API that google-cloud-storage and gsutil use.

Objects keep all their generations, or only the newest where a bucket was made with `versioning=False`. Faults are
scripted: each waits for the next requests it fits (`where`: `metadata`, `media`, `upload` or `any`) and is used up.
Entity tags and preconditions are as in the API: https://cloud.google.com/storage/docs/request-preconditions
"""

import base64
import hashlib
import itertools
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

Where = Literal["metadata", "media", "upload", "any"]
Kind = Literal["status", "reset", "stall", "break", "corrupt", "portal", "answer", "trickle"]
PORTAL_PAGE = b"<!DOCTYPE html><html><body>Welcome to Hotel Wi-Fi. Please accept the terms.</body></html>"


@dataclass(frozen=True)
class StoredObject:
    """One generation of an object."""

    bucket: str
    name: str
    data: bytes
    generation: int
    metadata: dict[str, str] | None
    properties: dict[str, str]
    metageneration: int = 1

    @property
    def crc32c(self) -> str:
        return base64.b64encode(google_crc32c.Checksum(self.data).digest()).decode()

    @property
    def md5(self) -> str:
        return base64.b64encode(hashlib.md5(self.data, usedforsecurity=False).digest()).decode()

    @property
    def etag(self) -> str:
        """Another one after each change, also of the metadata alone."""
        return base64.b64encode(f"{self.generation}/{self.metageneration}".encode()).decode()

    def resource(self, origin: str) -> dict[str, Any]:
        """The object as the JSON API shows it."""
        path = f"b/{self.bucket}/o/{self.name.replace('/', '%2F')}"
        resource: dict[str, Any] = {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": f"{origin}/storage/v1/{path}",
            "mediaLink": f"{origin}/download/storage/v1/{path}?generation={self.generation}&alt=media",
            "bucket": self.bucket,
            "name": self.name,
            "generation": str(self.generation),
            "metageneration": str(self.metageneration),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "crc32c": self.crc32c,
            "md5Hash": self.md5,
            "etag": self.etag,
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            **self.properties,
        }
        return resource if self.metadata is None else {**resource, "metadata": self.metadata}


@dataclass
class Bucket:
    """Objects by name, each a list of generations with the newest last."""

    name: str
    versioning: bool = True
    objects: dict[str, list[StoredObject]] = field(default_factory=dict)


@dataclass
class Fault:
    """What happens to the next `times` requests of a kind instead of, or after `at` bytes of, the right answer."""

    kind: Kind
    where: Where = "any"
    times: int = 1
    status: int = 503
    message: str = ""
    at: int = 0
    name: str = ""
    method: str = ""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request that was received."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


class ApiError(Exception):
    """An answer with an error status, in the API's JSON."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GcsServer:
    """The server; use it as a context manager, or `start` and `close`."""

    def __init__(self, port: int = 0) -> None:
        self.buckets: dict[str, Bucket] = {}
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self.ahead = 0.0  # seconds, of its clock
        self.ranges = True  # whether it knows any
        self.uploads: dict[str, dict[str, Any]] = {}
        self._resume = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._generations = itertools.count(1_700_000_000_000_001, 1_000_003)
        self._http = _HttpServer(("127.0.0.1", port), _Handler)
        self._http.gcs = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="gcs")

    @property
    def url(self) -> str:
        """What STORAGE_EMULATOR_HOST is set to."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> "GcsServer":
        self._thread.start()
        return self

    def close(self) -> None:
        """End every connection, stalled ones too, and wait for all threads."""
        self.resume()
        self._http.shutdown()
        self._thread.join()
        self._http.hang_up()
        self._http.server_close()
        if self._http.errors:
            raise self._http.errors[0]

    def __enter__(self) -> "GcsServer":
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def create_bucket(self, name: str, *, versioning: bool = True) -> Bucket:
        with self._lock:
            return self.buckets.setdefault(name, Bucket(name, versioning))

    def upload(
        self,
        bucket: str,
        name: str,
        data: bytes,
        metadata: dict[str, str] | None = None,
        **properties: str,
    ) -> StoredObject:
        """Store an object, as `gsutil -h "x-goog-meta-KEY:VALUE" cp` would; returns the new generation."""
        with self._lock:
            home = self.create_bucket(bucket)
            stored = StoredObject(bucket, name, data, next(self._generations), metadata, properties)
            older = home.objects.get(name, []) if home.versioning else []
            home.objects[name] = [*older, stored]
            return stored

    def fault(
        self,
        kind: Kind,
        where: Where = "any",
        *,
        times: int = 1,
        status: int = 503,
        message: str = "",
        at: int = 0,
        name: str = "",
        method: str = "",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Script one fault, for one object if there is a `name`, for one kind of request if there is a `method`.

        `stall` sets `stalled`, then waits for `resume`; `at` counts bytes of the body. `answer` sends `status`,
        `headers` and `body` as they are; `status` may have `headers`, too. `trickle` sends headers, byte by byte, that
        do not end before `resume`.
        """
        with self._lock:
            self._faults.append(Fault(kind, where, times, status, message, at, name, method, body, headers or {}))

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def resume(self) -> None:
        """Let everything that stalls go on."""
        self._resume.set()

    def wait_to_resume(self) -> None:
        self.stalled.set()
        self._resume.wait()

    def trickles(self) -> Iterator[bytes]:
        """A header that does not end before `resume`."""
        self.stalled.set()
        yield b"HTTP/1.1 200 OK\r\nX-Slow: "
        while not self._resume.wait(0.01):
            yield b"."

    def count(self, method: str, part: str = "") -> int:
        """How many requests came with this method and with `part` in their path or query."""
        with self._lock:
            return sum(one.method == method and part in f"{one.path}?{one.query}" for one in self.requests)

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def take_fault(self, where: Where, path: str, method: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                fits = fault.where in {where, "any"} and fault.method in {method, ""}
                if fits and path.endswith(fault.name):
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                    return fault
            return None

    def find(self, bucket: str, name: str, query: dict[str, str]) -> StoredObject:
        """The newest generation, or the one asked for. Raises `ApiError` 404 or 412."""
        with self._lock:
            if bucket not in self.buckets:
                raise ApiError(404, "The specified bucket does not exist.")
            generations = self.buckets[bucket].objects.get(name, [])
            wanted = query.get("generation")
            found = [one for one in generations if wanted in {None, str(one.generation)}]
            if not found:
                suffix = f"#{wanted}" if wanted else ""
                raise ApiError(404, f"No such object: {bucket}/{name}{suffix}")
            _check_preconditions(found[-1].generation, query, found[-1].metageneration)
            return found[-1]

    def insert(self, bucket: str, resource: dict[str, Any], data: bytes, query: dict[str, str]) -> StoredObject:
        """Store what a client uploads. Raises `ApiError` 400, 404 or 412."""
        with self._lock:
            if bucket not in self.buckets:
                raise ApiError(404, "The specified bucket does not exist.")
            name = resource.get("name") or query.get("name")
            if not name:
                raise ApiError(400, "Required parameter: name")
            generations = self.buckets[bucket].objects.get(name, [])
            _check_preconditions(generations[-1].generation if generations else 0, query)
            keep = ("contentType", "contentEncoding", "cacheControl")
            properties = {key: resource[key] for key in keep if resource.get(key)}
            stored = self.upload(bucket, name, data, resource.get("metadata"), **properties)
            if resource.get("crc32c", stored.crc32c) != stored.crc32c:
                self.buckets[bucket].objects[name].remove(stored)
                raise ApiError(400, "Provided CRC32C does not match the data.")
            return stored

    def delete(self, bucket: str, name: str, query: dict[str, str]) -> None:
        with self._lock:
            found = self.find(bucket, name, query)
            kept = [one for one in self.buckets[bucket].objects[name] if one is not found]
            self.buckets[bucket].objects[name] = kept if "generation" in query else []

    def patch(self, bucket: str, name: str, query: dict[str, str], change: dict[str, Any]) -> StoredObject:
        """Change metadata in place; the generation stays, as with `gsutil setmeta`."""
        with self._lock:
            found = self.find(bucket, name, query)
            merged = {**(found.metadata or {}), **(change.get("metadata") or {})}
            kept = {key: value for key, value in merged.items() if value is not None}
            changed = replace(found, metadata=kept, metageneration=found.metageneration + 1)
            generations = self.buckets[bucket].objects[name]
            generations[generations.index(found)] = changed
            return changed

    def listing(self, bucket: str, query: dict[str, str]) -> tuple[list[StoredObject], str | None]:
        """One page of the newest generations, by name; the second value asks for the next page."""
        with self._lock:
            if bucket not in self.buckets:
                raise ApiError(404, "The specified bucket does not exist.")
            prefix, after = query.get("prefix", ""), query.get("pageToken", "")
            newest = [one[-1] for _, one in sorted(self.buckets[bucket].objects.items()) if one]
            rest = [one for one in newest if one.name.startswith(prefix) and one.name > after]
            size = int(query.get("maxResults", "1000"))
            return rest[:size], rest[size - 1].name if len(rest) > size else None


def _check_preconditions(generation: int, query: dict[str, str], metageneration: int = 0) -> None:
    """Raise `ApiError` 412 where what must match does not, or 304 where what must not match does."""
    for kind, value in (("Generation", generation), ("Metageneration", metageneration)):
        match, other = query.get(f"if{kind}Match"), query.get(f"if{kind}NotMatch")
        if match is not None and int(match) != value:
            raise ApiError(412, "At least one of the pre-conditions you specified did not hold.")
        if other is not None and int(other) == value:
            raise ApiError(304, "Not Modified")


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = False
    gcs: GcsServer

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()
        self.errors: list[BaseException] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._open):
            with _ignored(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error here; anything else is raised by `close`."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)


@contextmanager
def _ignored(*errors: type[Exception]) -> Iterator[None]:
    """Closing what the other side has closed already is fine."""
    try:
        yield
    except errors:
        return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The header `Date`."""
        now = time.time() if timestamp is None else timestamp
        return super().date_time_string(now + self.server.gcs.ahead)

    server: _HttpServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """Requests are recorded, not printed."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self._query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        self._body = self._read_body()
        self.server.gcs.record(Request(self.command, unquote(url.path), self._query, dict(self.headers)))
        self._fault = self.server.gcs.take_fault(self._kind(url.path), unquote(url.path), self.command)
        try:
            if not self._failed_before_answering():
                self._route(url.path)
        except ApiError as error:
            self._send_error(error.status, str(error))

    def _kind(self, path: str) -> Where:
        if self._query.get("alt") == "media" or path.startswith("/download/"):
            return "media"
        if path.startswith(("/upload/", "/resumable/")) or self.command == "PUT":
            return "upload"
        return "metadata" if path.startswith("/storage/") else "media"

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _failed_before_answering(self) -> bool:
        fault = self._fault
        if fault is None:
            return False
        if fault.kind == "status":
            self._send_error(fault.status, fault.message or HTTPStatus(fault.status).phrase, fault.headers)
        elif fault.kind == "answer":
            self._send(fault.status, fault.body, fault.headers, plain=True)
            self.close_connection = True  # its length may be a lie
        elif fault.kind == "trickle":
            for data in self.server.gcs.trickles():
                self.wfile.write(data)
            self.close_connection = True
        elif fault.kind == "portal":
            self._send(200, PORTAL_PAGE, {"Content-Type": "text/html"}, plain=True)
        elif fault.kind == "reset" and fault.at == 0:
            self._reset()
        else:
            return False
        return True

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _route(self, path: str) -> None:
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, path):
                parts = [unquote(part) for part in match.groups()]
                getattr(self, method)(*parts)
                return
        raise ApiError(404, f"Not Found: {path}")

    def _bucket(self, name: str) -> None:
        if name not in self.server.gcs.buckets:
            raise ApiError(404, "The specified bucket does not exist.")
        self._send_json({"kind": "storage#bucket", "name": name, "id": name})

    def _buckets(self) -> None:
        if self.command == "POST":
            name = json.loads(self._body)["name"]
            if name in self.server.gcs.buckets:
                raise ApiError(409, "You already own this bucket.")
            self.server.gcs.create_bucket(name)
            self._bucket(name)
        else:
            items = [{"kind": "storage#bucket", "name": name, "id": name} for name in self.server.gcs.buckets]
            self._send_json({"kind": "storage#buckets", "items": items})

    def _objects(self, bucket: str) -> None:
        page, token = self.server.gcs.listing(bucket, self._query)
        answer = {"kind": "storage#objects", "items": [one.resource(self.server.gcs.url) for one in page]}
        self._send_json(answer if token is None else {**answer, "nextPageToken": token})

    def _object(self, bucket: str, name: str) -> None:
        gcs = self.server.gcs
        if self.command == "DELETE":
            gcs.delete(bucket, name, self._query)
            self._send(204, b"", {})
        elif self.command == "PATCH":
            self._send_object(gcs.patch(bucket, name, self._query, json.loads(self._body)))
        elif self._query.get("alt") == "media":
            self._send_media(gcs.find(bucket, name, self._query))
        else:
            found = gcs.find(bucket, name, self._query)
            if self.headers.get("If-None-Match", "").strip('"') == found.etag:
                raise ApiError(304, "Not Modified")
            self._send_object(found)

    def _upload(self, bucket: str) -> None:
        kind = self._query.get("uploadType")
        if kind == "resumable":
            self._resumable(bucket)
        elif kind == "multipart":
            self._store(bucket, *_multipart(self.headers["Content-Type"], self._body))
        else:
            self._store(bucket, {"contentType": self.headers.get("Content-Type")}, self._body)

    def _resumable(self, bucket: str) -> None:
        uploads = self.server.gcs.uploads
        if self.command == "POST":
            session = f"upload-{len(uploads) + 1}"
            resource = json.loads(self._body or b"{}")
            uploads[session] = {"resource": self._with_header_metadata(resource), "data": b""}
            location = f"{self.server.gcs.url}{self.path}&upload_id={session}"
            self._send(200, b"", {"Location": location, "X-GUploader-UploadID": session})
            return
        upload = uploads[self._query["upload_id"]]
        upload["data"] += self._body
        total = self.headers.get("Content-Range", "*/*").rpartition("/")[2]
        if total != "*" and len(upload["data"]) >= int(total):
            self._store(bucket, upload["resource"], upload["data"])
        else:
            self._send(308, b"", {"Range": f"bytes=0-{len(upload['data']) - 1}"} if upload["data"] else {})

    def _xml_object(self, bucket: str, name: str) -> None:
        """The older XML API, in which metadata are headers: `curl -T model -H "x-goog-meta-version: v1"`."""
        if self.command == "PUT":
            self._store(bucket, {"name": name}, self._body)
        else:
            self._send_media(self.server.gcs.find(bucket, name, self._query))

    def _with_header_metadata(self, resource: dict[str, Any]) -> dict[str, Any]:
        mark = "x-goog-meta-"
        given = {key.lower()[len(mark) :]: value for key, value in self.headers.items() if key.lower().startswith(mark)}
        return {**resource, "metadata": {**resource.get("metadata", {}), **given}} if given else resource

    def _store(self, bucket: str, resource: dict[str, Any], data: bytes) -> None:
        resource = self._with_header_metadata(resource)
        self._send_object(self.server.gcs.insert(bucket, resource, data, self._query))

    def _send_object(self, stored: StoredObject) -> None:
        self._send_json(stored.resource(self.server.gcs.url))

    def _send_json(self, document: dict[str, Any]) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json; charset=UTF-8"})

    def _send_error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        if status == HTTPStatus.NOT_MODIFIED:
            self._send(status, b"", {})
            return
        error = {
            "code": status,
            "message": message,
            "errors": [{"message": message, "domain": "global", "reason": HTTPStatus(status).name}],
        }
        kind = {"Content-Type": "application/json; charset=UTF-8", **(headers or {})}
        self._send(status, json.dumps({"error": error}).encode(), kind, plain=True)

    def _send_media(self, stored: StoredObject) -> None:
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Goog-Generation": str(stored.generation),
            "X-Goog-Hash": f"crc32c={stored.crc32c},md5={stored.md5}",
            "X-Goog-Stored-Content-Length": str(len(stored.data)),
            "X-Goog-Stored-Content-Encoding": stored.properties.get("contentEncoding", "identity"),
        }
        if "contentEncoding" in stored.properties:
            headers["Content-Encoding"] = stored.properties["contentEncoding"]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or not self.server.gcs.ranges:
            self._send(200, stored.data, headers)
            return
        start, end = int(asked[1]), int(asked[2] or len(stored.data) - 1)
        if start >= len(stored.data):
            raise ApiError(416, "The requested range cannot be satisfied.")
        end = min(end, len(stored.data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(stored.data)}"
        self._send(206, stored.data[start : end + 1], headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, plain: bool = False) -> None:
        """Send an answer; unless `plain`, the scripted fault happens to its body."""
        fault = None if plain else self._fault
        if fault and fault.kind == "corrupt":
            body = body[: fault.at] + bytes([body[fault.at] ^ 0xFF]) + body[fault.at + 1 :]
        self.send_response_only(status)
        common = {"Server": "gcs", "Date": self.date_time_string(), "Content-Length": str(len(body))}
        for key, value in {**common, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if fault and fault.kind in {"stall", "break", "reset"}:
            self._send_broken(fault, body)
        else:
            self.wfile.write(body)

    def _send_broken(self, fault: Fault, body: bytes) -> None:
        self.wfile.write(body[: fault.at])
        self.wfile.flush()
        if fault.kind == "stall":
            self.server.gcs.wait_to_resume()
            self.wfile.write(body[fault.at :])
        elif fault.kind == "reset":
            self._reset()
        else:
            self.close_connection = True


_ROUTES = [
    (r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)", "_object"),
    (r"/storage/v1/b/([^/]+)/o", "_objects"),
    (r"/storage/v1/b/([^/]+)", "_bucket"),
    (r"/storage/v1/b", "_buckets"),
    (r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", "_upload"),
    (r"/([a-z0-9][a-z0-9._-]+)/(.+)", "_xml_object"),
]


def _multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of a multipart upload: the object's JSON, and its bytes."""
    boundary = content_type.partition("boundary=")[2].strip("\"'").encode()
    _, first, rest = body.split(b"--" + boundary, 2)
    end = b"\r\n" if first.startswith(b"\r\n") else b"\n"  # gcloud writes bare newlines
    second = rest[: rest.rindex(end + b"--" + boundary)]
    resource, (head, _, media) = first.partition(end * 2)[2], second.partition(end * 2)
    kind = re.search(rb"^content-type: *(\S+)", head, re.IGNORECASE | re.MULTILINE)
    given = {"contentType": kind[1].decode()} if kind else {}
    return {**given, **json.loads(resource)}, media
