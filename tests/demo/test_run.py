"""`edge-agent demo` as a newcomer meets it: at once, as an ordinary user, with nothing configured."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import __version__
from edge_agent.report import StatusReport
from tests.agentprocess import LAUNCHER, NOBODY, DemoProcess, edge_agent, ordinary_user

ROOT = Path(__file__).parents[2]


def results(report: StatusReport) -> int:
    return report.results.samples if report.results else 0


def in_another_terminal(demo: DemoProcess) -> str:
    """Do what the demo says, where the shell finds nothing but the system's own programs."""
    [said] = [line for line in demo.lines if line.startswith("In another terminal: ")]
    command = ["sh", "-c", said.partition(": ")[2]]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that an ordinary user may enter and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def test_an_ordinary_user_with_nothing_sees_it_run_and_end_without_a_trace(everybodys: Path) -> None:
    temporary, home = everybodys / "tmp", everybodys / "home"
    temporary.mkdir()
    temporary.chmod(0o777)
    home.mkdir()
    home.chmod(0o555)
    environ = {"HOME": str(home), "TMPDIR": str(temporary), "PATH": os.defpath}
    with DemoProcess(everybodys / "here", environ=environ, launcher=[*ordinary_user(), *LAUNCHER]) as demo:
        demo.wait_for("model in use")
        report = demo.wait_for_report(results, "results")
        if os.geteuid() == 0:
            assert demo.runtime.stat().st_uid == NOBODY
        assert demo.runtime.parent == temporary
        assert report.device_id == "demo"
        assert report.accelerator is not None
        assert report.accelerator.used == "cpu"
        demo.wait_for("now=normal")
        assert "device demo, running" in in_another_terminal(demo)
        demo.wait_for_report(lambda report: report.sending and report.sending.sent > 2, "events that were written")

        assert demo.stop(signal.SIGINT) == 0
        *_, count, last = demo.lines
        found = re.fullmatch(r"(\d+) events \((.+)\) were written to (.+); the last result:", count)
        assert found, count
        assert "1 model" in found[2].split(", ")
        assert f"{int(found[1]) - 1} result" in found[2].split(", ")
        assert json.loads(last)["kind"] == "result"
    assert list(temporary.iterdir()) == []
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in (everybodys / "here").iterdir()) == ["edge-agent.toml", "notify"]


def test_a_given_folder_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    kept = tmp_path / "new" / "folder"
    demo = DemoProcess(tmp_path, kept=kept)
    for _ in range(2):
        with demo:
            demo.wait_for_report(lambda report: report.sending and report.sending.sent, "events that were written")
            assert demo.stop() == 0
            count = next(line for line in demo.lines if "were written to" in line)
            assert count.endswith(f"{kept}/events.jsonl; the last result:")
        with (kept / "events.jsonl").open("ab") as file:
            file.write(b'{"kind": "result", "torn": "\xc3')
    told = int(count.split()[0])
    lines = (kept / "events.jsonl").read_bytes().splitlines()
    events = [json.loads(line) for line in lines if b"torn" not in line]
    assert told == len(events) == len(lines) - 2
    assert len({event["event_id"] for event in events}) == len(events)


def test_edited_settings_are_taken_over(tmp_path: Path) -> None:
    with DemoProcess(tmp_path, kept=tmp_path / "demo") as demo:
        demo.wait_for_report(results, "results")
        settings = tmp_path / "demo" / "edge-agent.toml"
        settings.write_text(settings.read_text().replace("seed = 1", "sed = 1"))
        refused = demo.command("reload")
        assert refused.returncode == os.EX_CONFIG
        assert "[source].sed: unknown key (did you mean 'seed'?)" in refused.stderr
        settings.write_text(settings.read_text().replace("sed = 1", "seed = 1").replace('id = "demo"', 'id = "mine"'))
        assert demo.command("reload").returncode == 0
        assert demo.report().device_id == "mine"
        assert demo.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("place", ["", "/inner"])
def test_a_folder_that_cannot_be_written_is_told_in_one_line(everybodys: Path, place: str) -> None:
    locked = everybodys / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    done = edge_agent("demo", "--state-dir", f"{locked}{place}", cwd=everybodys, prefix=ordinary_user())
    told = f"{locked}{place}" if place else f"{locked}/edge-agent.toml"
    assert (done.returncode, done.stdout) == (os.EX_CANTCREAT, "")
    assert done.stderr == f"edge-agent demo: {told}: Permission denied\n"


def test_a_file_in_the_place_of_the_folder_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = edge_agent("demo", "--state-dir", tmp_path / "file", cwd=tmp_path)
    assert done.returncode == os.EX_CANTCREAT
    assert done.stderr == f"edge-agent demo: {tmp_path}/file: File exists\n"


def test_ctrl_c_right_at_the_start_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with DemoProcess(tmp_path / "here", environ={"TMPDIR": str(temporary)}) as demo:
        assert demo.stop(signal.SIGINT) in {0, 128 + signal.SIGINT}
    assert list(temporary.iterdir()) == []


# ------------------------------------------------------------------------------------------ as Debian installs it

PROBE = """
import os as _os, sys as _sys
with open({log!r}, "a") as _log:
    print({mark!r}, " ".join(_sys.orig_argv), file=_log)
"""


def put_package(folder: Path, mark: str, log: Path) -> None:
    """Copy this program into a folder; whatever imports it from there leaves its mark and command line in the log."""
    shutil.copytree(ROOT / "edge_agent", folder / "edge_agent", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "edge_agent/__init__.py").open("a") as file:
        file.write(PROBE.format(log=str(log), mark=mark))


def put_spoiler(folder: Path, log: Path) -> None:
    """Put modules into a folder that nobody may import: this program under its name, and what Python looks for."""
    (folder / "edge_agent").mkdir(parents=True)
    for name in ("edge_agent/__init__.py", "sitecustomize.py", "usercustomize.py", "msgspec.py", "numpy.py"):
        (folder / name).write_text(PROBE.format(log=str(log), mark="decoy") + f"raise SystemExit({name!r})\n")


def test_every_child_is_from_the_private_directory(tmp_path: Path) -> None:
    private, log = tmp_path / "private", tmp_path / "log"
    put_package(private, "private", log)
    for decoy in ("here", "path"):
        put_spoiler(tmp_path / decoy, log)
    startup = tmp_path / "startup.py"
    startup.write_text(PROBE.format(log=str(log), mark="decoy"))
    launcher = tmp_path / "edge-agent"
    launcher.write_text(
        f"#!{sys.executable} -I\nimport sys\nsys.path.insert(0, {str(private)!r})\n"
        "from edge_agent.cli import main\nsys.exit(main())\n"
    )
    launcher.chmod(0o755)
    environ = {
        "PYTHONPATH": str(tmp_path / "path"),
        "PYTHONSTARTUP": str(startup),
        "PYTHONHOME": str(tmp_path / "no-such-python"),
        "PYTHONOPTIMIZE": "2",
        "PYTHONNOUSERSITE": "",
    }

    with DemoProcess(tmp_path / "here", environ=environ, launcher=[str(launcher)]) as demo:
        report = demo.wait_for_report(results, "results")
        assert report.version == __version__
        assert demo.stop(signal.SIGINT) == 0

    marks = log.read_text().splitlines()
    assert [mark for mark in marks if not mark.startswith("private ")] == []
    modules = {found[1] for mark in marks if (found := re.search(r" -m (\S+)", mark))}
    assert modules == {
        "edge_agent.configuration_check",
        "edge_agent.inference.checks.source_options",
        "edge_agent.inference.worker",
    }
    assert all(f"{sys.executable} -P -s -m " in mark for mark in marks if " -m " in mark)
