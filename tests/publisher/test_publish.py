"""Releases on their way from the publisher to a device, through a folder and through a real server."""

import functools
import re
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_agent.models.release.manifest import parse
from edge_agent.publisher import commands
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.keys import sign_release
from edge_agent.publisher.places import open_place
from edge_agent.publisher.publish import publish
from tests.inference.conftest import ROOT
from tests.models.rollout.release_kit import public_file
from tests.publisher.conftest import Workshop, command
from tests.servers.gcs import GcsServer

DEMO = ROOT / "edge_agent/demo/vibration_classifier.tflite"


def test_the_whole_way_by_commands(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    folder = workshop.folder / "out"
    build = ("build", "--name", "vibration", "--version", "v1.4", "--model", DEMO, folder)
    assert command(*build) == 0
    assert command("sign", folder, "--key", workshop.key, "--expires", "90d") == 0
    assert command("show", folder, "--key", workshop.public) == 0
    assert command("publish", folder, workshop.url) == 0
    assert workshop.seen_by_device() == "v1.4"
    said = capsys.readouterr().out
    assert "release.json: vibration v1.4, not signed yet\n" in said
    assert ", good until 20" in said
    assert f"  devices with {workshop.public} believe it: " in said
    assert said.endswith("/release.json: vibration v1.4\n")


def test_a_second_release_uploads_what_is_new_and_says_what_it_replaces(workshop: Workshop) -> None:
    first = workshop.publish(workshop.build("v1.3", 1))
    assert (first.previous, len(first.uploaded)) == (None, 1)
    again = workshop.publish(workshop.build("v1.3", 2))
    assert (again.previous.version, again.uploaded) == ("v1.3", [])
    new = workshop.publish(workshop.build("v1.4", 3, b"another model"))
    assert (new.previous.sequence, len(new.uploaded)) == (2, 1)
    assert workshop.seen_by_device() == "v1.4"


def test_of_two_at_the_same_time_one_is_told(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    ours, theirs = workshop.build("v1.4", 2, b"ours"), workshop.build("v1.5", 3, b"theirs")
    place = open_place(workshop.url)
    put_object = place.put_object

    def meanwhile(*arguments: Any) -> None:
        workshop.publish(theirs)
        put_object(*arguments)

    monkeypatch.setattr(place, "put_object", meanwhile)
    with pytest.raises(ReleaseError, match="publish again"):
        publish(ours, place)
    assert workshop.seen_by_device() == "v1.5"


def test_what_devices_would_take_for_an_old_one_is_not_published(workshop: Workshop) -> None:
    old = workshop.build("v1.3", 1)
    workshop.publish(workshop.build("v1.4", 2, b"new"))
    with pytest.raises(ReleaseError, match=r"v1\.4, which was built later; .* build it again to go back"):
        workshop.publish(old)
    assert workshop.seen_by_device() == "v1.4"


def test_files_that_changed_after_the_build_are_not_published(workshop: Workshop) -> None:
    folder = workshop.build("v1.3", 1)
    [file] = (folder / "objects").iterdir()
    file.write_bytes(b"MODEL")
    with pytest.raises(ReleaseError, match=r"is not what .* says; build the release again"):
        workshop.publish(folder)
    file.unlink()
    with pytest.raises(ReleaseError, match="is missing; build the release again"):
        workshop.publish(folder)
    assert "there is no" in workshop.seen_by_device()


def test_an_object_with_another_content_is_not_passed_over(gcs_server: GcsServer, tmp_path: Path) -> None:
    gcs_server.create_bucket("bucket")
    workshop = Workshop(tmp_path, "gs://bucket/models/vibration")
    folder = workshop.build("v1.3", 1)
    name = parse((folder / "release.json").read_bytes()).manifest.model.name
    gcs_server.upload("bucket", f"models/vibration/objects/{name}", b"other")
    with pytest.raises(ReleaseError, match="is there with another content"):
        workshop.publish(folder)


@pytest.mark.parametrize("status", [401, 403, 404, 412, 429, 500, 503])
def test_a_bucket_that_refuses(gcs_server: GcsServer, tmp_path: Path, status: int) -> None:
    gcs_server.create_bucket("bucket")
    workshop = Workshop(tmp_path, "gs://bucket/models/vibration")
    folder = workshop.build("v1.3", 1)
    gcs_server.fault("status", "upload", status=status, message="no")
    if status == 412:  # a lost answer: the object is there
        workshop.publish(folder)
        return
    with pytest.raises(ReleaseError, match=r"^gs://bucket/models/vibration/"):
        workshop.publish(folder)
    assert "there is no such object" in workshop.seen_by_device()
    # The manifest comes last, so a second try does it all.
    workshop.publish(folder)
    assert workshop.seen_by_device() == "v1.3"


def test_a_publisher_gets_no_advice_for_devices(gcs_server: GcsServer, tmp_path: Path) -> None:
    gcs_server.create_bucket("bucket")
    workshop = Workshop(tmp_path, "gs://bucket/models/vibration")
    folder = workshop.build("v1.3", 1)
    gcs_server.fault("status", "metadata", status=403, message="no")
    with pytest.raises(ReleaseError, match=r"grant roles/storage\.objectUser on the bucket to whoever publishes"):
        workshop.publish(folder)


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key.pem"
    assert command("new-key", file) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(tmp_path / "key.pub.pem") in capsys.readouterr().out
    before = file.read_bytes()
    assert command("new-key", file) == 65
    assert file.read_bytes() == before
    assert "is there already" in capsys.readouterr().err


def test_a_release_that_devices_do_not_believe_is_an_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop = Workshop(tmp_path, str(tmp_path / "share"))
    folder = workshop.build("v1.3", 1)
    other = public_file(Ed25519PrivateKey.generate(), tmp_path)
    assert command("show", folder, "--key", other) == 65
    assert "do not believe it: it is signed with" in capsys.readouterr().err
    assert command("show", folder, "--key", workshop.key) == 65
    assert capsys.readouterr().err == f"{workshop.key}: holds no public key in PEM form\n"
    sign_release(folder, [workshop.key], expires=1_000_000_000)
    assert command("show", folder, "--key", workshop.public) == 65
    assert "do not take it: v1.3 was good until 2001-09-09: sign it again" in capsys.readouterr().err


def test_a_stop_by_the_keyboard_is_told_and_can_be_made_good(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workshop.build("v1.3", 1)
    with monkeypatch.context() as patch:
        patch.setattr(commands, "publish", functools.partial(publish, show=interrupted))
        assert command("publish", folder, workshop.url) == 130
    assert capsys.readouterr().err == "stopped; no device sees the half of a release: give the same command again\n"
    assert "there is no" in workshop.seen_by_device()
    assert command("publish", folder, workshop.url) == 0
    assert workshop.seen_by_device() == "v1.3"


@contextmanager
def interrupted(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Ctrl-C while the first bytes are on their way."""

    def watch(count: int) -> None:
        raise KeyboardInterrupt

    yield watch


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workshop = Workshop(tmp_path, str(tmp_path / "share"))
    folder = workshop.build("v1.3", 1, bytes(10_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        assert command("publish", folder, workshop.url) == 74
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.fullmatch(rf"{tmp_path}/share/objects/[0-9a-f]+-model\.tflite: File too large\n", capsys.readouterr().err)
    assert list((tmp_path / "share/objects").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("show", "{folder}/none"), 74, "none/release.json: No such file or directory"),
        (("sign", "{folder}", "--key", "{folder}/none.pem"), 74, "none.pem: No such file"),
        (("sign", "{folder}", "--key", "{folder}/release.json"), 65, "holds no private key in PEM form"),
        (("sign", "{folder}", "--key", "{key}", "--expires", "soon"), 65, "--expires: "),
        (("publish", "{folder}", "https://host/x"), 65, "must begin with gs:// or file:///"),
        (("publish", "{folder}", "gs:/bucket/x"), 65, '"gs:/bucket/x" is neither a URL nor meant as a path'),
        (
            ("build", "--name", "n", "--version", "v", "--model", "{folder}/none", "{folder}/out"),
            65,
            "cannot be used: No such file",
        ),
    ],
)
def test_what_is_said_of_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, said: str
) -> None:
    workshop = Workshop(tmp_path, str(tmp_path / "share"))
    folder = workshop.build("v1.3", 1)
    assert command(*(each.format(folder=folder, key=workshop.key) for each in arguments)) == status
    assert said in capsys.readouterr().err


def test_a_new_expiry_takes_the_old_signatures_away(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, str(tmp_path / "share"))
    folder = workshop.build("v1.3", 1)
    before = parse((folder / "release.json").read_bytes())
    after, lost = sign_release(folder, [workshop.key], expires=2_000_000_000)
    assert lost == []
    assert (after.manifest.expires, len(after.signatures)) == (2_000_000_000, 1)
    assert after.signatures != before.signatures
