"""Samples that a program prints: real programs, in the real source."""

import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_agent.sources import printer
from edge_agent.sources.base import SourceEnded, SourceError
from edge_agent.sources.command import Command
from edge_agent.sources.formats import MAX_LINE
from edge_agent.testing import Clock

TIMEOUT = 30.0
_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(autouse=True)
def all_have_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printer, "_GRACE", 60.0)


@pytest.fixture
def shell() -> Iterator[Callable[..., Command]]:
    """Make sources that run a shell script, and close them."""
    made: list[Command] = []

    def make(
        script: str, *, live: bool = True, restart: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> Command:
        options = Command.Options(run=["/bin/sh", "-c", script], live=live, restart=restart)
        source = Command(options, clock=clock, sleep=getattr(clock, "sleep", time.sleep))
        made.append(source)
        return source

    yield make
    for source in made:
        source.close()


Shell = Callable[..., Command]


def opened(source: Command, resume: str | None = None) -> Command:
    source.open(resume)
    return source


def values(source: Command) -> list[float]:
    """The values of the next sample."""
    sample = source.read(TIMEOUT)
    assert sample is not None
    found: list[float] = sample.data.tolist()
    return found


def failure(source: Command) -> str:
    """Read until the source cannot go on, and say why."""
    with pytest.raises(SourceError) as caught:
        read_on(source)
    return str(caught.value)


def read_on(source: Command, timeout: float = TIMEOUT, between: Callable[[], object] = lambda: None) -> None:
    while True:
        source.read(timeout)
        between()


def test_three_lines_of_shell_make_a_sensor(shell: Shell) -> None:
    source = opened(shell("n=0; while true; do echo $n,0.5; n=$((n + 1)); sleep 0.01; done"))
    assert [values(source) for _ in range(3)] == [[0, 0.5], [1, 0.5], [2, 0.5]]
    assert source.live


def test_samples_are_float32_with_the_time_at_which_their_line_came(shell: Shell) -> None:
    sample = opened(shell("echo '[[1, 2], [3, 4]]'; sleep 600")).read(TIMEOUT)
    assert sample is not None
    assert (sample.data.dtype, sample.data.shape, sample.position) == (np.float32, (2, 2), None)
    assert 0 < sample.captured_ns <= time.monotonic_ns()


def test_reading_comes_back_when_nothing_is_printed(shell: Shell) -> None:
    source = opened(shell("echo 1; sleep 600"))
    assert values(source) == [1]
    assert source.read(0.0) is None
    assert source.read(0.01) is None


def test_a_line_is_complete_with_its_newline_or_with_the_end(shell: Shell, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    source = opened(shell(f"printf '1,'; cat {gate}; printf '3,4'", live=False))
    assert source.read(0.05) is None
    gate.write_text("2\n")
    assert [values(source), values(source)] == [[1, 2], [3, 4]]
    with pytest.raises(SourceEnded, match="/bin/sh has printed all its samples"):
        source.read(TIMEOUT)


def test_bad_lines_are_counted_with_their_number(shell: Shell) -> None:
    source = opened(shell("printf '1,2\\n\\n1,x\\n1\\n3,4\\n'; sleep 600"))
    assert [values(source), values(source)] == [[1, 2], [3, 4]]
    assert list(source.problems) == [
        "line 3 of /bin/sh: 'x' is no number",
        "line 4 of /bin/sh: expected 2 values as in the first row, found 1",
    ]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo one >&2; echo 'no  sensor' >&2; exit 3",
            "it ended with exit status 3; its last lines: one | no  sensor",
        ),
        ("kill -SEGV $$", "it was ended by signal 11 (Segmentation fault)"),
    ],
)
def test_a_program_that_fails(shell: Shell, script: str, reason: str) -> None:
    source = opened(shell(f"echo 1; {script}"))
    assert values(source) == [1]
    assert failure(source) == f"/bin/sh: {reason}; try it by hand: sudo -u edge-agent, and what stands in run"


def test_a_sensor_that_ends_properly_is_trouble_too(shell: Shell) -> None:
    message = failure(opened(shell("echo 1")))
    assert message.startswith("/bin/sh: it ended with exit status 0; have it print on and on; or set restart")


def test_after_the_end_it_can_be_opened_again(shell: Shell) -> None:
    source = opened(shell("echo 1; exit 1"))
    failure(source)
    source.close()
    source.close()
    assert values(opened(source)) == [1]


def test_a_recording_goes_on_behind_the_line_that_was_worked_on(shell: Shell) -> None:
    script = "printf 'x;y\\n1;2\\nbad;0\\n3;4\\n5;6\\n'"
    first = opened(shell(script, live=False)).read(TIMEOUT)
    assert first is not None
    assert first.position == "2"
    again = opened(shell(script, live=False), "4")
    assert values(again) == [5, 6]
    assert again.skipped == 0
    assert values(opened(shell(script, live=False), "nonsense")) == [1, 2]
    assert values(opened(shell(script), "4")) == [1, 2]


def test_a_program_that_ends_each_time_is_started_again(shell: Shell, clock: Clock) -> None:
    source = opened(shell("echo $$", restart=10.0, clock=clock))
    first = values(source)
    while not clock.naps:
        assert source.read(5.0) is None
    assert clock.naps == [5.0]
    assert values(source) != first
    assert clock.naps == [5.0, 5.0]


def test_a_closed_output_is_the_end_of_a_sensor(shell: Shell, clock: Clock) -> None:
    source = opened(shell("exec >&-; exec sleep 600", clock=clock))
    with pytest.raises(SourceError, match="closed its standard output, but goes on running"):
        read_on(source, 0.05, lambda: clock.sleep(1.0))


def test_what_it_leaves_running_does_not_hide_its_end(shell: Shell) -> None:
    assert "exit status 1" in failure(opened(shell("sleep 600 & exit 1")))


def test_a_line_without_end_does_not_fill_the_memory(shell: Shell) -> None:
    message = failure(opened(shell("exec tr '\\0' 1 < /dev/zero")))
    assert message == (
        f"/bin/sh: it prints a line that is longer than {MAX_LINE >> 20} MiB; have it print one sample per line"
    )


def test_errors_without_end_do_not_stop_it(shell: Shell) -> None:
    source = opened(shell("head -c 300000 /dev/zero | tr '\\0' x >&2; echo 1; sleep 600"))
    assert values(source) == [1]
    assert source._printer is not None
    assert len(source._printer.last_lines()) < 400


def test_a_program_that_prints_faster_than_anybody_reads_waits(shell: Shell) -> None:
    source = opened(shell("yes 1,2,3"))
    read = [values(source) for _ in range(50_000)]
    assert read == [[1, 2, 3]] * 50_000
    assert source._printer is not None
    assert len(source._printer._lines) <= 65536 // 6 + 1


def program(path: Path, text: str, mode: int = 0o755) -> list[str]:
    path.write_text(text)
    path.chmod(mode)
    return [str(path)]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: [str(folder / "none")], "there is no such program; install it, or correct the path in run"),
        (lambda folder: program(folder / "a", "#!/bin/sh\n", 0o644), "it may not be run; make it executable"),
        (
            lambda folder: program(folder / "b", "#!/none/sh\n"),
            "the interpreter named in its first line does not exist",
        ),
        (lambda folder: program(folder / "c", "echo 1\n"), "it is no program for this machine; a script needs a first"),
    ],
    ids=["missing", "not executable", "no interpreter", "no program"],
)
def test_a_program_that_cannot_be_started(tmp_path: Path, make: Callable[[Path], list[str]], reason: str) -> None:
    run = make(tmp_path)
    source = Command(Command.Options(run=run))
    with pytest.raises(SourceError) as caught:
        source.open(None)
    assert str(caught.value).startswith(f"{run[0]}: {reason}")
    source.close()


def test_the_check_looks_for_the_program(tmp_path: Path) -> None:
    Command.Options(run=["sh"]).check()
    Command.Options(run=program(tmp_path / "sensor", "")).check()
    with pytest.raises(FileNotFoundError) as caught:
        Command.Options(run=[str(tmp_path / "none")]).check()
    assert (caught.value.strerror, caught.value.filename) == ("there is no such program", str(tmp_path / "none"))


def test_it_gets_no_secrets_and_not_our_packages(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/run/credentials")
    monkeypatch.setenv("MQTT_PASSWORD", "secret")
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}/srv/lib")
    monkeypatch.setenv("SITE", "7")
    script = 'echo "[${GOOGLE_APPLICATION_CREDENTIALS:+1}${MQTT_PASSWORD:+1}0, $SITE, ${#PYTHONPATH}]"; sleep 600'
    assert values(opened(shell(script))) == [0, 7, len("/srv/lib")]


def test_its_input_is_empty(shell: Shell) -> None:
    assert values(opened(shell("read -r line || echo 1"))) == [1]


# -- its end


@contextmanager
def adopting() -> Iterator[None]:
    """Take over processes whose parents have died, so that a test can wait for their end."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def test_closing_ends_the_program_and_all_it_has_started(shell: Shell) -> None:
    with adopting():
        source = opened(shell("sleep 600 & echo $!; trap 'exit 0' TERM; wait"))
        child = int(values(source)[0])
        source.close()
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in {-signal.SIGTERM, -signal.SIGKILL}
        except ChildProcessError:  # the shell has still seen it end
            assert not Path(f"/proc/{child}").exists()


def test_a_program_may_clean_up_when_it_is_closed(shell: Shell, tmp_path: Path) -> None:
    source = opened(shell(f"trap 'touch {tmp_path}/cleaned; exit' TERM; echo 1; while true; do sleep 0.01; done"))
    assert values(source) == [1]
    source.close()
    assert (tmp_path / "cleaned").exists()


def test_a_program_that_ignores_it_is_killed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(shell("trap '' TERM; echo $$; while true; do sleep 1; done"))
    pid = int(values(source)[0])
    assert source._printer is not None
    process, patience = source._printer._process, iter([0.5, 60.0])
    monkeypatch.setattr(process, "wait", lambda _: subprocess.Popen.wait(process, next(patience)))
    source.close()
    assert not Path(f"/proc/{pid}").exists()


WORKER = """
import os, signal, sys
from edge_agent.sources.command import Command

source = Command(Command.Options(run=["/bin/sh", "-c", sys.argv[1]]))
source.open(None)
print(*map(int, source.read(60).data), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_silent_program_ends_with_a_worker_that_is_killed() -> None:
    script = "trap '' TERM HUP; sleep 600 & echo $$,$!; wait"
    with adopting():
        done = subprocess.run([sys.executable, "-c", WORKER, script], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        for pid in map(int, done.stdout.split()):
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        # The guard itself.
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break


def test_nothing_stays_open(shell: Shell) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    source = opened(shell("echo 1; sleep 600"))
    assert values(source) == [1]
    source.close()
    with pytest.raises(SourceError):
        Command(Command.Options(run=["/none"])).open(None)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_fifo_is_no_program(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o755)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(SourceError, match="may not be run"):
        Command(Command.Options(run=[str(tmp_path / "pipe")])).open(None)
