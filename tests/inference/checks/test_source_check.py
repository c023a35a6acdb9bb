"""The check of a source's options: in a real child process, with plugins that behave and plugins that do not."""

import asyncio
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.inference.checks.source_check import check_source, source_faults
from edge_agent.inference.checks.source_options import SourceCheck
from edge_agent.settings.document import read
from tests.settings.distributions import install

Check = Callable[..., SourceCheck]

ROOT = Path(__file__).parents[3]

SENSOR = """
import dataclasses
import pathlib
from typing import Annotated
from annotated_types import Ge, Le
from edge_agent.settings.units import Duration, Size
from edge_agent.sources.base import Source

print("a plugin may print")

class Sensor(Source):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Options:
        path: pathlib.Path
        others: list[pathlib.Path] = dataclasses.field(default_factory=list)
        rate: Annotated[float, Ge(0), Le(1000)] = 10.0
        pause: Annotated[Duration, Ge(0.001)] = 0.2
        space: Size = 1000
        channel: int | str = 0
        mode: str | None = None

        def check(self):
            if self.mode == "wrong":
                raise ValueError("mode 'wrong' does not\\n  fit the path")
            if self.mode == "open":
                self.path.open()
            if self.mode == "bug":
                raise KeyError("x")

    def read(self, timeout):
        return None
"""
# A whole source but for its options.
BARE = "from edge_agent.sources.base import Source\nclass Sensor(Source):\n    read = print\n"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a plugin "sensor" of distribution acme with this code, for child processes alone."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")

    def put(code: str) -> None:
        install(folder, "acme", modules={"acme_sensor": code}, plugins={"sensor": "acme_sensor:Sensor"})

    return put


@pytest.fixture
def check(plugin: Callable[[str], None], tmp_path: Path) -> Check:
    """Check options of the plugin "sensor" with this code."""

    def run(options: dict[str, Any], code: str = SENSOR, **limits: float) -> SourceCheck:
        plugin(code)
        return asyncio.run(check_source("sensor", options, tmp_path, **limits))

    return run


def faults_of(found: SourceCheck) -> list[tuple[str, str]]:
    assert found.options == {}
    return [(".".join(map(str, fault.path)), fault.message) for fault in found.faults]


def test_good_options_come_back_complete(check: Check, tmp_path: Path) -> None:
    given = {"path": "a.csv", "others": ["../b.csv", "/c.csv"], "rate": "5", "pause": "1m", "space": "1MB"}
    assert check(given) == SourceCheck(
        [],
        {
            "path": f"{tmp_path}/a.csv",
            "others": [f"{tmp_path.parent}/b.csv", "/c.csv"],
            "rate": 5.0,
            "pause": 60.0,
            "space": 1_000_000,
            "channel": 0,
            "mode": None,
        },
        "acme_sensor:Sensor",
    )


def test_wrong_options_are_told_all_at_once(check: Check) -> None:
    given = {"rte": 1, "rate": 5000, "pause": "0s", "space": "3 buckets", "channel": [1]}
    assert faults_of(check(given)) == [
        ("rte", "unknown key (did you mean 'rate'?)"),
        ("path", "is missing"),
        ("rate", "must be at most 1000, not 5000"),
        ("pause", 'must be at least 1ms, not "0s"'),
        ("space", '"3 buckets" is no size; write for instance "500kB", "256MB" or "1GiB"'),
        ("channel", "expected a whole number or text in quotes, not [1]"),
    ]


def test_a_switch_where_a_number_belongs(check: Check) -> None:
    assert faults_of(check({"path": "x", "rate": True})) == [("rate", "expected no true here")]


def test_an_unknown_option_without_a_near_one(check: Check) -> None:
    assert faults_of(check({"path": "x", "xyz": 1})) == [
        ("xyz", "unknown key; known here: channel, mode, others, path, pause, rate, space")
    ]


def test_the_verdict_of_the_plugin_itself(check: Check) -> None:
    assert faults_of(check({"path": "x", "mode": "wrong"})) == [("mode", "mode 'wrong' does not\n  fit the path")]


def test_a_file_that_the_plugin_cannot_open(check: Check, tmp_path: Path) -> None:
    found = check({"path": "x", "mode": "open"})
    [fault] = found.faults
    assert (fault.path, fault.message) == (("path",), f"{tmp_path}/x: no such file or directory")
    # It may come later: the worker can be given all the same.
    assert fault.absent
    assert found.options["path"] == f"{tmp_path}/x"
    assert found.reference


def test_a_check_with_a_fault_of_its_own(check: Check) -> None:
    assert faults_of(check({"path": "x", "mode": "bug"})) == [
        ("plugin", "the check of plugin 'sensor' failed: KeyError: 'x'")
    ]


NO_OPTIONS = "plugin 'sensor' declares no usable Options: "
UNUSABLE = "plugin 'sensor' of acme 1.0 cannot be used: acme_sensor:Sensor "
THE_CHECK = "the check of the plugin's options "


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import not_here",
            "plugin 'sensor' of acme 1.0 cannot be imported: ModuleNotFoundError: No module named 'not_here'",
        ),
        ("class Sensor: pass", UNUSABLE + "is no subclass of edge_agent.sources.base.Source"),
        (BARE.replace("read", "raed"), UNUSABLE + "has no read"),
        (BARE, NO_OPTIONS + "AttributeError: type object 'Sensor' has no attribute 'Options'"),
        (BARE + "    Options = int", NO_OPTIONS + "TypeError: must be called with a dataclass type or instance"),
        ("import sys; sys.exit('no licence')", THE_CHECK + "ended with exit status 1; its last lines: no licence"),
        (
            "import os, sys; print('a\\nb\\nc\\nlibfoo: assertion failed', file=sys.stderr, flush=True); os.abort()",
            THE_CHECK + "was killed by SIGABRT; its last lines: b | c | libfoo: assertion failed",
        ),
        ("import os; os._exit(0)", THE_CHECK + "gave an answer that is not understood"),
    ],
)
def test_a_plugin_that_cannot_be_used(check: Check, code: str, message: str) -> None:
    assert faults_of(check({}, code)) == [("plugin", message)]


def test_a_plugin_that_hangs_is_ended_with_all_it_started(
    plugin: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    plugin(f"""
    import subprocess, sys, time, pathlib
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("waiting for the bus", flush=True)
    pathlib.Path({str(pid)!r}).write_text(str(child.pid))
    time.sleep(600)
    """)

    async def hang() -> tuple[SourceCheck, int]:
        loop = asyncio.get_running_loop()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now)  # it stands still until the plugin hangs
        checking = asyncio.create_task(check_source("sensor", {}, tmp_path, timeout=6.0))
        child = int(await asyncio.to_thread(pid.read_text))
        for _ in range(10):
            await asyncio.sleep(0)  # what it has said is read
        now += 6.0
        return await checking, child

    found, child = asyncio.run(hang())
    message = "the check of the plugin's options did not finish within 6s; its last lines: waiting for the bus"
    assert faults_of(found) == [("plugin", message)]
    assert has_ended(child)


def has_ended(pid: int) -> bool:
    """Wait until a process that is no child of ours is gone or only waits to be collected."""
    stat = Path(f"/proc/{pid}/stat")
    while True:
        try:
            if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True


def test_a_plugin_that_talks_without_end_takes_no_memory(check: Check) -> None:
    code = "import sys\nfor _ in range(100_000): print('noise ' * 20)\nsys.exit(3)"
    tracemalloc.start()
    try:
        [(_, message)] = faults_of(check({}, code))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message.startswith("the check of the plugin's options ended with exit status 3; its last lines: noise")
    assert peak < 3_000_000  # of the 12 MB that it said


def test_a_child_that_hangs_at_exit_does_not_matter(check: Check) -> None:
    code = SENSOR + "\nimport threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    assert check({"path": "x"}, code).faults == []


def test_a_cancelled_check_leaves_no_process(plugin: Callable[[str], None], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    plugin(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")

    async def cancel() -> int:
        task = asyncio.create_task(check_source("sensor", {}, tmp_path))
        number = int(await asyncio.to_thread(pid.read_text))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return number

    with pytest.raises(ProcessLookupError):
        os.kill(asyncio.run(cancel()), signal.SIGCONT)


def test_a_message_of_many_lines_becomes_one(plugin: Callable[[str], None], tmp_path: Path) -> None:
    plugin(SENSOR)
    file = tmp_path / "x.toml"
    file.write_text('[source]\nplugin = "sensor"\npath = "x"\nmode = "wrong"\n')
    document = read(file, {})
    found = asyncio.run(check_source("sensor", {"path": "x", "mode": "wrong"}, tmp_path))
    assert [str(fault) for fault in source_faults(document, found)] == [
        f"{file}:4: [source].mode: mode 'wrong' does not fit the path"
    ]


def test_the_parent_loads_no_numpy_and_no_plugin() -> None:
    code = """
import asyncio, pathlib, sys
from edge_agent.inference.checks.source_check import check_source
found = asyncio.run(check_source("vibration", {}, pathlib.Path("/")))
assert not found.faults, found
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "PIL", "edge_agent.sources"} & set(done.stdout.split())
