import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge_agent.models.stores import directory
from tests.models.rollout.rollout_kit import Device
from tests.servers.gcs import GcsServer


@pytest.fixture(autouse=True)
def files_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as they are there: what tests write is not looked at twice."""
    monkeypatch.setattr(directory, "QUIET", 0.0)


@pytest.fixture
def device(tmp_path: Path, gcs_server: GcsServer) -> Iterator[Device]:
    gcs_server.create_bucket("bucket")
    yield Device(tmp_path / "models", gcs_server)
    gcs_server.resume()
    for thread in threading.enumerate():
        if thread.name == "model-store":
            thread.join(30)


@pytest.fixture
def log() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as lines:
        yield lines
