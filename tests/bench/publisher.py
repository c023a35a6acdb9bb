"""A Pub/Sub server that counts what is published and keeps nothing: `python -m tests.bench.publisher COUNTER [TIMES]`.

Runs as its own process, so that its work is not counted as the agent's. COUNTER is a file of 8 bytes, the number of
messages so far; TIMES gets a line for each result, its `inference_time_ms`. The port is printed.
"""

import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from google.pubsub_v1.types import PublishRequest, PublishResponse

TIME = re.compile(rb'"inference_time_ms":([0-9.]+)')


class Counter:
    """A number that two processes share through a file."""

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 8)
        self._slot = memoryview(self._map).cast("q")

    @property
    def value(self) -> int:
        """How many messages were published."""
        return self._slot[0]

    def add(self, count: int) -> None:
        """Count more messages."""
        self._slot[0] += count


def main() -> None:
    """Serve until killed."""
    counter, lock = Counter(Path(sys.argv[1])), threading.Lock()
    times = Path(sys.argv[2]).open("w", buffering=1) if len(sys.argv) > 2 else None  # noqa: SIM115  until killed
    request_type, response_type = PublishRequest.pb(), PublishResponse.pb()

    def publish(request: object, context: object) -> object:
        count = len(request.messages)  # type: ignore[attr-defined]  # a protobuf message, which has no types here
        with lock:
            counter.add(count)
            if times is not None:
                times.writelines(f"{found[1].decode()}\n" for m in request.messages if (found := TIME.search(m.data)))  # type: ignore[attr-defined]
        return response_type(message_ids=["1"] * count)

    method = grpc.unary_unary_rpc_method_handler(
        publish, request_deserializer=request_type.FromString, response_serializer=response_type.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": method}),)
    )
    sys.stdout.write(f"{server.add_insecure_port('127.0.0.1:0')}\n")
    sys.stdout.flush()
    server.start()
    server.wait_for_termination()


@contextmanager
def counting_server(folder: Path, times: Path | None = None) -> Iterator[tuple[str, Counter]]:
    """Run the server for the length of the block; gives its address and its counter.

    `times` is where the times of invokes go: for a slow model only, as looking at each event is work.
    """
    file = folder / "published"
    kept = [str(times)] if times is not None else []
    file.write_bytes(bytes(8))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.publisher", str(file), *kept],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        yield f"127.0.0.1:{port}", Counter(file)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
