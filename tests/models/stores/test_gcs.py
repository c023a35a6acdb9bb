"""The store against a real HTTP server with scripted faults, through the real client library."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.auth import exceptions as auth

from edge_agent.models.release.releases import RemoteObject
from edge_agent.models.stores.base import (
    FetchFailed,
    Forbidden,
    Missing,
    StoreError,
    StoreNeedsPerson,
    StoreUnavailable,
)
from edge_agent.models.stores.gcs import GcsStore
from edge_agent.models.stores.gcs_errors import explain
from tests.servers.gcs import GcsServer, StoredObject

NAME = "models/latest/model_edgetpu.tflite"
URL = f"gs://bucket/{NAME}"
MODEL = bytes(range(256)) * 400
AUTH: Any = auth  # has no type annotations


@pytest.fixture
def store(gcs_server: GcsServer) -> GcsStore:
    return GcsStore("bucket", NAME, timeout=(30.0, 30.0), pause=lambda _, __: None)


@pytest.fixture
def uploaded(gcs_server: GcsServer) -> StoredObject:
    return gcs_server.upload("bucket", NAME, MODEL, {"version": "v1.3", "accuracy": "0.94", "labels": "a,b"})


def _fetch(store: GcsStore, destination: Path, remote: RemoteObject | None = None) -> bytes:
    store.fetch(remote or store.stat(), destination, threading.Event())
    return destination.read_bytes()


def test_stat_and_fetch(store: GcsStore, uploaded: StoredObject, tmp_path: Path) -> None:
    remote = store.stat()
    assert (remote.url, remote.version, remote.accuracy, remote.labels) == (URL, "v1.3", 0.94, ["a", "b"])
    assert (remote.generation, remote.size) == (str(uploaded.generation), len(MODEL))
    assert remote.checksum == f"crc32c:{uploaded.crc32c}"
    assert _fetch(store, tmp_path / "m", remote) == MODEL


def test_without_metadata_the_generation_is_the_version(store: GcsStore, gcs_server: GcsServer) -> None:
    stored = gcs_server.upload("bucket", NAME, MODEL)
    assert store.stat().version == f"generation-{stored.generation}"


def test_just_the_announced_generation_is_fetched(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, tmp_path: Path
) -> None:
    remote = store.stat()
    gcs_server.upload("bucket", NAME, b"another model", {"version": "v1.4"})
    assert _fetch(store, tmp_path / "m", remote) == MODEL


@pytest.mark.parametrize("ahead", [0, 7200, -7200])
def test_every_answer_tells_what_time_it_is(
    gcs_server: GcsServer, uploaded: StoredObject, tmp_path: Path, ahead: float
) -> None:
    heard: list[tuple[str, float]] = []
    store = GcsStore("bucket", NAME, on_skew=lambda server, skew: heard.append((server, skew)))
    gcs_server.ahead = ahead
    assert _fetch(store, tmp_path / "m") == MODEL
    gcs_server.fault("status", status=503)
    with pytest.raises(StoreUnavailable):
        store.stat()
    assert [server for server, _ in heard] == ["127.0.0.1"] * 3
    assert all(abs(skew - ahead) < 10 for _, skew in heard), heard


def test_an_empty_object(store: GcsStore, gcs_server: GcsServer, tmp_path: Path) -> None:
    gcs_server.upload("bucket", NAME, b"", {"version": "v0"})
    assert _fetch(store, tmp_path / "m") == b""


def test_emulator_host_without_scheme(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url.removeprefix("http://"))
    assert _fetch(store, tmp_path / "m") == MODEL


@pytest.mark.parametrize(
    ("status", "kind", "says", "what_to_do"),
    [
        (401, StoreNeedsPerson, "credentials", "GOOGLE_APPLICATION_CREDENTIALS"),
        (403, Forbidden, "right to read it (403: no way)", "grant roles/storage.objectViewer"),
        (404, Missing, "there is no such object (404: no way)", "upload the model there"),
        (400, StoreNeedsPerson, "refuses the request (400: no way)", "check [model].url"),
        (412, StoreUnavailable, "was replaced", ""),
        (429, StoreUnavailable, "the server answers 429: no way", ""),
        (500, StoreUnavailable, "the server answers 500: no way", ""),
        (503, StoreUnavailable, "the server answers 503: no way", ""),
    ],
)
def test_answers_to_stat(
    *, store: GcsStore, gcs_server: GcsServer, status: int, kind: type[StoreError], says: str, what_to_do: str
) -> None:
    gcs_server.fault("status", status=status, message="no way")
    with pytest.raises(kind) as caught:
        store.stat()
    text = str(caught.value)
    assert type(caught.value) is kind
    assert says in text
    assert what_to_do in text
    assert URL in text
    assert "\n" not in text
    assert len(gcs_server.requests) == 1, "the library must not try again by itself"


def test_missing_bucket_and_missing_object_are_told_apart(store: GcsStore, gcs_server: GcsServer) -> None:
    with pytest.raises(StoreNeedsPerson, match="The specified bucket does not exist"):
        store.stat()
    gcs_server.create_bucket("bucket")
    with pytest.raises(StoreNeedsPerson, match="No such object: bucket/models/latest"):
        store.stat()


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (403, StoreNeedsPerson, "right to read it"),
        (404, StoreUnavailable, "was replaced while it was being fetched"),
        (412, StoreUnavailable, "was replaced while it was being fetched"),
        (429, StoreUnavailable, "the server answers 429"),
        (503, StoreUnavailable, "the server answers 503"),
    ],
)
def test_answers_to_fetch(
    *,
    store: GcsStore,
    gcs_server: GcsServer,
    uploaded: StoredObject,
    tmp_path: Path,
    status: int,
    kind: type[StoreError],
    says: str,
) -> None:
    gcs_server.fault("status", "media", status=status)
    with pytest.raises(kind, match=says):
        _fetch(store, tmp_path / "m")
    assert gcs_server.count("GET", "alt': 'media") == 1, "the library must not try again by itself"
    assert _fetch(store, tmp_path / "m") == MODEL


def test_replaced_in_a_bucket_without_versioning(store: GcsStore, gcs_server: GcsServer, tmp_path: Path) -> None:
    gcs_server.create_bucket("bucket", versioning=False)
    gcs_server.upload("bucket", NAME, MODEL, {"version": "v1"})
    remote = store.stat()
    gcs_server.upload("bucket", NAME, MODEL[::-1], {"version": "v2"})
    with pytest.raises(StoreUnavailable, match="was replaced while it was being fetched"):
        _fetch(store, tmp_path / "m", remote)


def _corrupt(server: GcsServer) -> None:
    server.fault("corrupt", "media", at=1000)


def _portal(server: GcsServer) -> None:
    server.fault("portal", "media")


@pytest.mark.parametrize(
    ("break_it", "kind", "says"),
    [
        (_corrupt, FetchFailed, "came with checksum crc32c:.* instead of crc32c:"),
        (_portal, StoreUnavailable, "captive portal"),
    ],
)
def test_broken_downloads(
    *,
    store: GcsStore,
    gcs_server: GcsServer,
    uploaded: StoredObject,
    tmp_path: Path,
    break_it: Callable[[GcsServer], None],
    kind: type[StoreError],
    says: str,
) -> None:
    break_it(gcs_server)
    with pytest.raises(kind, match=says) as caught:
        _fetch(store, tmp_path / "m")
    assert URL in str(caught.value)
    assert gcs_server.count("GET", "alt': 'media") == 1, "nothing is gained by asking again at once"
    assert _fetch(store, tmp_path / "m") == MODEL


def test_more_bytes_than_announced(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, tmp_path: Path
) -> None:
    remote = msgspec.structs.replace(store.stat(), size=1000)
    with pytest.raises(FetchFailed, match="more bytes than announced"):
        _fetch(store, tmp_path / "m", remote)


def test_fewer_bytes_than_announced(store: GcsStore, uploaded: StoredObject, tmp_path: Path) -> None:
    remote = msgspec.structs.replace(store.stat(), size=len(MODEL) + 1)
    with pytest.raises(FetchFailed, match=f"{len(MODEL)} bytes instead of {len(MODEL) + 1}"):
        _fetch(store, tmp_path / "m", remote)


def test_full_disk(store: GcsStore, uploaded: StoredObject) -> None:
    with pytest.raises(FetchFailed, match="cannot write /dev/full: No space left on device"):
        _fetch(store, Path("/dev/full"))


def test_a_set_stop_ends_the_download(store: GcsStore, uploaded: StoredObject, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoreUnavailable, match="stopped"):
        store.fetch(store.stat(), tmp_path / "m", stop)


@pytest.mark.parametrize(
    ("kind", "says"), [("reset", "connection reset"), ("stall", "no data in time"), ("portal", "captive portal")]
)
def test_broken_answers_to_stat(store: GcsStore, gcs_server: GcsServer, kind: str, says: str) -> None:
    gcs_server.upload("bucket", NAME, MODEL)
    gcs_server.fault(kind, "metadata")  # type: ignore[arg-type]  # one of the kinds
    with pytest.raises(StoreUnavailable, match=says):
        GcsStore("bucket", NAME, timeout=(30.0, 0.5)).stat()
    gcs_server.resume()
    assert store.stat().size == len(MODEL)


def test_answer_that_is_no_object(store: GcsStore, gcs_server: GcsServer) -> None:
    gcs_server.upload("bucket", NAME, MODEL, crc32c="")
    with pytest.raises(StoreUnavailable, match="not the metadata of an object"):
        store.stat()


def test_compressed_object_is_refused(store: GcsStore, gcs_server: GcsServer) -> None:
    gcs_server.upload("bucket", NAME, MODEL, contentEncoding="gzip")
    with pytest.raises(StoreNeedsPerson, match="upload it again without compression"):
        store.stat()


def test_bad_bucket_name(gcs_server: GcsServer) -> None:
    with pytest.raises(StoreNeedsPerson, match=r"gs://-bad-/m cannot be asked for: Bucket names.*correct \[model"):
        GcsStore("-bad-", "m").stat()


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{closed_port}")
    with pytest.raises(StoreUnavailable, match=f"^{URL}: connection refused$"):
        GcsStore("bucket", NAME).stat()


def test_host_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://nowhere.invalid:1")
    with pytest.raises(StoreUnavailable, match=f"^{URL}: the host name cannot be resolved$"):
        GcsStore("bucket", NAME).stat()


def test_plain_http_behind_https(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url.replace("http://", "https://"))
    with pytest.raises(StoreUnavailable, match=URL):
        GcsStore("bucket", NAME).stat()


def test_without_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(StoreNeedsPerson, match="no usable Google credentials") as caught:
        GcsStore("bucket", NAME).stat()
    assert "/etc/credstore/edge-agent.google-credentials.json" in caught.value.what_to_do


def test_after_a_refusal_the_surroundings_are_read_anew(
    gcs_server: GcsServer, uploaded: StoredObject, monkeypatch: pytest.MonkeyPatch, store: GcsStore
) -> None:
    with GcsServer() as elsewhere:
        elsewhere.fault("status", status=403)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", elsewhere.url)
        with pytest.raises(StoreNeedsPerson):
            store.stat()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    assert store.stat().version == "v1.3"


def test_a_missing_key_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(StoreNeedsPerson, match=r"no usable Google credentials: File .*key\.json was not found"):
        GcsStore("bucket", NAME).stat()


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            AUTH.RefreshError("invalid_grant: Invalid JWT: Token must be in a reasonable timeframe", {}),
            StoreUnavailable,
            "the clock of this device is wrong",
        ),
        (AUTH.RefreshError("invalid_grant: account not found", {}), StoreNeedsPerson, "account not found"),
        (AUTH.RefreshError("later", retryable=True), StoreUnavailable, "no access token"),
        (AUTH.TransportError(ConnectionRefusedError(111, "x")), StoreUnavailable, "connection refused"),
        (KeyError("surprise"), StoreUnavailable, r"KeyError: 'surprise'"),
    ],
)
def test_what_the_token_service_says(error: Exception, kind: type[StoreError], says: str) -> None:
    explained = explain(error, URL, fetching=False)
    assert type(explained) is kind
    assert says in str(explained)


def test_the_client_library_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from edge_agent.models.open import open_store;"
        "from edge_agent.settings.location import parse_location; open_store(parse_location('gs://bucket/o'));"
        "print([name for name in sys.modules if name.startswith(('google.cloud', 'google.auth', 'requests'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_asked_for_but_the_object(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA")  # which the other tests set
    store.fetch(store.stat(), tmp_path / "m", threading.Event())
    asked = {request.path.partition("?")[0] for request in gcs_server.requests}
    assert asked
    assert all("/o/" in path for path in asked), asked
