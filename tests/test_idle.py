"""A fresh installation: the service is up, says what it waits for, and goes to work when that is given."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from edge_agent.configuration import load_configuration
from edge_agent.idle import ESSENTIAL, Idle
from edge_agent.lifecycle import Lifecycle
from edge_agent.report import Reloaded, StatusReport
from edge_agent.service.control_client import CONTROL_SOCKET, ask
from edge_agent.settings.faults import NotSetUp
from edge_agent.settings.loading import load
from tests.agentprocess import PATIENCE, AgentProcess
from tests.settings.distributions import install

ROOT = Path(__file__).parents[1]
SHIPPED = (ROOT / "config/edge-agent.toml").read_text()
MODEL = ROOT / "edge_agent/demo/vibration_classifier.tflite"
GIVEN = {"plugin": "vibration", "url": str(MODEL), "sink": "events.jsonl"}
# Watched this closely by systemd, the service is heard of twice a second.
WATCHED = {"WATCHDOG_USEC": "1000000"}


def set_up(*keys: str) -> str:
    """The shipped file with these lines of it taken into use."""
    lines = SHIPPED.splitlines(keepends=True)
    for key in keys:
        [number] = [number for number, line in enumerate(lines) if line.startswith(f"# {key} = ")]
        lines[number] = f'{key} = "{GIVEN[key]}"\n'
    return "".join(lines)


def test_a_fresh_installation_is_up_and_says_what_is_missing(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SHIPPED, WATCHED) as agent:
        agent.wait_for_notice("WATCHDOG=1", times=3)
        line = f"not set up yet: [source].plugin, [model].url and [telemetry].sink are missing in {agent.config}"
        assert agent.notices[0] == f"STATUS={line}\nREADY=1"
        advice = (
            f"not set up yet: give [source].plugin, [model].url, [telemetry].sink in {agent.config}, "
            "then: systemctl reload edge-agent"
        )
        report = agent.report()
        assert (report.state, report.summary, report.problems) == ("idle", line, [advice])
        assert agent.command("status").stdout.splitlines()[0].endswith(", idle")
        assert f"problem      {advice}\n" in agent.command("status").stdout
        [said] = agent.lines
        assert "WARNING waiting for settings" in said
        assert agent.pids == [agent.process.pid if agent.process else None]
        assert agent.stop() == 0
        assert not agent.runtime.joinpath(CONTROL_SOCKET).exists()


def test_it_goes_to_work_without_a_restart(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SHIPPED, WATCHED) as agent:
        agent.wait_for_notice("READY=1")

        agent.configure(set_up("url"))
        done = agent.command("reload")
        line = f"not set up yet: [source].plugin and [telemetry].sink are missing in {agent.config}"
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{line}\n", "")
        assert agent.report().summary == line
        agent.wait_for_notice(f"STATUS={line}")
        agent.wait_for("still waiting for settings")

        agent.configure(set_up("url").replace('# level = "info"', 'level = "loud"\ncolour = "pink"'))
        number = set_up("url").splitlines().index('# level = "info"') + 1
        faults = [
            f'{agent.config}:{number}: [log].level: expected "debug", "info", "warning" or "error", not "loud"',
            f"{agent.config}:{number + 1}: [log].colour: unknown key; known here: format, level",
        ]
        refused = agent.command("reload")
        assert (refused.returncode, refused.stdout) == (os.EX_CONFIG, "")
        assert [fault for fault in faults if fault not in refused.stderr.splitlines()] == []
        report = agent.report()
        assert (report.state, report.summary) == ("idle", f"settings refused: {faults[0]}; {line}")
        assert report.problems[0] == f"settings refused: {faults[0]}"
        agent.wait_for_notice(f"STATUS={report.summary}")
        for fault in faults:
            agent.wait_for(f"ERROR {fault}")

        agent.configure(set_up("url"))
        assert agent.command("reload").returncode == 0
        assert agent.report().summary == line  # what was wrong is forgotten

        agent.configure(set_up("plugin", "url", "sink") + "colour = 1\n")
        refused = agent.command("reload")
        assert refused.stderr.splitlines()[-1] == f"not set up yet: {agent.config} has mistakes"
        assert agent.report().problems[1] == f"not set up yet: mend {agent.config}, then: systemctl reload edge-agent"

        agent.configure(set_up("plugin", "url", "sink"))
        done = agent.command("reload")
        assert (done.returncode, done.stdout, done.stderr) == (0, "settings complete, starting to work\n", "")
        report = agent.wait_for_report(lambda report: report.results and report.results.samples, "results")
        assert report.state == "running"
        assert agent.process is not None
        assert agent.process.poll() is None
        assert not [text for text in report.problems if "set up" in text or "refused" in text]
        agent.wait_until((tmp_path / "events.jsonl").exists, "events")
        assert agent.stop() == 0


def test_it_waits_for_what_has_no_default(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    with pytest.raises(NotSetUp) as caught:
        load(tmp_path / "empty.toml", {})
    assert caught.value.missing == list(ESSENTIAL)


def test_a_hangup_signal_has_it_look_again(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SHIPPED) as agent:
        agent.wait_for_notice("READY=1")
        agent.configure(set_up("plugin", "url"))
        agent.reload()
        agent.wait_for_notice(f"not set up yet: [telemetry].sink is missing in {agent.config}")
        agent.configure("[source\n")
        agent.reload()
        agent.wait_for(f"ERROR {agent.config}:1: no valid TOML")
        agent.configure(set_up("plugin", "url", "sink"))
        agent.reload()
        agent.wait_for("prediction")
        assert agent.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_when_told(tmp_path: Path, number: signal.Signals) -> None:
    with AgentProcess(tmp_path, SHIPPED) as agent:
        agent.wait_for_notice("READY=1")
        assert agent.stop(number) == 0
        assert f"signal={number.name}" in agent.said


def test_wrong_settings_at_the_start_are_not_waited_for(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, set_up("plugin").replace("vibration", "vibratoin")) as agent:
        assert agent.process is not None
        assert agent.process.wait(PATIENCE) == os.EX_CONFIG
        agent.wait_for("[source].plugin: no such plugin (did you mean 'vibration'?)")
        agent.wait_for("[telemetry].sink: is missing")
        assert agent.notices == []


# ------------------------------------------------------------------------------------------ in this process


class SlowCheck:
    """The check of a plugin's options that waits for permission to go on."""

    def __init__(self, folder: Path) -> None:
        self._begun, self._go = folder / "begun", folder / "go"
        os.mkfifo(self._begun)
        os.mkfifo(self._go)

    def begun(self) -> None:
        """Wait until it has begun."""
        self._begun.read_text()

    def go_on(self) -> None:
        """Let it go on to its end."""
        self._go.write_text("on")


@pytest.fixture
def slow_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlowCheck:
    """Install the plugin `slow`."""
    code = f"""\
        import dataclasses, pathlib
        from edge_agent.sources.base import Source
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Options:
            def check(self):
                pathlib.Path({str(tmp_path / "begun")!r}).write_text("now")
                pathlib.Path({str(tmp_path / "go")!r}).read_text()
        class Slow(Source):
            Options = Options
            read = print
    """
    install(tmp_path, "acme", modules={"acme": code}, plugins={"slow": "acme:Slow"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return SlowCheck(tmp_path)


async def not_set_up(file: Path) -> NotSetUp:
    with pytest.raises(NotSetUp) as caught:
        await load_configuration(file, {})
    return caught.value


def test_who_asks_while_it_leaves_is_answered_by_the_agent(tmp_path: Path, slow_check: SlowCheck) -> None:
    file, socket = tmp_path / "edge-agent.toml", tmp_path / CONTROL_SOCKET
    file.write_text(SHIPPED)

    async def run() -> None:
        lifecycle = Lifecycle(socket)
        await lifecycle.start()
        idle = asyncio.create_task(Idle(file, await not_set_up(file), lifecycle).run())
        try:
            file.write_text(set_up("url", "sink").replace('# plugin = "vibration"', 'plugin = "slow"'))
            first = asyncio.create_task(asyncio.to_thread(ask, socket, "reload", PATIENCE))
            await asyncio.to_thread(slow_check.begun)
            second = asyncio.create_task(asyncio.to_thread(ask, socket, "reload", PATIENCE))
            async with asyncio.timeout(PATIENCE):
                while not lifecycle._askers:  # noqa: ASYNC110  nobody sets an event when a request has been read
                    await asyncio.sleep(0)
            await asyncio.to_thread(slow_check.go_on)
            assert await first == {"faults": [], "outcome": "settings complete, starting to work"}
            async with asyncio.timeout(PATIENCE):
                assert await idle is not None
            # The agent's turn.
            agent = asyncio.create_task(lifecycle.serve_reloads(agent_reload, lambda: "running"))
            assert await second == {"faults": [], "outcome": "answered by the agent"}
            agent.cancel()
            await asyncio.gather(agent, return_exceptions=True)
        finally:
            idle.cancel()
            await lifecycle.close()

    async def agent_reload() -> Reloaded:
        return Reloaded([], "answered by the agent")

    asyncio.run(run())


def test_once_it_has_all_it_advises_nothing_more(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.toml"
    file.write_text(SHIPPED)

    async def run() -> None:
        lifecycle = Lifecycle(tmp_path / CONTROL_SOCKET)
        idle = Idle(file, await not_set_up(file), lifecycle)
        task = asyncio.create_task(idle.run())
        await lifecycle.start()
        try:
            file.write_text(set_up("plugin", "url", "sink"))
            assert await asyncio.to_thread(ask, tmp_path / CONTROL_SOCKET, "reload", PATIENCE)
            assert await task is not None
            # No agent has taken over yet.
            answer = await asyncio.to_thread(ask, tmp_path / CONTROL_SOCKET, "status", PATIENCE)
            report = msgspec.convert(answer, StatusReport)
            assert (report.state, report.summary, report.problems) == ("idle", "starting", [])
        finally:
            await lifecycle.close()

    asyncio.run(run())
