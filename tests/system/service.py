"""The installed service in a machine, and a Pub/Sub server in the machine's network that checks every event."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from tests.servers.proxy import Proxy
from tests.servers.pubsub import Message, PubSubServer
from tests.system.machine import UNIT, Machine

DEVICE = "edge-001"
TOPIC = "projects/project/topics/events"
CONFIG = "/etc/edge-agent.toml"
MODEL = "/usr/lib/edge-agent/edge_agent/demo/vibration_classifier.tflite"
# Each machine has a network of its own, so the emulator's usual port is always free.
_PORT = 8085
# The agent sends its status line twice per watchdog interval: a short one spares the tests time.
_UNIT = f"[Service]\nEnvironment=PUBSUB_EMULATOR_HOST=127.0.0.1:{_PORT}\nWatchdogSec=4s\n"

# Some calls are asked for that may be refused: OpenBLAS and libnuma, which comes with FFmpeg, want memory near the
# processor, and the clock is read where systemd-timesyncd has not spoken.
_STRICT = "[Service]\nSystemCallErrorNumber=kill\nSystemCallFilter=mbind set_mempolicy adjtimex clock_adjtime\n"

_SETTINGS = """
[device]
id = "{device}"
labels = {labels}

[source]
{source}

[model]
url = "file://{model}"
poll_interval = "1s"

[inference]
labels = ["normal", "warning", "failure"]
deadline = "3s"
{inference}

[telemetry]
sink = "pubsub://project/events"
linger = "50ms"
{more}
"""
VIBRATION = """
plugin = "vibration"
rate = 50
seed = 1
normal = "2s"
warning = "1s"
failure = "1s"
"""


def settings(
    *,
    source: str = VIBRATION,
    model: str = MODEL,
    labels: str = '{ site = "lyon" }',
    inference: str = "",
    more: str = "",
) -> str:
    """Return settings for the vibration demo; what is given replaces or adds to a table."""
    return _SETTINGS.format(device=DEVICE, source=source, model=model, labels=labels, inference=inference, more=more)


class Events:
    """What has arrived at the server, by event id. Two different events under one id fail the test."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.by_id: dict[str, dict[str, Any]] = {}
        self.duplicates = 0
        for message in messages:
            self._add(message)

    def _add(self, message: Message) -> None:
        event = json.loads(message.data)
        assert message.attributes["device_id"] == event["device_id"] == DEVICE
        assert message.attributes["kind"] == event["kind"]
        self.duplicates += event["event_id"] in self.by_id
        known = self.by_id.setdefault(event["event_id"], event)
        assert known == event, "two events under one id"

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def epochs(self) -> dict[int, list[int]]:
        """The numbers of the events of each epoch, in order."""
        epochs: dict[int, list[int]] = {}
        for _, epoch, number in sorted(map(_parts, self.by_id)):
            epochs.setdefault(epoch, []).append(number)
        return epochs

    @property
    def without_hole(self) -> bool:
        """Whether the numbers of each epoch go on from 1 and none is missing."""
        return all(numbers == list(range(1, len(numbers) + 1)) for numbers in self.epochs.values())

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind in the order of their ids."""
        found = [event for event in self.by_id.values() if event["kind"] == kind]
        return sorted(found, key=lambda event: _parts(event["event_id"]))

    @property
    def lost(self) -> list[dict[str, Any]]:
        """The reports of losses, without samples that a busy machine had no time for: they never became events."""
        return [event for event in self.of("loss") if event["cause"] != "source_overrun"]

    @property
    def latest_ms(self) -> int:
        """When the newest event was made."""
        return max((event["timestamp"] for event in self.by_id.values()), default=0)

    def health(self, component: str, state: str) -> list[dict[str, Any]]:
        """The health events of a component that have this state."""
        return [event for event in self.of("health") if (event["component"], event["state"]) == (component, state)]


def _parts(event_id: str) -> tuple[str, int, int]:
    device, epoch, number = event_id.split("/")
    return device, int(epoch), int(number)


class Service:
    """The service of a machine, with a Pub/Sub server that it can reach while the context lasts."""

    server: PubSubServer

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._there = ExitStack()

    def __enter__(self) -> Self:
        self.machine.configure_unit("test", _UNIT)
        self.use(PubSubServer(), _PORT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._there.close()

    def use(self, server: PubSubServer, port: int) -> None:
        """Let this server, with the topic, be behind a port of the machine, and the one before no more."""
        self._there.close()
        self.server = self._there.enter_context(server)
        server.create_topic(TOPIC)
        self._line = self._there.enter_context(Proxy(server.address, port, self.machine.network.entered))

    def cut_off(self) -> None:
        """Break all connections to the Pub/Sub server and refuse new ones."""
        self._line.stop()

    def connect(self) -> None:
        """Let the Pub/Sub server be there again."""
        self._line.start()

    # -- running it

    def configure(self, text: str) -> None:
        """Write the settings file."""
        self.machine.write(CONFIG, text)

    def forbid_strictly(self) -> None:
        """From the next start on, a call that the sandbox does not allow ends its process instead of failing."""
        self.machine.configure_unit("strict", _STRICT)

    def start(self, text: str | None = None) -> None:
        """Restart the service, with these settings if any are given, and wait until it is at work."""
        if text is not None:
            self.configure(text)
        self.machine.systemctl("restart", UNIT)

    def work(self, text: str) -> None:
        """Restart the service with these settings, and wait until results arrive."""
        self.start(text)
        self.wait_for_results()

    # -- what it says

    def report(self) -> dict[str, Any]:
        """Return what `edge-agent status --json` prints."""
        report: dict[str, Any] = json.loads(self.machine.run("edge-agent", "status", "--json").stdout)
        return report

    def wait_for_report(self, condition: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
        """Ask until the report makes the condition true, and return it."""
        reports: list[dict[str, Any]] = []

        def holds() -> object:
            reports.append(self.report())
            return condition(reports[-1])

        self.machine.wait_until(holds, f"report with {what}")
        return reports[-1]

    def wait_for_status(self, *texts: str) -> str:
        """Wait until the status line has all these texts, and return it."""
        self.machine.wait_until(
            lambda: all(text in self.machine.status_text() for text in texts), f"status line with {texts}"
        )
        return self.machine.status_text()

    def wait_for_journal(self, text: str, *options: str) -> None:
        """Wait until the journal has a line of the service with this text."""
        self.machine.wait_until(lambda: text in self.journal(*options), f"log line with {text!r}")

    def journal(self, *options: str) -> str:
        """Return the service's lines in the journal, and systemd's about it."""
        return self.machine.journal(f"--unit={UNIT}", *options)

    def nothing_forbidden(self) -> None:
        """Check that nothing the service wanted was refused to it, and that no call killed a process."""
        journal = self.journal()
        for trace in ("Operation not permitted", "EPERM", "SIGSYS", "status=31/SYS"):
            assert trace not in journal, journal

    @property
    def pid(self) -> int:
        """The agent's process id."""
        return self.machine.main_pid()

    @property
    def worker(self) -> int:
        """The worker's process id; fails when there is not just one."""
        workers = [pid for pid in self.machine.children(self.pid) if "inference.worker" in self._command_line(pid)]
        assert len(workers) == 1, f"the workers: {workers}"
        return workers[0]

    def is_alive(self, pid: int) -> bool:
        """Whether there is a process with this id, and it has not ended."""
        state = self.machine.run("ps", "--no-headers", "--format=state", "--pid", str(pid), check=False).stdout
        return state.strip() not in {"", "Z"}

    def _command_line(self, pid: int) -> str:
        return self.machine.run("cat", f"/proc/{pid}/cmdline", check=False).stdout.replace("\0", " ")

    # -- what arrives

    @property
    def events(self) -> Events:
        """What has arrived until now."""
        return Events(self.server.messages(TOPIC))

    def wait_for_events(self, condition: Callable[[Events], object], what: str) -> Events:
        """Wait until what has arrived makes the condition true, and return it."""
        found = [self.events]

        def holds() -> object:
            found.append(self.events)
            return condition(found[-1])

        self.machine.wait_until(holds, f"events: {what} (of {len(self.events)}: {Counter(self.kinds())})")
        return found[-1]

    def kinds(self) -> list[str]:
        """The kinds of all events."""
        return [event["kind"] for event in self.events.by_id.values()]

    def wait_for_results(self, count: int = 20) -> Events:
        """Wait until so many more results have arrived."""
        before = len(self.events.of("result"))
        return self.wait_for_events(lambda events: len(events.of("result")) >= before + count, f"{count} more results")

    def nothing_lost(self, *, duplicates: bool = False, epochs: int = 1) -> Events:
        """Wait until a result of this moment has come and every event before it has, and return them.

        Also checks their order, that no loss of events was reported, that there are as many epochs as expected and,
        unless they are allowed, that none came twice.
        """
        now_ms = time.time() * 1000
        events = self.wait_for_events(
            lambda events: events.without_hole and events.latest_ms > now_ms, "all of them, up to this moment"
        )
        assert len(events.epochs) == epochs, events.epochs.keys()
        assert not events.lost, events.lost
        assert duplicates or not events.duplicates
        times = [event["timestamp"] for event in events.of("result")]
        assert times == sorted(times), "results are not in the order of time"
        return events
