"""Downloads from the real client library that break, and go on: within a poll, and in another one."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.models.stores.base import FetchFailed, LineBroken, StoreUnavailable
from edge_agent.models.stores.download import NOTE_SUFFIX, note_of
from edge_agent.models.stores.gcs import TRIES, GcsStore
from edge_agent.models.stores.limits import DownloadLimits
from tests.servers.gcs import GcsServer, StoredObject

NAME = "models/m.tflite"
URL = f"gs://bucket/{NAME}"
MODEL = bytes(range(256)) * 400
CHUNK = 8192
"""Bytes that the client library hands on at a time; the rest is lost unless the server ends the connection in order."""


class Pauses(list[float]):
    """Stands for the passing of time."""

    def __call__(self, stop: threading.Event, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def store(gcs_server: GcsServer, pauses: Pauses) -> GcsStore:
    return GcsStore("bucket", NAME, timeout=(30.0, 30.0), pause=pauses)


@pytest.fixture
def uploaded(gcs_server: GcsServer) -> StoredObject:
    return gcs_server.upload("bucket", NAME, MODEL, {"version": "v1"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m"


def _fetch(store: GcsStore, path: Path) -> bytes:
    store.fetch(store.stat(), path, threading.Event())
    return path.read_bytes()


def _ranges(server: GcsServer) -> list[str | None]:
    asked = [one.headers for one in server.requests if one.query.get("alt") == "media"]
    return [{name.lower(): value for name, value in headers.items()}.get("range") for headers in asked]


@pytest.mark.parametrize(("kind", "begins"), [("break", [20_000, 50_000]), ("stall", [2 * CHUNK, 5 * CHUNK])])
def test_a_broken_download_goes_on_at_once(
    *,
    gcs_server: GcsServer,
    uploaded: StoredObject,
    path: Path,
    pauses: Pauses,
    kind: Any,
    begins: list[int],
) -> None:
    store = GcsStore("bucket", NAME, timeout=(30.0, 0.5 if kind == "stall" else 30.0), pause=pauses)
    gcs_server.fault(kind, "media", at=20_000)
    gcs_server.fault(kind, "media", at=30_000)
    assert _fetch(store, path) == MODEL
    assert _ranges(gcs_server) == [None, *(f"bytes={begin}-" for begin in begins)]
    assert {one.query["generation"] for one in gcs_server.requests if "alt" in one.query} == {str(uploaded.generation)}
    assert pauses == [1, 1]
    assert note_of(path).exists(), "until the file has its place"
    gcs_server.resume()


def test_a_reset_connection_goes_on(store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path) -> None:
    gcs_server.fault("reset", "media", at=60_000)
    assert _fetch(store, path) == MODEL
    assert len(_ranges(gcs_server)) == 2


def test_without_a_gain_it_is_left_to_the_next_poll(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path, pauses: Pauses
) -> None:
    gcs_server.fault("break", "media", at=20_000)
    gcs_server.fault("break", "media", at=100, times=TRIES)
    with pytest.raises(LineBroken, match=f"^{URL}: the connection broke off$"):
        _fetch(store, path)
    assert len(_ranges(gcs_server)) == 1 + TRIES
    assert pauses == [1, 2, 4, 8]
    assert path.stat().st_size == 20_000 + 100 * TRIES
    assert _fetch(store, path) == MODEL
    assert _ranges(gcs_server)[-1] == f"bytes={20_000 + 100 * TRIES}-"


def test_a_gain_makes_up_for_the_tries_before_it(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path
) -> None:
    for _ in range(4):
        gcs_server.fault("break", "media", at=0, times=TRIES - 1)
        gcs_server.fault("break", "media", at=CHUNK)
    assert _fetch(store, path) == MODEL


def test_another_process_goes_on(gcs_server: GcsServer, uploaded: StoredObject, path: Path, pauses: Pauses) -> None:
    gcs_server.fault("break", "media", at=50_000)
    gcs_server.fault("status", "media", status=503)
    with pytest.raises(StoreUnavailable, match="503"):
        _fetch(GcsStore("bucket", NAME, pause=pauses), path)
    assert _fetch(GcsStore("bucket", NAME), path) == MODEL
    assert _ranges(gcs_server)[-1] == "bytes=50000-"


def test_a_whole_part_is_not_asked_for_again(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path
) -> None:
    for _ in range(2):
        assert _fetch(store, path) == MODEL
    assert len(_ranges(gcs_server)) == 1


def _other_generation(server: GcsServer, path: Path) -> bytes:
    server.upload("bucket", NAME, MODEL[::-1], {"version": "v1"})
    return MODEL[::-1]


def _no_note(server: GcsServer, path: Path) -> bytes:
    note_of(path).unlink()
    return MODEL


def _torn_note(server: GcsServer, path: Path) -> bytes:
    note_of(path).write_bytes(b"\0" * 40)
    return MODEL


def _flipped_note(server: GcsServer, path: Path) -> bytes:
    """One bit, after which the text of the note is no UTF-8."""
    note = bytearray(note_of(path).read_bytes())
    note[note.index(b':"') + 2] ^= 0x80
    note_of(path).write_bytes(note)
    return MODEL


def _longer(server: GcsServer, path: Path) -> bytes:
    with path.open("ab") as file:
        file.write(bytes(2 * len(MODEL)))
    return MODEL


def _gone(server: GcsServer, path: Path) -> bytes:
    path.unlink()
    return MODEL


@pytest.mark.parametrize("change", [_other_generation, _no_note, _torn_note, _flipped_note, _longer, _gone])
def test_what_is_no_beginning_of_this_upload_is_thrown_away(
    *,
    store: GcsStore,
    gcs_server: GcsServer,
    uploaded: StoredObject,
    path: Path,
    change: Callable[[GcsServer, Path], bytes],
) -> None:
    gcs_server.fault("break", "media", at=20_000)
    gcs_server.fault("status", "media")
    with pytest.raises(StoreUnavailable):
        _fetch(store, path)
    wanted = change(gcs_server, path)
    assert _fetch(store, path) == wanted
    assert _ranges(gcs_server)[-1] is None


def test_a_part_that_a_power_cut_has_torn_is_found_out_and_fetched_anew(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path
) -> None:
    gcs_server.fault("break", "media", at=20_000)
    gcs_server.fault("status", "media")
    with pytest.raises(StoreUnavailable):
        _fetch(store, path)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(FetchFailed, match=r"checksum .* it was thrown away"):
        _fetch(store, path)
    assert list(path.parent.glob(f"*{NOTE_SUFFIX}")) == []
    assert not path.exists()
    assert _fetch(store, path) == MODEL


def test_a_server_without_ranges_begins_anew(
    store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path
) -> None:
    gcs_server.fault("break", "media", at=20_000)
    gcs_server.ranges = False
    assert _fetch(store, path) == MODEL
    assert len(_ranges(gcs_server)) == 2


@pytest.mark.parametrize("where", ["bytes 0-102399/102400", "bytes 20000-102399/999", "nonsense", ""])
def test_another_range_than_was_asked_for(
    *, store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path, where: str
) -> None:
    gcs_server.fault("break", "media", at=20_000)
    headers = {"Content-Range": where} if where else {}
    gcs_server.fault("answer", "media", status=206, body=MODEL[20_000:], headers=headers)
    with pytest.raises(FetchFailed, match="another range than was asked for, from byte 20000 on"):
        _fetch(store, path)
    assert _fetch(store, path) == MODEL


def test_a_range_that_is_not_there(store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path) -> None:
    gcs_server.fault("break", "media", at=20_000)
    gcs_server.fault("status", "media", status=416, message="no such range")
    with pytest.raises(FetchFailed, match=r"shorter than announced \(416: no such range\)"):
        _fetch(store, path)
    assert not path.exists()
    assert _fetch(store, path) == MODEL


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "text/html"}, {"Content-Type": "text/html", "Content-Length": ""}]
)
def test_a_captive_portal_in_the_middle_leaves_what_has_come(
    *, store: GcsStore, gcs_server: GcsServer, uploaded: StoredObject, path: Path, headers: dict[str, str]
) -> None:
    gcs_server.fault("break", "media", at=20_000)
    gcs_server.fault("answer", "media", status=200, body=b"<html>log in</html>", headers=headers)
    with pytest.raises(StoreUnavailable, match="captive portal"):
        _fetch(store, path)
    assert path.stat().st_size == 20_000
    assert _fetch(store, path) == MODEL
    assert _ranges(gcs_server)[-1] == "bytes=20000-"


def test_a_stop_in_a_pause_ends_it(gcs_server: GcsServer, uploaded: StoredObject, path: Path) -> None:
    stop = threading.Event()
    store = GcsStore("bucket", NAME, pause=lambda given, _: given.set())
    gcs_server.fault("break", "media", at=20_000)
    with pytest.raises(StoreUnavailable, match="the download was stopped"):
        store.fetch(store.stat(), path, stop)
    assert path.stat().st_size == 20_000
    assert len(_ranges(gcs_server)) == 1


def test_each_piece_is_paced(gcs_server: GcsServer, uploaded: StoredObject, path: Path) -> None:
    class Limits(DownloadLimits):
        paced = 0

        def pace(self, count: int, stop: threading.Event) -> None:
            self.paced += count

    limits = Limits()
    assert _fetch(GcsStore("bucket", NAME, limits=limits), path) == MODEL
    assert limits.paced == len(MODEL)
