"""Plugins of others, really installed with pip: found by entry point, and a broken one is a reason, never a crash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agentprocess import AgentProcess, edge_agent

PROJECTS = Path(__file__).parent
MODEL = PROJECTS.parents[1] / "edge_agent/demo/vibration_classifier.tflite"

SETTINGS = f"""\
[source]
plugin = "pump"
path = "bars"
every = "10ms"

[model]
url = "{MODEL}"

[inference]
labels = ["normal", "warning", "failure"]

[telemetry]
sink = "events.jsonl"
"""

BROKEN = {
    "no-driver": "plugin 'no-driver' of acme-broken 0.3 cannot be imported: "
    "ModuleNotFoundError: No module named 'acme_driver'",
    "no-options": "plugin 'no-options' declares no usable Options: PydanticUndefinedAnnotation: "
    "name 'SerialPort' is not defined",
    "crashing": "the check of the plugin's options was killed by SIGABRT; its last lines: libacme: firmware too old",
}


def install(folder: Path, *projects: str) -> str:
    """Install projects into a folder, from copies and without the network; return it as an entry of PYTHONPATH."""
    sources = [str(shutil.copytree(PROJECTS / project, folder / "src" / project)) for project in projects]
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", "--target", str(target), *sources],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a good plugin and a distribution of broken ones are installed."""
    return install(tmp_path_factory.mktemp("plugins"), "acme_pump", "acme_broken")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the settings, with what the pump's controller writes."""
    (tmp_path / "bars").write_text("0.5\n" * 128)
    return tmp_path


def check(folder: Path, text: str, path: str) -> tuple[int, str]:
    """Return exit status and words of `edge-agent check-config`."""
    (folder / "edge-agent.toml").write_text(text)
    done = edge_agent("check-config", folder / "edge-agent.toml", cwd=folder, PYTHONPATH=path)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def test_its_options_are_checked_like_those_of_our_own(site: str, folder: Path) -> None:
    assert check(folder, SETTINGS, site)[0] == 0
    status, said = check(folder, SETTINGS.replace('every = "10ms"', 'every = "0s"\npaht = "bars"'), site)
    assert status == os.EX_CONFIG
    assert "edge-agent.toml:4: [source].every: must be at least 1ms" in said
    assert "edge-agent.toml:5: [source].paht: unknown key (did you mean 'path'?)" in said


def test_without_it_the_others_are_named(folder: Path) -> None:
    status, said = check(folder, SETTINGS, "")
    assert status == os.EX_CONFIG
    assert "edge-agent.toml:2: [source].plugin: no such plugin; installed are: " in said


def test_two_distributions_that_claim_one_name(site: str, folder: Path, tmp_path: Path) -> None:
    both = os.pathsep.join((site, install(tmp_path / "clone", "acme_clone")))
    status, said = check(folder, SETTINGS, both)
    assert status == os.EX_CONFIG
    assert "plugin 'pump' comes from acme-pump 2.1 and acme-clone 1.0; uninstall one of them" in said


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_told_with_its_reason(site: str, folder: Path, name: str) -> None:
    status, said = check(folder, SETTINGS.replace('"pump"', f'"{name}"'), site)
    assert status == os.EX_CONFIG
    assert f"edge-agent.toml:2: [source].plugin: {BROKEN[name]}" in said


@pytest.mark.system
def test_a_running_agent_refuses_broken_plugins_and_goes_on(site: str, folder: Path) -> None:
    events = folder / "events.jsonl"
    with AgentProcess(folder, SETTINGS, {"PYTHONPATH": site}) as agent:
        agent.wait_for_report(lambda report: report.results and report.results.prediction == "normal", "results")
        for name, reason in BROKEN.items():
            agent.configure(SETTINGS.replace('"pump"', f'"{name}"'))
            answer = agent.command("reload")
            assert answer.returncode == os.EX_CONFIG
            assert reason in answer.stdout + answer.stderr
            assert any("reload refused" in problem and reason in problem for problem in agent.report().problems)
        written = events.stat().st_size
        agent.wait_until(lambda: events.stat().st_size > written, "more results of the old plugin")
        agent.configure(SETTINGS.replace("10ms", "20ms"))
        assert agent.command("reload").returncode == 0
        report = agent.report()
        assert report.worker is not None
        assert (report.worker.deaths, [p for p in report.problems if "reload" in p]) == (0, [])
        assert agent.stop() == 0


def test_the_tests_of_the_plugin_itself(site: str, tmp_path: Path) -> None:
    tests = shutil.copytree(PROJECTS / "acme_pump/tests", tmp_path / "tests")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": site},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
