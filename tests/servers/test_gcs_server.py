"""The test server against the real client, gsutil's way of uploading, and the code of the usual guides."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.api_core.exceptions import NotFound, PreconditionFailed
from google.cloud.storage import Client

from tests.servers.gcs import GcsServer

MODEL = bytes(range(256)) * 40


@pytest.fixture
def client(gcs_server: GcsServer) -> Any:
    with Client() as client:
        yield client


def _http(server: GcsServer, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_guides_own_code_works(
    gcs_server: GcsServer, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gcs_server.upload("your-model-bucket", "models/latest/model_edgetpu.tflite", MODEL, {"version": "v1.3"})
    bucket = client.bucket("your-model-bucket")
    blob = bucket.blob("models/latest/model_edgetpu.tflite")
    blob.reload()
    assert blob.metadata.get("version", "unknown") == "v1.3"
    local = tmp_path / "new_model_edgetpu.tflite"
    blob.download_to_filename(str(local))
    assert local.read_bytes() == MODEL


def test_without_metadata_there_is_none(gcs_server: GcsServer, client: Any) -> None:
    gcs_server.upload("models", "m", MODEL)
    blob = client.bucket("models").blob("m")
    blob.reload()
    assert blob.metadata is None


def test_multipart_upload_of_the_real_client(gcs_server: GcsServer, client: Any) -> None:
    gcs_server.create_bucket("models")
    blob = client.bucket("models").blob("a b/m.tflite")
    blob.metadata = {"version": "v2", "accuracy": "0.94"}
    data = b"\r\n--x\r\n" + MODEL + b"\r"
    blob.upload_from_string(data)
    stored = gcs_server.find("models", "a b/m.tflite", {})
    assert (stored.data, stored.metadata) == (data, {"version": "v2", "accuracy": "0.94"})
    assert gcs_server.count("POST", "uploadType': 'multipart") == 1


def test_resumable_upload_of_the_real_client(gcs_server: GcsServer, client: Any, tmp_path: Path) -> None:
    gcs_server.create_bucket("models")
    data = bytes(3 * 256 * 1024 + 17)
    (tmp_path / "model").write_bytes(data)
    blob = client.bucket("models").blob("m", chunk_size=256 * 1024)
    blob.metadata = {"version": "v3"}
    with (tmp_path / "model").open("rb") as file:
        blob.upload_from_file(file)
    stored = gcs_server.find("models", "m", {})
    assert (stored.data, stored.metadata) == (data, {"version": "v3"})
    assert gcs_server.count("PUT", "upload_id") == 4


def test_simple_and_xml_uploads_take_header_metadata(gcs_server: GcsServer) -> None:
    gcs_server.create_bucket("models")
    upload = "/upload/storage/v1/b/models/o?uploadType=media&name=simple"
    assert _http(gcs_server, "POST", upload, MODEL, x_goog_meta_version="v4")[0] == 200
    assert _http(gcs_server, "PUT", "/models/dir/xml", MODEL, x_goog_meta_version="v5")[0] == 200
    assert gcs_server.find("models", "simple", {}).metadata == {"version": "v4"}
    assert gcs_server.find("models", "dir/xml", {}).metadata == {"version": "v5"}
    assert _http(gcs_server, "GET", "/models/dir/xml")[1] == MODEL


def test_older_generations_stay_unless_the_bucket_forgets_them(gcs_server: GcsServer, client: Any) -> None:
    for bucket, versioning in (("keeps", True), ("forgets", False)):
        gcs_server.create_bucket(bucket, versioning=versioning)
        first = gcs_server.upload(bucket, "m", b"one")
        gcs_server.upload(bucket, "m", b"two")
        assert client.bucket(bucket).blob("m").download_as_bytes() == b"two"
        old = client.bucket(bucket).blob("m", generation=first.generation)
        if versioning:
            assert old.download_as_bytes() == b"one"
        else:
            with pytest.raises(NotFound, match="No such object"):
                old.download_as_bytes()


def test_ranges(gcs_server: GcsServer, client: Any) -> None:
    gcs_server.upload("models", "m", MODEL)
    blob = client.bucket("models").blob("m")
    assert blob.download_as_bytes(start=10, end=19) == MODEL[10:20]
    blob.chunk_size = 256 * 1024
    assert blob.download_as_bytes() == MODEL
    assert _http(gcs_server, "GET", "/models/m", Range=f"bytes={len(MODEL)}-")[0] == 416


def test_preconditions(gcs_server: GcsServer, client: Any) -> None:
    stored = gcs_server.upload("models", "m", MODEL)
    blob = client.bucket("models").blob("m")
    with pytest.raises(PreconditionFailed):
        blob.upload_from_string(b"x", if_generation_match=0)
    blob.upload_from_string(b"x", if_generation_match=stored.generation)
    with pytest.raises(PreconditionFailed):
        blob.reload(if_generation_match=stored.generation)


def test_metadata_change_keeps_the_generation(gcs_server: GcsServer, client: Any) -> None:
    stored = gcs_server.upload("models", "m", MODEL, {"version": "v1"})
    blob = client.bucket("models").blob("m")
    blob.metadata = {"version": "v2"}
    blob.patch()
    assert blob.metadata == {"version": "v2"}
    assert blob.generation == stored.generation


def test_listing_in_pages_with_prefix(gcs_server: GcsServer, client: Any) -> None:
    for name in ("a/1", "a/2", "a/3", "a/4", "a/5", "b/1"):
        gcs_server.upload("models", name, b"")
    found = client.list_blobs("models", prefix="a/", page_size=2)
    assert [blob.name for blob in found] == ["a/1", "a/2", "a/3", "a/4", "a/5"]
    assert gcs_server.count("GET", "pageToken") == 2


def test_buckets_and_deleting(gcs_server: GcsServer, client: Any) -> None:
    client.create_bucket("fresh", project="p")
    assert client.get_bucket("fresh").name == "fresh"
    blob = client.bucket("fresh").blob("m")
    blob.upload_from_string(b"x")
    blob.delete()
    assert not blob.exists()
    with pytest.raises(NotFound):
        client.get_bucket("nowhere")


def test_status_faults_are_used_up(gcs_server: GcsServer) -> None:
    gcs_server.upload("models", "m", MODEL)
    gcs_server.fault("status", times=2, status=429, message="slow down")
    path = "/storage/v1/b/models/o/m"
    for _ in range(2):
        status, body = _http(gcs_server, "GET", path)
        assert (status, json.loads(body)["error"]["message"]) == (429, "slow down")
    assert _http(gcs_server, "GET", path)[0] == 200


def test_faults_on_the_body(gcs_server: GcsServer) -> None:
    gcs_server.upload("models", "m", MODEL)
    path = "/download/storage/v1/b/models/o/m?alt=media"
    gcs_server.fault("corrupt", "media", at=5)
    damaged = _http(gcs_server, "GET", path)[1]
    assert [at for at, (a, b) in enumerate(zip(damaged, MODEL, strict=True)) if a != b] == [5]
    gcs_server.fault("break", "media", at=100)
    with pytest.raises(http.client.IncompleteRead) as broken:
        _http(gcs_server, "GET", path)
    assert broken.value.partial == MODEL[:100]
    for at in (0, 100):
        gcs_server.fault("reset", "media", at=at)
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            _http(gcs_server, "GET", path)
    gcs_server.fault("portal", "media")
    assert _http(gcs_server, "GET", path)[1].startswith(b"<!DOCTYPE html>")
    assert _http(gcs_server, "GET", path)[1] == MODEL


def test_a_stalled_answer_goes_on_when_told(gcs_server: GcsServer) -> None:
    gcs_server.upload("models", "m", MODEL)
    gcs_server.fault("stall", "media", at=100)
    fetch = f"import urllib.request as u; u.urlopen('{gcs_server.url}/models/m').read()"
    with subprocess.Popen([sys.executable, "-c", fetch]) as child:
        assert gcs_server.stalled.wait(30)
        assert child.poll() is None
        gcs_server.resume()
        assert child.wait(30) == 0


@pytest.mark.system
@pytest.mark.skipif(shutil.which("gsutil") is None, reason="gsutil is not installed")
def test_the_guides_upload_lines_with_the_real_gsutil(gcs_server: GcsServer, tmp_path: Path) -> None:
    gcs_server.create_bucket("your-model-bucket")
    model = tmp_path / "model_quant_edgetpu.tflite"
    model.write_bytes(MODEL)
    boto = tmp_path / "boto"
    boto.write_text(f"[GSUtil]\nstate_dir = {tmp_path}\nuse_gcloud_storage = True\n[Boto]\nnum_retries = 0\n")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "BOTO_CONFIG": str(boto),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{gcs_server.url}/storage/v1/",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_PROJECT": "your-project",
    }
    twin = tmp_path / "model_quant.tflite"
    twin.write_bytes(MODEL)
    uploads = [
        ([model], "models/latest/model_edgetpu.tflite", ["models/latest/model_edgetpu.tflite"]),
        ([model, twin], "classifier/latest/", [f"classifier/latest/{file.name}" for file in (model, twin)]),
    ]
    for files, target, names in uploads:
        command = ["-h", "x-goog-meta-version:v1.3", "cp", *map(str, files), f"gs://your-model-bucket/{target}"]
        done = subprocess.run(
            ["gsutil", *command],  # whichever is on the PATH
            env=environment,
            capture_output=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        for name in names:
            stored = gcs_server.find("your-model-bucket", name, {})
            assert (stored.data, stored.metadata) == (MODEL, {"version": "v1.3"})


def _metadata(server: GcsServer, query: str = "", **headers: str) -> int:
    return _http(server, "GET", f"/storage/v1/b/models/o/m?{query}", b"", **headers)[0]


def test_what_must_not_match(gcs_server: GcsServer) -> None:
    stored = gcs_server.upload("models", "m", MODEL)
    assert _metadata(gcs_server, f"ifGenerationNotMatch={stored.generation}") == 304
    assert _metadata(gcs_server, "ifGenerationNotMatch=1") == 200
    assert _metadata(gcs_server, "ifMetagenerationNotMatch=1") == 304
    assert _metadata(gcs_server, "ifMetagenerationMatch=2") == 412
    gcs_server.patch("models", "m", {}, {"metadata": {"version": "v2"}})
    assert _metadata(gcs_server, f"ifGenerationNotMatch={stored.generation}") == 304
    assert _metadata(gcs_server, "ifMetagenerationMatch=2") == 200


def test_an_entity_tag_is_that_of_generation_and_metadata(gcs_server: GcsServer) -> None:
    tags = [gcs_server.upload("models", "m", MODEL).etag, gcs_server.upload("models", "m", MODEL).etag]
    assert _metadata(gcs_server, If_None_Match=tags[1]) == 304
    assert _metadata(gcs_server, If_None_Match=f'"{tags[1]}"') == 304
    assert _metadata(gcs_server, If_None_Match=tags[0]) == 200
    tags.append(gcs_server.patch("models", "m", {}, {"metadata": {"version": "v2"}}).etag)
    assert _metadata(gcs_server, If_None_Match=tags[1]) == 200
    assert len(set(tags)) == 3


def test_ranges_of_a_pinned_generation(gcs_server: GcsServer) -> None:
    first = gcs_server.upload("models", "m", MODEL)
    gcs_server.upload("models", "m", MODEL[::-1])
    path = f"/download/storage/v1/b/models/o/m?alt=media&generation={first.generation}"
    assert _http(gcs_server, "GET", path, Range="bytes=100-") == (206, MODEL[100:])
    gcs_server.fault("break", "media", at=10)
    with pytest.raises(http.client.IncompleteRead) as broken:
        _http(gcs_server, "GET", path, Range="bytes=100-")
    assert broken.value.partial == MODEL[100:110]
    gcs_server.ranges = False
    assert _http(gcs_server, "GET", path, Range="bytes=100-") == (200, MODEL)


def test_any_answer_can_be_scripted(gcs_server: GcsServer) -> None:
    gcs_server.upload("models", "m", MODEL)
    gcs_server.fault("answer", "media", status=302, body=b"x", headers={"Location": "/login", "Date": "then"})
    gcs_server.fault("status", "metadata", status=429, headers={"Retry-After": "7"})
    connection = http.client.HTTPConnection(urlsplit(gcs_server.url).netloc, timeout=10)
    connection.request("GET", "/storage/v1/b/models/o/m")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    answer.read()
    connection.request("GET", "/storage/v1/b/models/o/m?alt=media")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Location"], answer.headers["Date"]) == (302, "/login", "then")
    assert answer.read() == b"x"
    connection.close()
    assert _metadata(gcs_server) == 200


def test_headers_that_trickle_until_they_are_told_not_to(gcs_server: GcsServer) -> None:
    gcs_server.upload("models", "m", MODEL)
    gcs_server.fault("trickle")
    with socket.create_connection(("127.0.0.1", urlsplit(gcs_server.url).port or 0), 10) as connection:
        connection.sendall(b"GET /storage/v1/b/models/o/m HTTP/1.1\r\n\r\n")
        data = b""
        while data.count(b".") < 10:
            data += connection.recv(1000)
        gcs_server.resume()
        while more := connection.recv(1000):
            data += more
    assert b"\r\n\r\n" not in data
