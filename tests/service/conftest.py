"""What the tests of both ends of the control socket need."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture
def no_descriptor_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    # What was left open before and has been collected since is none of this test's doing.
    assert set(descriptors()) - set(before) == set()


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the folder
            found.append(f"{descriptor.name} {descriptor.readlink()}")
    return sorted(entry for entry in found if not entry.endswith("/fd"))


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "control.sock"


@pytest.fixture
def hanging_server(path: Path) -> Iterator[socket.socket]:
    """A server that takes no connection, and has as many waiting as it can."""
    with socket.socket(socket.AF_UNIX) as hanging, socket.socket(socket.AF_UNIX) as waiting:
        hanging.bind(str(path))
        hanging.listen(0)
        waiting.connect(str(path))
        yield hanging
