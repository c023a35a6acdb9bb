"""Google's own Pub/Sub emulator, where it is installed, and a subscription read with Google's client.

The emulator is a Java program of the Debian package google-cloud-cli-pubsub-emulator. It keeps everything in
memory: `stop()` loses topics, subscriptions and messages, unlike the server in `tests.servers.pubsub`.
"""

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

_PACKAGE = "google-cloud-cli-pubsub-emulator"
_START_WITHIN = 60.0


def find() -> Path | None:
    """Return the emulator's start script, or None when the package is not installed."""
    dpkg = shutil.which("dpkg")
    if dpkg is None:
        return None
    listing = subprocess.run([dpkg, "-L", _PACKAGE], capture_output=True, text=True, check=False)
    scripts = (Path(line) for line in listing.stdout.splitlines() if line.endswith("/bin/cloud-pubsub-emulator"))
    return next(scripts, None)


def why_not() -> str | None:
    """Say why the emulator cannot be used here, or None."""
    if find() is None:
        return f"the Debian package {_PACKAGE} is not installed"
    return None if shutil.which("java") else "there is no java to run the Pub/Sub emulator with"


class Emulator:
    """The emulator on a port of 127.0.0.1 that stays the same over `stop()` and `start()`."""

    def __init__(self) -> None:
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._data = tempfile.TemporaryDirectory(prefix="pubsub-emulator-")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._data.cleanup()

    @property
    def address(self) -> str:
        """host:port, for PUBSUB_EMULATOR_HOST."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        script = find()
        assert script is not None, why_not()
        # The script replaces itself by java, so there is one process to end.
        self._process = subprocess.Popen(
            [str(script), "--host=127.0.0.1", f"--port={self.port}", f"--data-dir={self._data.name}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_WITHIN
        while not _accepts(self.port):
            assert self._process.poll() is None, f"the emulator ended with status {self._process.returncode}"
            assert time.monotonic() < deadline, "the emulator does not take connections"
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill it; what it held is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def create_topic(self, topic: str) -> None:
        """Create "projects/P/topics/T"."""
        create_topic(self.address, topic)


def create_topic(address: str, topic: str) -> None:
    """Create "projects/P/topics/T" on a server without encryption, with Google's client."""
    channel = grpc.insecure_channel(address)
    PublisherClient(transport=PublisherGrpcTransport(channel=channel)).create_topic(name=topic)
    channel.close()


class Subscription:
    """A subscription to one topic, pulled with Google's client. It gets what is published from now on."""

    def __init__(self, address: str, topic: str, name: str = "all") -> None:
        self._channel = grpc.insecure_channel(address)
        self._client = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))
        self._path = f"{topic.rpartition('/topics/')[0]}/subscriptions/{name}"
        self._client.create_subscription(name=self._path, topic=topic)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def pull(self, count: int, seconds: float = 60) -> list[Any]:
        """Pull and acknowledge so many messages (google.pubsub_v1.PubsubMessage), or fail the test."""
        messages: list[Any] = []
        deadline = time.monotonic() + seconds
        while len(messages) < count:
            assert time.monotonic() < deadline, f"{len(messages)} of {count} messages came"
            received = self._client.pull(subscription=self._path, max_messages=1000).received_messages
            if received:
                self._client.acknowledge(subscription=self._path, ack_ids=[each.ack_id for each in received])
            messages.extend(each.message for each in received)
        return messages


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
