"""Fixtures that several test packages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import emulator
from tests.servers.gcs import GcsServer
from tests.servers.pubsub import PubSubServer
from tests.standin import build as edgetpu_build


@pytest.fixture(scope="session")
def edgetpu_standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a `libedgetpu.so.1` that needs no Edge TPU; see `tests/standin/edgetpu_standin.c`.

    A child process started with `tests.standin.build.environment(folder, mode)` finds it.
    """
    reason = edgetpu_build.why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("edgetpu-standin")
    edgetpu_build.build(folder)
    return folder


@pytest.fixture
def gcs_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    """A Cloud Storage server that google-cloud-storage talks to during the test."""
    with GcsServer() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        yield server


@pytest.fixture
def pubsub() -> Iterator[PubSubServer]:
    """A Pub/Sub server with the topic projects/project/topics/events, and with scripted faults."""
    with PubSubServer() as server:
        server.create_topic("projects/project/topics/events")
        yield server


@pytest.fixture(params=["server", "emulator"])
def pubsub_backend(request: pytest.FixtureRequest) -> Iterator[PubSubServer | emulator.Emulator]:
    """Our Pub/Sub server and Google's emulator in turn, with the topic projects/project/topics/events."""
    if request.param == "server":
        yield request.getfixturevalue("pubsub")
        return
    reason = emulator.why_not()
    if reason is not None:
        pytest.skip(reason)
    with emulator.Emulator() as backend:
        backend.create_topic("projects/project/topics/events")
        yield backend
