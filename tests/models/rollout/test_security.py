"""What somebody tries who may write to the bucket, or stands in its place, and has none of the keys.

Signatures have their own file (test_signatures.py), and so have labels packed in a model, golden samples
(tests/inference) and the metadata of the plain form (test_plain_store.py).
"""

import base64
import gzip
import json
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import google_crc32c
import msgspec
import pytest

from edge_agent.models.open import open_model
from edge_agent.models.release.audience import Device as Facts
from edge_agent.models.release.manifest import MAX_SIZE, Audience, ManifestError, parse
from edge_agent.models.release.releases import RemoteObject
from edge_agent.models.stores.base import FetchFailed, Store, StoreError, StoreNeedsPerson, StoreUnavailable
from edge_agent.models.stores.gcs import GcsStore
from edge_agent.settings.location import parse_location
from tests.models.rollout.release_kit import KEY, THIEF, edited
from tests.models.stores.store_kit import NOON, Site, put

GIGABYTE = 1 << 30
ESCAPES = "v1\x1b]0;owned\x07\x1b[2J\r\n2026-01-01 forged line\u202e\u2028"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def refusal(store: Store) -> str:
    with pytest.raises(StoreError) as error:
        store.stat()
    return str(error.value)


# ------------------------------------------------------------------------------------------ objects


def fetched(store: Store, remote: RemoteObject, folder: Path) -> bytes:
    store.fetch(remote, folder / "fetched", threading.Event())
    return (folder / "fetched").read_bytes()


@pytest.mark.parametrize("size", ["another", "the same"])
def test_a_tampered_object(site: Site, tmp_path: Path, size: str) -> None:
    made = site.publish(site.made("v1.4"))
    tampered = b"MODEL v1.4" if size == "the same" else b"another model"
    put(site.folder / "objects" / made.model.name, tampered)
    store = site.store()
    with pytest.raises(FetchFailed, match=r"another|bytes"):
        fetched(store, store.stat(), tmp_path)


def test_swapped_objects(site: Site, tmp_path: Path) -> None:
    older = site.made("v1.3")
    made = site.publish(site.made("v1.4", twin=b"twin  v1.4"))
    assert made.twin is not None
    assert made.model.size == made.twin.size == older.model.size
    store, objects = site.store(), site.folder / "objects"
    remote = store.stat()
    names = {"the twin": made.twin.name, "of another release": older.model.name}
    for where in names.values():
        put(objects / made.model.name, (objects / where).read_bytes())
        with pytest.raises(FetchFailed, match="its SHA-256 is another"):
            fetched(store, remote, tmp_path)
    put(objects / made.model.name, b"model v1.4")
    put(objects / made.twin.name, b"model v1.4")
    with pytest.raises(FetchFailed, match="its SHA-256 is another"):
        fetched(store.twin, store.twin.stat(), tmp_path)
    put(objects / made.model.name, b"model v1.4")
    again = site.store()
    assert fetched(again, again.stat(), tmp_path) == b"model v1.4"


# ------------------------------------------------------------------------------------------ manifests


def test_whoever_has_no_key_can_change_nothing_about_whom_a_release_is_for(site: Site) -> None:
    good = site.publish(site.made("v1.4", before=site.made("v1.3"), audience=Audience(percent=0)))
    file = parse((site.folder / "release.json").read_bytes())
    for change in (
        {"audience": {"percent": 100}},
        {"audience": {"halted": True}},
        {"before": None},
        {"expires": None, "sequence": good.sequence + 1},
        {"acceptance": {"min_agreement": 0}},
    ):
        (site.folder / "release.json").write_bytes(edited(file, **change))
        assert "was changed after it was signed with" in refusal(site.store())


def test_a_member_that_stands_twice_is_not_read_one_way_and_checked_another(site: Site) -> None:
    site.publish(site.made("v1.4"))
    good = (site.folder / "release.json").read_bytes()
    site.publish(site.made("v6.6"), THIEF)
    evil = parse((site.folder / "release.json").read_bytes())
    for text in (
        good.replace(b'"signatures"', b'"release": %s, "signatures"' % evil.signed, 1),
        good.replace(b"{", b'{"release": %s, ' % evil.signed, 1),
        good.replace(b"{", b'{"audience": {"percent": 100}, "version": "v6.6", "unknown": [{}], ', 1),
    ):
        (site.folder / "release.json").write_bytes(text)
        try:
            found = site.store().stat().version
        except StoreNeedsPerson as error:
            found = "v1.4" if "was changed after it was signed" in str(error) else str(error)
        assert found == "v1.4"


def test_deep_nesting_is_refused_in_words(site: Site) -> None:
    made = site.made("v1.4")
    release = msgspec.json.encode(made)
    nested = release
    for _ in range(600):
        nested = release[:-1] + b', "before": ' + nested + b"}"
    deep = [b"[" * 200_000, b'{"release": ' * 20_000, b'{"release": {"format": 1, "x": ' + b"[" * 200_000]
    for content in (*deep, b'{"release": %s}' % nested):
        assert len(content) < MAX_SIZE
        (site.folder / "release.json").write_bytes(content)
        assert "is no manifest of a release" in refusal(site.store()) or "is not signed" in refusal(site.store())
    model = site.folder / "m.tflite"
    put(model, b"model")
    (site.folder / "m.tflite.json").write_bytes(b"[" * 200_000)
    plain = open_model(parse_location(str(model)), [], device=Facts("edge-001"))
    assert "m.tflite.json cannot be read" in refusal(plain)


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "a\nb", "\x9b1m", "\u202egnp.exe", "a\u2028b", "\x00", "\x7f"])
def test_nothing_in_a_manifest_reaches_a_terminal_raw(site: Site, text: str) -> None:
    site.publish(site.made("v1.4"))
    good = parse((site.folder / "release.json").read_bytes())
    for change in (
        {"name": text},
        {"version": text},
        {"labels": ["good", text]},
        {"inputs": [text]},
        {"outputs": [text]},
        {"audience": {"cohorts": [{"site": text}]}},
        {"audience": {"cohorts": [{text: "lyon"}]}},
        {"before": {"version": text}},
    ):
        with pytest.raises(ManifestError) as error:
            parse(edited(good, **change))
        assert str(error.value).isprintable()


def test_nothing_in_the_metadata_of_an_object_reaches_a_terminal_raw(tmp_path: Path) -> None:
    put(tmp_path / "m.tflite", b"model")
    store = open_model(parse_location(str(tmp_path / "m.tflite")), [], device=Facts("edge-001"))

    def said(**facts: Any) -> str:
        (tmp_path / "m.tflite.json").write_text(json.dumps({"version": "v1"} | facts))
        try:
            remote = store.stat()
        except StoreError as error:
            return str(error)
        return "".join([remote.version, remote.withheld, *(remote.labels or []), *remote.remarks])

    for facts in (
        {"version": ESCAPES},
        {"labels": ESCAPES},
        {"labels": [ESCAPES, "b"]},
        {"labels": "[1" + ESCAPES},
        {"accuracy": ESCAPES},
        {"rollout": ESCAPES},
        {"rollout": "a=\x1b"},
        {"rollout": f"{ESCAPES}={ESCAPES}"},
        {"rollout": "0%", "version": ESCAPES},
        {"sha256": ESCAPES},
    ):
        assert said(**facts).isprintable(), facts


# ------------------------------------------------------------------------------------------ bombs


def peak(store: Store) -> tuple[str, int]:
    """What it says, and how many bytes of memory that takes at most."""
    tracemalloc.start()
    try:
        return refusal(store), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_manifest_of_a_gigabyte_in_a_folder(site: Site) -> None:
    with (site.folder / "release.json").open("wb") as file:
        file.truncate(GIGABYTE)
    said, memory = peak(site.store())
    assert f"has {GIGABYTE} bytes, and at most {MAX_SIZE} are read" in said
    assert memory < 8 * MAX_SIZE


class Liar(ThreadingHTTPServer):
    """A server that says one thing of an object and sends another; `sent` is how many bytes of it were taken."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _LiarHandler)
        self.claimed = 100
        self.encoding = "identity"
        self.block = bytes(1 << 20)
        self.blocks = 1024
        self.sent = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever has heard enough hangs up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _LiarHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Liar

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """Nobody wants to read that."""

    def do_GET(self) -> None:
        self._media() if "alt=media" in self.path else self._metadata()

    def _metadata(self) -> None:
        crc = base64.b64encode(google_crc32c.Checksum(b"").digest()).decode()
        said = {"name": "release.json", "generation": "1", "size": str(self.server.claimed), "crc32c": crc}
        self._head(len(body := json.dumps(said).encode()))
        self.wfile.write(body)

    def _media(self) -> None:
        self._head(len(self.server.block) * self.server.blocks, self.server.encoding)
        try:
            for _ in range(self.server.blocks):
                self.wfile.write(self.server.block)
                self.server.sent += len(self.server.block)
        except ConnectionError:
            self.close_connection = True

    def _head(self, length: int, encoding: str = "identity") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Encoding", encoding)
        self.end_headers()


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> Iterator[Liar]:
    server = Liar()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def of_bucket() -> Store:
    return open_model(parse_location("gs://bucket/release.json"), [], device=Facts("edge-001"))


def test_a_manifest_that_claims_a_gigabyte_is_not_asked_for(liar: Liar) -> None:
    liar.claimed = GIGABYTE
    said, _ = peak(of_bucket())
    assert f"has {GIGABYTE} bytes, and at most {MAX_SIZE} are read" in said
    assert liar.sent == 0


def test_a_manifest_that_is_a_gigabyte_and_does_not_say_so(liar: Liar) -> None:
    GcsStore("bucket", "warm").stat()  # the library, and what it keeps
    said, memory = peak(of_bucket())
    assert "came with more bytes than announced; it was thrown away" in said
    assert liar.sent < 32 << 20
    assert memory < 4 << 20


def test_a_manifest_that_unpacks_to_a_gigabyte(liar: Liar) -> None:
    GcsStore("bucket", "warm").stat()
    liar.block, liar.blocks = gzip.compress(bytes(64 << 20)), 1
    liar.claimed, liar.encoding = len(liar.block), "gzip"
    said, memory = peak(of_bucket())
    assert "it comes packed (gzip)" in said
    assert memory < 4 << 20


def test_a_manifest_that_was_replaced_by_a_folder_or_a_device(site: Site) -> None:
    (site.folder / "release.json").mkdir()
    assert "is a folder" in refusal(site.store())
    (site.folder / "release.json").rmdir()
    (site.folder / "release.json").symlink_to("/dev/zero")
    said, memory = peak(site.store())
    assert "is no file" in said
    assert memory < 8 * MAX_SIZE


# ------------------------------------------------------------------------------------------ time


def test_a_release_of_yesterday_that_has_expired_comes_back_with_no_clock(site: Site) -> None:
    """Whoever keeps the network's time away can at most keep releases away, too."""
    site.publish(site.made("v1.3", expires=int(NOON) - 1))
    for clock in (0.0, 1.0, 1_767_225_599.0):
        site.now = clock
        with pytest.raises(StoreUnavailable, match="cannot be told"):
            site.store().stat()
    site.now = NOON
    assert "has expired" in refusal(site.store())


def test_the_key_that_signs_is_one_that_is_trusted_now(site: Site) -> None:
    site.publish(site.made("v1.4"), THIEF)
    assert "and not with" in refusal(site.store())
    site.publish(site.made("v1.4"), KEY)
    store = site.store()
    assert store.stat().version == "v1.4"
    # Keys are read anew at each poll: one that is taken away is not believed from then on.
    (site.folder / "release.pub.pem").write_bytes(b"")
    assert "holds no public key" in refusal(store)
