"""The command and the environment of children, and their place before the OOM killer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.inference.child import (
    child_environment,
    describe_exit,
    python_command,
    volunteer_for_oom_killer,
)

ROOT = Path(__file__).parents[2]

TELL = """
import json, os, sys
sys.path.insert(0, {root!r})
from edge_agent.inference.child import child_environment, python_command
json.dump([python_command("x.y", "1", "2"), child_environment()], sys.stdout)
"""


def told(*flags: str, **environ: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment for a child of a program that is run with these flags of Python."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", TELL.format(root=str(ROOT))],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    command, environment = json.loads(done.stdout)
    return command, environment


def test_a_child_is_run_by_the_same_python_and_not_from_the_working_directory() -> None:
    assert python_command("x.y", "1") == [sys.executable, "-P", "-m", "x.y", "1"]
    assert told()[0] == [sys.executable, "-P", "-m", "x.y", "1", "2"]


def test_an_isolated_program_has_isolated_children() -> None:
    command, environment = told("-I", PYTHONPATH="/evil", PYTHONHOME="/evil", PYTHONWARNINGS="error", PYTHONX="", A="b")
    assert command == [sys.executable, "-P", "-s", "-m", "x.y", "1", "2"]
    assert {name: value for name, value in environment.items() if name.startswith("PYTHON")} == {
        "PYTHONPATH": str(ROOT)
    }
    assert environment["A"] == "b"


def test_a_program_that_heeds_the_environment_passes_it_on_behind_its_own_place() -> None:
    command, environment = told(PYTHONPATH="/mine:/yours", PYTHONUTF8="1")
    assert "-s" not in command
    assert environment["PYTHONPATH"] == f"{ROOT}:/mine:/yours"
    assert environment["PYTHONUTF8"] == "1"
    assert told(PYTHONPATH="")[1]["PYTHONPATH"] == str(ROOT)  # an empty entry would be the working directory


def test_without_the_user_s_packages_but_with_the_environment() -> None:
    command, environment = told("-s", PYTHONPATH="/mine")
    assert command[:4] == [sys.executable, "-P", "-s", "-m"]
    assert environment["PYTHONPATH"] == f"{ROOT}:/mine"


def test_a_child_finds_the_program_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "edge_agent.py").write_text("raise SystemExit('the wrong one')\n")
    command = [sys.executable, "-P", "-c", "import edge_agent; print(edge_agent.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "edge_agent/__init__.py")


def test_children_get_nothing_that_is_none_of_their_business(monkeypatch: pytest.MonkeyPatch) -> None:
    withheld = {
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "CREDENTIALS_DIRECTORY",
        "GOOGLE_APPLICATION_CREDENTIALS",
    }
    for name in withheld:
        monkeypatch.setenv(name, "x")
    assert not withheld & child_environment().keys()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert child_environment()["OPENBLAS_NUM_THREADS"] == "3"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    assert child_environment()["OPENBLAS_NUM_THREADS"] == "1"


VOLUNTEER = """
import os
from pathlib import Path
from edge_agent.inference.child import volunteer_for_oom_killer
volunteer_for_oom_killer()
print(Path("/proc/self/oom_score_adj").read_text().strip())
"""


def test_a_volunteer_is_more_likely_to_be_killed() -> None:
    done = subprocess.run([sys.executable, "-c", VOLUNTEER], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("500\n", "")


def test_who_may_not_volunteer_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    volunteer_for_oom_killer()
    assert capsys.readouterr().err == (
        "the worker could not volunteer for the OOM killer: [Errno 13] Permission denied\n"
    )


def test_endings_in_words() -> None:
    assert [describe_exit(status) for status in (0, 3, -9, -64, -200)] == [
        "exit status 0",
        "exit status 3",
        "killed by SIGKILL",
        "killed by SIGRTMAX",
        "killed by signal 200",
    ]
