"""Fixtures that several test packages share."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.servers import emulator
from tests.servers.gcs import GcsServer
from tests.servers.pubsub import PubSubServer
from tests.standin import build as edgetpu_build
from tests.standin import faultio as faulty_files

LEAK_PATIENCE = 30.0
# A shell starts what it runs in the background with SIGINT ignored, and children of this process would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes, or to think one up, says something of the machine's other work, too.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
BUCKET_LOOKS = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many tests `--numprocesses auto` runs at a time: a third of them only wait for a process."""
    return len(os.sched_getaffinity(0)) * 3 // 2


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves threads or processes behind."""
    threads, children = set(threading.enumerate()), child_processes()
    yield
    deadline = time.monotonic() + LEAK_PATIENCE
    for thread in set(threading.enumerate()) - threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in set(threading.enumerate()) - threads]
    assert not left, f"threads were left behind: {left}"
    new = child_processes() - children
    assert not new, f"processes were left behind: {[command_of(pid) for pid in new]}"


def child_processes() -> set[int]:
    """The children of this process, whichever of its threads started them."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def command_of(pid: int) -> str:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") or f"zombie {pid}"


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


@pytest.fixture(scope="session")
def faultio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes the file operations of a child process fail; see `tests/standin/faultio.c`."""
    reason = faulty_files.why_not()
    if reason is not None:
        pytest.skip(reason)
    return faulty_files.build(tmp_path_factory.mktemp("faultio"))


@pytest.fixture
def gcs_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsServer]:
    """A Cloud Storage server that google-cloud-storage talks to during the test."""
    with GcsServer() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        # The client library would look at the bucket in threads of its own, which outlive the test.
        monkeypatch.setenv(BUCKET_LOOKS, "true")
        yield server


@pytest.fixture
def pubsub() -> Iterator[PubSubServer]:
    """A Pub/Sub server with the topic projects/project/topics/events, and with scripted faults."""
    with PubSubServer() as server:
        server.create_topic("projects/project/topics/events")
        yield server


@pytest.fixture(params=["server", pytest.param("emulator", marks=pytest.mark.system)])
def pubsub_backend(request: pytest.FixtureRequest) -> Iterator[PubSubServer | emulator.Emulator]:
    """Our Pub/Sub server and Google's emulator in turn, with the topic projects/project/topics/events.

    The emulator is a Java program of a second and more, so it is for `make test-system`.
    """
    if request.param == "server":
        yield request.getfixturevalue("pubsub")
        return
    reason = emulator.why_not()
    if reason is not None:
        pytest.skip(reason)
    with emulator.Emulator() as backend:
        backend.create_topic("projects/project/topics/events")
        yield backend
