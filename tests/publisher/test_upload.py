"""A model in the plain form: uploaded by its publisher, taken by a device with the key."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from edge_agent.models.open import open_model
from edge_agent.models.release.audience import Device
from edge_agent.models.stores import directory
from edge_agent.models.stores.base import StoreError
from edge_agent.publisher import upload as module
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.keys import make_key, read_keys
from edge_agent.publisher.upload import Plain, upload
from edge_agent.settings.location import parse_location
from tests.inference.conftest import DEMO_MODEL
from tests.publisher.conftest import PLACES, command
from tests.servers.gcs import GcsServer

NAME = "models/latest/model.tflite"


@pytest.fixture(params=PLACES)
def url(request: pytest.FixtureRequest, tmp_path: Path, gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(directory, "QUIET", 0.0)  # nobody copies here while another one looks
    gcs_server.create_bucket("bucket")
    return f"gs://bucket/{NAME}" if request.param == "bucket" else str(tmp_path / "share/model.tflite")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def seen(url: str, key: Path, device: str = "edge-001", name: str = "") -> Any:
    public, location = key.with_name("key.pub.pem"), parse_location(url)
    device_facts = Device(device, {"site": "lyon"})
    store = open_model(location, [str(public)], device=device_facts, name=name or location.default_name)
    try:
        return store.stat(), store
    except StoreError as error:
        return error.reason, store


def test_by_a_command_and_taken_by_a_device_with_the_key(
    url: str, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("normal\nwarning\nfailure\n")
    facts = ("--labels", labels, "--accuracy", 0.94)
    assert command("upload", DEMO_MODEL, url, "--version", "v1.3", *facts, "--key", key) == 0
    said = capsys.readouterr()
    assert said.out.endswith("model.tflite: v1.3, for 100%\n")
    assert "warning" not in said.err
    plain = open_model(parse_location(url), [], device=Device("edge-001")).stat()
    assert (plain.version, plain.labels, plain.accuracy) == ("v1.3", ["normal", "warning", "failure"], 0.94)
    remote, store = seen(url, key)
    assert (remote.version, remote.labels, remote.accuracy) == (plain.version, plain.labels, plain.accuracy)
    store.fetch(remote, tmp_path / "fetched", threading.Event())
    assert (tmp_path / "fetched").read_bytes() == DEMO_MODEL.read_bytes()

    assert command("upload", DEMO_MODEL, url, "--version", "v1.4", "--cohort", "site=paris", "--key", key) == 0
    assert capsys.readouterr().out.endswith("model.tflite: v1.4, for 0% site=paris, instead of v1.3\n")
    assert "v1.4 is out for site=paris" in seen(url, key)[0].withheld


def test_it_is_signed_as_a_version_of_one_model(url: str, key: Path) -> None:
    assert command("upload", DEMO_MODEL, url, "--version", "v1.3", "--key", key, "--name", "vibration") == 0
    assert seen(url, key, name="vibration")[0].version == "v1.3"
    assert "is signed as a version of 'vibration', and not of 'temperature'" in seen(url, key, name="temperature")[0]


def test_what_is_not_signed_is_not_for_devices_with_keys(
    url: str, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("upload", DEMO_MODEL, url, "--version", "v1.3", "--percent", "10") == 0
    assert capsys.readouterr().out.endswith("v1.3, for 10%, not signed\n")
    assert "is not signed" in seen(url, key)[0]


def test_each_upload_has_a_higher_sequence(url: str, key: Path) -> None:
    sequences = []
    for version in ("v1.3", "v1.4", "v1.4"):
        upload(Plain(model=DEMO_MODEL, version=version), url, key=read_keys([key])[0])
        sequences.append(seen(url, key)[0].sequence)
    assert sequences == sorted(set(sequences))


def test_of_two_at_the_same_time_one_is_told(url: str, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "_claims", claims)
        upload(Plain(model=DEMO_MODEL, version="theirs"), url, key=read_keys([key])[0])
        return claims(*arguments)

    claims = module._claims
    for version in ("first", "second"):
        monkeypatch.setattr(module, "_claims", meanwhile)
        with pytest.raises(ReleaseError, match=r"model\.tflite: somebody else has uploaded a model meanwhile"):
            upload(Plain(model=DEMO_MODEL, version=version), url)
        assert seen(url, key)[0].version == "theirs"


def test_an_answer_that_is_lost_is_no_failure(gcs_server: GcsServer, key: Path) -> None:
    gcs_server.create_bucket("bucket")
    url = f"gs://bucket/{NAME}"
    gcs_server.fault("break", "upload", method="PUT")
    assert command("upload", DEMO_MODEL, url, "--version", "v1.3", "--key", key) == 0
    assert seen(url, key)[0].version == "v1.3"
    gcs_server.fault("status", "upload", method="PUT", message="not now")
    with pytest.raises(ReleaseError, match="the server answers 503: not now"):
        upload(Plain(model=DEMO_MODEL, version="v1.4"), url)
    assert seen(url, key)[0].version == "v1.3"


def test_what_people_find_beside_a_file(tmp_path: Path) -> None:
    upload(Plain(model=DEMO_MODEL, version="v1.3", labels=["é", "b"]), str(tmp_path / "share/model.tflite"))
    document = json.loads((tmp_path / "share/model.tflite.json").read_text())
    assert sorted(document) == ["labels", "name", "sequence", "sha256", "version"]
    assert sorted(path.name for path in (tmp_path / "share").iterdir()) == ["model.tflite", "model.tflite.json"]


@pytest.mark.parametrize(
    ("plain", "target", "said"),
    [
        ({"version": "v1\n"}, f"gs://bucket/{NAME}", r"'v1\\n' is no version"),
        ({}, "gs://bucket/models/release.json", "that is the manifest of releases; use `edge-agent release publish`"),
        ({}, "https://host/x", "must begin with gs:// or file:///"),
        ({}, "gs://none/x.tflite", "there is no such bucket"),
        ({"accuracy": 94.0}, f"gs://bucket/{NAME}", "--accuracy: 94 is none: it is from 0 to 1"),
        ({"labels": ["label" * 20] * 100}, f"gs://bucket/{NAME}", "the metadata would have .* leave the labels out"),
    ],
)
def test_mistakes(gcs_server: GcsServer, plain: dict[str, Any], target: str, said: str) -> None:
    gcs_server.create_bucket("bucket")
    with pytest.raises(ReleaseError, match=said):
        upload(Plain(**{"model": DEMO_MODEL, "version": "v1", **plain}), target)
