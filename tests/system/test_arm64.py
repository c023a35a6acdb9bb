"""The arm64 package, which is put together on amd64, runs on arm64 Debian, and what it calculates is right.

Emulated: see arm64.py for what that leaves out, above all systemd and with it the unit. The reference is the same code
on this machine's processor.
"""

import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest

from edge_agent import __version__
from edge_agent.inference.interpreter.model import build
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import ProgressPage, Reporter, Track
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import ModelFile, Sample
from edge_agent.settings.units import parse_duration
from edge_agent.sources.base import Pacer
from edge_agent.sources.vibration import LEVELS, SPREADS, Vibration
from tests.system.arm64 import (
    PROCESSOR,
    USER,
    USER_ID,
    Arm64,
    base_tree,
    children,
    command_line,
    emulation,
    why_not,
)
from tests.system.conftest import ROOT, build_deb
from tests.system.roots import DISTRIBUTIONS

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

PATIENCE = 300.0
STATE = f"/home/{USER}/state"
LIBRARY = "/usr/lib/edge-agent"
MODEL = "edge_agent/demo/vibration_classifier.tflite"
LABELS = ["normal", "warning", "failure"]
# So many first values of each sample go into its event: it is known again by them.
KNOWN_BY = 4
# Of one unit of the model's 8-bit output. The scores in events are rounded to 7 decimals.
STEP = 1 / 256 + 1e-7
# Of samples between the phases, those that the model is less sure of are taken. One step in the values behind its
# last layer changes their scores by up to 0.12, so that the smallest mistake in an earlier layer shows.
CANDIDATES, VALUES, SURE = 8000, 128, 0.95
# The runtime and NumPy choose their kernels by what the processor can do.
BOARDS = {"Coral Dev Board": "cortex-a53", "Raspberry Pi 4": PROCESSOR, "Raspberry Pi 5": "cortex-a76"}

# Products of whole numbers, which are known to the last bit. A warning is an error: of a processor that claims to have
# divided by zero on the way, as qemu's "max" does, no result can be trusted.
CALCULATION = f"""
import sys
sys.path.insert(0, {LIBRARY!r})
import numpy as np
generator = np.random.default_rng(1)
for size in (3, 4, 7, 8, 16, 33, 64, 100):
    a, b = generator.integers(-400, 400, (2, size, size))
    for kind in (np.float32, np.float64):
        x, y = a.astype(kind), b.astype(kind)
        assert ((x @ y) == a @ b).all(), ("matrix by matrix", size, kind)
        assert ((x @ y[0]) == a @ b[0]).all(), ("matrix by vector", size, kind)
"""
RECORDING = f"""
[device]
id = "recording"
[source]
plugin = "recording"
path = "samples.npy"
[model]
url = "{LIBRARY}/{MODEL}"
[inference]
labels = {json.dumps(LABELS)}
[telemetry]
sink = "events.jsonl"
raw_data = {KNOWN_BY}
"""
FAULTY = """
[source]
plugin = "vibration"
rate = "fast"
[model]
url = "ftp://example.com/model.tflite"
[telemetry]
sink = "events.jsonl"
raw_data = -1
"""

Readings = npt.NDArray[np.float32]
Event = dict[str, Any]


@pytest.fixture(scope="module")
def emulated() -> Iterator[None]:
    """Arm64 programs can be run."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with emulation():
        yield


@pytest.fixture(scope="module", params=DISTRIBUTIONS)
def system(request: pytest.FixtureRequest, emulated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arm64]:
    """What is essential in Debian, what edge-agent depends on, and edge-agent, installed by arm64's own dpkg."""
    deb = build_deb(request.param, "arm64")
    folder = tmp_path_factory.mktemp("arm64") / request.param
    with base_tree(request.param, dependencies(deb)) as tree, Arm64(tree, folder) as system:
        shutil.copy(deb, system.root / "root")
        system.run("dpkg", "--force-unsafe-io", "--install", f"/root/{deb.name}")
        yield system


def dependencies(deb: Path) -> list[str]:
    """Return the packages in Depends, the first of alternatives, without versions: those are for dpkg to check."""
    field = subprocess.run(["dpkg-deb", "--field", deb, "Depends"], capture_output=True, text=True, check=True).stdout
    firsts = (clause.partition("|")[0].partition("(")[0].strip() for clause in field.split(","))
    return sorted({first.partition(":")[0] for first in firsts})


class Agent:
    """`edge-agent` at work in the system, run by the ordinary user; ends with the context at the latest."""

    def __init__(self, system: Arm64, log: Path, *arguments: str, **environ: str) -> None:
        self._events = inside(system) / "events.jsonl"
        self._log = log
        with log.open("w") as output:
            self._process = system.start("edge-agent", *arguments, "--state-dir", STATE, log=output, **environ)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.end(signal.SIGKILL)

    @cached_property
    def pid(self) -> int:
        """The agent itself: what was started here has only entered the system."""
        return children(self._process.pid)[0]

    def worker(self) -> int:
        """Return the worker's process id."""
        return next(pid for pid in children(self.pid) if "edge_agent.inference.worker" in command_line(pid))

    def events(self) -> list[Event]:
        """Return all events that have been written, those of agents before this one too."""
        lines = self._events.read_text().splitlines(keepends=True) if self._events.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_until(self, condition: Callable[[list[Event]], bool], what: str) -> list[Event]:
        """Wait until the events that have been written fulfil the condition, and return them."""
        deadline = time.monotonic() + PATIENCE
        while not condition(events := self.events()):
            said = self._log.read_text()
            assert self._process.poll() is None, f"ended ({self._process.returncode}) before {what}:\n{said}"
            assert time.monotonic() < deadline, f"not in {PATIENCE:.0f} s: {what}\n{said}"
            time.sleep(0.2)
        return events

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it the signal, and return how it ended, as `subprocess.Popen.returncode`."""
        os.kill(self.pid, number)
        return self._process.wait(PATIENCE)


def inside(system: Arm64) -> Path:
    """The agent's folder in the system, as a path on this machine."""
    return system.root / STATE.lstrip("/")


@pytest.fixture
def empty_state(system: Arm64) -> Iterator[Path]:
    """The agent's folder, empty."""
    folder = inside(system)
    folder.mkdir()
    os.chown(folder, USER_ID, USER_ID)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scores() -> Iterator[Callable[[Readings], dict[str, float]]]:
    """What this machine makes of a sample: the score of each class."""
    options = ModelOptions(accelerator="cpu", top_k=len(LABELS))
    model = build(find_runtime(), ModelFile(str(ROOT / MODEL), "reference", "v1", LABELS), options, None)
    page = ProgressPage.create()
    reporter = Reporter(page, Track.INFERENCE)
    yield lambda data: {
        score.label: score.score for score in model.run(Sample(data, 0), reporter, StageLatencies()).scores
    }
    model.close()
    page.close()


def results(events: list[Event]) -> list[Event]:
    """Return the events that are results."""
    return [event for event in events if event["kind"] == "result"]


def assert_gapless(events: list[Event]) -> None:
    numbers = sorted(int(event["event_id"].rpartition("/")[2]) for event in events)  # alarms come first
    assert numbers == list(range(1, len(numbers) + 1))
    assert len({event["event_id"].rpartition("/")[0] for event in events}) == 1


def assert_scores(event: Event, expected: dict[str, float]) -> None:
    found = {score["label"]: score["score"] for score in event["results"]}
    assert found == pytest.approx(expected, abs=STEP, rel=0), event
    assert event["confidence"] == max(found.values())
    assert found[event["prediction"]] == event["confidence"]


def test_the_package_is_installed_on_arm64_and_nothing_is_left_to_do(system: Arm64) -> None:
    assert system.run("uname", "-m").stdout == "aarch64\n"
    assert system.run("dpkg", "--print-architecture").stdout == "arm64\n"
    package = system.run("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Architecture}", "edge-agent")
    assert package.stdout == "installed arm64"
    assert system.run("dpkg", "--audit").stdout == ""
    assert system.run("dpkg", "--verify", "edge-agent").stdout == ""
    assert system.run("edge-agent", "--version").stdout == f"edge-agent {__version__}\n"

    assert {"plugdev", "apex", "video", "gpio"} < set(system.run("id", "-Gn", "edge-agent").stdout.split())
    library = system.root / LIBRARY.lstrip("/")
    assert list(library.glob("edge_agent/__pycache__/cli.*.pyc"))
    foreign = [path for path in library.rglob("*.so*") if path.read_bytes()[18:20] != b"\xb7\x00"]
    assert foreign == [], "these are not for arm64 (ELF machine 183)"


@pytest.mark.parametrize("board", BOARDS)
def test_the_emulated_processors_calculate_right(system: Arm64, board: str) -> None:
    system.run("python3", "-W", "error", "-c", CALCULATION, QEMU_CPU=BOARDS[board])


def test_settings_are_checked_by_a_child(system: Arm64, empty_state: Path) -> None:
    fresh = system.run("edge-agent", "check-config")
    assert "nothing is wrong; edge-agent waits until these are given" in fresh.stdout

    (empty_state / "faulty.toml").write_text(FAULTY)
    faulty = system.run("edge-agent", "check-config", f"{STATE}/faulty.toml", check=False)
    assert faulty.returncode == os.EX_CONFIG
    for key in ("[source].rate", "[model].url", "[telemetry].raw_data"):
        assert key in faulty.stderr


def test_the_demo_follows_its_machine_through_all_phases(
    system: Arm64, empty_state: Path, tmp_path: Path, scores: Callable[[Readings], dict[str, float]]
) -> None:
    source, phases = simulated_machine()
    with Agent(system, tmp_path / "log", "demo", EDGE_AGENT_TELEMETRY__RAW_DATA=str(KNOWN_BY)) as agent:
        seen = agent.wait_until(lambda events: len(results(events)) > len(phases) * 1.1, "more than a whole cycle")
        status = json.loads(system.run("edge-agent", "status", "--json", "--state-dir", STATE).stdout)
        assert_it_runs_in(system, agent)
        assert agent.end() == 0
        events = agent.events()

    assert_gapless(events)
    assert [event["action"] for event in events if event["kind"] == "alarm"]
    assert set(status["problems"]) <= {"the clock is not set yet"}  # which depends on this machine
    numbers = []
    for event in results(events):
        number, data = find_sample(source, event)
        numbers.append(number)
        assert event["prediction"] == phases[number % len(phases)]
        assert_scores(event, scores(data))
    left_out = set(range(numbers[len(results(seen)) - 1])) - set(numbers)
    assert len(left_out) <= status["results"]["dropped"], "samples are missing that were not counted"


def simulated_machine() -> tuple[Iterator[tuple[int, Readings]], list[str]]:
    """Return the samples of the demo's machine with their numbers, and the phase of each sample of a cycle."""
    table = tomllib.loads((ROOT / "edge_agent/demo/demo.toml").read_text())["source"]
    seconds = {phase: parse_duration(table[phase]) for phase in LABELS}
    options: dict[str, Any] = {"rate": table["rate"], "seed": table["seed"], **seconds}
    source = Vibration(Vibration.Options(**options), pacer=Pacer(0))
    source.open(None)
    phases = [phase for phase in LABELS for _ in range(round(seconds[phase] * table["rate"]))]
    return ((int(sample.position or 0), sample.data) for sample in iter(lambda: source.read(0), None)), phases


def find_sample(samples: Iterator[tuple[int, Readings]], event: Event) -> tuple[int, Readings]:
    """Return the number and the data of the next sample that the event can be of."""
    for number, data in itertools.islice(samples, 1000):
        if np.allclose(data[:KNOWN_BY], event["raw_data"], rtol=0, atol=1e-5):
            return number, data
    pytest.fail(f"no sample of the machine has the values of {event}")


def assert_it_runs_in(system: Arm64, agent: Agent) -> None:
    """Check that agent and worker are emulated processes of the ordinary user, with that system's libraries alone."""
    worker = agent.worker()
    for pid in (agent.pid, worker):
        assert Path(f"/proc/{pid}/root{LIBRARY}").samefile(system.root / LIBRARY.lstrip("/"))
        assert "aarch64" in command_line(pid)[0]
        assert f"\nUid:\t{USER_ID}\t{USER_ID}\t" in Path(f"/proc/{pid}/status").read_text()
    assert {"numpy", "ai_edge_litert"} <= native_packages(worker)
    assert not {"numpy", "ai_edge_litert", "pydantic_core"} & native_packages(agent.pid)


def native_packages(pid: int) -> set[str]:
    """Return the Python packages of which a process has loaded shared libraries."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(rf"{LIBRARY}/([^/\s]+)/\S*\.so", maps))


@pytest.mark.parametrize("board", BOARDS)
def test_undecided_samples_get_the_same_scores(
    system: Arm64, empty_state: Path, tmp_path: Path, scores: Callable[[Readings], dict[str, float]], board: str
) -> None:
    samples = undecided_samples(scores)
    np.save(empty_state / "samples.npy", samples)
    (empty_state / "edge-agent.toml").write_text(RECORDING)
    arguments = ("run", "--config", f"{STATE}/edge-agent.toml")
    with Agent(system, tmp_path / "log", *arguments, QEMU_CPU=BOARDS[board]) as agent:
        agent.wait_until(lambda events: len(results(events)) >= len(samples), f"all {len(samples)} results")
        assert agent.end() == 0
        events = agent.events()

    assert_gapless(events)
    for event, data in zip(results(events), samples, strict=True):
        assert event["raw_data"] == pytest.approx(data[:KNOWN_BY].tolist(), abs=1e-6, rel=0)
        assert_scores(event, scores(data))


def undecided_samples(scores: Callable[[Readings], dict[str, float]]) -> Readings:
    """Return samples on the borders between the classes: there a small mistake in the calculation shows."""
    generator = np.random.default_rng(1)
    level = np.linspace(LEVELS[0], LEVELS[-1], CANDIDATES, dtype=np.float32)[:, np.newaxis]
    spread = np.interp(level, LEVELS, SPREADS).astype(np.float32)
    candidates = level + spread * generator.standard_normal((CANDIDATES, VALUES), dtype=np.float32)
    undecided = np.array([data for data in candidates if max(scores(data).values()) < SURE])
    assert len(undecided) > 500
    return undecided


def test_the_worker_ends_with_a_killed_agent_and_the_next_agent_goes_on(
    system: Arm64, empty_state: Path, tmp_path: Path
) -> None:
    with Agent(system, tmp_path / "first", "demo") as agent:
        agent.wait_until(lambda events: len(results(events)) > 5, "some results")
        worker = os.pidfd_open(agent.worker())
        assert agent.end(signal.SIGKILL) == -signal.SIGKILL
    try:
        assert select.select([worker], [], [], PATIENCE)[0], "the worker lives on"
    finally:
        os.close(worker)

    before = len(agent.events())
    with Agent(system, tmp_path / "second", "demo") as agent:
        agent.wait_until(lambda events: len(results(events)) > before + 5, "more results")
        assert agent.end() == 0
        events = agent.events()
    # What the first one had sent but could not note any more is sent again, under the same id.
    assert_gapless(list({event["event_id"]: event for event in events}.values()))
