"""Pictures to a real server through the real client library, and to a folder."""

import os
from pathlib import Path

import pytest

from edge_agent.models.stores.base import Forbidden, Missing, StoreNeedsPerson, StoreUnavailable
from edge_agent.raw_data.destinations import SETTING, Folder, open_destination
from edge_agent.settings.location import parse_folder
from tests.servers.gcs import GcsServer

NAME = "edge-001/2026-05-01/100000.000-ff.jpg"
PICTURE = b"\xff\xd8picture\xff\xd9"


def stored(server: GcsServer, name: str) -> list[bytes]:
    return [each.data for each in server.buckets["bucket"].objects.get(name, [])]


@pytest.mark.parametrize(
    ("url", "name"), [("gs://bucket/retraining/a", f"retraining/a/{NAME}"), ("gs://bucket/", NAME)]
)
def test_an_object_below_the_prefix(gcs_server: GcsServer, url: str, name: str) -> None:
    gcs_server.create_bucket("bucket")
    open_destination(parse_folder(url)).put(NAME, PICTURE)
    [found] = gcs_server.buckets["bucket"].objects[name]
    assert (found.data, found.properties["contentType"]) == (PICTURE, "image/jpeg")
    # One request: the device needs no right to look at the bucket.
    assert [request.method for request in gcs_server.requests] == ["POST"]


def test_what_is_there_is_neither_replaced_nor_a_failure(gcs_server: GcsServer) -> None:
    gcs_server.create_bucket("bucket")
    destination = open_destination(parse_folder("gs://bucket"))
    destination.put(NAME, PICTURE)
    destination.put(NAME, PICTURE)
    assert gcs_server.count("POST") == 2
    assert stored(gcs_server, NAME) == [PICTURE]


def test_a_server_that_tells_the_same_as_a_missing_right(gcs_server: GcsServer) -> None:
    gcs_server.create_bucket("bucket")
    said = "Caller does not have storage.objects.delete access to the Google Cloud Storage object."
    gcs_server.fault("status", "upload", status=403, message=said)
    open_destination(parse_folder("gs://bucket")).put(NAME, PICTURE)


@pytest.mark.parametrize(
    ("status", "kind", "says", "what_to_do"),
    [
        (401, StoreNeedsPerson, "credentials", "a service account that may write to the bucket"),
        (403, Forbidden, "the right to write to it (403: no way)", "grant roles/storage.objectCreator on the bucket"),
        (404, Missing, "there is no such bucket (404: no way)", f"make the bucket, or correct {SETTING}"),
        (400, StoreNeedsPerson, "the server refuses the request (400: no way)", f"check {SETTING}"),
    ],
)
def test_a_person_is_told_what_to_do(
    gcs_server: GcsServer, status: int, kind: type[StoreNeedsPerson], says: str, what_to_do: str
) -> None:
    gcs_server.fault("status", "upload", status=status, message="no way")
    with pytest.raises(kind) as caught:
        open_destination(parse_folder("gs://bucket/a")).put(NAME, PICTURE)
    assert caught.value.reason.startswith("gs://bucket/a/: ")
    assert says in caught.value.reason
    assert what_to_do in caught.value.what_to_do


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_tried_again(gcs_server: GcsServer, status: int) -> None:
    gcs_server.create_bucket("bucket")
    gcs_server.fault("status", "upload", status=status)
    destination = open_destination(parse_folder("gs://bucket"))
    with pytest.raises(StoreUnavailable, match=str(status)):
        destination.put(NAME, PICTURE)
    destination.put(NAME, PICTURE)
    assert stored(gcs_server, NAME) == [PICTURE]


def test_a_portal_is_not_taken_for_the_bucket(gcs_server: GcsServer) -> None:
    gcs_server.fault("portal", "upload")
    with pytest.raises(StoreUnavailable, match="captive portal"):
        open_destination(parse_folder("gs://bucket")).put(NAME, PICTURE)


def test_an_answer_that_is_lost_does_no_harm(gcs_server: GcsServer) -> None:
    gcs_server.create_bucket("bucket")
    gcs_server.fault("break", "upload", at=5)
    destination = open_destination(parse_folder("gs://bucket"))
    with pytest.raises(StoreUnavailable):
        destination.put(NAME, PICTURE)
    assert stored(gcs_server, NAME) == [PICTURE]
    destination.put(NAME, PICTURE)
    assert stored(gcs_server, NAME) == [PICTURE]


def test_a_folder_gets_whole_files(tmp_path: Path) -> None:
    destination = open_destination(parse_folder(str(tmp_path / "pictures")))
    destination.put(NAME, PICTURE)
    destination.put(NAME, PICTURE)
    assert (tmp_path / "pictures" / NAME).read_bytes() == PICTURE
    assert len(list((tmp_path / "pictures" / NAME).parent.iterdir())) == 1


def test_a_folder_that_cannot_be_written_needs_a_person(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(StoreNeedsPerson) as caught:
        Folder(tmp_path / "pictures").put(NAME, PICTURE)
    assert "cannot write" in caught.value.reason
    assert SETTING in caught.value.what_to_do


def test_a_disk_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreUnavailable, match="input/output error"):
        Folder(tmp_path).put(NAME, PICTURE)
