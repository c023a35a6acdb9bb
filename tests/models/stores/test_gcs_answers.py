"""What stands between a device and Google may answer anything: each gets one line, little memory, and no harm."""

import asyncio
import datetime as dt
import gzip
import json
import ssl
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from edge_agent.models.stores.base import FetchFailed, StoreError, StoreNeedsPerson, StoreUnavailable
from edge_agent.models.stores.calls import Calls
from edge_agent.models.stores.gcs import GcsStore
from edge_agent.models.stores.gcs_answers import SMALL
from edge_agent.models.stores.gcs_errors import LONGEST_REST
from tests.servers.gcs import GcsServer, StoredObject

NAME = "models/m.tflite"
URL = f"gs://bucket/{NAME}"
MODEL = bytes(range(256)) * 400
FEW = 8 << 20
"""Bytes of memory that an answer may take at most: as many as one step of unpacking makes, and the libraries' own."""


@pytest.fixture
def store(gcs_server: GcsServer) -> GcsStore:
    return GcsStore("bucket", NAME, timeout=(30.0, 30.0), pause=lambda _, __: None)


@pytest.fixture
def uploaded(gcs_server: GcsServer) -> StoredObject:
    return gcs_server.upload("bucket", NAME, MODEL, {"version": "v1"})


def _fetch(store: GcsStore, path: Path) -> bytes:
    store.fetch(store.stat(), path, threading.Event())
    return path.read_bytes()


# -- only what has changed


def test_an_object_that_has_not_changed_costs_one_small_answer(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject
) -> None:
    first = store.stat()
    assert store.stat() == first
    assert gcs_server.requests[-1].headers["If-None-Match"] == uploaded.etag
    assert len(gcs_server.requests) == 2


def test_other_metadata_of_the_same_generation_are_seen(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject
) -> None:
    assert store.stat().labels is None
    gcs_server.patch("bucket", NAME, {}, {"metadata": {"labels": "a,b"}})
    assert store.stat().labels == ["a", "b"]
    gcs_server.upload("bucket", NAME, MODEL, {"version": "v2"})
    assert store.stat().version == "v2"


def test_a_manifest_that_has_not_changed_is_not_read_again(store: GcsStore, gcs_server: GcsServer) -> None:
    gcs_server.upload("bucket", NAME, b"{}")
    for _ in range(3):
        assert store.read(100)[0] == b"{}"
    assert gcs_server.count("GET", "alt': 'media") == 1
    assert len(gcs_server.requests) == 4


def test_not_modified_without_having_asked(store: GcsStore, gcs_server: GcsServer) -> None:
    gcs_server.fault("status", status=304)
    with pytest.raises(StoreNeedsPerson, match="refuses the request"):
        store.stat()


# -- a server that wants to be left alone


@pytest.mark.parametrize(
    ("headers", "rest"),
    [
        ({"Retry-After": "30"}, 30),
        ({"Retry-After": "Thu, 26 Nov 2026 10:02:00 GMT", "Date": "Thu, 26 Nov 2026 10:00:00 GMT"}, 120),
        ({"Retry-After": "Thu, 26 Nov 2026 09:00:00 GMT", "Date": "Thu, 26 Nov 2026 10:00:00 GMT"}, 0),
        ({"Retry-After": "99999999999"}, LONGEST_REST),
        ({"Retry-After": "soon"}, 0),
        ({}, 0),
    ],
)
@pytest.mark.parametrize(("where", "status"), [("metadata", 429), ("media", 503)])
def test_retry_after(
    *,
    store: GcsStore,
    gcs_server: GcsServer,
    uploaded: StoredObject,
    tmp_path: Path,
    where: Any,
    status: int,
    headers: dict[str, str],
    rest: float,
) -> None:
    gcs_server.fault("status", where, status=status, message="slow down", headers=headers)
    with pytest.raises(StoreUnavailable, match=f"^{URL}: the server answers {status}: slow down$") as caught:
        _fetch(store, tmp_path / "m")
    assert caught.value.rest == rest


# -- no metadata of an object


@pytest.mark.parametrize(
    "answer",
    [
        *({}, [], None, "x", 7, {"error": "x"}),
        {"generation": "x", "size": "1", "crc32c": "AAAAAA=="},
        {"generation": "1", "size": "x", "crc32c": "AAAAAA=="},
        {"generation": "1", "size": [1], "crc32c": "AAAAAA=="},
        {"generation": "1", "size": "-1", "crc32c": "AAAAAA=="},
        {"generation": "1", "size": "1", "crc32c": 5},
        {"generation": "1", "size": "1", "crc32c": ""},
        {"generation": "1", "size": "1", "crc32c": "AAAAAA==", "timeCreated": "yesterday"},
        {"generation": "1", "size": "1", "crc32c": "AAAAAA==", "metadata": ["a"]},
    ],
    ids=json.dumps,
)
def test_json_that_is_no_metadata(store: GcsStore, gcs_server: GcsServer, answer: object) -> None:
    body = json.dumps(answer).encode()
    gcs_server.fault("answer", status=200, body=body, headers={"Content-Type": "application/json"})
    with pytest.raises(StoreUnavailable, match=f"^{URL}: the answer is not the metadata of an object$"):
        store.stat()


@pytest.mark.parametrize("status", [200, 403, 503])
@pytest.mark.parametrize("body", [b"", b"\0\xff\xfe", b"{", b"[" * 50_000, b"<html>", b"\xff" * 100])
def test_no_json_at_all(store: GcsStore, gcs_server: GcsServer, body: bytes, status: int) -> None:
    gcs_server.fault("answer", status=status, body=body, headers={"Content-Type": "application/json"})
    with pytest.raises(StoreError) as caught:
        store.stat()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_empty_metadata(store: GcsStore, gcs_server: GcsServer) -> None:
    stored = gcs_server.upload("bucket", NAME, MODEL, {})
    assert store.stat().version == f"generation-{stored.generation}"


def test_metadata_with_rubbish(store: GcsStore, gcs_server: GcsServer) -> None:
    rubbish: Any = {
        "version": "v1\n\x1b[31m\u202e" + "9" * 5000,
        "accuracy": "Infinity",
        "labels": '["a", 3]',
        "\0": "\0",
        "nothing": None,
        "number": 7,
        "list": [1],
    }
    gcs_server.upload("bucket", NAME, MODEL, rubbish)
    remote = store.stat()
    assert remote.version.startswith("v1??[31m?999")
    assert len(remote.version) == 128
    assert (remote.accuracy, remote.labels) == (None, None)
    assert len(remote.remarks) == 2


# -- packed answers, and long ones


@pytest.fixture
def memory() -> Iterator[Any]:
    """How many bytes were allocated at most."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("status", [200, 503])
def test_a_decompression_bomb_is_not_unpacked(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, memory: Any, status: int
) -> None:
    store.stat()  # the library is imported
    pack = zlib.compressobj(wbits=31)
    bomb = b"".join([*(pack.compress(bytes(1 << 20)) for _ in range(100)), pack.flush()])
    gcs_server.fault("answer", status=status, body=bomb, headers={"Content-Encoding": "gzip"})
    tracemalloc.reset_peak()
    with pytest.raises(StoreUnavailable, match=f"^{URL}: the answer has more than {SMALL >> 10} KiB, and is not read$"):
        store.stat()
    assert memory() < FEW


def test_packed_metadata_are_unpacked(store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject) -> None:
    body = gzip.compress(json.dumps(uploaded.resource(gcs_server.url)).encode())
    gcs_server.fault("answer", status=200, body=body, headers={"Content-Encoding": "gzip"})
    assert store.stat().version == "v1"


def test_what_claims_to_be_packed_and_is_not(store: GcsStore, gcs_server: GcsServer) -> None:
    gcs_server.fault("answer", status=200, body=b"{}", headers={"Content-Encoding": "gzip"})
    with pytest.raises(StoreUnavailable, match=f"^{URL}: the answer cannot be unpacked$"):
        store.stat()


def test_a_download_that_comes_packed_is_refused(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, tmp_path: Path
) -> None:
    gcs_server.fault("answer", "media", status=200, body=gzip.compress(MODEL), headers={"Content-Encoding": "GZIP"})
    with pytest.raises(StoreUnavailable, match=f"^{URL}: it comes packed .GZIP. though it is not: a proxy changes it$"):
        _fetch(store, tmp_path / "m")
    assert _fetch(store, tmp_path / "m") == MODEL


@pytest.mark.parametrize(
    ("headers", "kind", "says"),
    [
        ({}, FetchFailed, "102401 bytes instead of 102400|more bytes than announced"),
        ({"Content-Length": str(1 << 30)}, FetchFailed, "more bytes than announced"),
        ({"Content-Length": "3"}, FetchFailed, "3 bytes instead of 102400"),
        ({"Content-Length": "", "Connection": "close"}, FetchFailed, "more bytes than announced"),
        ({"Content-Type": "text/html; charset=utf-8"}, StoreUnavailable, "captive portal"),
    ],
)
def test_wrong_lengths(
    *,
    store: GcsStore,
    gcs_server: GcsServer,
    uploaded: StoredObject,
    tmp_path: Path,
    headers: dict[str, str],
    kind: type[Exception],
    says: str,
) -> None:
    gcs_server.fault("answer", "media", status=200, body=MODEL + b"x", headers=headers)
    with pytest.raises(kind, match=says):
        _fetch(store, tmp_path / "m")
    assert _fetch(store, tmp_path / "m") == MODEL


def test_a_manifest_of_a_gigabyte(store: GcsStore, gcs_server: GcsServer) -> None:
    gcs_server.upload("bucket", NAME, b"{}", size=str(1 << 30))
    with pytest.raises(StoreNeedsPerson, match=f"^{URL} has 1073741824 bytes, and at most 100 are read"):
        store.read(100)
    assert gcs_server.count("GET", "alt': 'media") == 0


@pytest.mark.parametrize("length", ["", str(32 << 20)])
def test_a_manifest_longer_than_it_claims(store: GcsStore, gcs_server: GcsServer, memory: Any, length: str) -> None:
    gcs_server.upload("bucket", NAME, b"{}", size="2")
    body = b"{}" + bytes(32 << 20)
    gcs_server.fault("answer", "media", status=200, body=body, headers={"Content-Length": length})
    store.stat()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(FetchFailed, match="more bytes than announced"):
        store.read(100)
    assert memory() - before < FEW
    assert store.read(100)[0] == b"{}"


# -- a wrong clock


class Site(HTTPServer):
    """Answers all requests in the same way, as a thread."""

    def __init__(self, status: int, body: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
                """Nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> "Site":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not like the certificate is no error here."""


def test_a_certificate_that_is_not_valid_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now + dt.timedelta(1), now + dt.timedelta(2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "site.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + _private(key))
    with Site(200, b"") as site:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        site.socket = context.wrap_socket(site.socket, server_side=True)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"https://localhost:{site.server_port}")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
        with pytest.raises(StoreUnavailable) as caught:
            GcsStore("bucket", NAME).stat()
    assert str(caught.value) == (
        f"{URL}: the server's certificate is not valid (certificate is not yet valid): check clock and proxy"
    )


def _private(key: Any) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))


def test_the_token_service_does_not_believe_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat"
    with Site(400, json.dumps({"error": "invalid_grant", "error_description": said}).encode()) as site:
        account = {
            "type": "service_account",
            "client_email": "device@project.iam.gserviceaccount.com",
            "private_key": _private(rsa.generate_private_key(65537, 2048)).decode(),
            "token_uri": f"http://127.0.0.1:{site.server_port}/token",
        }
        (tmp_path / "key.json").write_text(json.dumps(account))
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        with pytest.raises(StoreUnavailable) as caught:
            GcsStore("bucket", NAME).stat()
    assert str(caught.value) == f"{URL}: no access token, as the clock of this device is wrong"


# -- who is not Google


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["metadata", "media"])
def test_a_redirect_to_a_login_page_is_not_followed(
    *,
    store: GcsStore,
    gcs_server: GcsServer,
    uploaded: StoredObject,
    tmp_path: Path,
    status: int,
    where: Any,
) -> None:
    gcs_server.fault("answer", where, status=status, headers={"Location": f"{gcs_server.url}/login/page"})
    with pytest.raises(StoreUnavailable, match=f"^{URL}: a web page came instead of the object: a captive portal"):
        _fetch(store, tmp_path / "m")
    assert gcs_server.count("GET", "login") == 0


def test_headers_that_do_not_end(store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject) -> None:
    async def main() -> None:
        calls = Calls()
        gcs_server.fault("trickle")
        with pytest.raises(StoreUnavailable, match=r"^the model store did not finish within 1 s$"):
            await calls.run(lambda _: store.stat(), limit=0.7)
        with pytest.raises(StoreUnavailable, match="an earlier request to the model store still hangs"):
            await calls.stat(store)
        gcs_server.resume()
        for thread in threading.enumerate():
            if thread.name == "model-store":
                await asyncio.to_thread(thread.join, 30)

    asyncio.run(main())
