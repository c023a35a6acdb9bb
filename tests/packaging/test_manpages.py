"""The man pages: made from the code, complete, well-formed, and true where they quote the program."""

import dataclasses
import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from edge_agent import cli, plugins
from edge_agent.agent import BOOTS_FILE, METER_FILE, RUNTIMES_FILE
from edge_agent.device.monitor import SILENT
from edge_agent.device.sensors import Heat, Readings
from edge_agent.device.storage import FileSystem
from edge_agent.device.troubles import STATES, Troubles
from edge_agent.health import Battery
from edge_agent.inference.supervision.status import WorkerStatus
from edge_agent.models.news import RolloutStatus
from edge_agent.raw_data.spool import FOLDER
from edge_agent.raw_data.uploads import UploadsState
from edge_agent.records import LoadReport, ResultEvent, Score
from edge_agent.service.control_client import ControlError
from edge_agent.settings.faults import NotSetUp
from edge_agent.settings.loading import load
from edge_agent.settings.schema import keys, tables
from edge_agent.status import Snapshot, problems, status_line
from edge_agent.telemetry.sender import SenderState

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "packaging/manpages.py"
PAGES = {name: ROOT / "docs/man" / name for name in ("edge-agent.8", "edge-agent.toml.5")}
COMMANDS, SETTINGS = (page.read_text(encoding="utf-8") for page in PAGES.values())
CODE = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "edge_agent").rglob("*.py")))
IDLE = "not set up yet: [source].plugin, [model].url and [telemetry].sink are missing in /etc/edge-agent.toml"
# What a condition tells of the model that it is for.
TASKS = {"_count = ": "detection", "above = ": "regression", "label = ": "classification"}
needs_mandoc = pytest.mark.skipif(not shutil.which("mandoc"), reason="needs mandoc")


def plain(text: str) -> str:
    """Return mdoc source without its escapes."""
    for escape, char in ((r"\-", "-"), (r"\(dq", '"'), (r"\(aq", "'"), (r"\(ti", "~"), (r"\(ha", "^"), (r"\e", "\\")):
        text = text.replace(escape, char)
    return text


def section(page: str, name: str) -> str:
    """Return what stands below a heading."""
    return plain(page).partition(f".Sh {name}\n")[2].partition("\n.Sh ")[0]


def blocks(page: str) -> list[str]:
    """Return the displayed texts of a page: examples, and lines of the program."""
    return re.findall(r"^\.Bd [^\n]*\n(.*?)\n\.Ed$", plain(page), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manpages", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_pages_are_those_of_the_code(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(GENERATOR), str(tmp_path)], check=True, timeout=60)
    for name, page in PAGES.items():
        assert (tmp_path / name).read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), (
            f"{name}: the code has changed: run `make docs`"
        )


@needs_mandoc
@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_mandoc_finds_no_fault(page: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", str(page)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == ""


@pytest.mark.skipif(not shutil.which("man"), reason="needs man-db")
@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_groff_finds_no_fault_and_no_line_is_too_long(page: Path) -> None:
    done = subprocess.run(
        ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(page)],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") > 200
    assert max(map(len, done.stdout.splitlines())) <= 80


@needs_mandoc
def test_nothing_is_swallowed() -> None:
    """Text that troff takes for its own, such as a line that starts with a dot, would be missing in the output."""
    done = subprocess.run(
        ["mandoc", "-T", "html", str(PAGES["edge-agent.toml.5"])],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    shown = html.unescape(re.sub("<[^>]*>", "", done.stdout))
    example = (ROOT / "packaging/man/example.toml").read_text(encoding="utf-8")
    assert example.strip() in shown
    assert "unknown key (did you mean 'poll_interval'?)" in shown
    assert ".jpg, .jpeg" in shown


def test_every_setting_stands_in_the_section_of_its_table() -> None:
    parts = dict(re.findall(r"^\.Ss (\[\S+\])\n(.*?)(?=^\.S[hs] )", plain(SETTINGS), re.MULTILINE | re.DOTALL))
    for path, table in tables().items():
        heading = "[[actions]]" if path[0] == "actions" else f"[{'.'.join(path)}]"
        for name in keys(table):
            if (*path, name) not in tables() or path == ("actions",):
                assert f".It Cm {name} No " in parts[heading]


def test_every_option_of_a_built_in_source_stands_below_its_name() -> None:
    source = plain(SETTINGS).partition(".Ss [source]\n")[2].partition("\n.Ss ")[0]
    for name, plugin in plugins.available(plugins.SOURCES).items():
        if plugin.reference.startswith("edge_agent."):
            part = source.partition(f'.Cm plugin = "{name}" :')[2].partition(".Cm plugin =")[0]
            for field in dataclasses.fields(plugins.load(plugin).Options):
                assert f".It Cm {field.name} No " in part


def test_every_command_and_option_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Compared with the help texts, as a person does who looks for an option in the manual."""
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["--help"])
    commands = re.findall(r"^    ([a-z][\w-]*)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert {"run", "check-config"} <= set(commands)
    synopsis, described = section(COMMANDS, "SYNOPSIS"), section(COMMANDS, "COMMANDS")
    for command in commands:
        with pytest.raises(SystemExit):
            cli.parser().parse_args([command, "--help"])
        options = set(re.findall(r"^  +--([\w-]+)", capsys.readouterr().out, re.MULTILINE)) - {"help"}
        usage = synopsis.partition(f".Cm {command}\n")[2].partition(".Nm")[0]
        part = re.split(rf"^\.It Cm {command}\n", described, flags=re.MULTILINE)[1].partition("\n.It Cm ")[0]
        for option in options:
            assert f"Fl -{option}" in usage
            assert f".It Fl -{option}" in part


def test_every_exit_status_is_there() -> None:
    documented = set(re.findall(r"^\.It (\d+)", section(COMMANDS, "EXIT STATUS"), re.MULTILINE))
    used = {str(getattr(os, name)) for name in re.findall(r"\bos\.(EX_\w+)", CODE)}
    control = {str(kind.exit_status) for kind in ControlError.__subclasses__()}
    assert {"73", "75", "78"} <= used
    assert (used | control) - {str(os.EX_OK)} <= documented


def test_every_environment_variable_is_there() -> None:
    names = set(re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', CODE)) - {"PATH"}
    documented = section(COMMANDS, "ENVIRONMENT")
    assert {"STATE_DIRECTORY", "PUBSUB_EMULATOR_HOST", "CREDENTIALS_DIRECTORY"} <= names
    assert {name for name in names if not re.search(rf"^\.It Ev .*\b{name}\b", documented, re.MULTILINE)} == set()


def test_the_examples_of_settings_are_good(tmp_path: Path) -> None:
    files = [block for block in blocks(SETTINGS) if block.startswith(("[device]", "[source]"))]
    assert len(files) == 2
    for text in files:
        file = tmp_path / "edge-agent.toml"
        file.write_text(text)
        assert str(load(file, {}).telemetry.sink).startswith("pubsub://")


def test_the_examples_of_conditions_are_good(tmp_path: Path) -> None:
    whens = [block for block in blocks(SETTINGS) if block.startswith("when")]
    parts = (ROOT / "packaging/man/example.toml").read_text(encoding="utf-8").partition("[[actions]]")[0]
    file, met = tmp_path / "edge-agent.toml", []
    for number, when in enumerate(whens):
        task = next(name for key, name in TASKS.items() if key in when)
        counted = "top_k = 10\n" if task == "detection" else ""
        text = parts.replace("[inference]\n", f'[inference]\ntask = "{task}"\n{counted}')
        file.write_text(f'{text}[[actions]]\nname = "{number}"\nrun = ["beep"]\n{when}\n')
        met += load(file, {}).actions
    assert [action.when.hold for action in met] == [0.0, 10.0, 0.0, 0.0]


def test_the_examples_of_variables_are_good(tmp_path: Path) -> None:
    lines = [line for block in blocks(SETTINGS) for line in block.splitlines() if line.startswith("EDGE_AGENT_")]
    variables = dict(line.replace("'", "").split("=", 1) for line in lines)
    file = tmp_path / "edge-agent.toml"
    file.write_text(next(block for block in blocks(SETTINGS) if block.startswith("[source]")))
    settings = load(file, variables)
    assert settings.telemetry.queue.max_size == 1_000_000_000
    assert settings.source.options["path"] == "/srv/other"
    assert settings.inference.labels == ["good", "scratch", "dent"]


def test_units_in_the_text_are_those_that_are_understood(tmp_path: Path) -> None:
    written = re.findall(r'^\.Li "([^"]+)"', section(SETTINGS, "DESCRIPTION"), re.MULTILINE)
    assert written == ["200ms", "10s", "1h30m", "500kB", "256MB", "1GiB"]
    units = re.findall(r"^\.Li ((?:us|kB|KiB) .*)$", section(SETTINGS, "DESCRIPTION"), re.MULTILINE)
    names = [unit for line in units for unit in re.findall(r"\w+", line)] + ["h", "d", "B"]
    for unit in names:
        key = "[telemetry.queue]\nmax_size" if unit.endswith("B") else "[model]\npoll_interval"
        value = f"{10**9 if unit in {'us', 'ms', 'B', 'kB'} else 1000}{unit}"
        file = tmp_path / "edge-agent.toml"
        file.write_text(f'{key} = "{value}"\n')
        with pytest.raises(NotSetUp):  # and no other fault
            load(file, {})


@pytest.fixture
def well(tmp_path: Path) -> Snapshot:
    """An agent without trouble, as the page shows it."""
    file = tmp_path / "edge-agent.toml"
    file.write_text(
        '[source]\nplugin = "vibration"\n[model]\nurl = "gs://bucket/vibration-classifier.tflite"\n'
        '[telemetry]\nsink = "pubsub://your-project/inference-results"\n'
    )
    result = ResultEvent(
        event_id="edge-001/1/1",
        device_id="edge-001",
        timestamp=1,
        time_source="synchronized",
        results=[Score("normal", 0.99, 0)],
        prediction="normal",
        confidence=0.99,
        inference_time_ms=2.0,
        model_name="vibration-classifier",
        model_version="v1.3",
        accelerator="edgetpu",
        clipped=0.0,
    )
    return Snapshot(
        settings=load(file, {}),
        device_id="edge-001",
        latencies=[],
        worker=WorkerStatus(state="running", source="open"),
        model=RolloutStatus(
            version="v1.3",
            state="running",
            waiting=None,
            refusal="",
            last_poll="v1.3 is the newest",
            failures=0,
            next_poll=60.0,
            rejected=None,
        ),
        sender=SenderState("sending", "", 0.0, 100, 1, 0),
        latest=result,
        rate=10.0,
        waiting=0,
        oldest=0.0,
        queue_size=0,
        dropped=0,
        queue_trouble=None,
        uploads=UploadsState(),
        reload_problem=None,
        time_source="synchronized",
        device_problems=[],
        now=0.0,
    )


def test_the_lines_of_the_status_are_those_of_the_code(well: Snapshot) -> None:
    shown = [" ".join(block.split()) for block in blocks(COMMANDS)]
    offline = dataclasses.replace(
        well,
        sender=SenderState(
            "offline", "pubsub://your-project/inference-results: Pub/Sub cannot be reached", 0.0, 0, 0, 9
        ),
        waiting=4711,
        oldest=7200.0,
    )
    assert status_line(well) in shown
    assert status_line(offline) in shown
    assert IDLE in shown


def board_in_trouble() -> Troubles:
    """Return what is said of a board on which nothing is as it should be."""
    troubles = Troubles()
    troubles.take(
        Readings(
            undervoltage=True,
            cpu=Heat(90.0, 80.0),
            edgetpu=Heat(100.0, 85.0),
            disk=FileSystem(total=100, free=1, read_only=False, device="8:1"),
            battery=Battery(charge_percent=1),
        )
    )
    return troubles


def test_every_trouble_of_the_status_is_explained(well: Snapshot) -> None:
    all_wrong = dataclasses.replace(
        well,
        model=msgspec.structs.replace(well.model, refusal="v2 waits: the device is gone"),
        worker=WorkerStatus(
            state="restarting",
            source="trouble: unplugged",
            last_death="killed",
            failure="no match",
            waiting="no device",
            report=LoadReport(accepted=True, degraded="why"),
        ),
        sender=SenderState("offline", "cannot be reached", 0.0, 0, 0, 9),
        queue_trouble="the disk is full",
        uploads=UploadsState(trouble="no permission"),
        reload_problem="a mistake",
        time_source="unverified",
        device_problems=[SILENT, *board_in_trouble().problems],
    )
    explained = re.findall(r"^\.It (.+)$", section(COMMANDS, "STATUS"), re.MULTILINE)
    leads = tuple(lead for tag in explained for lead in tag.split(" , "))
    over_budget = dataclasses.replace(well, sender=SenderState("over_budget", "used up", 0.0, 0, 0, 0))
    told = problems(all_wrong) + problems(over_budget)
    assert len(told) == 10 + 1 + 1 + len(STATES) + 1
    assert [problem for problem in told if not problem.startswith(leads)] == []


def test_every_file_of_the_state_directory_is_there() -> None:
    files = section(COMMANDS, "FILES")
    told = re.findall(rf"^\.It Pa {cli.STATE_DIRECTORY}/([\w.-]+)", files, re.MULTILINE)
    assert {"queue", "models", FOLDER, RUNTIMES_FILE, METER_FILE, BOOTS_FILE} <= set(told)


def test_every_page_of_the_package_is_there() -> None:
    pages = re.findall(r"([\w-]+\.md)$", (ROOT / "debian/edge-agent.docs").read_text(), re.MULTILINE)
    told = re.findall(r"([\w-]+\.md)\.gz", section(COMMANDS, "SEE ALSO"))
    assert sorted(told) == sorted(pages)


def test_a_setting_without_a_place_in_the_template_is_an_error(generator: ModuleType) -> None:
    assert generator.filled("a @{x} b @{y}", {"x": "1"}, {"y": "2"}) == "a 1 b 2"
    with pytest.raises(ValueError, match="one place each for z"):
        generator.filled("a @{x}", {"x": "1", "z": "3"}, {})
    with pytest.raises(ValueError, match="one place each for x"):
        generator.filled("a @{x} @{x}", {"x": "1"}, {})
    with pytest.raises(KeyError, match="unknown"):
        generator.filled("a @{unknown}", {}, {})


def test_the_template_of_the_example_is_toml() -> None:
    assert len(tomllib.loads((ROOT / "packaging/man/example.toml").read_text())["actions"]) == 2
