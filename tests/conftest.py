"""Fixtures that several test packages share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.gcs import GcsServer
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
