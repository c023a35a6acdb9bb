"""`edge-agent run` in operation: its control socket, what it reports of itself, and the credentials it is given."""

import os
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_agent.daemon import use_credentials_of_systemd
from edge_agent.report import StatusReport
from edge_agent.service.control_client import CONTROL_SOCKET
from tests.agentprocess import PATIENCE, AgentProcess

MODEL = Path(__file__).parents[1] / "edge_agent/demo/vibration_classifier.tflite"
# Watched this closely by systemd, the agent counts and tells its status twice a second.
WATCHED = {"WATCHDOG_USEC": "1000000"}

SETTINGS = f"""\
[device]
id = "edge-001"

[source]
plugin = "vibration"
rate = 50

[model]
url = "{MODEL}"
name = "vibration"

[inference]
accelerator = "cpu"

[telemetry]
sink = "events.jsonl"
"""


def results(report: StatusReport) -> int:
    return report.results.samples if report.results else 0


# ------------------------------------------------------------------------------------------ what it reports


def test_a_running_agent_reports_every_part_of_it(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS, WATCHED) as agent:
        report = agent.wait_for_report(
            lambda report: (
                report.results
                and report.results.rate > 0
                and report.sending
                and report.sending.sent
                and report.queue
                and report.queue.size > 0
            ),
            "a rate, events that were sent, and others that wait",
        )
        assert (report.state, report.device_id, report.config) == ("running", "edge-001", str(agent.config))
        assert report.uptime is not None
        assert report.uptime > 0
        assert report.clock in {"synchronized", "unverified"}
        assert report.source is not None
        assert (report.source.plugin, report.source.state) == ("vibration", "open")
        assert report.model is not None
        assert (report.model.name, report.model.version) == ("vibration", "v1")
        assert report.accelerator is not None
        assert (report.accelerator.asked, report.accelerator.used, report.accelerator.degraded) == ("cpu", "cpu", None)
        assert report.accelerator.runtime
        assert report.results is not None
        assert report.results.prediction in {"normal", "warning", "failure"}
        assert report.queue is not None
        assert report.queue.max_size == 256_000_000
        assert report.sending is not None
        assert report.sending.state in {"idle", "sending"}
        assert report.sending.sink == f"file://{tmp_path}/events.jsonl"
        assert report.worker is not None
        assert (report.worker.state, report.worker.deaths) == ("running", 0)
        assert set(report.problems) <= {"the clock is not set yet"}


def test_the_summary_is_what_systemd_shows(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS, WATCHED) as agent:
        report = agent.wait_for_report(lambda report: "on cpu" in report.summary, "a result")
        assert "vibration v1 on cpu, " in report.summary
        agent.wait_for_notice("vibration v1 on cpu, ")


def test_the_death_of_a_worker_shows(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS) as agent:
        before = agent.wait_for_report(results, "results")
        agent.wait_until(lambda: len(agent.pids) == 2, "a worker alone")
        [_, worker] = agent.pids
        os.kill(worker, signal.SIGKILL)
        after = agent.wait_for_report(lambda report: results(report) > results(before) + 10, "results again")
        assert after.worker is not None
        assert after.worker.deaths == 1
        assert after.worker.last_death.startswith("killed by SIGKILL")
        assert "died 1 time since the start, the last time: killed by SIGKILL" in agent.command("status").stdout


def test_the_worker_goes_first_when_memory_runs_out(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS) as agent:
        agent.wait_for_report(results, "results")
        agent.wait_until(lambda: len(agent.pids) == 2, "a worker alone")
        main, worker = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in agent.pids)
        assert main == int(Path("/proc/self/oom_score_adj").read_text())
        assert worker == 500


def test_several_problems_come_in_order(tmp_path: Path) -> None:
    (tmp_path / "blocked").touch()
    settings = SETTINGS.replace('"events.jsonl"', '"blocked/events.jsonl"')
    with AgentProcess(tmp_path, settings) as agent:
        agent.wait_for_report(lambda report: report.sending and report.sending.state == "needs_person", "trouble")
        agent.configure("[source\n")
        assert agent.command("reload").returncode == os.EX_CONFIG
        problems = agent.report().problems
        assert problems[0].startswith(f"events are not sent: cannot write {tmp_path}/blocked/events.jsonl: ")
        assert problems[1].startswith(f"reload refused: {agent.config}:1: no valid TOML")
        report = agent.wait_for_report(lambda report: report.queue and report.queue.waiting, "events that wait")
        assert report.summary.startswith(f"{problems[0]}; {problems[1]}; ")

        text = agent.command("status").stdout.splitlines()
        assert text[1] == f"problem      {problems[0]}"
        assert text[2] == f"problem      {problems[1]}"

        # Whoever has mended it needs not wait.
        (tmp_path / "blocked").unlink()
        agent.configure(settings)
        assert agent.command("reload").returncode == 0
        agent.wait_for_report(lambda report: report.sending and report.sending.sent, "events that were sent")


# ------------------------------------------------------------------------------------------ the control socket


def test_the_socket_is_for_the_owner_and_the_group_and_goes_with_the_agent(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS) as agent:
        agent.wait_for("edge-agent starting")
        path = agent.runtime / CONTROL_SOCKET
        assert path.stat().st_mode & 0o777 == 0o660
        assert agent.stop() == 0
        assert not path.exists()


def test_without_a_runtime_directory_it_is_in_the_state_directory(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS, {"RUNTIME_DIRECTORY": ""}) as agent:
        agent.wait_for("edge-agent starting")
        assert (tmp_path / "state" / CONTROL_SOCKET).is_socket()
        assert agent.stop() == 0


def test_what_a_killed_agent_left_is_replaced(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS) as agent:
        agent.wait_for_report(results, "results")
        agent.kill()
        assert (agent.runtime / CONTROL_SOCKET).is_socket()
        assert agent.command("status").returncode == 3
        agent.start()
        agent.wait_for_report(results, "results")
        assert agent.stop() == 0


def test_a_second_agent_does_not_take_the_socket_of_the_first(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS) as first:
        first.wait_for_report(results, "results")
        with AgentProcess(tmp_path / "second", SETTINGS, {"RUNTIME_DIRECTORY": str(first.runtime)}) as second:
            second.wait_for("no control socket, so no status and no reload by command")
            second.wait_for("another process listens there")
            second.wait_for("prediction")  # it works all the same
            assert second.stop() == 0
        assert first.report().config == str(first.config)


def test_asking_an_idle_service_twice_ends_it_at_once(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, "") as agent:
        agent.wait_for_notice("READY=1")
        # Both signals are there when it goes on, so that it cannot be done before the second.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            agent.send(number)
        assert agent.process is not None
        assert agent.process.wait(PATIENCE) in {128 + signal.SIGINT, 128 + signal.SIGTERM}


def test_a_reload_that_the_end_cuts_off_says_nothing_of_the_settings(tmp_path: Path) -> None:
    with AgentProcess(tmp_path, SETTINGS) as agent:
        agent.wait_for("prediction")
        _, worker = agent.pids
        ended = os.pidfd_open(worker)
        try:
            agent.configure(SETTINGS + "raw_data = 1\n")
            with ThreadPoolExecutor(1) as pool:
                reload = pool.submit(agent.command, "reload")
                assert select.select([ended], [], [], PATIENCE)[0]
                # The new worker needs the agent to become ready, which finds the signal when it goes on.
                for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
                    agent.send(number)
                assert reload.result().returncode == os.EX_TEMPFAIL
        finally:
            os.close(ended)
        assert agent.process is not None
        assert agent.process.wait(PATIENCE) == 0
        agent.wait_for("stopped")
        assert "cannot work with them" not in agent.said


# ------------------------------------------------------------------------------------------ credentials


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that systemd passes on, with no other credentials around."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")  # so that it is taken back in any case
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    file = tmp_path / "credentials" / "google-credentials.json"
    file.parent.mkdir()
    file.write_text("not what Google gives")
    return file


def test_the_credentials_that_systemd_passes_on_are_used(credentials: Path) -> None:
    use_credentials_of_systemd()
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(credentials)


def test_other_credentials_win(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/other.json")
    use_credentials_of_systemd()
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == "/other.json"


def test_credentials_that_are_not_there_are_no_fault(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials.unlink()
    use_credentials_of_systemd()
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    use_credentials_of_systemd()
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ


def test_google_gets_the_credentials_and_no_child_does(tmp_path: Path, credentials: Path) -> None:
    settings = SETTINGS.replace('"events.jsonl"', '"pubsub://project/topic"') + (
        '[[actions]]\nname = "tell"\nwhen = { label = "normal" }\n'
        'run = ["sh", "-c", "env > env.txt; mv env.txt told"]\n'
    )
    with AgentProcess(tmp_path / "agent", settings, {"PUBSUB_EMULATOR_HOST": ""}) as agent:
        agent.wait_for_report(
            lambda report: any(str(credentials) in text for text in report.problems), "Google's word on the credentials"
        )
        agent.wait_until(lambda: len(agent.pids) == 2, "a worker alone")
        worker = Path(f"/proc/{agent.pids[1]}/environ").read_bytes().split(b"\0")
        assert not [entry for entry in worker if b"CREDENTIALS" in entry]
        assert any(entry.startswith(b"PATH=") for entry in worker)
        told = tmp_path / "agent/told"
        agent.wait_until(told.exists, "environment of the action")
        assert "CREDENTIALS" not in told.read_text()
        assert agent.stop() == 0
