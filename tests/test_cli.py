"""The command line as people and systemd use it: what it says, what it returns, and what signals do."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge_agent import __version__
from edge_agent.cli import main
from edge_agent.report import StatusReport
from edge_agent.service.control import ControlServer
from tests.agentprocess import PATIENCE, AgentProcess, edge_agent, ordinary_user

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "edge_agent/demo/vibration_classifier.tflite"
SHIPPED = ROOT / "config/edge-agent.toml"
# Watched this closely by systemd, the agent counts and tells its status twice a second.
WATCHED = {"WATCHDOG_USEC": "1000000"}

GOOD = f"""\
[source]
plugin = "vibration"
rate = 50

[model]
url = "{MODEL}"

[telemetry]
sink = "events.jsonl"
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "edge-agent.toml"
    file.write_text(GOOD)
    return file


# ------------------------------------------------------------------------------------------ version, help, mistakes


def test_the_installed_command_tells_its_version(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("edge-agent")
    if not command.exists():
        pytest.skip(f"{command} is not there: the project is not installed in this environment")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edge-agent {__version__}\n", "")


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--help"], ["run", "check-config", "status", "reload", "demo", "--version"]),
        (["run", "--help"], ["--config FILE", "--state-dir DIR", "/etc/edge-agent.toml"]),
        (["check-config", "--help"], ["[FILE]", "/etc/edge-agent.toml"]),
        (["status", "--help"], ["--json", "--state-dir DIR"]),
        (["reload", "--help"], ["--state-dir DIR"]),
        (["demo", "--help"], ["--state-dir DIR", "temporary folder"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert [words for words in expected if words not in shown] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["rnu"], "invalid choice: 'rnu'"),
        (["run", "--confg", "x"], "unrecognized arguments: --confg x"),
        (["reload", "--json"], "unrecognized arguments: --json"),
    ],
)
def test_a_wrong_command_line_is_explained(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2  # as argparse has it
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ check-config


def test_a_good_file_is_good(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", str(good)]) == 0
    assert capsys.readouterr() == (f"{good}: all settings are good\n", "")


Edit = Callable[[str], str]


def replaced(old: str, new: str) -> Edit:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def added(text: str) -> Edit:
    return lambda before: before + text


@pytest.mark.parametrize(
    ("edit", "faults"),
    [
        pytest.param(
            added('lingr = "1s"\n[telemetri]\nraw_data = 3\n'),
            [
                ":10: [telemetry].lingr: unknown key (did you mean 'linger'?)",
                ":11: [telemetri]: unknown table (did you mean 'telemetry'?)",
            ],
            id="unknown key",
        ),
        pytest.param(
            replaced("rate = 50", 'ratte = 50\nseed = "one"'),
            [
                ":3: [source].ratte: unknown key (did you mean 'rate'?)",
                ':4: [source].seed: expected a whole number, not "one"',
            ],
            id="wrong options of the source",
        ),
        pytest.param(
            added('[inference]\ntop_k = "three"\nimage_std = []\n'),
            [
                ':11: [inference].top_k: expected a whole number, not "three"',
                ":12: [inference].image_std: expected a number, not []",
            ],
            id="wrong type",
        ),
        pytest.param(
            added('linger = "5 parsecs"\n[telemetry.queue]\nmax_size = "256 Megs"\n'),
            [
                ':10: [telemetry].linger: "5 parsecs" is no duration; write for instance "200ms", "10s" or "1h30m"',
                (
                    ':12: [telemetry.queue].max_size: "256 Megs" is no size; '
                    'write for instance "500kB", "256MB" or "1GiB"'
                ),
            ],
            id="wrong unit",
        ),
        pytest.param(
            replaced('"vibration"\nrate = 50', '"recording"\npath = "none.csv"'),
            [":3: [source].path: none.csv: no such file or directory"],
            id="missing file",
        ),
        pytest.param(
            replaced('"vibration"', '"vibratoin"'),
            [":2: [source].plugin: no such plugin (did you mean 'vibration'?)"],
            id="no such plugin",
        ),
        pytest.param(
            added('[inference]\nlabels = "labels.txt"\n'),
            [":11: [inference].labels: labels.txt:2: an empty line between labels"],
            id="bad labels file",
        ),
        pytest.param(
            replaced('"vibration"', "vibration"),
            [
                (
                    ":2: no valid TOML, column 10: the value is not understood; "
                    'text needs quotes, as in plugin = "vibration"'
                )
            ],
            id="syntax error",
        ),
        pytest.param(
            lambda _: (
                '[log]\nlevel = "loud"\n[source]\nplugin = "vibration"\nsed = 1\n'
                '[inference]\nlabels = "none.txt"\n[telemetry]\nsink = "pubsub://project"\n'
            ),
            [
                (
                    ": [model].url: is missing "
                    "(where the model is fetched from: gs://BUCKET/OBJECT, file:///PATH or a path)"
                ),
                ':2: [log].level: expected "debug", "info", "warning" or "error", not "loud"',
                ":5: [source].sed: unknown key (did you mean 'seed'?)",
                ":7: [inference].labels: none.txt: No such file or directory",
                ':9: [telemetry].sink: "pubsub://project" names no topic; write pubsub://PROJECT/TOPIC',
            ],
            id="several at once",
        ),
    ],
)
def test_a_bad_file_is_told_in_full(
    good: Path, capsys: pytest.CaptureFixture[str], edit: Edit, faults: list[str]
) -> None:
    good.write_text(edit(GOOD))
    (good.parent / "labels.txt").write_text("normal\n\nfailure\n")
    assert main(["check-config", str(good)]) == os.EX_CONFIG
    out, err = capsys.readouterr()
    assert out == ""
    assert err.replace(f"{good.parent}/", "").splitlines() == [f"edge-agent.toml{fault}" for fault in faults]


def test_a_missing_file_is_told_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "none.toml"
    assert main(["check-config", str(file)]) == os.EX_CONFIG
    hint = "there is no such file; write it, or name another one"
    assert capsys.readouterr().err == f"{file}: {hint}\n"


def test_a_file_that_is_not_set_up_yet_is_no_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", str(SHIPPED)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    *lacking, verdict = out.splitlines()
    assert [line.partition(": is missing")[0].partition(" ")[2] for line in lacking] == [
        "[source].plugin",
        "[model].url",
        "[telemetry].sink",
    ]
    assert verdict == f"{SHIPPED}: nothing is wrong; edge-agent waits until these are given"


# ------------------------------------------------------------------------------------------ run


def test_run_with_a_bad_file_creates_nothing(good: Path) -> None:
    good.write_text(GOOD.replace("rate = 50", 'rate = "fast"'))
    state = good.parent / "state"
    done = edge_agent("run", "--config", good, "--state-dir", state, cwd=good.parent)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == f'{good}:3: [source].rate: expected a number, not "fast"\n'
    assert [path.name for path in good.parent.iterdir()] == [good.name]


@pytest.mark.parametrize("below", ["", "state"])
def test_a_state_directory_that_cannot_be_made_is_told(good: Path, below: str) -> None:
    obstacle = good.parent / "obstacle"
    obstacle.touch()
    done = edge_agent("run", "--config", good, "--state-dir", obstacle / below, cwd=good.parent)
    assert done.returncode == os.EX_CANTCREAT
    assert "ERROR the state directory cannot be used" in done.stderr
    assert str(obstacle / below) in done.stderr


def test_a_second_agent_leaves_the_state_of_the_first_alone(tmp_path: Path) -> None:
    state = tmp_path / "given"
    with AgentProcess(tmp_path / "agent", GOOD, {"STATE_DIRECTORY": f"{state}:{tmp_path}/other"}) as first:
        first.wait_for("prediction")
        # systemd's directory counts, not the option that AgentProcess gives.
        # Where the clock is known to be set, what it is worth is there, too.
        assert {path.name for path in state.iterdir()} - {"boots.json", "boots.json.new"} == {"models", "queue"}
        assert not (tmp_path / "agent/state").exists()
        assert not (tmp_path / "other").exists()
        assert first.process is not None

        second = edge_agent("run", "--config", first.config, "--state-dir", state, cwd=tmp_path)

        assert second.returncode == os.EX_TEMPFAIL
        assert "ERROR another edge-agent uses the same state" in second.stderr
        message = (
            f"{state}/queue is used by another edge-agent (process {first.process.pid}): "
            "stop it, or give this one a --state-dir of its own"
        )
        assert message in second.stderr
        assert first.process.poll() is None
        assert first.stop() == 0


# ------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_start_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with AgentProcess(tmp_path, GOOD) as agent:
        agent.wait_for("edge-agent starting")
        assert agent.process is not None
        agent.process.send_signal(number)
        assert agent.process.wait(PATIENCE) == 0
        agent.wait_for("stopped")
        assert f"signal={number.name}" in agent.said


def test_asking_twice_ends_it_at_once(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, GOOD) as agent:
        agent.wait_for("prediction")
        assert agent.process is not None
        # Both signals are there when it goes on, so that it cannot be done before the second.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            agent.process.send_signal(number)
        assert agent.process.wait(PATIENCE) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
        agent.wait_for("stopping")
        assert "stopped" not in agent.said


@pytest.fixture
def slow_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a plugin whose options take forever to check; the returned pipe tells the process that is at it."""
    site, pipe = tmp_path / "site", tmp_path / "pipe"
    info = site / "slow_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edge_agent.sources]\nslow = slow_plugin:Slow\n")
    (site / "slow_plugin.py").write_text(
        "import dataclasses, os, pathlib, signal\n"
        "from edge_agent.sources.base import Source\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Options:\n"
        "    def check(self):\n"
        f"        pathlib.Path({str(pipe)!r}).write_text(str(os.getpid()))\n"
        "        signal.pause()\n"
        "class Slow(Source):\n"
        "    Options = Options\n"
        "    def read(self, timeout):\n"
        "        raise AssertionError('never asked')\n"
    )
    os.mkfifo(pipe)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    return pipe


def test_a_signal_while_the_settings_are_checked_leaves_nothing_behind(tmp_path: Path, slow_plugin: Path) -> None:
    with AgentProcess(tmp_path / "agent", GOOD.replace('"vibration"\nrate = 50', '"slow"')) as agent:
        checking = os.pidfd_open(int(slow_plugin.read_text()))
        try:
            assert agent.process is not None
            agent.process.terminate()
            assert agent.process.wait(PATIENCE) in {0, -signal.SIGTERM}
            assert not (tmp_path / "agent/state").exists()
            assert agent.lines == []
            assert select.select([checking], [], [], PATIENCE)[0], "the check of the settings outlives the agent"
        finally:
            os.close(checking)


# ------------------------------------------------------------------------------------------ status


def test_the_status_is_told_as_text_and_as_json(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, GOOD, WATCHED) as agent:
        agent.wait_for_report(lambda report: report.results and report.results.rate > 0, "a rate")

        text = agent.command("status")
        assert (text.returncode, text.stderr) == (0, "")
        names = [line.split()[0] for line in text.stdout.splitlines() if not line.startswith(("problem ", " "))]
        assert names == [
            *("edge-agent", "settings", "source", "model", "accelerator"),
            *("results", "queue", "sending", "worker", "device", "clock"),
        ]
        assert text.stdout.startswith(f"edge-agent   {__version__}, device ")

        raw = agent.command("status", "--json")
        assert (raw.returncode, raw.stderr) == (0, "")
        report = msgspec.convert(json.loads(raw.stdout), StatusReport)
        assert (report.state, report.version, report.config) == ("running", __version__, str(agent.config))


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["reload"]])
def test_nobody_to_ask(tmp_path: Path, command: list[str]) -> None:
    done = edge_agent(*command, "--state-dir", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"edge-agent is not running (no control socket at {tmp_path}/control.sock): systemctl status edge-agent\n"
    )


def test_the_service_is_asked_where_systemd_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def ask(path: Path, *_: object) -> object:
        asked.append(path)
        return {"faults": [], "outcome": "settings reloaded"}

    monkeypatch.setattr("edge_agent.cli.ask", ask)
    assert main(["reload"]) == 0
    assert main(["reload", "--state-dir", "/x"]) == 0
    assert asked == [Path("/run/edge-agent/control.sock"), Path("/x/control.sock")]


@pytest.mark.parametrize("command", [["status"], ["reload"]])
def test_who_may_not_ask_is_told_how_to_be_permitted(command: list[str]) -> None:
    prefix = ordinary_user()
    if not prefix:
        pytest.skip("only root can ask as somebody else")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with AgentProcess(folder, SHIPPED.read_text()) as agent:
            agent.wait_for_notice("READY=1")
            done = edge_agent(*command, "--state-dir", agent.runtime, cwd=folder, prefix=prefix)
            assert (done.returncode, done.stdout) == (os.EX_NOPERM, "")
            assert done.stderr == (
                f"permission denied at {agent.runtime}/control.sock: run it as root, or add your user to the group "
                "edge-agent: adduser nobody edge-agent, and log in again\n"
            )


def test_an_agent_of_another_version_is_told(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def run() -> subprocess.CompletedProcess[str]:
        server = ControlServer(path, {"status": status})
        await server.start()
        try:
            return await asyncio.to_thread(edge_agent, "status", "--state-dir", tmp_path, cwd=tmp_path)
        finally:
            await server.close()

    async def status() -> object:
        return {"state": "running", "version": "0.0.9"}

    done = asyncio.run(run())
    assert (done.returncode, done.stdout) == (os.EX_PROTOCOL, "")
    assert done.stderr == (
        "another version of edge-agent answers (Object missing required field `config`): systemctl restart edge-agent\n"
    )


@pytest.mark.parametrize(
    ("command", "without"),
    [
        (["status", "--json"], {"msgspec", "edge_agent.report"}),
        (["reload"], set[str]()),
        (["status"], set[str]()),
    ],
)
def test_who_only_asks_loads_little(tmp_path: Path, command: list[str], without: set[str]) -> None:
    with AgentProcess(tmp_path, SHIPPED.read_text()) as agent:
        agent.wait_for_notice("READY=1")
        code = "import sys; from edge_agent.cli import main; main(sys.argv[1:]); print('loaded', *sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code, *command, "--state-dir", agent.runtime],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    loaded = set(done.stdout.partition("loaded ")[2].split())
    assert "edge_agent.service.control_client" in loaded
    big = {"asyncio", "structlog", "google", "grpc", "pydantic", "numpy", "edge_agent.agent", "edge_agent.daemon"}
    assert (big | without) & loaded == set()


# ------------------------------------------------------------------------------------------ reload


def test_a_running_agent_takes_new_settings_or_says_why_not(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, GOOD) as agent:
        agent.wait_for("prediction")

        agent.configure(GOOD.replace("rate = 50", 'rate = "fast"') + '[log]\nlevel = "loud"\n')
        refused = agent.command("reload")
        assert (refused.returncode, refused.stdout) == (os.EX_CONFIG, "")
        assert refused.stderr.splitlines() == [
            f'{agent.config}:3: [source].rate: expected a number, not "fast"',
            f'{agent.config}:11: [log].level: expected "debug", "info", "warning" or "error", not "loud"',
            "the old settings go on",
        ]
        problem = f'reload refused: {agent.config}:3: [source].rate: expected a number, not "fast"'
        assert problem in agent.report().problems
        agent.wait_for_notice(problem)

        agent.configure(GOOD.replace("rate = 50", "rate = 51"))
        taken = agent.command("reload")
        assert (taken.returncode, taken.stdout, taken.stderr) == (0, "settings reloaded\n", "")
        assert not [text for text in agent.report().problems if text.startswith("reload")]
        agent.wait_for("settings reloaded")
        assert agent.stop() == 0


@pytest.mark.parametrize("key", ["plugin", "url", "sink"])
def test_a_running_agent_does_not_fall_back_to_waiting(tmp_path: Path, key: str) -> None:
    with AgentProcess(tmp_path, GOOD) as agent:
        agent.wait_for("prediction")
        agent.configure("".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(key)))
        done = agent.command("reload")
        assert done.returncode == os.EX_CONFIG
        assert f".{key}: is missing" in done.stderr
        assert "the old settings go on" in done.stderr
        assert agent.report().state == "running"
        samples = (agent.report().results or pytest.fail("no results")).samples
        agent.wait_for_report(lambda report: report.results and report.results.samples > samples, "more results")
