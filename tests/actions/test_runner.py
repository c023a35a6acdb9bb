import asyncio
import json
import os
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge_agent.actions import runner as runner_module
from edge_agent.actions.rules import Rule
from edge_agent.actions.runner import EVENT_INTERVAL, MAX_RUNNING, ActionRunner, Health

EVENT = b'{"kind":"alarm","prediction":"failure"}'
NEVER = 1e9  # seconds
CAPTURED_NS = 1

Log = list[dict[str, Any]]


@pytest.fixture
def log() -> Iterator[Log]:
    with structlog.testing.capture_logs() as lines:
        yield lines  # type: ignore[misc]  # structlog types the lines as mappings


@pytest.fixture(autouse=True)
def a_killed_program_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is."""
    monkeypatch.setattr(runner_module, "ABANDON_AFTER", NEVER)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "action":
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str, name: str = "script") -> str:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    return write


def program(*argv: str, name: str = "alarm", timeout: float = NEVER) -> Rule:
    return Rule(name=name, run=argv, cooldown=0, timeout=timeout)


def shell(text: str, *, name: str = "alarm", timeout: float = NEVER) -> Rule:
    return program("/bin/sh", "-c", text, name=name, timeout=timeout)


def runner_of(on_health: Health = lambda *_: None, **options: Any) -> ActionRunner:
    return ActionRunner(on_health, **options)


def run(*rules: Rule, event: bytes = EVENT, **options: Any) -> ActionRunner:
    """Run each rule once, to its end."""

    async def main() -> ActionRunner:
        runner = runner_of(**options)
        for rule in rules:
            runner.submit(rule, event, CAPTURED_NS)
        await runner.stop(NEVER)
        return runner

    return asyncio.run(main())


def problems(log: Log) -> list[str]:
    return [line["problem"] for line in log if line["log_level"] == "warning" and "problem" in line]


class Hours(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def run_with_clock(main: Callable[[Callable[[float], None]], Coroutine[Any, Any, None]]) -> None:
    """Run `main`, which is handed what puts the clock of its loop forward by so many seconds."""
    with asyncio.Runner(loop_factory=Hours) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Hours)

        def forward(seconds: float) -> None:
            loop.ahead += seconds

        runner.run(main(forward))


async def until(condition: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
    while not condition():
        meanwhile()
        await asyncio.to_thread(os.sched_yield)


class Holder:
    """A named pipe that programs open for writing, to tell how far they are and that they live."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    async def ready(self) -> None:
        """Returns when a program has opened the pipe and written "ready"."""
        pipe = open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: ASYNC230, PTH123, SIM115
        self._reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self._reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        await self.says("ready")

    async def says(self, word: str) -> None:
        assert await self._reader.readline() == f"{word}\n".encode()

    async def gone(self) -> None:
        """Returns when no process has the pipe open any more."""
        assert await self._reader.read() == b""


@pytest.fixture
def holder(tmp_path: Path) -> Holder:
    return Holder(tmp_path / "fifo")


def test_the_event_comes_on_standard_input_with_a_newline(tmp_path: Path, log: Log) -> None:
    run(program("/usr/bin/tee", str(tmp_path / "got")))
    assert (tmp_path / "got").read_bytes() == EVENT + b"\n"
    assert [(line["event"], line["log_level"]) for line in log] == [("action done", "info")]
    assert log[0]["output"] == EVENT.decode()


def test_the_time_from_the_capture_to_the_start_is_measured_while_the_program_runs(holder: Holder, log: Log) -> None:
    clock = f"{sys.executable} -c 'import time; print(time.monotonic_ns())'"

    async def main() -> None:
        runner = runner_of()
        captured_ns = time.monotonic_ns()
        runner.submit(shell(f"echo ready > {holder.path}; {clock}; echo $CAPTURED_MONOTONIC_NS"), EVENT, captured_ns)
        runner.submit(program("/nonexistent/alarm", name="missing"), EVENT, captured_ns)
        await until(lambda: bool(log) and runner.reactions.count > 0)
        # The program waits for a reader of its pipe, and what could not be started has no reaction.
        assert [(line["action"], "reaction_ms" in line) for line in log] == [("missing", False)]
        longest_ns = runner.reactions.max_ns
        await holder.ready()
        await runner.stop(NEVER)
        assert runner.reactions.count == 1
        said_ns, told_ns = map(int, log[1]["output"].split())
        assert told_ns == captured_ns
        assert 0 < longest_ns < said_ns - captured_ns
        assert log[1]["reaction_ms"] == round(longest_ns / 1e6, 1)

    asyncio.run(main())


def test_arguments_reach_the_program_without_a_shell(tmp_path: Path) -> None:
    arguments = ("$HOME", "a b", "*", "; exit 3", "")
    code = "import json, sys; json.dump(sys.argv[2:], open(sys.argv[1], 'w'))"
    run(program(sys.executable, "-c", code, str(tmp_path / "got"), *arguments))
    assert json.loads((tmp_path / "got").read_text()) == list(arguments)


def test_what_is_secret_or_the_agents_own_is_not_in_the_environment(tmp_path: Path) -> None:
    kept = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "STATE_DIRECTORY": "/var/lib/edge-agent"}
    private = ["GOOGLE_APPLICATION_CREDENTIALS", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC"]
    private += ["WATCHDOG_PID", "MQTT_PASSWORD", "my_token", "AWS_SECRET_ACCESS_KEY"]
    withheld = dict.fromkeys(private, "x")
    run(shell(f"/usr/bin/env -0 > {tmp_path}/got"), environ=kept | withheld)
    seen = dict(line.split("=", 1) for line in (tmp_path / "got").read_text().split("\0") if line)
    assert {name: seen.get(name) for name in kept} == kept
    assert not seen.keys() & withheld.keys()


def test_a_program_goes_before_the_agent_when_memory_runs_out(tmp_path: Path) -> None:
    wait = f'until [ "$(cat /proc/$$/oom_score_adj)" = 500 ]; do :; done; touch {tmp_path}/seen'
    run(shell(wait))
    assert (tmp_path / "seen").exists()
    assert Path("/proc/self/oom_score_adj").read_text() != "500\n"


def test_a_program_that_ignores_its_input_is_no_problem_however_long_the_input(log: Log) -> None:
    run(shell("exit 0"), shell("head -c 1 > /dev/null; exec <&-", name="closes"), event=b"x" * 3_000_000)
    assert [line["event"] for line in log] == ["action done", "action done"]


def test_only_the_last_lines_of_the_output_are_kept(log: Log) -> None:
    run(shell("yes 0123456789abcdef | head -c 5000000; for n in $(seq 100); do echo line $n >&2; done; exit 3"))
    assert log[0]["output"].splitlines() == [f"line {n}" for n in range(81, 101)]
    assert problems(log) == ["it ended with exit status 3"]


def test_one_endless_line_is_cut_and_bytes_that_are_no_text_are_shown(log: Log) -> None:
    run(shell("yes | tr -d '\\n' | head -c 1000000; printf '\\377'"))
    assert len(log[0]["output"]) < 5000
    assert log[0]["output"].endswith("yyy\\xff")


def test_the_signal_that_ended_a_program_is_named(log: Log) -> None:
    run(shell("kill -SEGV $$"))
    assert problems(log) == ["it was ended by signal 11 (Segmentation fault)"]


def test_a_program_that_cannot_start_gives_one_warning_that_says_what_to_do(
    tmp_path: Path, script: Callable[..., str], log: Log
) -> None:
    not_executable = Path(script("#!/bin/sh\n", "plain"))
    not_executable.chmod(stat.S_IRUSR)
    programs = {
        "/nonexistent/alarm": "there is no such program",
        "no-such-program-on-the-path": "there is no such program",
        str(not_executable): "it may not be run",
        script("#!/nonexistent/python\n", "interpreter"): "the interpreter named in its first line does not exist",
        script("#!/bin/sh\r\nexit 0\r\n", "windows"): "the interpreter named in its first line does not exist",
        script("echo no first line\n", "text"): "it is no program for this machine",
        str(tmp_path): "it may not be run",
        "nul\0byte": "embedded null byte",
    }
    for path, problem in programs.items():
        log.clear()
        run(program(path))
        assert problems(log) == [problem]
        assert len(log) == 1
        assert log[0]["program"] == path
        assert log[0]["advice"]


# Says so when it gets SIGTERM, but goes on; what it has started in the background does not even say so.
STUBBORN = """
import signal, subprocess, sys
sys.stdout = open(sys.argv[1], "w")
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
subprocess.Popen(["sleep", "1000"], stdout=sys.stdout)
print("ready", flush=True)
while signal.sigwait({signal.SIGTERM}):
    print("told", flush=True)
"""
OBEDIENT = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with open(sys.argv[1], "w") as holder:
    print("ready", file=holder)
signal.sigwait({signal.SIGTERM})
print("told")
"""


def python(code: str, holder: Holder, timeout: float = NEVER) -> Rule:
    return program(sys.executable, "-c", code, str(holder.path), timeout=timeout)


def test_the_time_limit_ends_the_whole_group_even_where_sigterm_is_ignored(holder: Holder, log: Log) -> None:
    async def main(forward: Callable[[float], None]) -> None:
        runner = runner_of(grace=NEVER)
        runner.submit(python(STUBBORN, holder, timeout=60), EVENT, CAPTURED_NS)
        await holder.ready()
        told = asyncio.create_task(holder.says("told"))
        await until(told.done, lambda: forward(60))
        assert not log
        forward(NEVER)
        await holder.gone()
        await until(lambda: bool(log))
        await runner.stop(NEVER)

    run_with_clock(main)
    assert problems(log) == ["it did not end within 60 s and was ended"]


def test_the_time_limit_first_asks_with_sigterm(holder: Holder, log: Log) -> None:
    async def main(forward: Callable[[float], None]) -> None:
        runner = runner_of(grace=NEVER)
        runner.submit(python(OBEDIENT, holder, timeout=60), EVENT, CAPTURED_NS)
        await holder.ready()
        await holder.gone()
        await until(lambda: bool(log), lambda: forward(60))
        await runner.stop(NEVER)

    run_with_clock(main)
    assert problems(log) == ["it did not end within 60 s and was ended"]
    assert log[0]["output"] == "told"


def test_a_process_left_behind_neither_delays_the_end_nor_is_killed(holder: Holder, tmp_path: Path, log: Log) -> None:
    pid_file = tmp_path / "pid"
    rule = shell(f"(exec 3> {holder.path}; echo ready >&3; exec sleep 1000) & echo $! > {pid_file}; echo started")

    async def main() -> None:
        runner = runner_of()
        runner.submit(rule, EVENT, CAPTURED_NS)
        await holder.ready()
        await until(lambda: bool(log))
        # Its pipe must be forgotten, although this process still holds the other end: the number is used again.
        runner.submit(shell("echo again"), EVENT, CAPTURED_NS)
        await until(lambda: len(log) == 2)
        os.kill(int(pid_file.read_text()), signal.SIGTERM)  # fails if it is no more
        await holder.gone()
        await runner.stop(NEVER)

    asyncio.run(main())
    assert [(line["event"], line["output"]) for line in log] == [("action done", "started"), ("action done", "again")]


def test_a_rule_runs_once_at_a_time_and_skipped_firings_are_counted_and_logged_once(holder: Holder, log: Log) -> None:
    rule = shell(f"echo ready > {holder.path}")

    async def main() -> None:
        runner = runner_of()
        for _ in range(4):
            runner.submit(rule, EVENT, CAPTURED_NS)
        assert runner.skipped == {"alarm": 3}
        await holder.ready()
        await holder.gone()
        await until(lambda: log[-1]["event"] == "action done")
        runner.submit(program("true"), EVENT, CAPTURED_NS)
        await runner.stop(NEVER)
        assert runner.skipped == {"alarm": 3}

    asyncio.run(main())
    assert [(line["event"], line.get("skipped")) for line in log] == [
        ("action skipped", None),
        ("action done", None),
        ("action runs again after skipped firings", 3),
        ("action done", None),
    ]
    assert log[0]["reason"] == "its last run has not ended"


def test_only_so_many_run_at_once(holder: Holder, log: Log) -> None:
    async def main() -> None:
        runner = runner_of()
        for n in range(MAX_RUNNING + 2):
            runner.submit(shell(f"echo ready > {holder.path}", name=f"alarm{n}"), EVENT, CAPTURED_NS)
        assert runner.skipped == {f"alarm{MAX_RUNNING}": 1, f"alarm{MAX_RUNNING + 1}": 1}
        reading = os.open(holder.path, os.O_RDONLY | os.O_NONBLOCK)  # from now on the programs can go on
        await runner.stop(NEVER)
        assert os.read(reading, 1000) == b"ready\n" * MAX_RUNNING
        os.close(reading)

    asyncio.run(main())
    assert [line["event"] for line in log].count("action done") == MAX_RUNNING


def test_stop_waits_then_asks_then_kills_and_takes_nothing_more(holder: Holder, log: Log) -> None:
    async def main(forward: Callable[[float], None]) -> None:
        runner = runner_of()
        runner.submit(python(STUBBORN, holder), EVENT, CAPTURED_NS)
        await holder.ready()
        stopping = asyncio.create_task(runner.stop(2000))
        await asyncio.sleep(0)
        runner.submit(shell("exit 0", name="late"), EVENT, CAPTURED_NS)
        forward(1000)
        await holder.says("told")
        assert not stopping.done()
        forward(1000)
        await stopping
        await holder.gone()
        assert runner.skipped == {"late": 1}

    run_with_clock(main)
    assert problems(log) == ["it was ended by signal 9 (Killed)"]
    assert [line["event"] for line in log] == ["action skipped", "action did not end before the agent did"]


def test_stop_right_after_submit_leaves_nothing_behind(tmp_path: Path, log: Log) -> None:
    async def main() -> None:
        runner = runner_of()
        runner.submit(shell("exec sleep 1000"), EVENT, CAPTURED_NS)
        await runner.stop(0)

    asyncio.run(main())
    # Which of the two signals it was depends on how far the start had come.
    assert problems(log)[0].startswith("it was ended by signal")


def test_a_program_whose_start_outlasts_the_agent_is_ended_all_the_same(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "ABANDON_AFTER", 0)
    may_start = threading.Event()
    start = subprocess.Popen
    started: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def start_late(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        may_start.wait()
        process = start(*arguments, **options)
        started.put(process)
        return process

    async def main() -> None:
        monkeypatch.setattr(subprocess, "Popen", start_late)
        runner = runner_of()
        runner.submit(shell("exec sleep 1000"), EVENT, CAPTURED_NS)
        await runner.stop(0)

    asyncio.run(main())
    assert [line["event"] for line in log] == ["action could not be ended"]
    may_start.set()
    with started.get() as process:
        try:
            assert process.wait(60) == -signal.SIGKILL
        finally:
            process.kill()


def test_the_loop_goes_on_while_a_program_prints_without_end(holder: Holder, log: Log) -> None:
    # More than a pipe holds, so that it can only be ready when the loop has read of it.
    rule = shell(f"yes | head -c 1000000; echo ready > {holder.path}; exec yes", timeout=1e6)

    async def main(forward: Callable[[float], None]) -> None:
        runner = runner_of(grace=NEVER)
        runner.submit(rule, EVENT, CAPTURED_NS)
        await holder.ready()
        for _ in range(1000):
            await asyncio.to_thread(os.sched_yield)
        assert not log
        await until(lambda: bool(log), lambda: forward(1e6))
        await runner.stop(NEVER)

    run_with_clock(main)
    assert problems(log) == ["it did not end within 1e+06 s and was ended"]
    assert set(log[0]["output"].splitlines()) <= {"y"}


class Told:
    """Keeps what the agent would make health events of."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def __call__(self, component: str, state: str, detail: str) -> None:
        self.events.append((component, state, detail))


def test_a_rule_that_fails_is_told_of_at_once_and_then_once_a_minute(log: Log) -> None:
    told, now = Told(), 0.0
    bad, worse = shell("exit 3"), program("/nonexistent/alarm", name="worse")

    async def main() -> None:
        nonlocal now
        runner = runner_of(told, clock=lambda: now)

        async def fail(rule: Rule) -> None:
            failed = runner.failed[rule.name] + 1
            runner.submit(rule, EVENT, CAPTURED_NS)
            await until(lambda: runner.failed[rule.name] == failed)

        await fail(bad)
        assert told.events == [("action", "failed", "alarm: it ended with exit status 3")]
        await fail(worse)
        assert told.events[1:] == [("action", "failed", "worse: there is no such program")]
        now = EVENT_INTERVAL - 1
        for _ in range(3):
            await fail(bad)
        assert len(told.events) == 2
        now = EVENT_INTERVAL
        await fail(bad)
        assert told.events[2:] == [
            (
                "action",
                "failed",
                "alarm: it ended with exit status 3 (and 3 times before, since this was last told)",
            )
        ]
        assert runner.failed == {"alarm": 5, "worse": 1}
        await runner.stop(NEVER)

    asyncio.run(main())


def test_a_skipped_action_is_told_of_but_not_each_time(holder: Holder, log: Log) -> None:
    told = Told()

    async def main() -> None:
        runner = runner_of(told, clock=lambda: 0.0)
        for _ in range(5):
            runner.submit(shell(f"echo ready > {holder.path}; exit 1"), EVENT, CAPTURED_NS)
        await holder.ready()
        await runner.stop(NEVER)
        runner.submit(program("true", name="late"), EVENT, CAPTURED_NS)
        assert runner.skipped == {"alarm": 4, "late": 1}

    asyncio.run(main())
    assert told.events == [
        ("action", "skipped", "alarm: its last run has not ended"),
        ("action", "failed", "alarm: it ended with exit status 1"),
        ("action", "skipped", "late: the agent is stopping"),
    ]


def test_what_the_agent_had_to_end_when_it_stopped_has_failed_too(log: Log) -> None:
    told = Told()

    async def main() -> None:
        runner = runner_of(told)
        runner.submit(shell("exec sleep 1000"), EVENT, CAPTURED_NS)
        await runner.stop(0)
        assert runner.failed == {"alarm": 1}

    asyncio.run(main())
    [(_, state, detail)] = told.events
    assert state == "failed"
    assert detail.startswith("alarm: it was ended by signal")


def test_a_bug_in_the_agent_shows_at_once_and_the_next_action_runs(tmp_path: Path, log: Log) -> None:
    told = Told()
    environ: dict[str, Any] = {"PATH": os.defpath, "NUMBER": 5}  # which no caller may give

    async def main() -> None:
        runner = runner_of(told, environ=environ)
        runner.submit(program("true"), EVENT, CAPTURED_NS)
        await until(lambda: bool(told.events))
        [line] = log
        assert (line["log_level"], line["action"], type(line["exc_info"])) == ("critical", "alarm", TypeError)
        assert told.events[0][1:] == ("failed", f"alarm: the agent itself failed: {line['exc_info']!r}")
        assert runner.failed == {"alarm": 1}
        del runner._environ["NUMBER"]
        runner.submit(shell(f"touch {tmp_path}/ran"), EVENT, CAPTURED_NS)
        await runner.stop(NEVER)

    asyncio.run(main())
    assert (tmp_path / "ran").exists()
